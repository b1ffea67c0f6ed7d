"""Keep resident memory flat under glibc, whose defaults suit small blocks."""

from __future__ import annotations

import ctypes
import os
import sys

# malloc.h of glibc.
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
# Above the hidden states of a batch, whose pages would otherwise be faulted in for every batch (a
# tenth of the throughput of a small model); below a long answer as JSON.
LARGE_BLOCK_BYTES = 16 << 20
ARENAS = 2


def keep_memory_flat() -> None:
    """Give large blocks back to the system as soon as they are freed.

    Long answers are blocks of tens of megabytes. glibc learns from the first of them that is freed
    to take the next from the heap, up to 32 MiB, and holes in the heaps of its threads then add up
    (`bench/README.md` has the numbers). Does nothing with another C library, and leaves alone what
    `MALLOC_` variables set.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
    if "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_M_ARENA_MAX, ARENAS)
