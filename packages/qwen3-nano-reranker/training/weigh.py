"""Fit the weights of what the model compares, and validate it.

    python weigh.py WORK [QUERIES]

Reads WORK/reranker.pt and the lists. Prints the weights that fit so many training queries of each
group best, for `construct.py`, and each group's nDCG@10: the embedder's, and those of the model's
own scores and of the fitted ones for its first 50.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from chat_tokenizer import head_text
from construct import COMPARED, COVERED, DOCUMENT_VECTOR, PAIRS_COVERED, QUERY_VECTOR
from cross_encoder import CrossEncoder
from lists import FIRST, GROUPS, Texts
from numpy.typing import NDArray
from student import StudentConfig
from torch import Tensor
from torch.nn import functional

QUERIES, VALIDATION_QUERIES = 40, 100
MAX_TOKENS = 256
PARTS = 4  # documents of similar lengths are run together
DECAY = 1e-3


class Compared:
    """What the model compares for the lists."""

    def __init__(self, work: Path) -> None:
        saved = torch.load(work / "reranker.pt", weights_only=True)
        self.texts = Texts(work)
        self._model = CrossEncoder(StudentConfig(**saved["config"]), saved["answers"])
        self._model.load_state_dict(saved["state"])

    @torch.inference_mode()
    def of(self, rows: NDArray[np.int64]) -> Tensor:
        """Return cosine, coverage, pairs' coverage and the score, (lists, FIRST, 4)."""
        return torch.stack([self._of_list(row) for row in rows])

    def _of_list(self, row: np.int64) -> Tensor:
        texts = self.texts
        head_ids = texts.tokenizer.encode(head_text(texts.texts[texts.queries[row]])).ids
        head = torch.tensor([[*texts.prefix, *head_ids]])
        documents = [[*texts.rows[i][:MAX_TOKENS], *texts.suffix] for i in texts.candidates[row]]
        compared = torch.zeros(FIRST, 4)
        order = np.argsort([len(document) for document in documents])
        for part in np.array_split(order, PARTS):
            tails = torch.zeros(1, len(part), len(documents[part[-1]]), dtype=torch.int64)
            for number, i in enumerate(part):
                tails[0, number, : len(documents[i])] = torch.tensor(documents[i])
            lengths = torch.tensor([[len(documents[i]) for i in part]])
            head_lengths = torch.tensor([head.shape[1]])
            state = self._model.last_states(head, head_lengths, tails, lengths)[0]
            logits = self._model.logits(state)
            query, document = state[:, QUERY_VECTOR], state[:, DOCUMENT_VECTOR]
            squares = query.square().sum(1) + document.square().sum(1)
            compared[part, 0] = 2 * (query * document).sum(1) / squares
            compared[part, 1:3] = state[:, [COVERED, PAIRS_COVERED]]
            compared[part, 3] = logits[:, 1] - logits[:, 0]
        return compared


def fit(compared: Tensor, right: Tensor) -> Tensor:
    """Return the weights with which the softmax of each list is best, (3,)."""
    scale = compared.std((0, 1))
    weights = torch.zeros(compared.shape[-1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100)

    def step() -> Tensor:
        optimizer.zero_grad()
        scores = (compared / scale) @ weights
        loss = functional.cross_entropy(scores, right) + DECAY * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(step)
    return weights.detach() / scale


def gain(scores: Tensor, right: Tensor) -> float:
    """Return the sum of each list's nDCG@10."""
    ranks = (scores > scores.gather(1, right[:, None])).sum(1)
    return float(torch.where(ranks < 10, 1 / torch.log2(ranks + 2.0), 0.0).sum())


def main() -> None:
    work, count = Path(sys.argv[1]), int((*sys.argv[2:3], QUERIES)[0])
    torch.set_num_threads(1)
    compared = Compared(work)
    texts = compared.texts
    is_answer = texts.candidates == texts.answers[:, None]
    chosen: dict[bool, list[NDArray[np.int64]]] = {True: [], False: []}
    totals: list[int] = []
    for group in range(len(GROUPS)):
        for validation, limit in ((False, count), (True, VALIDATION_QUERIES)):
            rows = np.flatnonzero((texts.groups == group) & (texts.validation == validation))
            rows = rows[np.linspace(0, len(rows) - 1, limit).astype(int)]
            totals += [len(rows)] * validation
            chosen[validation].append(rows[is_answer[rows].any(axis=1)])
    right = {
        part: [torch.from_numpy(is_answer[rows].argmax(axis=1)) for rows in groups]
        for part, groups in chosen.items()
    }
    weights = fit(
        torch.cat([compared.of(rows) for rows in chosen[False]])[..., :3], torch.cat(right[False])
    )
    print(f"weights {COMPARED}, fitted {[round(w, 1) for w in weights.tolist()]}", flush=True)
    for name, rows, answers, total in zip(GROUPS, chosen[True], right[True], totals, strict=True):
        values = compared.of(rows)
        before = gain(-torch.arange(FIRST).expand(len(rows), -1).float(), answers) / total
        after, fitted = (
            gain(scores, answers) / total for scores in (values[..., 3], values[..., :3] @ weights)
        )
        print(
            f"{name} {before:.3f} > {after:.3f} ({after / before - 1:+.1%}), "
            f"fitted {fitted:.3f} ({fitted / before - 1:+.1%})",
            flush=True,
        )


if __name__ == "__main__":
    main()
