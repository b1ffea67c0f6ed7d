"""How many rows and how much memory a model gets on a GPU: pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qwen3_triton_gateway.run_memory import FAMILY_SIZES, floats_per_token

from ..errors import ModelError

MIB = 1024 * 1024
# Memory in MiB as `nvidia-smi` shows it; the A100 is the one with 40 GB.
CARDS = {"3090": 24_576, "a10": 23_028, "l4": 23_034, "a100": 40_960, "h100": 81_559}
# ONNX Runtime's arena may take this much; CUDA's context, cuBLAS and other programs get the rest.
ARENA_SHARE = 0.9
# Beyond 64 rows a batch of queries gains nothing: at 76 (RTX 3090) to 295 tokens (H100), GPUs are
# no longer bound by reading weights.
MAX_GPU_ROWS = 64
# A CPU gains nothing from wider batches than those of the in-process backend.
MAX_CPU_ROWS = 32
# Default of EMBED_MAX_BATCH_TOKENS.
GATEWAY_BATCH_TOKENS = 8192
_TOKEN_STEP = 256
_MODEL_SIZES = {"0.6b": 1024, "4b": 2560, "8b": 4096}
MODEL_SIZES = tuple(_MODEL_SIZES)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes that determine the memory of a batch."""

    hidden_size: int
    heads: int
    intermediate_size: int
    float_bytes: int
    fused_attention: bool
    logits: int = 0

    def bytes_per_token(self, length: int) -> int:
        """Estimate the working memory of one token in a text of `length` tokens.

        Three states of the feed-forward part and eight of the hidden size are alive at once; plain
        attention keeps its scores twice in the model's type and once in float32 for the softmax. A
        reranker that is not pooled has the logits of all tokens. An estimate by the graph's
        formulas, not a measurement.
        """
        widths = floats_per_token(self.hidden_size, self.intermediate_size) + self.logits
        states = widths * self.float_bytes
        scores = 0 if self.fused_attention else self.heads * length * (2 * self.float_bytes + 4)
        return states + scores


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How a model uses the memory of a GPU.

    Attributes:
        max_batch_size: Rows per batch.
        arena_bytes: Limit of ONNX Runtime's arena per instance; 0 on a CPU.
        batch_tokens: Padded tokens per batch that the gateway may send.
        reason: The calculation in words.
    """

    max_batch_size: int
    arena_bytes: int
    batch_tokens: int
    reason: str


def model_shape(
    config: dict[str, Any],
    *,
    hidden_size: int,
    float_bytes: int,
    fused_attention: bool,
    model_size: str | None,
    logits: int = 0,
) -> ModelShape:
    """Return the sizes in config.json, else those of the family by hidden size or name.

    Raises:
        ModelError: Neither has them, and `model_size` is not given.
    """
    known = FAMILY_SIZES.get(_MODEL_SIZES[model_size] if model_size else hidden_size, (0, 0))
    heads = int(config.get("num_attention_heads") or known[0])
    intermediate_size = int(config.get("intermediate_size") or known[1])
    if not heads or not intermediate_size:
        msg = (
            f"The number of attention heads of this model (hidden size {hidden_size}) is unknown. "
            f"Put its config.json next to it, or pass `--model-size` ({', '.join(MODEL_SIZES)})."
        )
        raise ModelError(msg)
    return ModelShape(hidden_size, heads, intermediate_size, float_bytes, fused_attention, logits)


def plan_gpu(
    shape: ModelShape, *, weight_bytes: int, memory_mib: int, max_length: int, instances: int
) -> MemoryPlan:
    """Divide a GPU's memory; each instance holds its own copy of the weights.

    Raises:
        ModelError: The weights, or one text of `max_length` in addition to them, do not fit.
    """
    arena = int(memory_mib * MIB * ARENA_SHARE) // instances
    free = arena - weight_bytes
    per_token = shape.bytes_per_token(max_length)
    tokens = max(free, 0) // per_token
    if tokens < max_length:
        msg = (
            f"{instances} instance(s) with {_gib(weight_bytes)} of weights each leave "
            f"{_gib(max(free, 0))} of {memory_mib / 1024:.0f} GiB, and a text of {max_length} "
            f"tokens takes about {_gib(per_token * max_length)}. Use fewer instances, a shorter "
            "`--max-length`, a smaller model or a larger GPU."
        )
        raise ModelError(msg)
    rows = min(MAX_GPU_ROWS, 1 << (tokens // max_length).bit_length() - 1)
    reason = (
        f"{_gib(arena)} for each of {instances} instance(s), less {_gib(weight_bytes)} of weights, "
        f"leave {_gib(free)}; a token of a text of {max_length} takes about "
        f"{per_token // 1024} KiB (estimated), so {tokens:,} tokens fit."
    )
    batch_tokens = min(GATEWAY_BATCH_TOKENS, max(tokens // _TOKEN_STEP * _TOKEN_STEP, max_length))
    return MemoryPlan(rows, arena, batch_tokens, reason)


def plan_cpu() -> MemoryPlan:
    """Return the values of the in-process backend; a CPU's memory is not divided."""
    reason = "A CPU gains nothing from wider batches: its cores are busy long before."
    return MemoryPlan(MAX_CPU_ROWS, 0, GATEWAY_BATCH_TOKENS, reason)


def _gib(count: int) -> str:
    return f"{count / 1024**3:.1f} GiB"
