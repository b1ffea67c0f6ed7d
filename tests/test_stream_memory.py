"""Streams of any length take no more memory than short ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator

import pytest

from gateway_process import GatewayProcess, running_gateway

pytestmark = pytest.mark.stack

# The vectors of 80,000 texts alone take more than the limit.
COUNTS = [80_000, pytest.param(200_000, marks=pytest.mark.campaign)]
DISTINCT = 2_000
MAX_RESIDENT_KIB = 300_000_000 // 1024
CACHE_BYTES = 64_000_000  # holds all distinct texts, so that the model is not the bottleneck

STREAM = """
import asyncio, re, sys
from pathlib import Path
from qwen3_triton_client import AsyncEmbeddingClient, EmbeddingClient

url, kind, count, distinct = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
texts = (f"text number {i % distinct}" for i in range(count))
first, given = {}, 0

def check(index, vector):
    global given
    assert index == given
    given += 1
    if index < distinct and index % 50 == 0:
        first[index] = vector.tobytes()
    elif index % distinct in first:
        assert vector.tobytes() == first[index % distinct]

def stream():
    with EmbeddingClient(url) as client:
        for index, vector in client.iter_embed(texts):
            check(index, vector)

async def astream():
    async with AsyncEmbeddingClient(url) as client:
        async for index, vector in client.aiter_embed(texts):
            check(index, vector)

stream() if kind == "sync" else asyncio.run(astream())
assert given == count
# Not `ru_maxrss`: a child inherits its parent's.
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.fixture(name="caching_gateway", scope="module")
def _caching_gateway() -> Generator[GatewayProcess]:
    with running_gateway("--cache-bytes", str(CACHE_BYTES)) as gateway:
        yield gateway


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", ["sync", pytest.param("async", marks=pytest.mark.campaign)])
def test_a_long_stream_takes_bounded_memory(
    caching_gateway: GatewayProcess, kind: str, count: int
) -> None:
    command = [sys.executable, "-c", STREAM, caching_gateway.url, kind, str(count), str(DISTINCT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < MAX_RESIDENT_KIB
