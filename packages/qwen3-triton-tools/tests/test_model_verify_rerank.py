"""`model verify --rerank` passes correct servers, and fails wrong ones by what is wrong."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import qwen3_nano
from qwen3_triton_gateway.cli import main
from qwen3_triton_tools.model.pool import pool_model
from qwen3_triton_tools.model.quantize import quantize_model
from qwen3_triton_tools.verify import rerank_checks
from qwen3_triton_tools.verify.local_gateway import folder_settings, local_gateway
from reranker_exports import causal_model, classifier_model, write_reranker
from verify_call import names, outcome, verify
from wrong_reranker import RIGHT, WRONG, serving

# A random model that prefers the right documents of the card's examples, with room to both sides.
SEED, SCALE = 2, 0.3


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    write_reranker(folder, classifier_model(seed=SEED, scale=SCALE))
    return folder


def test_a_server_that_shares_no_code_with_this_one_passes(folder: Path) -> None:
    with serving(folder, RIGHT) as url:
        code, report = verify(url, "--rerank", "--reference", folder)
    assert (code, names(report, "fail"), names(report, "skipped")) == (0, set(), set()), report


def test_padding_on_the_left_is_correct_too(folder: Path) -> None:
    with serving(folder, replace(RIGHT, pads_left=True)) as url:
        assert verify(url, "--rerank")[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_server_fails_by_the_name_of_its_mistake(folder: Path, name: str) -> None:
    stack, check, words = WRONG[name]
    with serving(folder, stack) as url:
        code, report = verify(url, "--rerank", "--reference", folder)
    failed = outcome(report, check)
    assert (code, failed["status"]) == (1, "fail"), report
    assert words in failed["cause"]
    assert failed["remedy"]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["causal", "pooled", "classifier"])
def test_a_folder_passes_served_by_the_gateway(tmp_path: Path, folder: Path, form: str) -> None:
    if form != "classifier":
        folder = write_reranker(tmp_path / "reranker", causal_model()).parent
    if form == "pooled":
        folder = pool_model(folder / "model.onnx", tmp_path / "pooled", probe=False).path.parent
    flags = [] if form == "classifier" else ["--card", "none"]
    code, report = verify(str(folder), *flags)
    assert (code, names(report, "fail")) == (0, set()), report
    assert {"prompt", "long document", "padding", "prompt parts"} <= names(report, "pass")


def test_a_gateway_with_nothing_but_a_reranker_needs_no_flag(folder: Path) -> None:
    with local_gateway(folder_settings(folder, task="rerank")) as url:
        code, report = verify(url)
    assert (code, names(report, "fail")) == (0, set()), report
    assert "card examples" in names(report, "pass")


def test_without_the_model_what_needs_it_is_skipped(folder: Path) -> None:
    with serving(folder, RIGHT, talks=False) as url:
        code, report = verify(url, "--rerank", "--card", "none")
    assert code == 0
    assert names(report, "skipped") == {"card examples", "padding", "prompt", "long document"}


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, float("inf")], ids=["slow", "fast"])
def test_a_long_document_is_cut_where_the_model_still_runs_here(
    folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(rerank_checks, "MIN_RUN_TOKENS", 256)
    monkeypatch.setattr(rerank_checks, "MAX_RUN_SECONDS", seconds)
    code, report = verify(str(folder), "--card", "none")
    assert (code, outcome(report, "long document")["status"]) == (0, "pass")
    cut = "cut to 1,024" if seconds else "cut to 256"
    assert cut in outcome(report, "long document")["measured"]


@pytest.mark.slow
def test_a_server_with_a_limit_of_its_own_only_is_not_asked_for_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rerank_checks, "MIN_RUN_TOKENS", 256)
    monkeypatch.setattr(rerank_checks, "MAX_RUN_SECONDS", 0.0)
    with serving(folder, RIGHT) as url:
        code, report = verify(url, "--rerank", "--reference", folder)
    assert (code, outcome(report, "long document")["status"]) == (0, "skipped")
    assert "the server cuts at 320: HTTP 404" in outcome(report, "long document")["measured"]


@pytest.mark.slow
def test_int8_weights_have_the_right_prompt_and_a_measured_loss(tmp_path: Path) -> None:
    path = write_reranker(tmp_path / "whole", classifier_model(seed=SEED))
    narrow = quantize_model(path, tmp_path / "int8").path.parent
    _, report = verify(str(narrow), "--reference", path.parent)
    assert outcome(report, "prompt")["status"] == "pass"
    assert "as lower precision may be" in outcome(report, "prompt")["measured"]
    assert 0 < largest_loss(report) < 0.05


@pytest.mark.slow
def test_other_weights_fail_by_their_loss(folder: Path, tmp_path: Path) -> None:
    other = write_reranker(tmp_path / "other", classifier_model(seed=3, scale=SCALE)).parent
    code, report = verify(str(other), "--reference", folder, "--card", "none")
    assert (code, outcome(report, "loss")["status"]) == (1, "fail")
    assert "The weights differ" in outcome(report, "loss")["cause"]
    assert largest_loss(report) > 0.05


def largest_loss(report: Any) -> float:
    measured = re.search(r"scores differ by ([\d.]+)", outcome(report, "loss")["measured"])
    assert measured
    return float(measured[1])


def test_a_server_without_reranking_is_named(folder: Path) -> None:
    with serving(folder, RIGHT) as url:
        code, report = verify(f"{url}/elsewhere", "--rerank")
    assert code == 1
    assert "HTTP 404" in outcome(report, "score range")["measured"]


def test_a_gateway_without_a_reranker_has_no_checks_to_fail() -> None:
    with local_gateway(folder_settings(qwen3_nano.model_dir())) as url:
        result = CliRunner().invoke(main, ["model", "verify", url, "--rerank"])
    assert result.exit_code == 1
    assert "No reranker is served. Start it with RERANK_TRITON_MODEL" in result.output


def test_an_embedding_model_has_no_scores_to_compare_with(folder: Path) -> None:
    with serving(folder, RIGHT) as url:
        arguments = ["model", "verify", url, "--rerank", "--reference", str(qwen3_nano.model_dir())]
        result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "It is not a reranker: it returns `last_hidden_state`" in result.output
