"""One contract for every backend and every kind of export."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import numpy as np
import onnx
import pytest
import pytest_asyncio

import qwen3_nano
from fake_backend import FakeBackend
from qwen3_nano.graph import build_graph, load_weights
from qwen3_triton_gateway.backends.base import Backend
from qwen3_triton_gateway.backends.engines import openvino_options
from qwen3_triton_gateway.backends.onnx import OnnxBackend
from qwen3_triton_gateway.backends.openvino import OpenVinoBackend
from qwen3_triton_gateway.backends.triton import TritonBackend
from qwen3_triton_gateway.batching import pad_batch
from qwen3_triton_gateway.errors import (
    BackendError,
    BackendUnavailableError,
    DeadlineExceededError,
    StartupError,
)
from qwen3_triton_gateway.pooling import last_token_pool
from qwen3_triton_gateway.tensors import Float32Matrix, HiddenStates, TokenBatch
from qwen3_triton_gateway.tokenization import TextTokenizer
from qwen3_triton_tools.local_triton import LocalTriton, OpenVino, write_repository
from tolerances import FLOAT16_COSINE, FLOAT32_COSINE

VARIANTS = {
    "plain": {},
    "float16": {"float16_output": True},
    "pooled": {"output": "sentence_embedding"},
    "past": {"past_key_values": True},
    "no-positions": {"position_ids": False},
}
TEXTS = [
    "tea",
    "a sentence of middling length",
    "word " * 200,
    "Überraschung 😀",
    "日本語の文",
]
MAX_BATCH_SIZE = 8
TIMEOUT_SECONDS = 60.0
UNUSED_PORT = 1


@pytest.fixture(name="model_dirs", scope="session")
def _model_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The nano model's weights in every kind of export."""
    weights = load_weights(qwen3_nano.model_dir() / "model.onnx")
    folders: dict[str, Path] = {}
    for name, options in VARIANTS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        onnx.save(build_graph(weights, **options), folders[name] / "model.onnx")  # pyright: ignore[reportArgumentType]
    return folders


@pytest.fixture(name="triton", scope="module")
def _triton(
    model_dirs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Generator[LocalTriton]:
    """One Triton that serves them all, on both engines."""
    repository = tmp_path_factory.mktemp("repository")
    openvino = OpenVino(precision="float32", options=openvino_options("float32"))
    for name, folder in model_dirs.items():
        for model, engine in ((name, None), (f"{name}-openvino", openvino)):
            write_repository(
                folder,
                repository,
                model_name=model,
                max_batch_size=MAX_BATCH_SIZE,
                openvino=engine,
            )
    with LocalTriton(model_repository=repository) as triton:
        yield triton


@pytest_asyncio.fixture(
    name="backend", params=["http", "grpc", "triton-openvino", "in-process", "openvino"]
)
async def _backend(
    request: pytest.FixtureRequest,
    variant: str,
    model_dirs: dict[str, Path],
    triton: LocalTriton,
) -> AsyncGenerator[Backend]:
    backend: Backend
    if request.param == "in-process":
        backend = OnnxBackend(model_dirs[variant])
    elif request.param == "openvino":
        backend = OpenVinoBackend(model_dirs[variant])
    elif request.param == "triton-openvino":
        backend = TritonBackend(triton.grpc_url, f"{variant}-openvino")
    else:
        urls = {"http": triton.http_url, "grpc": triton.grpc_url}
        backend = TritonBackend(urls[request.param], variant)
    await backend.connect()
    yield backend
    await backend.close()


@pytest.fixture(name="tokenizer", scope="session")
def _tokenizer() -> TextTokenizer:
    return TextTokenizer(qwen3_nano.model_dir(), max_length=1024)


@pytest.fixture(name="batch", scope="session")
def _batch(tokenizer: TextTokenizer) -> TokenBatch:
    return pad_batch(tokenizer.encode(TEXTS), pad_token_id=tokenizer.end_token_id, max_length=1024)


async def pooled(backend: Backend, batch: TokenBatch) -> Float32Matrix:
    states = await backend.infer(batch, timeout_seconds=TIMEOUT_SECONDS, priority=2)
    if isinstance(states, HiddenStates):
        return last_token_pool(states.values, batch.attention_mask)
    return states.values.astype(np.float32)


@pytest.fixture(name="expected", scope="session")
def _expected(model_dirs: dict[str, Path], batch: TokenBatch) -> Float32Matrix:
    """The vectors of the plain graph in this process."""

    async def run() -> Float32Matrix:
        plain = OnnxBackend(model_dirs["plain"])
        await plain.connect()
        try:
            return await pooled(plain, batch)
        finally:
            await plain.close()

    return asyncio.run(run())


@pytest.mark.parametrize("variant", VARIANTS)
async def test_every_export_has_the_vectors_of_the_plain_graph(
    backend: Backend, variant: str, batch: TokenBatch, expected: Float32Matrix
) -> None:
    got = await pooled(backend, batch)
    norms = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
    tolerance = FLOAT16_COSINE if variant == "float16" else FLOAT32_COSINE
    assert ((got * expected).sum(axis=1) / norms).min() >= tolerance


@pytest.mark.parametrize("variant", VARIANTS)
async def test_connecting_reads_the_models_interface(backend: Backend, variant: str) -> None:
    spec = backend.spec
    assert spec.hidden_size == np.load(qwen3_nano.golden_path())["vectors"].shape[1]
    assert spec.pooling == ("in_graph" if variant == "pooled" else "last_token")
    assert spec.output.dtype == (np.float16 if variant == "float16" else np.float32)
    assert bool(spec.past_inputs) == (variant == "past")
    assert ("position_ids" in spec.inputs) == (variant != "no-positions")
    if isinstance(backend, TritonBackend):
        assert (spec.max_batch_size, spec.instance_count) == (MAX_BATCH_SIZE, 1)


@pytest.mark.parametrize("variant", ["plain"])
async def test_a_refused_batch_is_an_error_and_the_next_one_works(
    backend: Backend, batch: TokenBatch
) -> None:
    beyond_vocabulary = TokenBatch(batch.input_ids + 10**7, batch.attention_mask)
    with pytest.raises(BackendError, match="refused the batch"):
        await pooled(backend, beyond_vocabulary)
    assert np.isfinite(await pooled(backend, batch)).all()


@pytest.mark.parametrize("variant", ["plain"])
async def test_an_answer_after_the_timeout_is_a_missed_deadline(
    backend: Backend, batch: TokenBatch
) -> None:
    with pytest.raises(DeadlineExceededError):
        await backend.infer(batch, timeout_seconds=0.0001, priority=2)


@pytest.mark.parametrize("variant", ["plain"])
async def test_a_connected_backend_is_up_and_ready(backend: Backend) -> None:
    assert list(backend.states.values()) == [True]  # before anyone asks again
    assert await backend.is_ready()


async def test_the_fake_passes_the_contract_too() -> None:
    batch = TokenBatch(np.array([[5, 6, 7], [8, 9, 9]]), np.array([[1, 1, 1], [1, 0, 0]]))
    alone = TokenBatch(np.array([[8]]), np.array([[1]]))
    hidden, graph_pooled = FakeBackend(), FakeBackend(pooled=True)
    assert np.allclose(await pooled(hidden, batch), await pooled(graph_pooled, batch))
    assert np.allclose((await pooled(hidden, batch))[1], (await pooled(hidden, alone))[0])


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_a_triton_that_does_not_listen_is_unavailable(scheme: str) -> None:
    backend = TritonBackend(f"{scheme}://127.0.0.1:{UNUSED_PORT}", "plain")
    with pytest.raises(BackendUnavailableError, match=f"127.0.0.1:{UNUSED_PORT}"):
        await backend.connect()
    assert not await backend.is_ready()
    await backend.close()


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_a_model_unknown_to_triton_is_unavailable(triton: LocalTriton, scheme: str) -> None:
    url = triton.http_url if scheme == "http" else triton.grpc_url
    backend = TritonBackend(url, "nosuchmodel")
    with pytest.raises(BackendUnavailableError, match="nosuchmodel"):
        await backend.connect()
    await backend.close()


@pytest.mark.parametrize("url", ["ftp://host:1", "http://", "://"])
def test_an_invalid_address_is_refused(url: str) -> None:
    with pytest.raises(StartupError, match="TRITON_URL"):
        TritonBackend(url, "m")


def test_an_address_without_a_scheme_is_http() -> None:
    assert str(TritonBackend("gpu-box:8200", "m").address) == "http://gpu-box:8200"
