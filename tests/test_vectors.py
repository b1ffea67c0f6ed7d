"""Vectors match the reference implementation on every kind of gateway and on a real Triton."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

import qwen3_nano
from embed_call import cosines, embed, post
from gateway_process import GatewayProcess, running_gateway, triton_flags
from qwen3_nano.graph import build_graph, load_weights
from qwen3_triton_tools.local_triton import LocalTriton, write_repository
from tolerances import FLOAT16_COSINE, FLOAT32_COSINE, UNIT_NORM

GOLDEN = np.load(qwen3_nano.golden_path(), allow_pickle=False)
TEXTS: list[str] = GOLDEN["texts"].tolist()
HIDDEN_SIZE = GOLDEN["vectors"].shape[1]
SHORT_TEXT = "tea"
MIXED_LENGTHS = [SHORT_TEXT, "a sentence of middling length about the weather", "word " * 400]


def test_the_golden_texts_span_one_to_1024_tokens() -> None:
    counts = GOLDEN["token_counts"]
    assert counts.min() <= 2
    assert counts.max() == 1024


def test_vectors_match_the_reference_implementation(any_gateway: GatewayProcess) -> None:
    vectors = embed(any_gateway.url, TEXTS, dimensions=HIDDEN_SIZE)
    assert cosines(vectors, GOLDEN["vectors"]).min() >= FLOAT32_COSINE


@pytest.fixture(name="float16_dir", scope="module")
def _float16_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nano model exported with float16 hidden states, like most exports of the family."""
    folder = tmp_path_factory.mktemp("float16")
    weights = load_weights(qwen3_nano.model_dir() / "model.onnx")
    onnx.save(build_graph(weights, float16_output=True), folder / "model.onnx")
    shutil.copy(qwen3_nano.model_dir() / "tokenizer.json", folder)
    return folder


@pytest.mark.stack
def test_float16_vectors_match_the_reference_and_pooling_in_triton_changes_no_fingerprint(
    float16_dir: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    for name, output in (("states", None), ("pooled", "last_hidden_state")):
        write_repository(float16_dir, repository, model_name=name, pooled_output=output)
    model_id = ("--model-id", "float16")
    fingerprints: set[str] = set()
    with (
        LocalTriton(model_repository=repository) as triton,
        running_gateway(*triton_flags(triton.http_url, "states"), *model_id) as pooling,
        running_gateway(*triton_flags(triton.http_url, "pooled"), *model_id) as behind_pooling,
        running_gateway("--model-dir", str(float16_dir), *model_id) as in_process,
    ):
        for gateway in (pooling, behind_pooling, in_process):
            vectors = embed(gateway.url, TEXTS, dimensions=HIDDEN_SIZE)
            assert cosines(vectors, GOLDEN["vectors"]).min() >= FLOAT16_COSINE
            fingerprints.add(gateway.info()["fingerprint"])
        assert behind_pooling.info()["pooled_in_graph"]
    assert len(fingerprints) == 1


def test_vectors_of_fewer_dimensions_match_the_truncated_reference(
    any_gateway: GatewayProcess,
) -> None:
    vectors = embed(any_gateway.url, TEXTS)
    assert vectors.shape == (len(TEXTS), 1024)
    assert cosines(vectors, GOLDEN["vectors"][:, :1024]).min() >= FLOAT32_COSINE
    assert np.abs(np.linalg.norm(vectors.astype(np.float64), axis=1) - 1).max() <= UNIT_NORM


def test_token_counts_match_the_reference_tokenizer(in_process_gateway: GatewayProcess) -> None:
    for text, count in zip(TEXTS, GOLDEN["token_counts"].tolist(), strict=True):
        usage = post(in_process_gateway.url, texts=[text]).json()["usage"]
        assert usage["prompt_tokens"] == count


def test_a_short_text_has_the_same_vector_alone_and_among_longer_ones(
    any_gateway: GatewayProcess,
) -> None:
    together = embed(any_gateway.url, MIXED_LENGTHS)
    alone = np.concatenate([embed(any_gateway.url, [text]) for text in MIXED_LENGTHS])
    assert cosines(together, alone).min() >= FLOAT32_COSINE


def test_any_order_and_any_split_give_the_same_vectors(any_gateway: GatewayProcess) -> None:
    order = np.random.default_rng(3).permutation(len(TEXTS))
    shuffled = embed(any_gateway.url, [TEXTS[index] for index in order])
    split = np.concatenate([embed(any_gateway.url, TEXTS[i : i + 5]) for i in range(0, 65, 5)])
    assert cosines(shuffled, split[order]).min() >= FLOAT32_COSINE


@pytest.mark.parametrize("count", [9, 64, 300, pytest.param(2048, marks=pytest.mark.campaign)])
def test_many_texts_in_one_request_keep_their_order(
    any_gateway: GatewayProcess, count: int
) -> None:
    texts = [f"{'padding ' * (index % 23)}text number {index}" for index in range(count)]
    vectors = embed(any_gateway.url, texts)
    probes = sorted({0, 1, count // 2, count - 1})
    alone = np.concatenate([embed(any_gateway.url, [texts[index]]) for index in probes])
    assert vectors.shape == (count, 1024)
    assert cosines(vectors[probes], alone).min() >= FLOAT32_COSINE


def test_a_query_equals_the_instruction_written_by_hand(any_gateway: GatewayProcess) -> None:
    by_hand = (
        "Instruct: Given a web search query, retrieve relevant passages that answer the query\n"
        "Query:What is tea?"
    )
    query = embed(any_gateway.url, ["What is tea?"], input_type="query")
    assert cosines(query, embed(any_gateway.url, [by_hand])).min() >= FLOAT32_COSINE


def test_all_kinds_of_gateway_return_the_same_vectors_and_fingerprint(
    gateway: GatewayProcess, grpc_gateway: GatewayProcess, in_process_gateway: GatewayProcess
) -> None:
    expected = embed(gateway.url, TEXTS)
    fingerprint = gateway.info()["fingerprint"]
    for other in (grpc_gateway, in_process_gateway):
        assert cosines(embed(other.url, TEXTS), expected).min() >= FLOAT32_COSINE
        assert other.info()["fingerprint"] == fingerprint
