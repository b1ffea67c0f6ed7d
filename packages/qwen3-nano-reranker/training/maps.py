"""The maps from the averages of a text's tokens to its vector, fitted to the embedder.

The embedder's one layer averages the tokens of a text in eight heads, and has an MLP behind them.
Two averages with a weight per token each, and a linear map of them to fewer dimensions, rank nearly
as well. Fitting the maps to the lists' answers, too, gained more in the sources of the lists, and
lost more elsewhere: 18 % of nDCG@10 instead of 8 % on the demo's questions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from chat_tokenizer import INSTRUCT, QUERY
from lists import Embedder, Texts
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from train_tokenizer import PREFIX

from qwen3_triton_gateway.rerank_prompt import DEFAULT_INSTRUCTION

RANK = 176  # dimensions of a text's vector
EMPTY = np.array([300])  # the tokens of an empty text: a space
REGRESSION_TEXTS = 15_000
RIDGE = 1e-4


def averages(rows: Sequence[NDArray[np.int32]], values: Tensor, weights: Tensor) -> Tensor:
    """Return each text's weighted averages, and a constant, (texts, groups * size + 1).

    Args:
        rows: The tokens of each text.
        values: Of each token, (groups, vocabulary, size).
        weights: Their logarithms, (groups, vocabulary).
    """
    flat = torch.from_numpy(np.concatenate(rows).astype(np.int64))
    offsets = torch.tensor(np.cumsum([0, *map(len, rows[:-1])]))
    parts: list[Tensor] = []
    for value, weight in zip(values, weights.exp().unsqueeze(-1), strict=True):
        table = torch.cat([value * weight, weight], dim=1)
        sums = functional.embedding_bag(flat, table, offsets, mode="sum")
        parts.append(sums[:, :-1] / sums[:, -1:])
    return functional.pad(torch.cat(parts, dim=1), (0, 1), value=1)


def fit_maps(
    values: Tensor, weights: Tensor, texts: Texts, embedder: Embedder
) -> tuple[Tensor, Tensor]:
    """Return the maps of a query's and a document's averages, (groups * size + 1, RANK).

    Regressions on the embedder's vectors, in the directions in which those vary most.
    """
    tokenizer = texts.tokenizer
    marks = [tokenizer.token_to_id(t) for t in (INSTRUCT, f" {DEFAULT_INSTRUCTION}", QUERY)]
    inputs: list[Tensor] = []
    maps: list[Tensor] = []
    for chosen, prefix, before in (
        (texts.some_queries(REGRESSION_TEXTS), PREFIX, marks),
        (texts.some_documents(REGRESSION_TEXTS), "", []),
    ):
        rows = [np.array([*before, *texts.rows[i]]) for i in chosen]
        part = averages([row if len(row) else EMPTY for row in rows], values, weights)
        vectors = embedder.embed([prefix + texts.texts[i] for i in chosen])
        ridge = RIDGE * len(part) * torch.eye(part.shape[1])
        maps.append(torch.linalg.solve(part.T @ part + ridge, part.T @ vectors))
        inputs.append(part)
    fitted = torch.cat([part @ full for part, full in zip(inputs, maps, strict=True)])
    directions = torch.linalg.svd(fitted, full_matrices=False)[2][:RANK].T
    # Vectors of length 1 on average, since they are not normalized later.
    query, document = (
        full @ directions / (part @ full @ directions).norm(dim=1).mean()
        for part, full in zip(inputs, maps, strict=True)
    )
    return query, document
