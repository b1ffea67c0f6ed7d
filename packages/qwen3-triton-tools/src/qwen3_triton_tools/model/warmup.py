"""Samples that Triton runs before it calls a model ready, with token ids that the model has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..onnx_file import TensorSignature, proto

# Doubling lengths: the first run of a size pays for kernel choice and the arena's growth.
_SHORTEST = 16
_SPREAD = 37
_KNOWN_TOKENS = 1000
# Ids of plain text lie below this in every tokenizer of the family; special tokens lie above.
_PLAIN_TOKENS = 20_000


@dataclass(frozen=True, slots=True)
class WarmupSample:
    """One request: `rows` texts of `length` tokens each."""

    length: int
    rows: int


def plan_samples(*, max_length: int, max_batch_size: int, batch_tokens: int) -> list[WarmupSample]:
    """Double the length up to `max_length`, each time with the largest batch the gateway sends."""
    lengths: list[int] = []
    length = _SHORTEST
    while length < max_length:
        lengths.append(length)
        length *= 2
    return [
        WarmupSample(length, max(1, min(max_batch_size, batch_tokens // length)))
        for length in [*lengths, max_length]
    ]


def write_warmup_files(
    folder: Path, samples: list[WarmupSample], *, vocabulary: int | None, end_token_id: int | None
) -> None:
    """Write one row of each token input for each length; Triton repeats it for the other rows.

    Ids are spread over plain tokens and end with the end token, the mask is all ones, positions
    count up: int64, little-endian. Random bytes would be ids that no vocabulary has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    limit = min(vocabulary or _KNOWN_TOKENS, _PLAIN_TOKENS)
    for sample in samples:
        positions = np.arange(sample.length, dtype="<i8")
        ids = positions * _SPREAD % limit
        if end_token_id is not None:
            ids[-1] = end_token_id
        arrays = {
            "input_ids": ids,
            "attention_mask": np.ones(sample.length, dtype="<i8"),
            "position_ids": positions,
        }
        for name, array in arrays.items():
            (folder / warmup_file(name, sample)).write_bytes(array.tobytes())


def warmup_file(name: str, sample: WarmupSample) -> str:
    """Name the file of one input, below `<model>/warmup/`."""
    return f"{name}-{sample.length}"


def is_past(tensor: TensorSignature) -> bool:
    """Say whether an input is of the cache; it is fed empty, which is `zero_data` of no bytes."""
    return tensor.element_type != proto.INT64
