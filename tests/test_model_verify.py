"""`model verify` passes correct stacks, and fails wrong ones by the name of what is wrong."""

from __future__ import annotations

import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper

import qwen3_nano
from gateway_process import GatewayProcess
from qwen3_triton_gateway.backends.onnx import OnnxBackend
from qwen3_triton_gateway.cli import main
from qwen3_triton_gateway.tensors import HiddenStates, PooledStates, TokenBatch
from qwen3_triton_tools.verify.cards import DOCUMENTS, QUERIES, SCORES, choose_card, qwen_card
from qwen3_triton_tools.verify.local_gateway import folder_settings, local_gateway
from verify_call import names, outcome, verify
from wrong_stack import (
    IMPORT_ID,
    MAX_LENGTH,
    RIGHT,
    WRONG,
    Stack,
    instructed,
    serving,
    shifted_token_ids,
    without_end_token,
)

KEY = "verify-key"


def test_a_gateway_in_front_of_a_real_triton_passes(gateway: GatewayProcess) -> None:
    code, report = verify(gateway.url)
    assert (code, report["ok"], report["card"]) == (0, True, "nano")
    assert names(report, "fail") == set()
    assert names(report, "skipped") == {"golden scores", "TEI's vector"}


@pytest.mark.slow
def test_a_folder_passes_served_in_this_process_whatever_the_environment_says() -> None:
    environment = {"TRITON_URL": "http://localhost:1", "EMBED_API_KEYS": KEY}
    code, report = verify(str(qwen3_nano.model_dir()), env=environment)
    assert code == 0
    assert "golden vectors" in names(report, "pass")


@pytest.mark.slow
def test_a_gateway_that_shares_no_code_with_this_one_passes_too() -> None:
    with serving(RIGHT) as url:
        code, report = verify(url)
    assert code == 0, report
    assert names(report, "skipped") == {"golden scores", "TEI's vector"}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_stack_fails_by_the_name_of_its_mistake(name: str) -> None:
    stack, check, words = WRONG[name]
    with serving(stack) as url:
        code, report = verify(url)
    failed = outcome(report, check)
    assert (code, failed["status"]) == (1, "fail")
    assert words in failed["cause"]
    assert failed["remedy"]


@pytest.mark.parametrize("name", ["left-padding", "no-end-token", "sorted", "not-normalized"])
def test_a_mistake_shows_without_golden_values_too(name: str) -> None:
    stack, check, _ = WRONG[name]
    with serving(replace(stack, talks=False)) as url:
        code, report = verify(url, "--card", "none")
    assert code == 1
    assert outcome(report, check)["status"] == "fail"
    assert outcome(report, "golden vectors")["status"] == "skipped"
    assert "no card" in outcome(report, "golden vectors")["measured"]


def test_golden_vectors_reveal_a_missing_end_token_if_a_server_reports_nothing() -> None:
    silent = Stack(close=without_end_token, talks=False, knows_its_length=False)
    with serving(silent) as url:
        _, report = verify(url)
    assert outcome(report, "end token")["status"] == "skipped"
    assert "appends <|endoftext|>" in outcome(report, "golden vectors")["cause"]


def test_golden_vectors_reveal_another_tokenizer_if_tokens_are_not_listed() -> None:
    with serving(Stack(tokenize=shifted_token_ids, talks=False)) as url:
        code, report = verify(url)
    assert code == 1
    assert outcome(report, "tokenizer")["status"] == "skipped"
    assert outcome(report, "golden vectors")["status"] == "fail"


def test_an_export_without_published_values_passes_without_a_card(tmp_path: Path) -> None:
    folder = tmp_path / "somebodys-export"
    folder.mkdir()
    shutil.copy(qwen3_nano.model_dir() / "tokenizer.json", folder)
    model = onnx.load(qwen3_nano.model_dir() / "model.onnx")
    model.graph.output[0].name = "narrow"
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 640
    for name, value in (("start", 0), ("stop", 640), ("axis", 2)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    inputs = ["last_hidden_state", "start", "stop", "axis"]
    model.graph.node.append(helper.make_node("Slice", inputs, ["narrow"]))
    onnx.save(model, folder / "model.onnx")
    settings = folder_settings(folder).model_copy(update={"max_length": MAX_LENGTH})
    assert settings.output_dim == 640
    with local_gateway(settings) as url:
        code, report = verify(url)
    assert (code, report["card"]) == (0, None)
    assert {"end token", "batch invariance", "long text"} <= names(report, "pass")
    assert "no card for somebodys-export" in outcome(report, "golden vectors")["measured"]


class OverflowingBackend(OnnxBackend):
    """The nano model whose state is not finite for texts that begin with `import`."""

    async def infer(
        self, batch: TokenBatch, *, timeout_seconds: float, priority: int
    ) -> HiddenStates | PooledStates:
        states = await super().infer(batch, timeout_seconds=timeout_seconds, priority=priority)
        values = states.values.copy()
        values[batch.input_ids[:, 0] == IMPORT_ID] = np.inf
        return HiddenStates(values)


def test_a_model_that_overflows_behind_this_gateway_is_named_with_the_502_it_gives() -> None:
    folder = qwen3_nano.model_dir()
    settings = folder_settings(folder).model_copy(update={"max_length": MAX_LENGTH})
    with local_gateway(settings, OverflowingBackend(folder)) as url:
        code, report = verify(url)
    failed = outcome(report, "float16 overflow")
    assert (code, names(report, "fail")) == (1, {"float16 overflow"})
    assert "'importance of life' is rejected, HTTP 502" in failed["measured"]


class LeftPaddingBackend(OnnxBackend):
    """The nano model padded on the left, where the pooling behind it expects padding on the right.

    It is wrong only after the start, at which the gateway would refuse it.
    """

    is_wrong = False

    async def infer(
        self, batch: TokenBatch, *, timeout_seconds: float, priority: int
    ) -> HiddenStates | PooledStates:
        pads = (batch.attention_mask == 0).sum(axis=1) * self.is_wrong
        ids, mask = (
            np.stack([np.roll(row, pad) for row, pad in zip(rows, pads, strict=True)])
            for rows in (batch.input_ids, batch.attention_mask)
        )
        left = TokenBatch(ids, mask)
        return await super().infer(left, timeout_seconds=timeout_seconds, priority=priority)


def test_a_cache_does_not_hide_that_padding_changes_vectors() -> None:
    folder = qwen3_nano.model_dir()
    short = {"max_length": MAX_LENGTH, "cache_bytes": 1 << 24}
    settings = folder_settings(folder).model_copy(update=short)
    backend = LeftPaddingBackend(folder)
    with local_gateway(settings, backend) as url:
        backend.is_wrong = True
        code, report = verify(url, "--card", "none")
    assert code == 1
    assert outcome(report, "batch invariance")["status"] == "fail"


def test_the_report_says_what_was_measured_and_expected_with_cause_and_remedy() -> None:
    stack, _, words = WRONG["no-instruction"]
    with serving(stack) as url:
        result = CliRunner().invoke(main, ["model", "verify", url])
    assert result.exit_code == 1
    for expected in ("✓ norm", "✗ instruction", "(expected: ", "Cause: ", words, "-> ", "error"):
        assert expected in result.output


def test_a_key_is_sent_if_there_is_one() -> None:
    with serving(RIGHT, api_key=KEY) as url:
        assert verify(url, env={"QWEN3_TRITON_API_KEY": KEY})[0] == 0
        code, report = verify(url)
    assert code == 1
    assert "HTTP 401: A key is needed." in outcome(report, "norm")["measured"]


def test_what_cannot_be_checked_exits_with_1_and_an_explanation(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    for target, words in ((url, "did not answer"), (str(tmp_path), "has no ONNX file")):
        result = CliRunner().invoke(main, ["model", "verify", target])
        assert result.exit_code == 1
        assert words in result.output
    result = CliRunner().invoke(main, ["model", "verify", "nowhere"])
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("served", "card"),
    [
        (("Qwen/Qwen3-Embedding-4B", 2560), "4b"),
        (("onnx-community/Qwen3-Embedding-0.6B-ONNX", None), "0.6b"),
        (("qwen3_embed_8b_onnx", None), "8b"),
        (("qwen3-nano", 1152), "nano"),
        (("mine", 4096), "8b"),
        (("mine", 77), None),
        ((None, None), None),
    ],
)
def test_a_card_is_chosen_by_the_models_name_or_its_hidden_size(
    served: tuple[str | None, int | None], card: str | None
) -> None:
    chosen = choose_card(None, *served)
    assert (chosen.name if chosen else None) == card


def test_a_model_other_than_its_name_promises_fails_by_size_and_by_scores() -> None:
    with serving(RIGHT) as url:
        code, report = verify(url, "--card", "4b")
    assert code == 1
    assert {"hidden size", "tokenizer", "golden scores"} <= names(report, "fail")


# README of vLLM, which runs the model in bfloat16.
VLLM_SCORES = ((0.7620, 0.1408), (0.1358, 0.6014))


@pytest.mark.parametrize(
    ("name", "scores", "status"),
    [
        ("0.6b", SCORES["0.6b"], "pass"),
        ("4b", SCORES["4b"], "pass"),
        ("8b", SCORES["8b"], "pass"),
        ("0.6b", VLLM_SCORES, "pass"),
        ("0.6b", ((0.7646, 0.1355), (0.1414, 0.6)), "fail"),
    ],
)
def test_vectors_with_the_similarities_of_a_card_pass_its_scores(
    name: Any, scores: Any, status: str
) -> None:
    """A server of two queries and two documents with given similarities."""
    scores = np.array(scores)
    size = qwen_card(name).hidden_size
    vectors = dict(zip(DOCUMENTS, _documents(scores, size), strict=True))
    queries = np.eye(len(QUERIES), size)
    vectors |= {instructed(text, _INSTRUCTION): queries[i] for i, text in enumerate(QUERIES)}
    texts = list(vectors)
    stack = Stack(
        tokenize=lambda text: [texts.index(text) if text in texts else 0],
        close=lambda ids: ids,
        pool=lambda rows: np.stack([vectors[texts[row[0]]] for row in rows]),
    )
    with serving(stack) as url:
        _, report = verify(url, "--card", name)
    assert outcome(report, "golden scores")["status"] == status


_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"


def _documents(scores: Any, size: int) -> Any:
    """Documents whose first components are their similarities to two orthogonal queries."""
    documents = np.zeros((2, size))
    documents[:, :2] = scores.T
    documents[:, 2] = np.sqrt(1 - (scores**2).sum(axis=0))
    return documents
