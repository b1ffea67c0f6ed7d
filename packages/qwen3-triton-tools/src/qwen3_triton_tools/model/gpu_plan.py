"""How many rows and how much memory a model gets on a card: pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .errors import ModelToolError

MIB = 1024 * 1024
# Memory in MiB as `nvidia-smi` shows it; of the A100 the smaller one is meant.
CARDS = {"3090": 24_576, "a10": 23_028, "l4": 23_034, "a100": 40_960, "h100": 81_559}
# ONNX Runtime's arena may take this much; CUDA's context, cuBLAS and other programs get the rest.
ARENA_SHARE = 0.9
# Beyond 64 rows a batch of queries gains nothing: at 76 (RTX 3090) to 295 tokens (H100) the cards
# stop being bound by reading weights.
MAX_GPU_ROWS = 64
# A CPU gains nothing from wider batches than the in-process backend makes.
MAX_CPU_ROWS = 32
# Default of EMBED_MAX_BATCH_TOKENS.
GATEWAY_BATCH_TOKENS = 8192
_TOKEN_STEP = 256
# (heads, intermediate_size) of the family's config.json files, by hidden size.
_FAMILY = {1024: (16, 3072), 2560: (32, 9728), 4096: (32, 12288)}
_MODEL_SIZES = {"0.6b": 1024, "4b": 2560, "8b": 4096}
MODEL_SIZES = tuple(_MODEL_SIZES)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What decides the memory of a batch."""

    hidden_size: int
    heads: int
    intermediate_size: int
    float_bytes: int
    fused_attention: bool

    def bytes_per_token(self, length: int) -> int:
        """Estimate the working memory of one token in a text of `length` tokens.

        Three states of the feed-forward part and eight of the hidden size are alive at once; plain
        attention keeps its scores twice in the model's type and once in float32 for the softmax. An
        estimate by the graph's formulas, not a measurement.
        """
        states = (3 * self.intermediate_size + 8 * self.hidden_size) * self.float_bytes
        scores = 0 if self.fused_attention else self.heads * length * (2 * self.float_bytes + 4)
        return states + scores


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Rows of a batch, the arena's limit for an instance, and the tokens that the gateway may send.

    `arena_bytes` is 0 on a CPU.
    """

    max_batch_size: int
    arena_bytes: int
    batch_tokens: int
    reason: str


def learn_shape(
    config: dict[str, Any],
    *,
    hidden_size: int,
    float_bytes: int,
    fused_attention: bool,
    model_size: str | None,
) -> ModelShape:
    """Take the sizes from config.json, else from the family by hidden size or name.

    Raises:
        ModelToolError: neither tells them, and `model_size` is not given.
    """
    known = _FAMILY.get(_MODEL_SIZES[model_size] if model_size else hidden_size, (0, 0))
    heads = int(config.get("num_attention_heads") or known[0])
    intermediate_size = int(config.get("intermediate_size") or known[1])
    if not heads or not intermediate_size:
        msg = (
            f"Nothing tells the number of heads of this model (hidden size {hidden_size}): put its "
            f"config.json beside it, or give `--model-size` ({', '.join(MODEL_SIZES)})."
        )
        raise ModelToolError(msg)
    return ModelShape(hidden_size, heads, intermediate_size, float_bytes, fused_attention)


def plan_gpu(
    shape: ModelShape, *, weight_bytes: int, memory_mib: int, max_length: int, instances: int
) -> MemoryPlan:
    """Divide a card's memory: each instance holds its own copy of the weights.

    Raises:
        ModelToolError: the weights, or one text of `max_length` beside them, do not fit.
    """
    arena = int(memory_mib * MIB * ARENA_SHARE) // instances
    free = arena - weight_bytes
    per_token = shape.bytes_per_token(max_length)
    tokens = max(free, 0) // per_token
    if tokens < max_length:
        msg = (
            f"{instances} instance(s) with {_gib(weight_bytes)} of weights each leave "
            f"{_gib(max(free, 0))} of {memory_mib / 1024:.0f} GiB, and a text of {max_length} "
            f"tokens takes about {_gib(per_token * max_length)}: take fewer instances, a shorter "
            "`--max-length`, a smaller model or a larger card."
        )
        raise ModelToolError(msg)
    rows = min(MAX_GPU_ROWS, 1 << (tokens // max_length).bit_length() - 1)
    reason = (
        f"{_gib(arena)} for each of {instances}, less {_gib(weight_bytes)} of weights, leave "
        f"{_gib(free)}; a token of a text of {max_length} takes about {per_token // 1024} KiB "
        f"(estimated), so {tokens:,} tokens fit."
    )
    batch_tokens = min(GATEWAY_BATCH_TOKENS, max(tokens // _TOKEN_STEP * _TOKEN_STEP, max_length))
    return MemoryPlan(rows, arena, batch_tokens, reason)


def plan_cpu() -> MemoryPlan:
    """Give what the in-process backend takes: a CPU's memory is not the gateway's to divide."""
    reason = "A CPU gains nothing from wider batches: its cores are full long before."
    return MemoryPlan(MAX_CPU_ROWS, 0, GATEWAY_BATCH_TOKENS, reason)


def _gib(count: int) -> str:
    return f"{count / 1024**3:.1f} GiB"
