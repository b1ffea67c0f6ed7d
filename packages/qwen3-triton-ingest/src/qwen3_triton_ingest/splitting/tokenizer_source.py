"""The served model's tokenizer: from a file, or from the gateway itself."""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus
from pathlib import Path

import httpx2
from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_exponential,
    wait_random,
)

from qwen3_triton_client import AuthenticationError, ClientSettings, EmbeddingConnectionError

from ..config import GatewayOptions, SplitOptions
from ..errors import IngestError

__all__ = ["load_tokenizer"]

FILE_NAME = "tokenizer.json"
ROUTE = "/tokenizer"
TIMEOUT_SECONDS = 30.0
_LFS_POINTER = b"version https://git-lfs"
_PASSING = frozenset({429, 502, 503, 504})
_REFUSED = frozenset({401, 403})


def load_tokenizer(
    options: SplitOptions, gateway: GatewayOptions, *, retry_seconds: float = 60.0
) -> bytes:
    """Read the `tokenizer.json` that chunks are measured with; empty where nothing is cut.

    Args:
        options: May name a file, or the folder that it is in.
        gateway: Asked for its tokenizer where no file is named.
        retry_seconds: How long a gateway may be away.

    Raises:
        IngestError: The file is not there or none, or the gateway has no such route.
        AuthenticationError: The gateway wants another key.
        EmbeddingConnectionError: The gateway cannot be reached, or stayed away.
        ValueError: The gateway's URL or key cannot be one.
    """
    if options.tokenizer_path is not None:
        return _read(Path(options.tokenizer_path))
    if not options.chunk_tokens:
        return b""
    known = ClientSettings()
    settings = replace(
        known,
        base_url=gateway.url or known.base_url,
        api_key=gateway.api_key or known.api_key,
    )
    retrying = Retrying(
        retry=retry_if_exception_type(EmbeddingConnectionError),
        stop=stop_after_delay(retry_seconds),
        wait=wait_exponential(0.2, 5.0) + wait_random(0, 0.1),
        reraise=True,
    )
    return retrying(_fetch, settings)


def _read(path: Path) -> bytes:
    file = path / FILE_NAME if path.is_dir() else path
    try:
        content = file.read_bytes()
    except OSError as error:
        msg = (
            f"`tokenizer_path`: {file} cannot be read ({error.strerror}); name the served model's "
            f"{FILE_NAME}, or leave it out to ask the gateway"
        )
        raise IngestError(msg) from None
    if content.startswith(_LFS_POINTER):
        msg = f"`tokenizer_path`: {file} is a Git LFS pointer; fetch the file with `git lfs pull`"
        raise IngestError(msg)
    return content


def _fetch(settings: ClientSettings) -> bytes:
    url = settings.base_url + ROUTE
    headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
    try:
        response = httpx2.get(url, headers=headers, timeout=TIMEOUT_SECONDS)
    except httpx2.RequestError as error:
        msg = f"cannot reach the gateway at {settings.base_url}: {error or type(error).__name__}"
        raise EmbeddingConnectionError(msg, retryable=True) from error
    status = response.status_code
    if status == HTTPStatus.OK:
        return response.content
    msg = f"the gateway at {settings.base_url} answered {status} to GET {ROUTE}"
    if status in _REFUSED:
        hint = "set `api_key` or QWEN3_TRITON_API_KEY to one of the gateway's keys"
        raise AuthenticationError(f"{msg}: {hint}", status=status)
    if status in _PASSING:
        raise EmbeddingConnectionError(msg, status=status, retryable=True)
    msg += f": name the served model's {FILE_NAME} by `--tokenizer`"
    raise IngestError(msg)
