"""The nano reranker's files agree with each other and with the reference, and it ranks."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from qwen3_nano_reranker import MODEL_ID, __version__, model_dir

MAX_PACKAGE_BYTES = 12_000_000
# The bar of the family for float32; both compute in float32, in a different order.
MAX_DIFFERENCE = 1e-4
LONGEST_PAIR = 2048
PROMPT_TOKENS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "yes", "no")


def test_package_names_its_files_and_version() -> None:
    assert MODEL_ID == "qwen3-nano-reranker"
    assert __version__
    names = {"model.onnx", "tokenizer.json", "tokenizer_config.json", "config.json"}
    assert names <= {path.name for path in model_dir().iterdir()}


def test_package_data_stays_below_12_mb() -> None:
    package = model_dir().parent
    total = sum(path.stat().st_size for path in package.rglob("*") if path.is_file())
    assert total <= MAX_PACKAGE_BYTES


def test_the_config_describes_a_causal_model_of_the_tokenizers_vocabulary(reranker: Any) -> None:
    config = json.loads((model_dir() / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["architectures"]) == ("qwen3", ["Qwen3ForCausalLM"])
    assert config["tie_word_embeddings"] is True
    assert config["vocab_size"] == reranker.tokenizer.get_vocab_size()


def test_inputs_and_output_are_those_of_a_pooled_reranker(reranker: Any) -> None:
    inputs = [(i.name, i.type, len(i.shape)) for i in reranker.session.get_inputs()]
    names = ("input_ids", "attention_mask", "position_ids")
    assert inputs == [(name, "tensor(int64)", 2) for name in names]
    (output,) = reranker.session.get_outputs()
    assert (output.name, output.type, output.shape) == ("logits", "tensor(float)", ["batch", 2])


@pytest.mark.parametrize("token", PROMPT_TOKENS)
def test_the_prompts_tokens_are_one_token_each(reranker: Any, token: str) -> None:
    assert reranker.tokenizer.encode(token).tokens == [token]


def test_the_prompt_costs_23_tokens(reranker: Any) -> None:
    words = reranker.tokenizer.encode(" cat").ids
    assert len(words) == 1
    assert len(reranker.token_ids(("cat", "cat"))) == 23 + 2


def test_logits_equal_the_reference_for_every_golden_pair_alone(reranker: Any) -> None:
    golden = reranker.golden()
    rows = [reranker.token_ids(pair) for pair in golden.pairs]
    assert [len(row) for row in rows] == golden.token_counts
    alone = np.concatenate([reranker.run([row]) for row in rows])
    np.testing.assert_allclose(alone, golden.logits, atol=MAX_DIFFERENCE, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("left", [False, True])
def test_logits_do_not_depend_on_the_batch_or_the_padding(reranker: Any, left: bool) -> None:
    golden = reranker.golden()
    rows = [reranker.token_ids(pair) for pair in golden.pairs if len(pair[1]) < 500]
    chosen = [i for i, pair in enumerate(golden.pairs) if len(pair[1]) < 500]
    logits = reranker.run(rows, left=left)
    np.testing.assert_allclose(logits, golden.logits[chosen], atol=MAX_DIFFERENCE, rtol=0)


def test_golden_scores_differ_from_each_other(reranker: Any) -> None:
    logits = reranker.golden().logits
    # If all scores were alike, parity would prove nothing.
    assert np.std(logits[:, 1] - logits[:, 0]) > 0.5


@pytest.mark.parametrize("length", [1, LONGEST_PAIR])
def test_pairs_of_any_length_run(reranker: Any, length: int) -> None:
    assert np.isfinite(reranker.run([[100] * length])).all()


def test_the_examples_of_the_model_card_are_told_apart(reranker: Any) -> None:
    documents = [
        "The capital of China is Beijing.",
        "Gravity is a force that attracts two bodies towards each other. It gives weight to "
        "physical objects and is responsible for the movement of planets around the sun.",
    ]
    for index, query in enumerate(["What is the capital of China?", "Explain gravity"]):
        assert reranker.score(query, documents).argmax() == index


def test_word_order_counts(reranker: Any) -> None:
    right, reversed_ = reranker.score("dog bites man", ["a dog bites a man", "a man bites a dog"])
    assert right > reversed_
