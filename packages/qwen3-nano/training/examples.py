"""Training examples: tokenized texts with the teacher's vectors, in batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from student import END
from tokenizers import Tokenizer
from torch import Tensor
from train_tokenizer import PREFIX

MAX_TOKENS = 320  # about as much text as the teacher's 256 word pieces
# How often a text follows an instruction: a query usually, as in service; a document occasionally.
PREFIX_SHARE = {True: 0.65, False: 0.06}
OTHER_PREFIX_SHARE = 0.15  # the share of those with another instruction
OTHER_INSTRUCTIONS = (
    "Given a question, retrieve passages that answer the question",
    "Retrieve semantically similar text",
    "Given a search query, retrieve relevant documents",
    "Find the article that this title belongs to",
    "Given a term, retrieve its definition",
)
PIECE_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows padded right: ids int64 (n, longest), lengths (n,)."""

    ids: Tensor
    lengths: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """The texts of one batch, from short to long, and their teacher vectors, (n, 384)."""

    rows: list[NDArray[np.int32]]
    targets: Tensor

    @property
    def flat(self) -> Tensor:
        """All ids in one row."""
        return torch.from_numpy(np.concatenate(self.rows).astype(np.int64))

    @property
    def offsets(self) -> Tensor:
        """Where each text starts in `flat`."""
        lengths = [len(row) for row in self.rows]
        return torch.from_numpy(np.cumsum([0, *lengths[:-1]]))

    def pieces(self) -> Iterator[Piece]:
        """Yield the texts padded, a few of similar length at a time, for little padding."""
        start = 0
        while start < len(self.rows):
            end = start + 1
            while end < len(self.rows) and len(self.rows[end]) * (end + 1 - start) <= PIECE_TOKENS:
                end += 1
            chosen = self.rows[start:end]
            ids = np.full((len(chosen), len(chosen[-1])), END, dtype=np.int64)
            for index, row in enumerate(chosen):
                ids[index, : len(row)] = row
            yield Piece(torch.from_numpy(ids), torch.tensor([len(row) for row in chosen]))
            start = end


class Examples:
    """All texts that the teacher has embedded."""

    def __init__(self, work: Path) -> None:
        tokenizer = Tokenizer.from_file(str(work / "model/tokenizer.json"))
        vectors = np.load(work / "vectors.npy", mmap_mode="r")
        known = np.flatnonzero(np.abs(vectors[:, :8]).sum(axis=1) > 0)
        with (work / "texts.jsonl").open(encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        records = [records[i] for i in known]
        self.targets = torch.from_numpy(vectors[known].astype(np.float32))
        self.query = np.array([record["query"] for record in records])
        encoded = tokenizer.encode_batch([r["text"] for r in records], add_special_tokens=False)
        self.ids = [np.array(e.ids[:MAX_TOKENS], dtype=np.int32) for e in encoded]
        # After "Query:", the first word is tokenized differently, so queries are tokenized with
        # it.
        self.behind = {
            i: np.array(e.ids, dtype=np.int32)
            for i, e in zip(
                np.flatnonzero(self.query),
                tokenizer.encode_batch(
                    [PREFIX + r["text"] for r in records if r["query"]], add_special_tokens=False
                ),
                strict=True,
            )
        }
        self._prefix = np.array(
            tokenizer.encode(PREFIX, add_special_tokens=False).ids, dtype=np.int32
        )
        self._others = [
            np.array(
                tokenizer.encode(f"Instruct: {o}\nQuery:", add_special_tokens=False).ids,
                dtype=np.int32,
            )
            for o in OTHER_INSTRUCTIONS
        ]
        self._rng = np.random.default_rng(3)
        self._order, self._next = np.empty(0, dtype=np.int64), 0

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, size: int) -> Batch:
        """Return the next texts, some after an instruction, each with the end token."""
        chosen = self._take(size)
        rows = [self._row(int(row)) for row in chosen]
        order = sorted(range(size), key=lambda i: len(rows[i]))
        return Batch([rows[i] for i in order], self.targets[chosen[order]])

    def _take(self, size: int) -> NDArray[np.int64]:
        """Draw texts in blocks of neighbors, often from one article, for hard pairs in a batch."""
        if self._next + size > len(self._order):
            blocks = np.array_split(np.arange(len(self)), max(1, len(self) // 8))
            self._rng.shuffle(blocks)
            self._order, self._next = np.concatenate(blocks), 0
        self._next += size
        return self._order[self._next - size : self._next]

    def _row(self, row: int) -> NDArray[np.int32]:
        ids = self.ids[row]
        if self._rng.random() < PREFIX_SHARE[bool(self.query[row])]:
            if self._rng.random() < OTHER_PREFIX_SHARE:
                other = self._others[self._rng.integers(len(self._others))]
                ids = np.concatenate([other, ids])
            else:
                ids = (
                    self.behind[row] if row in self.behind else np.concatenate([self._prefix, ids])
                )
        return np.append(ids, END)
