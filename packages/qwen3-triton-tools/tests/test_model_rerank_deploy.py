"""Rerankers written for Triton, quantized, and fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from onnx_exports import feed, masks
from qwen3_triton_gateway.cli import main
from qwen3_triton_tools.model.gpu_plan import ModelShape
from qwen3_triton_tools.model.pool import pool_model
from qwen3_triton_tools.model.quantize import quantize_model
from qwen3_triton_tools.verify.rerank_loss import CANDIDATES, compare_scores, pairs_of
from reranker_exports import VOCABULARY, causal_model, classifier_model, write_reranker

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
    ("form", "dims"), [("causal", [-1, VOCABULARY]), ("pooled", [2]), ("classifier", [1])]
)
def test_the_configuration_has_the_logits_and_no_canary(
    tmp_path: Path, form: str, dims: list[int]
) -> None:
    match form:
        case "causal":
            path = write_reranker(tmp_path / "reranker", causal_model())
        case "pooled":
            path = pooled(tmp_path)
        case _:
            path = write_reranker(tmp_path / "m", classifier_model())
    output = run("repository", path, "-o", tmp_path / "r", *REPOSITORY, "--gpu", "3090")
    assert "RERANK_TRITON_MODEL=ranker RERANK_TOKENIZER_PATH=" in output
    assert "A reranker scores pairs, and has no vectors." in output
    config = parse(tmp_path / "r" / "ranker")
    [logits] = config.output
    assert (logits.name, list(logits.dims)) == ("logits", dims)
    assert "canary_vector" not in config.parameters
    assert "weights_digest" in config.parameters
    assert (tmp_path / "r" / "ranker" / "1" / "model.onnx").read_bytes() == path.read_bytes()
    assert (tmp_path / "ranker-tokenizer" / "tokenizer.json").exists()


def test_a_reranker_by_the_user_s_word_is_written_too(tmp_path: Path) -> None:
    path = write_reranker(tmp_path / "m", causal_model())
    arguments = ("repository", path, "-o", tmp_path / "r", *REPOSITORY, "--gpu", "cpu", "--json")
    assert CliRunner().invoke(main, ["model", *map(str, arguments)]).exit_code == 1
    assert json.loads(run(*arguments, "--rerank"))["reranks"]


def test_the_local_triton_gets_the_logits(tmp_path: Path) -> None:
    flags = ("--gpu", "cpu", "--backend", "python")
    output = run("repository", pooled(tmp_path), "-o", tmp_path / "r", *REPOSITORY, *flags)
    assert "A reranker scores pairs, and has no vectors." in output
    [logits] = parse(tmp_path / "r" / "ranker").output
    assert (logits.name, list(logits.dims)) == ("logits", [2])


def test_logits_of_a_vocabulary_count_in_the_memory_of_a_token() -> None:
    sizes: dict[str, Any] = {"hidden_size": 1024, "heads": 16, "intermediate_size": 3072}
    sizes |= {"float_bytes": 2, "fused_attention": True}
    whole = ModelShape(**sizes, logits=151_669).bytes_per_token(1024)
    assert whole - ModelShape(**sizes).bytes_per_token(1024) == 151_669 * 2


def logits_of(path: Path) -> Any:
    session = onnxruntime.InferenceSession(path)
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
