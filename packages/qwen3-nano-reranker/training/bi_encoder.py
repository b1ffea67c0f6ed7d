"""Fit the bi-encoder that the reranker's first weights compute.

    python bi_encoder.py WORK [MINUTES]

Reads what `lists.py` wrote; writes WORK/bi-encoder.pt. A text's vector is a linear map of the
weighted average of its tokens' vectors. It begins as an approximation of the nano embedder, and is
trained on lists, which is quick: first the two maps, then the tokens' vectors and weights too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lists import GROUPS, Embedder, token_rows
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from train_tokenizer import PREFIX

CONTENT = 224  # dimensions of the tokens' vectors
RANK = 80  # of the texts' vectors
VOCABULARY = 24_007
EMPTY = np.array([300])
UNKNOWN_WEIGHT = -8.0  # of the prompt's tokens, which the embedder does not have
# The share of each group, in the order of `GROUPS`.
SHARES = (0.2, 0.07, 0.2, 0.28, 0.25)
MAPS_SHARE = 0.2  # of the time, for the maps alone
LISTS, NEGATIVES, MAX_TOKENS = 96, 9, 96
FRONT, FRONT_BONUS = 15, 0.35  # the embedder's first ones are drawn more often
LIKE_EMBEDDER = 0.2  # weight of the divergence from the embedder's scores
TEMPERATURE = 25
# Of token vectors, token weights, maps, and the two numbers.
LEARNING_RATES = (2e-3, 1e-2, 1e-3, 5e-3)
VALIDATION_QUERIES = 300


class BiEncoder(nn.Module):
    """A bi-encoder without attention.

    Attributes:
        content: The token vectors, (vocabulary, CONTENT), about 1 per dimension.
        weights: The logarithms of the weights in a query and in a document, (vocabulary, 2).
        maps: Those of a query's and a document's average and a constant, (2, CONTENT + 1, RANK).
    """

    def __init__(self) -> None:
        super().__init__()
        self.content = nn.Parameter(torch.zeros(VOCABULARY, CONTENT))
        self.weights = nn.Parameter(torch.full((VOCABULARY, 2), UNKNOWN_WEIGHT))
        self.maps = nn.Parameter(torch.zeros(2, CONTENT + 1, RANK))
        self.floor = nn.Parameter(torch.tensor(-0.7))
        self.scale = nn.Parameter(torch.tensor(3.0))

    def averages(self, rows: Sequence[NDArray[np.int32]], side: int) -> Tensor:
        """Return the weighted averages of rows of tokens, and a constant, (n, CONTENT + 1)."""
        flat = torch.from_numpy(np.concatenate(rows).astype(np.int64))
        lengths = torch.tensor([len(row) for row in rows])
        offsets = lengths.cumsum(0) - lengths
        weights = self.weights[flat, side].exp()
        sums = functional.embedding_bag(
            flat, self.content, offsets, mode="sum", per_sample_weights=weights
        )
        owner = torch.repeat_interleave(torch.arange(len(rows)), lengths)
        totals = torch.zeros(len(rows)).index_add(0, owner, weights)
        return functional.pad(sums / totals[:, None], (0, 1), value=1)

    def score(self, queries: Tensor, documents: Tensor) -> Tensor:
        """Score averages, (n, CONTENT + 1) and (n, k, CONTENT + 1): close to a scaled cosine."""
        query, document = queries @ self.maps[0], documents @ self.maps[1]
        length = query.square().sum(-1)[:, None] + document.square().sum(-1) + self.floor.exp()
        return self.scale.exp() * 2 * torch.einsum("nd,nkd->nk", query, document) / length


class Data:
    """The lists whose answer the embedder finds, their tokens, and the embedder's vectors."""

    def __init__(self, work: Path, embedder: Embedder) -> None:
        arrays = np.load(work / "lists.npz")
        self.candidates, self.queries = arrays["candidates"], arrays["queries"]
        self.is_answer = self.candidates == arrays["answers"][:, None]
        self.groups, self.validation = arrays["groups"], arrays["validation"].astype(bool)
        self.rows = [row[:MAX_TOKENS] if len(row) else EMPTY for row in token_rows(work)]
        texts: list[str] = json.loads((work / "texts.json").read_text(encoding="utf-8"))
        self.is_query = np.zeros(len(texts), dtype=bool)
        self.is_query[self.queries] = True
        self.vectors = torch.zeros(len(texts), 1024, dtype=torch.float16)
        for chosen, prefix in ((self.is_query, PREFIX), (~self.is_query, "")):
            where = np.flatnonzero(chosen)
            self.vectors[where] = embedder.embed([prefix + texts[i] for i in where]).half()

    def similarities(self, rows: NDArray[np.int64], candidates: NDArray[np.int32]) -> Tensor:
        """Return the embedder's cosines."""
        queries = self.vectors[self.queries[rows]].float()
        return torch.einsum("nd,nkd->nk", queries, self.vectors[candidates].float())


@torch.no_grad()
def initialize(model: BiEncoder, embedder: Embedder, data: Data) -> None:
    """Approximate the embedder: principal components of its tokens, and a regression."""
    student, (layer,) = embedder.student, embedder.student.layers
    table, wide = student.embedding.weight, student.projection.weight
    logits, _ = student._weights_and_values(torch.arange(len(table)), layer)
    model.weights[: len(table)] = logits.mean(dim=1, keepdim=True)
    # What the layer's matrices see, in the coordinates of its 256 dimensions.
    rms = (table @ wide.T).square().mean(-1, keepdim=True).add(1e-6).sqrt()
    seen = (table / rms) @ torch.linalg.qr(wide * layer.input_norm[:, None])[1].T
    seen = seen - seen.mean(0)
    content = seen @ torch.linalg.svd(seen, full_matrices=False)[2][:CONTENT].T
    model.content[: len(table)] = content / content.square().mean().sqrt()
    maps = []
    for side, chosen in enumerate((data.is_query, ~data.is_query)):
        where = np.flatnonzero(chosen)
        averages = model.averages([data.rows[i] for i in where], side)
        square = averages.T @ averages + torch.eye(CONTENT + 1) * len(where) * 1e-5
        fit = torch.linalg.solve(square, averages.T @ data.vectors[where].float())
        maps.append((averages, fit))
    vectors = torch.cat([averages[:20_000] @ fit for averages, fit in maps])
    directions = torch.linalg.svd(vectors, full_matrices=False)[2][:RANK].T
    for side, (averages, fit) in enumerate(maps):
        narrow = fit @ directions
        model.maps[side] = narrow / (averages @ narrow).norm(dim=1).mean()


def train(model: BiEncoder, data: Data, minutes: float) -> None:
    """Train the maps, then everything, each with a cosine decay of the learning rate to zero."""
    usable = data.is_answer.any(1) & ~data.validation
    by_group = [np.flatnonzero((data.groups == g) & usable) for g in range(len(GROUPS))]
    rng = np.random.default_rng(1)
    numbers = [model.floor, model.scale]
    parameters = ([model.content], [model.weights], [model.maps], numbers)
    optimizer = torch.optim.Adam(
        [{"params": part} for part in parameters], lr=1e-3, betas=(0.9, 0.99), fused=True
    )
    started, step, losses = time.monotonic(), 0, []
    while (part := (time.monotonic() - started) / (minutes * 60)) < 1:
        only_maps = part < MAPS_SHARE
        phase = part / MAPS_SHARE if only_maps else (part - MAPS_SHARE) / (1 - MAPS_SHARE)
        for group, rate in zip(optimizer.param_groups, LEARNING_RATES, strict=True):
            group["lr"] = rate * 0.5 * (1 + np.cos(np.pi * phase))
        for tokens in (model.content, model.weights):
            tokens.requires_grad_(not only_maps)
        drawn = rng.choice(len(GROUPS), LISTS, p=SHARES)
        rows = np.array([rng.choice(by_group[group]) for group in drawn])
        # The answer first, then others at random.
        order = rng.random((LISTS, data.candidates.shape[1])) - FRONT_BONUS * (
            np.arange(data.candidates.shape[1]) < FRONT
        )
        order[data.is_answer[rows]] = -9
        chosen = np.take_along_axis(
            data.candidates[rows], order.argsort(1)[:, : NEGATIVES + 1], axis=1
        )
        scores = score(model, data, rows, chosen)
        target = (TEMPERATURE * data.similarities(rows, chosen)).softmax(1)
        like = -(target * scores.log_softmax(1)).sum(1).mean()
        loss = functional.cross_entropy(scores, torch.zeros(LISTS, dtype=torch.int64))
        optimizer.zero_grad()
        (loss + LIKE_EMBEDDER * like).backward()
        optimizer.step()
        step += 1
        losses.append(loss.item())
        if step % 250 == 0:
            print(f"{part:.0%} step {step} loss {np.mean(losses[-250:]):.3f}", flush=True)


def score(
    model: BiEncoder, data: Data, rows: NDArray[np.int64], candidates: NDArray[np.int32]
) -> Tensor:
    """Score candidates, (n, k), of the queries of lists, (n,)."""
    queries = model.averages([data.rows[i] for i in data.queries[rows]], 0)
    documents = model.averages([data.rows[i] for i in candidates.flatten()], 1)
    return model.score(queries, documents.unflatten(0, candidates.shape))


@torch.inference_mode()
def validate(model: BiEncoder, data: Data) -> str:
    """Return the nDCG@10 of the embedder and of the bi-encoder on the embedder's first 50."""
    parts: list[str] = []
    for number, name in enumerate(GROUPS):
        every = np.flatnonzero((data.groups == number) & data.validation)[:VALIDATION_QUERIES]
        rows = every[data.is_answer[every].any(1)]
        place = data.is_answer[rows].argmax(1)
        scores = score(model, data, rows, data.candidates[rows])
        own = scores.gather(1, torch.from_numpy(place)[:, None])
        gains = [
            float(np.where(ranks < 10, 1 / np.log2(ranks + 2), 0).sum() / len(every))
            for ranks in (place, (scores > own).sum(1).numpy())
        ]
        parts.append(f"{name} {gains[0]:.3f}>{gains[1]:.3f} ({gains[1] / gains[0] - 1:+.1%})")
    return " | ".join(parts)


def main() -> None:
    work, minutes = Path(sys.argv[1]), float((*sys.argv[2:3], "5")[0])
    torch.set_num_threads(1)
    embedder = Embedder()
    data, model = Data(work, embedder), BiEncoder()
    initialize(model, embedder, data)
    print(validate(model, data), flush=True)
    train(model, data, minutes)
    print(validate(model, data))
    torch.save(model.state_dict(), work / "bi-encoder.pt")


if __name__ == "__main__":
    main()
