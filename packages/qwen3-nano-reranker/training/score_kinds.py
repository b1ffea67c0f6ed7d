"""Measure what reranking adds on the held-out pairs of the embedder's evaluation.

    python score_kinds.py WORK MODEL_FOLDER DEMO_DOCUMENTS SCORES

The embedder's first 50 documents of each query are sorted by the shipped reranker's score. Writes
the scores as JSON and prints a Markdown table.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from chat_tokenizer import head_text, prompt_ids
from numpy.typing import NDArray
from reference_scores import run_onnx
from retrieval import Kind, Nano, kinds
from tokenizers import Tokenizer
from train_tokenizer import PREFIX
from word_order import held_out_lists

import qwen3_nano

FIRST = 50
RANKS = 10
MAX_DOCUMENT_TOKENS = 1024
BATCH_TOKENS = 8192

Ranks = NDArray[np.int64]


class Reranker:
    """The shipped files, run as the gateway runs them."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        self._session = onnxruntime.InferenceSession(folder / "model.onnx", options)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._prefix, self._suffix = prompt_ids(self._tokenizer)

    def score(self, pairs: list[tuple[str, str]]) -> NDArray[np.float32]:
        """Return the logit of "yes" minus that of "no" for each pair."""
        heads = {query: self._ids(head_text(query)) for query in {query for query, _ in pairs}}
        tails = {text: self._ids(f" {text}") for text in {text for _, text in pairs}}
        rows = [
            [*self._prefix, *heads[q], *tails[d][:MAX_DOCUMENT_TOKENS], *self._suffix]
            for q, d in pairs
        ]
        scores = np.zeros(len(rows), dtype=np.float32)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        while order:
            size = max(1, BATCH_TOKENS // len(rows[order[-1]]))
            chosen, order = order[-size:], order[:-size]
            logits = run_onnx(self._session, [rows[i] for i in chosen])
            scores[chosen] = logits[:, 1] - logits[:, 0]
        return scores

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def gain(ranks: Ranks) -> float:
    """Return nDCG@10, where one document answers each query."""
    return float(np.where(ranks < RANKS, 1 / np.log2(ranks + 2), 0.0).mean())


def score(kind: Kind, nano: Nano, reranker: Reranker) -> dict[str, object]:
    """Return one row of the table."""
    queries = nano.embed([PREFIX + query for query in kind.queries])
    similarity = queries @ nano.embed(kind.documents).T
    first = np.argsort(-similarity, axis=1, kind="stable")[:, :FIRST]
    own = np.arange(len(kind.queries))
    before = (similarity > similarity[own, own][:, None]).sum(axis=1)
    pairs = [(kind.queries[i], kind.documents[j]) for i in own for j in first[i]]
    scores = reranker.score(pairs).reshape(first.shape)
    is_own = first == own[:, None]
    found = is_own.any(axis=1)
    best = np.where(is_own, scores, -np.inf).max(axis=1)
    after = np.where(found, (scores > best[:, None]).sum(axis=1), FIRST)
    return {
        "kind": kind.name,
        "pairs": len(own),
        "embedder": round(gain(before), 4),
        "reranked": round(gain(after), 4),
        "change": round(gain(after) / gain(before) - 1, 4),
        "found": round(float(found.mean()), 4),
    }


def word_order(reranker: Reranker) -> dict[str, object]:
    """Return how often the sentence that the query means beats its reversal."""
    lists = held_out_lists()
    pairs = [(item.query, text) for item in lists for text in (item.positive, item.negatives[0])]
    scores = reranker.score(pairs).reshape(-1, 2)
    return {
        "kind": "word order",
        "pairs": len(lists),
        "right": round(float((scores[:, 0] > scores[:, 1]).mean()), 4),
        "dog bites man": bool(scores[0, 0] > scores[0, 1]),
    }


def main() -> None:
    work, folder, demo, target = map(Path, sys.argv[1:5])
    nano, reranker = Nano(qwen3_nano.model_dir()), Reranker(folder)
    order = word_order(reranker)
    print(order, flush=True)
    print("| pairs | number | embedder | reranked | change |\n|---|---|---|---|---|")
    rows: list[dict[str, object]] = []
    for kind in kinds(work, demo):
        rows.append(score(kind, nano, reranker))
        line = "| {kind} | {pairs} | {embedder:.3f} | {reranked:.3f} | {change:+.1%} |"
        print(line.format(**rows[-1]), flush=True)
    text = json.dumps([*rows, order], indent=2, ensure_ascii=False) + "\n"
    target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
