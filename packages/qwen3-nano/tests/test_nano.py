"""The nano model's files agree with each other and with the reference, and it retrieves."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qwen3_nano import MODEL_ID, __version__, model_dir

# Both compute in float32, in a different order, which costs about 1e-7.
MIN_PARITY = 0.99999
# The gateway's default number of dimensions.
DIMENSIONS = 1024
MAX_PACKAGE_BYTES = 16_000_000
# Chance gives 0.19 for these pairs; the shipped model is well above this floor.
MIN_NDCG = 0.75
PREFIX = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
)
END, PAD_ID = "<|endoftext|>", 0
MIXED = ["a", "The cat sat on the mat.", "Vaccines train immunity. " * 12, "🙂 здравствуйте 世界"]


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    return (a64 * b64).sum(1) / np.linalg.norm(a64, axis=1) / np.linalg.norm(b64, axis=1)


def test_package_names_its_files_and_version() -> None:
    assert MODEL_ID == "qwen3-nano"
    assert __version__
    names = {"model.onnx", "tokenizer.json", "tokenizer_config.json", "config.json"}
    assert names <= {path.name for path in model_dir().iterdir()}


def test_package_data_stays_below_16_mb() -> None:
    package = model_dir().parent
    total = sum(path.stat().st_size for path in package.rglob("*") if path.is_file())
    assert total <= MAX_PACKAGE_BYTES


def test_the_config_describes_the_graph(nano: Any) -> None:
    config = json.loads((model_dir() / "config.json").read_text(encoding="utf-8"))
    weights = nano.weights
    assert config["model_type"] == "qwen3"
    assert config["hidden_size"] == weights.hidden_size == nano.plain.get_outputs()[0].shape[-1]
    assert config["num_hidden_layers"] == len(weights.layers)
    assert config["num_attention_heads"] == weights.query_heads
    assert config["num_key_value_heads"] == weights.kv_heads
    assert config["intermediate_size"] == weights.intermediate_size
    assert config["vocab_size"] == nano.tokenizer.get_vocab_size() == len(weights.embedding.values)


def test_the_hidden_size_exceeds_the_default_dimensions_and_truncation_changes_the_norm(
    nano: Any,
) -> None:
    vectors = nano.embed(["a short text", "another one"])
    assert vectors.shape[1] > DIMENSIONS
    kept = np.linalg.norm(vectors[:, :DIMENSIONS], axis=1) / np.linalg.norm(vectors, axis=1)
    assert kept.max() < 0.999


def test_every_text_ends_with_endoftext_and_only_once(nano: Any) -> None:
    for text in [*nano.golden()[0], ""]:
        tokens = nano.tokenizer.encode(text).tokens
        assert tokens[-1] == END
        assert tokens.count(END) == 1


def test_pad_token_is_endoftext_and_eos_token_is_not(nano: Any) -> None:
    config = json.loads((model_dir() / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["pad_token"] == END
    assert config["eos_token"] == "<|im_end|>"
    assert nano.tokenizer.token_to_id(END) == PAD_ID


@pytest.mark.parametrize(
    "text", ["🏳️‍🌈 e\u0301", "नमस्ते 世界 \u200b", " \t\r\n x ", "\x00\x7f\U0010ffff"]
)
def test_the_tokenizer_decodes_any_text_to_its_nfc_form(nano: Any, text: str) -> None:
    ids = nano.tokenizer.encode(text).ids
    assert nano.tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_golden_texts_have_1_to_1024_tokens(nano: Any) -> None:
    _, counts, _ = nano.golden()
    assert counts.min() == 2  # one token, plus the end token
    assert {31, 100, 255, 511, 1023, 1024} <= set(counts.tolist())


def test_graph_equals_the_reference_for_every_golden_text_alone(nano: Any) -> None:
    texts, counts, vectors = nano.golden()
    alone = np.concatenate([nano.embed([text]) for text in texts])
    assert [len(nano.tokenizer.encode(text).ids) for text in texts] == counts.tolist()
    assert cosines(alone, vectors).min() >= MIN_PARITY


def test_graph_equals_the_reference_in_one_batch_of_mixed_lengths(nano: Any) -> None:
    texts, _, vectors = nano.golden()
    chosen = [i for i, text in enumerate(texts) if len(text) < 1500]
    batch = nano.embed([texts[i] for i in chosen])
    assert cosines(batch, vectors[chosen]).min() >= MIN_PARITY


def test_golden_vectors_differ_from_each_other(nano: Any) -> None:
    _, _, vectors = nano.golden()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    # If all vectors were alike, parity would prove nothing.
    assert np.median(unit @ unit.T) < 0.5


def test_questions_find_the_paragraphs_that_answer_them(nano: Any) -> None:
    path = Path(__file__).parent / "pairs.json"
    pairs: list[list[str]] = json.loads(path.read_text(encoding="utf-8"))
    queries = nano.embed([PREFIX + query for query, _ in pairs])[:, :DIMENSIONS]
    texts = nano.embed([text for _, text in pairs])[:, :DIMENSIONS]
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    similarity = queries @ texts.T
    rank = (similarity > np.diagonal(similarity)[:, None]).sum(axis=1)
    assert np.where(rank < 10, 1 / np.log2(rank + 2), 0.0).mean() >= MIN_NDCG


def test_padding_side_does_not_matter_when_positions_follow_the_mask(nano: Any) -> None:
    assert cosines(nano.embed(MIXED, left=True), nano.embed(MIXED)).min() >= MIN_PARITY
