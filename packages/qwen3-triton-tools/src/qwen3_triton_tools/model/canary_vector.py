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
from .inspection import Inspection

# Loading takes about twice the weights in memory, and seconds per gigabyte. The smallest model of
# the family has 2.4 GB in float32.
MAX_WEIGHT_BYTES = 4 * 1024**3


def canary_of(inspection: Inspection, model_path: Path, *, max_length: int) -> str:
    """Embed the canary sentence on this machine's CPU, for the gateway to compare.

    Args:
        inspection: What the model is.
        model_path: The ONNX file, or the folder of `model.onnx`.
        max_length: Tokens of the longest text.

    Raises:
        ModelError: The model is too large for that, or has no tokenizer, or does not run here.
    """
    if inspection.tokenizer is None:
        raise ModelError("There is no tokenizer.json next to the model.")
    weight_bytes = inspection.precision.weight_bytes
    if weight_bytes > MAX_WEIGHT_BYTES:
        size, limit = weight_bytes / 1024**3, MAX_WEIGHT_BYTES / 1024**3
        raise ModelError(f"The weights have {size:.1f} GiB; only up to {limit:.0f} are run here.")
    try:
        return asyncio.run(_compute(model_path, Path(inspection.tokenizer.path), max_length))
    except EmbeddingServerError as error:
        raise ModelError(error.message) from error


async def _compute(model_path: Path, tokenizer_path: Path, max_length: int) -> str:
    batch = canary_batch(TextTokenizer(tokenizer_path, max_length=max_length))
    backend = OnnxBackend(model_path)
    try:
        await backend.connect()
        return state_canary(batch, await embed_probe(backend, batch))
    finally:
        await backend.close()
