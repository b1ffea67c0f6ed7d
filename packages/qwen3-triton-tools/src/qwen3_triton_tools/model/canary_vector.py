"""The vector of the gateway's canary sentence, computed where that is cheap."""

from __future__ import annotations

import asyncio
from pathlib import Path

from qwen3_triton_gateway.backends.onnx import OnnxBackend
from qwen3_triton_gateway.backends.probe import embed_probe
from qwen3_triton_gateway.canary import canary_batch, state_canary
from qwen3_triton_gateway.errors import EmbeddingServerError
from qwen3_triton_gateway.tokenization import TextTokenizer

from ..errors import ModelError

# Loading takes about twice the weights in memory, and seconds per gigabyte. The smallest model of
# the family has 2.4 GB in float32.
MAX_WEIGHT_BYTES = 4 * 1024**3


def compute_canary_vector(
    folder: Path, tokenizer_path: Path, *, weight_bytes: int, max_length: int
) -> str:
    """Embed the canary sentence on this machine's CPU, for the gateway to compare.

    Args:
        folder: The folder of `model.onnx`.
        tokenizer_path: The tokenizer file.
        weight_bytes: The size of the weights.
        max_length: Tokens of the longest text.

    Raises:
        ModelError: The model is too large for that, or does not run here.
    """
    if weight_bytes > MAX_WEIGHT_BYTES:
        size, limit = weight_bytes / 1024**3, MAX_WEIGHT_BYTES / 1024**3
        raise ModelError(f"The weights have {size:.1f} GiB; only up to {limit:.0f} are run here.")
    try:
        return asyncio.run(_compute(folder, tokenizer_path, max_length))
    except EmbeddingServerError as error:
        raise ModelError(error.message) from error


async def _compute(folder: Path, tokenizer_path: Path, max_length: int) -> str:
    batch = canary_batch(TextTokenizer(tokenizer_path, max_length=max_length))
    backend = OnnxBackend(folder)
    try:
        await backend.connect()
        return state_canary(batch, await embed_probe(backend, batch))
    finally:
        await backend.close()
