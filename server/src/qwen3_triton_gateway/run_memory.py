"""How much memory a run of a model takes in the gateway's process: pure arithmetic.

Attention compares each token of a text with each other one. A graph that does so with a `Softmax`,
as plain exports do, has the scores of a text, heads x tokens x tokens, in memory twice: before and
after it. Engines that fuse attention hold a few rows of them at a time. What is left is a mask of
tokens x tokens, which the graph computes once for all heads, and the states of the tokens.

The bounds were measured as the growth of resident memory during a run, with ONNX Runtime 1.32 and
OpenVINO 2026.4.1, for up to 16,384 tokens (`docs/cpu.md`, "Memory of long texts").
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from .model_files import find_sibling

# (heads, intermediate_size) of the family's config.json files, by hidden size.
FAMILY_SIZES = {1024: (16, 3072), 2560: (32, 9728), 4096: (32, 12288)}
_FLOAT_BYTES = 4
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


def floats_per_token(hidden_size: int, intermediate_size: int) -> int:
    """Count the numbers of a token's states that are alive at the same time.

    Three of the feed-forward part and eight of the hidden size: as measured for both engines.
    """
    return 3 * intermediate_size + 8 * hidden_size


def estimate_run_memory(
    model_path: Path,
    *,
    output_bytes: int,
    hidden_size: int,
    fuses_attention: bool,
    masks: bool,
    is_float16: bool,
) -> RunMemory:
    """Estimate what a model's runs take, by the config.json of its folder.

    Without that file, the sizes are those of the family by hidden size, else its smallest.

    Args:
        model_path: The ONNX file.
        output_bytes: Bytes of the output for each token; 0 if it is pooled.
        hidden_size: The width of the output.
        fuses_attention: Whether the engine computes attention without its scores in memory.
        masks: Whether the graph computes a mask of tokens x tokens.
        is_float16: Whether the graph computes in float16.
    """
    config = _read_config(model_path)
    smallest = min(FAMILY_SIZES)
    # The output of a reranker is narrower, or as wide as the vocabulary.
    family_size = hidden_size if hidden_size in FAMILY_SIZES else smallest
    hidden_size = _size(config, "hidden_size", family_size)
    known = FAMILY_SIZES.get(hidden_size, FAMILY_SIZES[smallest])
    heads = _size(config, "num_attention_heads", known[0])
    intermediate_size = _size(config, "intermediate_size", known[1])
    score_bytes = _SCORE_BYTES
    if fuses_attention:
        score_bytes = _FLOAT16_FUSED_SCORE_BYTES if is_float16 else 0
    return RunMemory(
        token_bytes=_FLOAT_BYTES * floats_per_token(hidden_size, intermediate_size) + output_bytes,
        pair_bytes=heads * score_bytes + (_MASK_BYTES if masks else 0),
    )


def _read_config(model_path: Path) -> Mapping[str, Any]:
    file = find_sibling(model_path, "config.json")
    if file is not None:
        with suppress(OSError, ValueError):
            config: Any = json.loads(file.read_bytes())
            return cast("Mapping[str, Any]", config) if isinstance(config, Mapping) else {}
    return {}


def _size(config: Mapping[str, Any], name: str, default: int) -> int:
    value = config.get(name)
    return value if isinstance(value, int) and value > 0 else default
