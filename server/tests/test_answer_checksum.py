"""An answer is used only for the batch that it belongs to."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import web

import qwen3_nano
from local_http import serving
from qwen3_triton_gateway.answer_checksum import CHECKSUM_OUTPUT, row_checksums
from qwen3_triton_gateway.backends.triton import TritonBackend
from qwen3_triton_gateway.errors import BackendUnavailableError
from qwen3_triton_gateway.tensors import TokenBatch
from qwen3_triton_tools.local_triton import LocalTriton

IDS = np.array([[5, 6, 7], [8, 9, 3]])
MASK = np.ones_like(IDS)
STATES = np.arange(8, dtype=np.float32).reshape(2, 4)


class LateTriton:
    """A proxy that can return the previous answer, like a Triton that has lost count.

    Attributes:
        is_late: Whether it answers with the answer to the last inference.
    """

    def __init__(self, url: str, *, has_checksum: bool) -> None:
        self.is_late = False
        self._url = url
        self._has_checksum = has_checksum
        self._last: tuple[bytes, dict[str, str]] = (b"", {})

    async def answer(self, request: web.Request) -> web.Response:
        names = ("content-type", "inference-header-content-length")
        sent = {name: request.headers[name] for name in names if name in request.headers}
        async with aiohttp.request(
            request.method, self._url + request.path, data=await request.read(), headers=sent
        ) as reply:
            body = await reply.read()
            headers = {name: reply.headers[name] for name in names if name in reply.headers}
        if request.path.endswith("/infer"):
            last, self._last = self._last, (body, headers)
            body, headers = last if self.is_late else self._last
        elif request.path == f"/v2/models/{qwen3_nano.MODEL_ID}" and not self._has_checksum:
            metadata = json.loads(body)
            metadata["outputs"] = [o for o in metadata["outputs"] if o["name"] != CHECKSUM_OUTPUT]
            body = json.dumps(metadata).encode()
        return web.Response(body=body, headers=headers)


@asynccontextmanager
async def late_triton(
    triton: LocalTriton, *, has_checksum: bool = True
) -> AsyncGenerator[tuple[LateTriton, TritonBackend]]:
    proxy = LateTriton(triton.http_url, has_checksum=has_checksum)
    async with serving(proxy.answer) as netloc:
        backend = TritonBackend(f"http://{netloc}", qwen3_nano.MODEL_ID)
        await backend.connect()
        yield proxy, backend
        await backend.close()


async def infer(backend: TritonBackend, *tokens: int) -> Any:
    ids = np.array([tokens])
    batch = TokenBatch(ids, np.ones_like(ids))
    return (await backend.infer(batch, timeout_seconds=60, priority=1)).values


async def test_the_answer_to_another_batch_is_refused(triton: LocalTriton) -> None:
    async with late_triton(triton) as (proxy, backend):
        await infer(backend, 5, 6, 3)
        proxy.is_late = True
        with pytest.raises(BackendUnavailableError, match="the answer to another batch"):
            await infer(backend, 7, 8, 3)
        with pytest.raises(BackendUnavailableError, match="the answer to another batch"):
            await infer(backend, 7, 8, 9, 3)  # of another shape
        expected = await infer(backend, 7, 8, 9, 3)  # late too, but to the same batch
        proxy.is_late = False
        np.testing.assert_array_equal(await infer(backend, 7, 8, 9, 3), expected)


async def test_a_model_without_the_checksum_is_served(triton: LocalTriton) -> None:
    async with late_triton(triton, has_checksum=False) as (_proxy, backend):
        assert (await infer(backend, 5, 6, 3)).shape == (1, 3, backend.spec.hidden_size)


def test_every_value_of_a_row_counts_in_its_own_checksum_only() -> None:
    expected = row_checksums({"mask": MASK, "ids": IDS}, [STATES])
    assert expected == row_checksums({"ids": IDS, "mask": MASK}, [STATES])
    for array in (IDS, MASK, STATES):
        kept = array[1, 2]
        array[1, 2] = kept + 1
        first, second = row_checksums({"ids": IDS, "mask": MASK}, [STATES])
        array[1, 2] = kept
        assert first == expected[0]
        assert second != expected[1]
