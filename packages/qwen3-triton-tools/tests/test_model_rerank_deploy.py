"""Rerankers written for Triton, quantized, and fetched."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from onnx import numpy_helper
from tritonclient.grpc import model_config_pb2

import qwen3_nano
from onnx_exports import feed, masks
from onnx_session import open_session
from qwen3_triton_gateway.backends.base import CANARY_PARAMETER, Probe
from qwen3_triton_gateway.backends.onnx import OnnxBackend
from qwen3_triton_gateway.backends.probe import run_probe
from qwen3_triton_gateway.canary import check_stated_canary, rerank_canary_batch
from qwen3_triton_gateway.cli import main
from qwen3_triton_gateway.errors import StartupError
from qwen3_triton_gateway.fingerprint import weights_digest
from qwen3_triton_gateway.tensors import Float32Vector, TokenBatch
from qwen3_triton_gateway.tokenization import TextTokenizer
from qwen3_triton_tools.model.gpu_plan import ModelShape
from qwen3_triton_tools.model.pool import pool_model
from qwen3_triton_tools.model.quantize import quantize_model
from qwen3_triton_tools.verify.rerank_loss import CANDIDATES, compare_scores, pairs_of
from reranker_exports import (
    NO,
    VOCABULARY,
    YES,
    causal_model,
    classifier_model,
    dynamic_head,
    write_reranker,
)

REPOSITORY = ("--model-name", "ranker")


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["model", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def pooled(folder: Path) -> Path:
    source = write_reranker(folder / "reranker", causal_model())
    return pool_model(source, folder / "pooled", probe=False).path


def parse(folder: Path) -> Any:
    text = (folder / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


@pytest.mark.parametrize(
    ("form", "flags", "dims"),
    [
        ("causal", ("--no-pool",), [-1, VOCABULARY]),
        ("pooled", (), [2]),
        ("classifier", (), [1]),
    ],
)
def test_the_configuration_has_the_logits_and_a_canary(
    tmp_path: Path, form: str, flags: tuple[str, ...], dims: list[int]
) -> None:
    match form:
        case "causal":
            path = write_reranker(tmp_path / "reranker", causal_model())
        case "pooled":
            path = pooled(tmp_path)
        case _:
            path = write_reranker(tmp_path / "m", classifier_model())
    output = run("repository", path, "-o", tmp_path / "r", *REPOSITORY, "--gpu", "3090", *flags)
    assert "RERANK_TRITON_MODEL=ranker RERANK_TOKENIZER_PATH=" in output
    config = parse(tmp_path / "r" / "ranker")
    [logits] = config.output
    assert (logits.name, list(logits.dims)) == ("logits", dims)
    check_stated_canary(
        config.parameters[CANARY_PARAMETER].string_value, *canary_scores_of(path), task="rerank"
    )
    assert "weights_digest" in config.parameters
    assert (tmp_path / "r" / "ranker" / "1" / "model.onnx").read_bytes() == path.read_bytes()
    assert (tmp_path / "ranker-tokenizer" / "tokenizer.json").exists()


def canary_scores_of(path: Path) -> tuple[TokenBatch, Float32Vector]:
    """Return the gateway's canary, and the scores of this file."""
    batch = rerank_canary_batch(TextTokenizer(qwen3_nano.model_dir(), max_length=1024), 1024)
    return batch, asyncio.run(probe(path, Probe(batch, [NO, YES])))


async def probe(path: Path, canary: Probe) -> Float32Vector:
    backend = OnnxBackend(path, task="rerank")
    await backend.connect()
    try:
        return await run_probe(backend, canary)
    finally:
        await backend.close()


@pytest.mark.slow
def test_other_weights_do_not_have_the_scores_that_are_stated(tmp_path: Path) -> None:
    path = pooled(tmp_path)
    run("repository", path, "-o", tmp_path / "r", *REPOSITORY, "--gpu", "cpu")
    stated = parse(tmp_path / "r" / "ranker").parameters[CANARY_PARAMETER].string_value
    # A copy, since Python's `onnx` refuses weights that are hard-linked.
    other = Path(shutil.copytree(path.parent, tmp_path / "other"), path.name)
    onnx.save(shuffled(onnx.load(other)), other)
    with pytest.raises(StartupError, match=r"the weights were replaced.* with these weights\."):
        check_stated_canary(stated, *canary_scores_of(other), task="rerank")


def shuffled(model: onnx.ModelProto) -> onnx.ModelProto:
    """Shuffle the values of the largest matrix, the table of tokens."""
    table = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    values = numpy_helper.to_array(table).copy()
    np.random.default_rng(0).shuffle(values)
    table.CopyFrom(numpy_helper.from_array(values, table.name))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_a_vocabulary_head_is_cut_on_the_way_to_triton(tmp_path: Path, backend: str) -> None:
    source = write_reranker(tmp_path / "reranker", causal_model())
    flags = ("--gpu", "cpu", "--backend", backend)
    output = run("repository", source, "-o", tmp_path / "r", *REPOSITORY, *flags)
    assert "Triton returns the logits of the answer" in output
    assert "is served as it is" not in output
    config = parse(tmp_path / "r" / "ranker")
    logits = config.output[0]
    assert (logits.name, list(logits.dims)) == ("logits", [2])
    # Scores and digest are those of the export.
    assert config.parameters["weights_digest"].string_value == weights_digest(source)
    check_stated_canary(
        config.parameters[CANARY_PARAMETER].string_value, *canary_scores_of(source), task="rerank"
    )
    folder = tmp_path / ("r/ranker/1" if backend == "onnxruntime" else "ranker-pooled")
    cut, whole = logits_of(folder / "model.onnx"), logits_of(source)
    last = masks()["right"].sum(axis=1) - 1
    expected = whole[np.arange(len(whole)), last][:, [NO, YES]]
    assert cut == pytest.approx(expected, abs=1e-4)


def test_a_head_that_cannot_be_cut_is_served_as_it_is(tmp_path: Path) -> None:
    source = write_reranker(tmp_path / "reranker", dynamic_head())
    output = run("repository", source, "-o", tmp_path / "r", *REPOSITORY, "--gpu", "cpu")
    assert "is served as it is" in output
    assert "rounds states to integers" in output
    [logits] = parse(tmp_path / "r" / "ranker").output
    assert list(logits.dims) == [-1, VOCABULARY]


def test_a_reranker_by_the_user_s_word_is_written_too(tmp_path: Path) -> None:
    path = write_reranker(tmp_path / "m", causal_model())
    arguments = ("repository", path, "-o", tmp_path / "r", *REPOSITORY, "--gpu", "cpu", "--json")
    assert CliRunner().invoke(main, ["model", *map(str, arguments)]).exit_code == 1
    assert json.loads(run(*arguments, "--rerank"))["reranks"]


def test_the_local_triton_gets_the_logits(tmp_path: Path) -> None:
    flags = ("--gpu", "cpu", "--backend", "python")
    path = pooled(tmp_path)
    output = run("repository", path, "-o", tmp_path / "r", *REPOSITORY, *flags)
    assert "`logits` is pooled in the graph already" in output
    config = parse(tmp_path / "r" / "ranker")
    logits = config.output[0]
    assert (logits.name, list(logits.dims)) == ("logits", [2])
    check_stated_canary(
        config.parameters[CANARY_PARAMETER].string_value, *canary_scores_of(path), task="rerank"
    )


def test_logits_of_a_vocabulary_count_in_the_memory_of_a_token() -> None:
    sizes: dict[str, Any] = {"hidden_size": 1024, "heads": 16, "intermediate_size": 3072}
    sizes |= {"float_bytes": 2, "fused_attention": True}
    whole = ModelShape(**sizes, logits=151_669).bytes_per_token(1024)
    assert whole - ModelShape(**sizes).bytes_per_token(1024) == 151_669 * 2


def logits_of(path: Path) -> Any:
    session = open_session(path)
    [logits] = session.run(None, feed(session, masks()["right"]))
    return logits


@pytest.mark.slow
def test_int8_weights_are_measured_by_the_scores_of_pairs(tmp_path: Path) -> None:
    source, out = pooled(tmp_path), tmp_path / "int8"
    report = json.loads(run("quantize", source, "-o", out, "--texts", 20, "--json"))
    assert report["bytes_after"] < 0.4 * report["bytes_before"]
    loss = report["losses"]["ONNX Runtime, float32"]
    assert loss["pairs"] == 20
    assert 0 < loss["largest_difference"] < 0.5
    whole, narrow = logits_of(source), logits_of(out / "model.onnx")
    assert np.abs(whole - narrow).mean() < 0.05 * np.abs(whole).mean()


def test_a_head_tied_to_the_table_is_quantized_once(tmp_path: Path) -> None:
    """The table is looked up in by one node, and multiplied by in another."""
    source = write_reranker(tmp_path / "reranker", causal_model("tied"))
    path = quantize_model(source, tmp_path / "reranker-int8").path
    large = [t for t in onnx.load(path).graph.initializer if VOCABULARY in t.dims]
    kinds = sorted(onnx.TensorProto.DataType.Name(t.data_type) for t in large)
    assert kinds == ["FLOAT", "INT8"]
    assert min(len(t.raw_data) for t in large) == VOCABULARY * 4  # the scales
    whole, narrow = logits_of(source), logits_of(path)
    assert np.abs(whole - narrow).mean() < 0.05 * np.abs(whole).mean()


def test_the_loss_counts_differences_and_what_comes_first() -> None:
    count = 2 * CANDIDATES
    scores: list[float] = np.linspace(0.1, 0.9, count).tolist()
    assert compare_scores(scores, scores).is_safe
    other = [0.99, *scores[1:]]  # a document that was last is first
    loss = compare_scores(scores, other)
    assert (loss.pairs, loss.same_first) == (count, 0.5)
    assert loss.same_order == pytest.approx(1 - 4 / 20)  # it was behind the four others
    assert loss.largest_difference == pytest.approx(0.89)
    assert not loss.is_safe


def test_a_near_tie_of_the_best_documents_is_no_loss() -> None:
    scores = [0.1, 0.2, 0.3, 0.799, 0.8] * 3
    tied = [*scores[:3], 0.801, *scores[4:]]
    loss = compare_scores(scores, tied)
    assert loss.same_first == pytest.approx(2 / 3)
    assert loss.same_order == pytest.approx(1 - 1 / 30)
    assert loss.is_safe


def test_scores_that_are_close_in_another_order_are_a_loss() -> None:
    scores = [0.01, 0.02, 0.03, 0.04, 0.05] * 3
    loss = compare_scores(scores, [0.06 - score for score in scores])
    assert loss.largest_difference < 0.05
    assert loss.same_order == 0
    assert not loss.is_safe


def test_each_question_is_paired_with_its_document_first() -> None:
    pairs = pairs_of(12)
    assert len(pairs) == 10
    assert len({question for question, _ in pairs[:CANDIDATES]}) == 1
    assert "The Moon shines only by reflecting sunlight" in pairs[0][1]
