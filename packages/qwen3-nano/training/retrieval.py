"""The held-out pairs, and the shipped embedder, run as the gateway runs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from articles import read_articles
from numpy.typing import NDArray
from tokenizers import Tokenizer

DIMENSIONS = 1024
MAX_PAIRS = 1000
MAX_TOKENS = 1024
BATCH = 16

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Kind:
    """Pairs of one kind of text; `documents[i]` answers `queries[i]`."""

    name: str
    queries: list[str]
    documents: list[str]


class Nano:
    """The shipped files, run as the gateway runs them."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        self._session = onnxruntime.InferenceSession(
            folder / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)

    def embed(self, texts: list[str]) -> Vectors:
        """Return float32 (n, DIMENSIONS): last token, truncated, then normalized."""
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
        vectors = np.zeros((len(rows), DIMENSIONS), dtype=np.float32)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            vectors[chosen] = self._run([rows[i] for i in chosen])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def _run(self, rows: list[list[int]]) -> Vectors:
        ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)], mask[index, : len(row)] = row, 1
        positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        (hidden,) = self._session.run(["last_hidden_state"], feeds)
        return hidden[np.arange(len(rows)), mask.sum(axis=1) - 1, :DIMENSIONS]


def kinds(work: Path, demo: Path) -> Iterator[Kind]:
    """Yield every kind of held-out pair."""
    articles = list(read_articles(work / "held_out.jsonl"))
    sources = {
        "term → definition (WordNet)": {"dict-wn"},
        "title → body (FOLDOC)": {"dict-foldoc"},
        "question → answer (manuals' FAQs)": {a.source for a in articles}
        - {"dict-wn", "dict-foldoc"},
    }
    for name, chosen in sources.items():
        pairs: dict[str, str] = {}
        for article in articles:
            if article.source in chosen and len(article.title) > 2:
                pairs.setdefault(article.title, article.text)
        first = list(pairs.items())[:MAX_PAIRS]
        yield Kind(name, [title for title, _ in first], [text for _, text in first])
    records = [json.loads(line) for line in demo.read_text(encoding="utf-8").splitlines()]
    texts = [record["text"] for record in records]
    yield Kind("title → body (demo paragraphs)", [r["title"] for r in records], texts)
    yield Kind("question → answer (demo paragraphs)", [r["question"] for r in records], texts)
