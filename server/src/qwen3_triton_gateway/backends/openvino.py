"""OpenVINO in the gateway's own process: the same ONNX file, in a precision that is set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StartupError
from ..memory import trim_heap
from ..model_files import describe_os_error
from ..openvino_model import OpenVinoError, OpenVinoModel
from ..run_memory import SOFTMAX
from ..settings import Precision, Task
from .base import AnyArray, TensorSpec
from .engines import openvino_options
from .in_process import InProcessBackend, is_open
from .interface import Feed, find_output

DTYPES: dict[str, type[np.generic]] = {
    "i64": np.int64,
    "i32": np.int32,
    "f32": np.float32,
    "f16": np.float16,
    "f64": np.float64,
    "boolean": np.bool_,
}


class OpenVinoBackend(InProcessBackend):
    """A model run by OpenVINO."""

    name = "openvino"
    title = "OpenVINO"

    def __init__(
        self,
        model_dir: Path,
        *,
        precision: Precision = "float32",
        threads: int = 0,
        cache_dir: Path | None = None,
        task: Task = "embed",
    ) -> None:
        """Prepare to load.

        Args:
            model_dir: A folder with the ONNX file, or the file.
            precision: What it computes in; `int8` needs weights in int8.
            threads: 0 for every core.
            cache_dir: Where the compiled model is kept for the next start.
            task: What the model is served for.
        """
        super().__init__(model_dir, threads=threads, task=task)
        self.precision: Precision = precision
        self._cache_dir = cache_dir
        self._has_run = False
        self._model: OpenVinoModel | None = None

    @property
    def _is_open(self) -> bool:
        return self._model is not None

    def _open(self, path: Path, digest: str) -> tuple[list[TensorSpec], list[TensorSpec]]:
        cache_dir = self._cache_dir / digest[:16] if self._cache_dir else None
        try:
            if cache_dir is not None:
                cache_dir.mkdir(parents=True, exist_ok=True)
            model = OpenVinoModel(path)
            inputs = [_tensor_spec(port) for port in model.model.inputs]
            outputs = [_tensor_spec(port) for port in model.model.outputs]
            wanted = find_output(outputs, self._task)
            model.compile(
                self.precision,
                openvino_options(self.precision),
                threads=self._threads,
                cache_dir=cache_dir,
                only_output=wanted.name if wanted is not None and not is_open(wanted) else "",
            )
        except OpenVinoError as error:
            raise StartupError(str(error)) from error
        except OSError as error:
            msg = f"EMBED_ENGINE_CACHE_DIR cannot be used. {describe_os_error(error, cache_dir)}"
            raise StartupError(msg) from error
        self._model = model
        return inputs, outputs

    def _evaluate(self, names: Sequence[str], feed: Feed) -> list[AnyArray]:
        assert self._model is not None  # the caller checked
        values = self._model.run(names, feed)
        is_large = self._returns_memory(feed)
        if is_large:
            self._model.release_memory()
        if is_large or not self._has_run:
            self._has_run = True
            trim_heap()  # what loading took, now that the weights are copied for their products
        return values

    def _fuses_softmax(self) -> bool:
        assert self._model is not None  # it is loaded
        return SOFTMAX not in self._model.operators()

    def _release(self) -> None:
        self._model = None


def _tensor_spec(port: Any) -> TensorSpec:
    dtype = DTYPES.get(port.element_type.get_type_name(), np.object_)
    shape = port.partial_shape
    sizes = () if shape.rank.is_dynamic else [d.get_length() if d.is_static else -1 for d in shape]
    return TensorSpec(port.get_any_name(), np.dtype(dtype), tuple(sizes))
