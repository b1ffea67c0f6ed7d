"""A small ONNX graph writer that names tensors, so that a model reads like its formulas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from qwen3_nano.weights import Quantized


class GraphBuilder:
    """The nodes and initializers of a graph; methods that add one return its tensor's name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Add one node with one output."""
        name = f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def tensor(self, name: str, values: NDArray[Any]) -> str:
        """Add a named initializer."""
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def ints(self, values: list[int]) -> str:
        """Return a constant int64 vector."""
        return self._constant(np.array(values, dtype=np.int64))

    def scalar(self, value: int) -> str:
        """Return a constant int64 scalar."""
        return self._constant(np.array(value, dtype=np.int64))

    def floats(self, values: ArrayLike) -> str:
        """Return a constant float32 array or scalar."""
        return self._constant(np.asarray(values, dtype=np.float32))

    def linear(self, values: str, name: str, weight: Quantized) -> str:
        """Multiply (..., inputs) by a stored (outputs, inputs) matrix, which gives (..., outputs).

        Cast and Mul turn the int8 values and scales into float32, which a runtime folds once when
        it loads the model. Not DequantizeLinear: runtimes fuse it into integer products, which
        would change the results. A matrix without scales is stored as most exports have it.
        """
        if weight.scales is None:
            return self.op("MatMul", values, self.tensor(f"{name}.matrix", weight.values.T))
        wide = self.op("Cast", self.tensor(f"{name}.rows", weight.values), to=TensorProto.FLOAT)
        full = self.op("Mul", wide, self.tensor(f"{name}.scales", weight.scales))
        return self.op("MatMul", values, self.op("Transpose", full, perm=[1, 0]))

    def rename(self, old: str, new: str) -> None:
        """Rename the output of the newest node to its public name."""
        if self.nodes[-1].output[0] != old:
            newest = self.nodes[-1].output[0]
            raise ValueError(
                f"`old` is {old!r}; only the newest tensor, {newest!r}, can be renamed."
            )
        self.nodes[-1].output[0] = new

    def _constant(self, values: NDArray[Any]) -> str:
        key = (str(values.dtype), values.shape, values.tobytes())
        if key not in self._constants:
            self._constants[key] = self.tensor(f"constant_{len(self._constants)}", values)
        return self._constants[key]
