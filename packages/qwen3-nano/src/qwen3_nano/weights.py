"""The weights of the nano model as arrays, and reading them from the shipped file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray

# Not implied by the arrays' shapes, so stored in the ONNX file's metadata.
METADATA_FIELDS = ("head_dim", "rope_theta", "rms_norm_eps")


@dataclass(frozen=True, slots=True)
class Quantized:
    """A matrix as int8 with one scale per row, or in float32.

    Attributes:
        values: int8, (rows, columns); float32 without scales.
        scales: float32, (rows, 1); None for a matrix that is not quantized.
    """

    values: NDArray[np.int8] | NDArray[np.float32]
    scales: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, matrix: NDArray[np.float32]) -> Quantized:
        """Quantize a float32 (rows, columns) matrix, each row to 255 steps of its own."""
        largest = np.abs(matrix).max(axis=1, keepdims=True)
        scales = (np.where(largest > 0, largest, 1.0) / 127.0).astype(np.float32)
        return cls(values=np.rint(matrix / scales).astype(np.int8), scales=scales)

    def dequantize(self) -> NDArray[np.float32]:
        """Return the float32 (rows, columns) matrix that the graph multiplies by."""
        wide = self.values.astype(np.float32)
        return wide if self.scales is None else wide * self.scales


@dataclass(frozen=True, slots=True)
class NanoLayer:
    """One decoder layer. Matrices are (outputs, inputs), as in torch; norms are float32 vectors."""

    input_norm: NDArray[np.float32]  # (hidden_size,)
    q: Quantized  # (query_heads * head_dim, hidden_size)
    k: Quantized  # (kv_heads * head_dim, hidden_size)
    v: Quantized
    q_norm: NDArray[np.float32]  # (head_dim,)
    k_norm: NDArray[np.float32]
    o: Quantized  # (hidden_size, query_heads * head_dim)
    post_norm: NDArray[np.float32]  # (hidden_size,)
    gate: Quantized  # (intermediate_size, hidden_size)
    up: Quantized
    down: Quantized  # (hidden_size, intermediate_size)


@dataclass(frozen=True, slots=True)
class NanoWeights:
    """All weights of the model.

    The token table is factorized: `embedding`, (vocabulary, width), times the transpose of
    `projection`, (hidden_size, width), is the `embed_tokens` matrix of the architecture.
    """

    embedding: Quantized
    projection: Quantized
    layers: tuple[NanoLayer, ...]
    norm: NDArray[np.float32]  # (hidden_size,)
    head_dim: int
    rope_theta: float
    rms_norm_eps: float

    @property
    def hidden_size(self) -> int:
        return self.norm.shape[0]

    @property
    def query_heads(self) -> int:
        return self.layers[0].q.values.shape[0] // self.head_dim

    @property
    def kv_heads(self) -> int:
        return self.layers[0].k.values.shape[0] // self.head_dim

    @property
    def intermediate_size(self) -> int:
        return self.layers[0].gate.values.shape[0]

    def embed_tokens(self) -> NDArray[np.float32]:
        """Compute the full token table, float32, (vocabulary, hidden_size)."""
        return self.embedding.dequantize() @ self.projection.dequantize().T


def load_weights(path: str | PathLike[str]) -> NanoWeights:
    """Read the weights of a `model.onnx` that was written from `build_graph`.

    Raises:
        ValueError: The file is another model.
    """
    model = onnx.load(path)  # pyright: ignore[reportUnknownMemberType]
    arrays: dict[str, NDArray[Any]] = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
    }
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    absent = [name for name in METADATA_FIELDS if name not in metadata]
    if absent:
        raise ValueError(
            f"{str(path)!r} is not a nano model: its metadata lacks {', '.join(absent)}."
        )
    count = sum(name.endswith(".input_norm") for name in arrays)
    return NanoWeights(
        embedding=_quantized(arrays, "embed_tokens"),
        projection=_quantized(arrays, "embed_tokens.projection"),
        layers=tuple(_layer(arrays, f"layers.{index}") for index in range(count)),
        norm=arrays["norm"],
        head_dim=int(metadata["head_dim"]),
        rope_theta=float(metadata["rope_theta"]),
        rms_norm_eps=float(metadata["rms_norm_eps"]),
    )


def _quantized(arrays: dict[str, NDArray[Any]], name: str) -> Quantized:
    if f"{name}.matrix" in arrays:
        return Quantized(arrays[f"{name}.matrix"].T)
    return Quantized(values=arrays[f"{name}.rows"], scales=arrays.get(f"{name}.scales"))


def _layer(arrays: dict[str, NDArray[Any]], name: str) -> NanoLayer:
    return NanoLayer(
        input_norm=arrays[f"{name}.input_norm"],
        q=_quantized(arrays, f"{name}.q"),
        k=_quantized(arrays, f"{name}.k"),
        v=_quantized(arrays, f"{name}.v"),
        q_norm=arrays[f"{name}.q_norm"],
        k_norm=arrays[f"{name}.k_norm"],
        o=_quantized(arrays, f"{name}.o"),
        post_norm=arrays[f"{name}.post_norm"],
        gate=_quantized(arrays, f"{name}.gate"),
        up=_quantized(arrays, f"{name}.up"),
        down=_quantized(arrays, f"{name}.down"),
    )
