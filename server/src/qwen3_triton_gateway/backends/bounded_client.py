"""tritonclient's HTTP client with a bound on what it reads of an answer.

By itself it reads a body to its end, so that whatever listens at Triton's address could take all
memory. gRPC has a bound of its own (`TritonAddress.open_client`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp
from tritonclient.http import aio as http_client

from ..errors import AnswerTooLargeError, BackendError

# What the answer to this task's inference may have.
_answer_bytes: ContextVar[int] = ContextVar("answer_bytes", default=0)
# Otherwise, aiohttp accepts gzip, and Triton uses it: compressing hidden states takes three times
# as long as computing them (`bench/README.md`).
UNCOMPRESSED = {"Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What tritonclient uses of aiohttp's response; the body has been read."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    async def read(self) -> bytes:
        return self.body


# Its methods have no types.
Client: Any = http_client.InferenceServerClient


class BoundedClient(Client):
    """A client that reads an answer up to a limit, and refuses a larger one.

    Every call goes through `_get` or `_post`, which are not public (checked on tritonclient 2.73;
    `test_triton_proxy.py` fails if they move).
    """

    def __init__(self, url: str, *, metadata_bytes: int, **options: Any) -> None:
        parent: Any = super()
        parent.__init__(url, **options)
        self._metadata_bytes = metadata_bytes

    async def infer(self, *arguments: Any, answer_bytes: int, **options: Any) -> Any:
        """Run a batch whose answer has `answer_bytes` at most."""
        parent: Any = super()
        token = _answer_bytes.set(answer_bytes)
        try:
            return await parent.infer(*arguments, **options)
        finally:
            _answer_bytes.reset(token)

    async def _get(
        self, request_uri: str, headers: dict[str, str] | None, query_params: Any
    ) -> Answer:
        parent: Any = super()
        headers = {**(headers or {}), **UNCOMPRESSED}
        return await self._read(await parent._get(request_uri, headers, query_params))

    async def _post(
        self, request_uri: str, request_body: Any, headers: dict[str, str] | None, query_params: Any
    ) -> Answer:
        parent: Any = super()
        headers = {**(headers or {}), **UNCOMPRESSED}
        response = await parent._post(request_uri, request_body, headers, query_params)
        return await self._read(response)

    async def _read(self, response: aiohttp.ClientResponse) -> Answer:
        """Read a body up to its bound, and close the connection if there is more.

        Raises:
            AnswerTooLargeError: There is more.
            BackendError: It is compressed.
        """
        is_error = response.status != HTTPStatus.OK
        limit = self._metadata_bytes if is_error else _answer_bytes.get() or self._metadata_bytes
        parts: list[bytes] = []
        is_too_large = (response.content_length or 0) > limit
        is_complete, size = False, 0
        try:
            while not is_too_large and (part := await response.content.readany()):
                size += len(part)
                is_too_large = size > limit
                parts.append(part)
            is_complete = not is_too_large
        finally:
            if is_complete:
                response.release()
            else:
                response.close()
        if is_too_large and not is_error:  # of an error, the status says enough
            raise AnswerTooLargeError(limit)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            # tritonclient would decompress it without a bound.
            msg = (
                "Triton's answer is compressed, although the gateway asked for it as it is. Turn "
                "compression off in the proxy between them."
            )
            raise BackendError(msg)
        return Answer(response.status, response.headers, b"".join(parts))
