"""How much memory a run of a model takes in its process, and how much there is.

Imports nothing of this project: the local Triton runs a copy of this file in its own environment.

Attention compares each token of a text with each other one. A graph that does so with a `Softmax`,
as plain exports do, has the scores of a text, heads x tokens x tokens, in memory twice: before and
after it. Engines that fuse attention hold a few rows of them at a time. What is left is a mask of
tokens x tokens, which the graph computes once for all heads, and the states of the tokens.

The bounds were measured as the growth of resident memory during a run, with ONNX Runtime 1.32 and
OpenVINO 2026.4.1, for up to 16,384 tokens (`docs/cpu.md`, "Memory of long texts").
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
MEMORY_INFO = Path("/proc/meminfo")
SHORTAGE = re.compile(r"A (text|batch of \d+ texts) of .* takes about .* GB are available\.")
# Runs that take less are not checked.
LARGE_RUN_BYTES = 64 << 20
# After a run that takes as much, its memory is returned. Taking it from the system again costs a
# small model a third of the time of a run of ONNX Runtime.
RETURNED_BYTES = 256 << 20
# (heads, intermediate_size) of the family's config.json files, by hidden size.
FAMILY_SIZES = {1024: (16, 3072), 2560: (32, 9728), 4096: (32, 12288)}
# Operators that compute attention with all of its scores in memory, unless the engine fuses them.
SOFTMAX = "Softmax"
_PLAIN_ATTENTION = {SOFTMAX, "Attention"}
_FLOAT_BYTES = 4
# Runs took up to 1.08 times what the graph needs.
_MARGIN = 1.125
# In float32 before the softmax, and after it.
_SCORE_BYTES = 2 * _FLOAT_BYTES
# A grouped attention in float16 keeps its scores in float32, and a part of them in float16.
_FLOAT16_FUSED_SCORE_BYTES = 5
# A float32 and a boolean.
_MASK_BYTES = _FLOAT_BYTES + 1


@dataclass(frozen=True, slots=True)
class RunMemory:
    """What determines the memory of a run.

    Attributes:
        token_bytes: Bytes for each token.
        pair_bytes: Bytes for each pair of a text's tokens.
    """

    token_bytes: int
    pair_bytes: int

    def bytes_of(self, rows: int, length: int) -> int:
        """Estimate what a batch of texts takes, padded to `length` tokens."""
        return rows * length * (self.token_bytes + length * self.pair_bytes)

    def longest_text(self, max_bytes: int) -> int:
        """Return the tokens of the longest text that takes at most so much."""
        if not self.pair_bytes:
            return max_bytes // self.token_bytes
        # The root of pair_bytes * length^2 + token_bytes * length = max_bytes.
        root = math.isqrt(self.token_bytes**2 + 4 * self.pair_bytes * max_bytes)
        return (root - self.token_bytes) // (2 * self.pair_bytes)


def describe_shortage(rows: int, length: int, needed_bytes: int, free_bytes: int) -> str:
    """Describe why a batch cannot run, in a sentence that `SHORTAGE` recognizes."""
    texts = "A text" if rows == 1 else f"A batch of {rows} texts"
    return (
        f"{texts} of {length:,} tokens takes about {needed_bytes / 1e9:.1f} GB of memory, and "
        f"{max(free_bytes, 0) / 1e9:.1f} GB are available."
    )


def floats_per_token(hidden_size: int, intermediate_size: int) -> int:
    """Count the numbers of a token's states that are alive at the same time.

    Three of the feed-forward part and eight of the hidden size: as measured for both engines.
    """
    return 3 * intermediate_size + 8 * hidden_size


def estimate_run_memory(
    config: Mapping[str, Any],
    *,
    output_bytes: int,
    hidden_size: int,
    operators: Set[str],
    fuses_softmax: bool,
    is_float16: bool,
) -> RunMemory:
    """Estimate what a model's runs take.

    Args:
        config: Its config.json. The sizes that it lacks are those of the family by hidden size,
            else its smallest.
        output_bytes: Bytes of the output for each token; 0 if it is pooled.
        hidden_size: The width of the output.
        operators: The kinds of operators in its graph.
        fuses_softmax: Whether the engine computes a softmax within a larger operator.
        is_float16: Whether the graph computes in float16.
    """
    smallest = min(FAMILY_SIZES)
    # The output of a reranker is narrower, or as wide as the vocabulary.
    family_size = hidden_size if hidden_size in FAMILY_SIZES else smallest
    hidden_size = _size(config, "hidden_size", family_size)
    known = FAMILY_SIZES.get(hidden_size, FAMILY_SIZES[smallest])
    heads = _size(config, "num_attention_heads", known[0])
    intermediate_size = _size(config, "intermediate_size", known[1])
    is_plain = not _PLAIN_ATTENTION.isdisjoint(operators)
    score_bytes = _SCORE_BYTES
    if fuses_softmax or not is_plain:
        score_bytes = _FLOAT16_FUSED_SCORE_BYTES if is_float16 else 0
    token_bytes = _FLOAT_BYTES * floats_per_token(hidden_size, intermediate_size) + output_bytes
    pair_bytes = heads * score_bytes + (_MASK_BYTES if is_plain else 0)
    return RunMemory(math.ceil(_MARGIN * token_bytes), math.ceil(_MARGIN * pair_bytes))


def _size(config: Mapping[str, Any], name: str, default: int) -> int:
    value = config.get(name)
    return value if isinstance(value, int) and value > 0 else default


def available_bytes() -> int:
    """Return the memory that this process can still take before the kernel ends it.

    It counts what the kernel would free first, and no swap.
    """
    free = [machine_bytes()]
    with suppress(OSError, StopIteration, ValueError):
        lines = MEMORY_INFO.read_text().splitlines()
        free.append(1024 * next(_value(line) for line in lines if "MemAvailable:" in line))
    limits = read_cgroups("memory", "memory.max", "memory.limit_in_bytes")
    used = read_cgroups("memory", "memory.current", "memory.usage_in_bytes")
    statistics = read_cgroups("memory", "memory.stat", "memory.stat")
    for limit, taken, lines in zip(limits, used, statistics, strict=False):
        with suppress(ValueError):  # "max"
            names = ("inactive_file ", "total_inactive_file ")  # version 1 has both
            files = [_value(line) for line in lines.splitlines() if line.startswith(names)]
            free.append(int(limit) - int(taken) + max(files, default=0))
    return max(0, min(free))


def _value(line: str) -> int:
    return int(line.split()[1])


def machine_bytes() -> int:
    """Return the memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def read_cgroups(controller: str, name: str, old_name: str) -> Iterator[str]:
    """Read a file of this process's control group and of those around it, innermost first.

    In a container the group's own path may not exist, and the root is the container's.

    Args:
        controller: Whose file it is.
        name: The file in version 2.
        old_name: The file in version 1.
    """
    groups: list[str] = []
    with suppress(OSError):
        groups = OWN_CGROUPS.read_text().splitlines()
    for line in groups:
        controllers, group = line.split(":", 2)[1:]
        if controllers == "":
            root, file = CGROUPS, name
        elif controller in controllers.split(","):
            root, file = CGROUPS / controller, old_name
        else:
            continue
        folder = root / group.lstrip("/")
        for place in (folder, *folder.parents):
            with suppress(OSError):  # no such file
                yield (place / file).read_text()
