"""Measure what reranking adds on the held-out pairs of the embedder's evaluation.

    python score_kinds.py WORK MODEL_FOLDER DEMO_DOCUMENTS SCORES

The embedder's first 50 documents of each query are sorted by the shipped reranker's score. Writes
the scores as JSON and prints a Markdown table.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import onnxruntime
from chat_tokenizer import head_text, prompt_ids
from numpy.typing import NDArray
from reference_scores import run_onnx
from retrieval import Kind, Nano, kinds
from tokenizers import Tokenizer
from train_tokenizer import PREFIX
from word_order import orders

import qwen3_nano

FIRST = 50
RANKS = 10
MAX_QUERIES = 400  # of each kind, evenly spaced; the documents are all of the kind
MAX_DOCUMENT_TOKENS = 1024
BATCH_TOKENS = 4096
WORKERS = 2

Ranks = NDArray[np.int64]


class Reranker:
    """The shipped files, run as the gateway runs them."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
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


def score(kind: Kind, folder: Path) -> dict[str, object]:
    """Return one row of the table; runs in a process of its own."""
    nano, reranker = Nano(qwen3_nano.model_dir()), Reranker(folder)
    own = np.linspace(0, len(kind.queries) - 1, min(len(kind.queries), MAX_QUERIES)).astype(int)
    queries = nano.embed([PREFIX + kind.queries[i] for i in own])
    similarity = queries @ nano.embed(kind.documents).T
    before = (similarity > similarity[np.arange(len(own)), own][:, None]).sum(axis=1)
    first = np.argsort(-similarity, axis=1, kind="stable")[:, :FIRST]
    is_own = first == own[:, None]
    # What is not among the first 50 cannot be ranked.
    found = np.flatnonzero(is_own.any(axis=1))
    pairs = [(kind.queries[own[i]], kind.documents[j]) for i in found for j in first[i]]
    scores = reranker.score(pairs).reshape(len(found), FIRST)
    best = scores[is_own[found]]
    after = np.full(len(own), FIRST)
    after[found] = (scores > best[:, None]).sum(axis=1)
    return {
        "kind": kind.name,
        "pairs": len(own),
        "embedder": round(gain(before), 4),
        "reranked": round(gain(after), 4),
        "change": round(gain(after) / gain(before) - 1, 4),
        "found": round(len(found) / len(own), 4),
    }


def word_order(reranker: Reranker) -> dict[str, object]:
    """Return how often the sentence that the query means beats its reversal."""
    pairs = [(order.query, text) for order in orders() for text in (order.right, order.reversed)]
    scores = reranker.score(pairs).reshape(-1, 2)
    return {
        "kind": "word order",
        "pairs": len(scores),
        "right": round(float((scores[:, 0] > scores[:, 1]).mean()), 4),
        "dog bites man": bool(scores[0, 0] > scores[0, 1]),
    }


def main() -> None:
    work, folder, demo, target = map(Path, sys.argv[1:5])
    order = word_order(Reranker(folder))
    print(order, flush=True)
    # A kind per core: faster than several cores for one batch.
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        chosen = list(kinds(work, demo))
        # The longest first, so that both cores are busy to the end.
        order_of_work = sorted(chosen, key=lambda kind: -sum(map(len, kind.documents)))
        futures = {kind.name: pool.submit(score, kind, folder) for kind in order_of_work}
        for future in as_completed(futures.values()):
            print(future.result(), flush=True)
        rows = [futures[kind.name].result() for kind in chosen]
    print("| pairs | number | embedder | reranked | change |\n|---|---|---|---|---|")
    for row in rows:
        line = "| {kind} | {pairs} | {embedder:.3f} | {reranked:.3f} | {change:+.1%} |"
        print(line.format(**row))
    text = json.dumps([*rows, order], indent=2, ensure_ascii=False) + "\n"
    target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
