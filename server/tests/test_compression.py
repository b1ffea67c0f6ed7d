"""Compressed bodies, within the body limit."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator

import pytest
from starlette.testclient import TestClient

from qwen3_triton_gateway.compression import zstd

StartGateway = Callable[..., TestClient]

BODY = json.dumps({"texts": ["a", "b" * 300]}).encode()


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


COMPRESSED = {
    "gzip": gzip.compress(BODY),
    "x-gzip": gzip.compress(BODY),
    "GZIP": gzip.compress(BODY[:50]) + gzip.compress(BODY[50:]),
    "deflate": zlib.compress(BODY),
    " deflate ": raw_deflate(BODY),
    "zstd": zstd.compress(BODY),
    "Zstd": zstd.compress(BODY[:50]) + zstd.compress(BODY[50:]),
    "identity": BODY,
}


def chunks(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("encoding", COMPRESSED)
def test_a_compressed_body_is_answered_like_a_plain_one(
    client: TestClient, encoding: str, size: int
) -> None:
    headers = {"Content-Encoding": encoding}
    answer = client.post("/embed", content=chunks(COMPRESSED[encoding], size), headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["embeddings"] == client.post("/embed", content=BODY).json()["embeddings"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
def test_the_limit_counts_after_decompression(start_gateway: StartGateway, encoding: str) -> None:
    client = start_gateway(EMBED_MAX_BODY_BYTES=5000)
    compress = {"gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstd.compress}[encoding]
    bomb = compress(json.dumps({"texts": ["x" * 100_000]}).encode())
    assert len(bomb) < 1000
    refused = client.post("/embed", content=bomb, headers={"Content-Encoding": encoding})
    assert refused.status_code == 413
    assert "decompressed" in refused.json()["detail"]
    exact = json.dumps({"texts": ["x" * (5000 - 15)]}).encode()
    assert len(exact) == 5000
    answer = client.post("/embed", content=compress(exact), headers={"Content-Encoding": encoding})
    assert answer.status_code == 200


@pytest.mark.parametrize("encoding", ["br", "compress", "gzip, zstd", "utf-8", "x" * 200])
def test_another_encoding_is_a_415_that_says_what_is_allowed(
    client: TestClient, encoding: str
) -> None:
    refused = client.post("/embed", content=BODY, headers={"Content-Encoding": encoding})
    assert refused.status_code == 415
    assert refused.json()["error"]["code"] == "unsupported_encoding"
    assert refused.headers["Accept-Encoding"] == "gzip, deflate, zstd"
    assert len(refused.content) < 500


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        pytest.param("gzip", BODY, id="not-compressed"),
        pytest.param("zstd", BODY, id="not-zstd"),
        pytest.param("deflate", b"\xff" * 9, id="not-deflate"),
        pytest.param("gzip", gzip.compress(BODY)[:-9], id="gzip-cut"),
        pytest.param("zstd", zstd.compress(BODY)[:-3], id="zstd-cut"),
        pytest.param("gzip", gzip.compress(BODY) + b"rest", id="gzip-and-more"),
        pytest.param("deflate", zlib.compress(BODY) + b"rest", id="deflate-and-more"),
    ],
)
def test_a_broken_encoding_is_a_400_that_names_it(
    client: TestClient, encoding: str, body: bytes
) -> None:
    refused = client.post("/embed", content=body, headers={"Content-Encoding": encoding})
    assert refused.status_code == 400
    assert f"Content-Encoding is {encoding}" in refused.json()["detail"]


def test_a_zstd_window_beyond_the_standard_is_refused(client: TestClient) -> None:
    options: dict[int, int] = {zstd.CompressionParameter.window_log: 27}
    compressor = zstd.ZstdCompressor(options=options)
    body = compressor.compress(BODY) + compressor.flush()
    refused = client.post("/embed", content=body, headers={"Content-Encoding": "zstd"})
    assert refused.status_code == 400


def test_an_empty_compressed_body_is_a_400(client: TestClient) -> None:
    refused = client.post("/embed", content=b"", headers={"Content-Encoding": "gzip"})
    assert refused.status_code == 400
