"""The three inputs of the family's graphs, for tests that run a graph themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def padded_inputs(
    rows: Sequence[Sequence[int]], *, pad_id: int, left: bool = False
) -> dict[str, NDArray[np.int64]]:
    """Pad rows of token IDs right or left to one length, with positions counted from the mask."""
    length = max(map(len, rows))
    ids = np.full((len(rows), length), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(length - len(row), length) if left else slice(0, len(row))
        ids[index, place], mask[index, place] = row, 1
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
