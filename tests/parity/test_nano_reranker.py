"""The committed logits of the nano reranker, compared with the code of the model card, live."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

import qwen3_nano_reranker

PACKAGES = Path(__file__).resolve().parents[2] / "packages"
sys.path += [str(PACKAGES / name / "training") for name in ("qwen3-nano", "qwen3-nano-reranker")]

import causal_reference  # noqa: E402  (a script of the training folder, not a package)

# The committed logits were computed by the same code, perhaps in another release on another CPU.
MAX_DIFFERENCE = 1e-4
# https://huggingface.co/Qwen/Qwen3-Reranker-0.6B
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def process_inputs(tokenizer: Any, query: str, document: str) -> list[int]:
    """Copy `format_instruction` and `process_inputs` of the card, for one pair."""
    pair = f"<Instruct>: {INSTRUCTION}\n<Query>: {query}\n<Document>: {document}"
    prefix = tokenizer.encode(PREFIX, add_special_tokens=False)
    return [*prefix, *tokenizer(pair)["input_ids"], *tokenizer.encode(SUFFIX)]


def test_the_committed_logits_match_transformers() -> None:
    folder = qwen3_nano_reranker.model_dir()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    golden = np.load(qwen3_nano_reranker.golden_path(), allow_pickle=False)
    pairs = zip(golden["queries"].tolist(), golden["documents"].tolist(), strict=True)
    rows = [process_inputs(tokenizer, *pair) for pair in pairs]
    assert [len(row) for row in rows] == golden["token_counts"].tolist()
    answers = [tokenizer.convert_tokens_to_ids(answer) for answer in ("no", "yes")]
    live = causal_reference.reference_logits(causal_reference.load_reference(folder), rows, answers)
    np.testing.assert_allclose(live, golden["logits"], atol=MAX_DIFFERENCE, rtol=0)
