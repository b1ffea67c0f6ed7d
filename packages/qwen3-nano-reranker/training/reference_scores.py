"""Compute the golden logits with the reference, and check ONNX Runtime against them.

python reference_scores.py MODEL_FOLDER GOLDEN_FILE
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from causal_reference import load_reference, reference_logits
from chat_tokenizer import prompt_ids
from golden import right_padded
from golden_texts import CODE, ENGLISH, LANGUAGES, SHORT, SYMBOLS
from numpy.typing import NDArray
from tokenizers import Tokenizer
from word_order import orders

from qwen3_triton_gateway.rerank_prompt import ANSWERS, render_pair

# The bar of the family for float32.
MAX_DIFFERENCE = 1e-4
BATCHES = 8
QUERIES = (
    "What is the capital of China?", "Explain gravity", "photosynthesis", "how to cook lentils",
    "Wo ist der Bahnhof?", "什么是机器学习？", "a", "🙂",
)  # fmt: skip
CARD = (
    "The capital of China is Beijing.",
    "Gravity is a force that attracts two bodies towards each other. It gives weight to physical "
    "objects and is responsible for the movement of planets around the sun.",
)
LONG = "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen. "


def golden_pairs() -> list[tuple[str, str]]:
    """Return the pairs: the card's, many scripts, word order, and long documents."""
    documents = (*CARD, *SHORT, *ENGLISH, *LANGUAGES, *SYMBOLS, *CODE)
    pairs = [(query, document) for query in QUERIES[:2] for document in CARD]
    pairs += [(QUERIES[i % len(QUERIES)], text) for i, text in enumerate(documents)]
    for order in orders(8):
        pairs += [(order.query, order.right), (order.query, order.reversed)]
    return pairs + [(QUERIES[2], LONG * repeats) for repeats in (4, 16, 60, 120)]


def tokenize(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[list[int]]:
    """Tokenize prefix, pair and suffix on their own, as the model card does."""
    prefix, suffix = prompt_ids(tokenizer)
    middles = tokenizer.encode_batch(
        [render_pair(query, document) for query, document in pairs], add_special_tokens=False
    )
    return [prefix + middle.ids + suffix for middle in middles]


def run_onnx(session: onnxruntime.InferenceSession, rows: list[list[int]]) -> NDArray[np.float32]:
    """Score rows of ids as one right-padded batch: float32 (n, 2)."""
    return session.run(["logits"], right_padded(rows))[0]


def main() -> None:
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    answers = [tokenizer.token_to_id(answer) for answer in ANSWERS]
    pairs = golden_pairs()
    rows = tokenize(tokenizer, pairs)
    logits = reference_logits(load_reference(folder), rows, answers)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(folder / "model.onnx", options)
    alone = np.abs(np.concatenate([run_onnx(session, [row]) for row in rows]) - logits).max()
    # Long and short pairs together, and all of them at once would take too much memory.
    batch = max(
        np.abs(run_onnx(session, rows[i::BATCHES]) - logits[i::BATCHES]).max()
        for i in range(BATCHES)
    )
    print(f"{len(rows)} pairs; largest difference alone {alone:.1e}, in a batch {batch:.1e}")
    if max(alone, batch) > MAX_DIFFERENCE:
        raise SystemExit("ONNX Runtime and the reference disagree")
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        target,
        queries=np.array([query for query, _ in pairs], dtype=np.str_),
        documents=np.array([document for _, document in pairs], dtype=np.str_),
        token_counts=np.array([len(row) for row in rows], dtype=np.int64),
        logits=logits,
    )


if __name__ == "__main__":
    main()
