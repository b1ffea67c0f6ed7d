"""A checksum that ties an answer to its batch.

Triton's Python backend and the process that runs the model exchange messages by their order alone.
When that process gets no CPU for a second, the backend gives up on the batch and sends the next
one, whose answer is then the late one to the batch before: correct values, of other texts.

Imports nothing of this project: the local Triton runs a copy of this file in its own environment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

# The name of the output, int64 of shape (batch, 1).
CHECKSUM_OUTPUT = "answer_checksum"


def row_checksums(inputs: Mapping[str, Any], outputs: Sequence[Any]) -> list[int]:
    """Compute the CRC-32 of each row: its inputs in the order of their names, then its outputs.

    The outputs are part of it because the backend may reuse their memory before it has read them.

    Args:
        inputs: Contiguous arrays whose first dimension is the batch, by name.
        outputs: Likewise, without the checksum itself.
    """
    arrays = [*(inputs[name] for name in sorted(inputs)), *outputs]
    return [_checksum(row) for row in zip(*arrays, strict=False)]


def _checksum(row: Sequence[Any]) -> int:
    value = 0
    for array in row:
        value = crc32(array, value)
    return value
