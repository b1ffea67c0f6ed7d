"""Compile an ONNX file with OpenVINO, and run it.

Imports nothing of this project: the local Triton runs a copy of this file in its own environment.
"""

from __future__ import annotations

import ctypes
import importlib
import mmap
import os
import sys
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, cast

# The plugin keeps what it compiles for each shape, by default 5,000 parts: 80 MiB more after all
# shapes of up to 512 tokens. Compiling again costs a tenth of a small model's time, if at all.
# Not a documented property; checked with 2026.4.1, and a version that lacks it refuses it by name.
KEPT_SHAPES = {"CPU_RUNTIME_CACHE_CAPACITY": "200"}
# What OpenVINO says of weights that it finds behind a link (checked on 2026.4.1).
LINKED_OUT = "outside the base directory"
INT8_TYPES = ("i8", "u8")
# Larger than tables of shapes and axes, smaller than any matrix.
MIN_MATRIX_VALUES = 4096


class OpenVinoError(Exception):
    """OpenVINO is not installed, or does not take the file."""


class OpenVinoModel:
    """An ONNX file as OpenVINO reads it, and, once it is compiled, runs it.

    Attributes:
        model: OpenVINO's own, with the inputs and outputs of the file.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            OpenVinoError: OpenVINO is not installed, or cannot read it.
        """
        self._path = path
        self._openvino = import_openvino()
        try:
            self._core = self._openvino.Core()
            self.model: Any = self._core.read_model(path)
        except Exception as error:
            msg = f"OpenVINO cannot load {path}: {error}"
            if LINKED_OUT in msg:
                msg += (
                    "\nIt does not read weights through a link out of the model's folder, such as "
                    "those in the cache of a model hub. Copy the folder with `cp -rL`"
                )
                # Where only the weights are links, ONNX Runtime does not read them either.
                msg += ", or set EMBED_ENGINE to onnxruntime." if path.is_symlink() else "."
            raise OpenVinoError(msg) from error
        self._vocabulary_size = _vocabulary_size(self.model)
        self._request: Any = None  # an InferRequest
        self._stored: list[Path] = []  # where the weights are stored, until it has run

    def compile(
        self,
        precision: str,
        options: Mapping[str, Any],
        *,
        threads: int = 0,
        cache_dir: Path | None = None,
        only_output: str = "",
    ) -> None:
        """Get ready to run.

        Args:
            precision: What it computes in; `int8` needs weights in int8.
            options: OpenVINO's options for that precision.
            threads: 0 for every core.
            cache_dir: Where the compiled model is kept for the next start: a folder for these
                weights, since OpenVINO takes a file of the same name and time for the same model.
            only_output: Leave out the others, such as the keys and values of each layer.

        Raises:
            OpenVinoError: It cannot be compiled.
        """
        if precision == "int8" and not has_int8_weights(self.model):
            msg = (
                f"EMBED_PRECISION is 'int8', but the weights of {self._path} are not int8. Serve "
                "the folder that `qwen3-triton model quantize` writes, or set EMBED_PRECISION to "
                "auto."
            )
            raise OpenVinoError(msg)
        model = self.model
        if only_output:
            result = model.output(only_output).get_node()
            model = self._openvino.Model([result], model.get_parameters(), "model")
        options = {**options, **KEPT_SHAPES, **_placement(threads)}
        if cache_dir is not None:
            options["CACHE_DIR"] = str(cache_dir)
        try:
            compiled = self._core.compile_model(model, "CPU", options)
            if cache_dir is not None and not compiled.get_property("LOADED_FROM_CACHE"):
                # From now on its weights are pages of the file, which can be forgotten.
                compiled = self._core.compile_model(model, "CPU", options)
            self._request = compiled.create_infer_request()
        except Exception as error:
            raise OpenVinoError(f"OpenVINO cannot compile {self._path}: {error}") from error
        self._stored = [self._path.parent] + ([cache_dir] if cache_dir else [])

    def run(self, names: Sequence[str], feed: Mapping[str, Any]) -> list[Any]:
        """Compute the outputs with these names, as arrays.

        Raises:
            Exception: OpenVINO refuses the inputs, or a token is out of range (`ValueError`).
        """
        self._check_ids(feed["input_ids"])
        self._request.infer(dict(feed), share_inputs=True, share_outputs=True)
        if self._stored:
            # The first run has copied the weights for its products.
            forget_mapped_files(self._stored)
            self._stored = []
        # The next run writes to the same memory.
        return [self._request.get_tensor(name).data.copy() for name in names]

    def release_memory(self) -> None:
        """Return what runs have taken; the next takes it again."""
        self._request.get_compiled_model().release_memory()

    def operators(self) -> set[str]:
        """List the kinds of operators that the compiled model runs."""
        compiled = self._request.get_compiled_model()
        operators = compiled.get_runtime_model().get_ops()
        return {str(operator.get_rt_info()["layerType"]) for operator in operators}

    def _check_ids(self, input_ids: Any) -> None:
        """Refuse what ONNX Runtime refuses: OpenVINO reads zeros for a token that it lacks."""
        limit = self._vocabulary_size
        if limit is None:
            return
        for token in (input_ids.min(), input_ids.max()):
            if not -limit <= token < limit:
                raise ValueError(f"token ID {token} is outside of its {limit} tokens")


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry.

    Raises:
        OpenVinoError: It is not installed.
    """
    if "openvino" not in sys.modules:
        # `import openvino` sends an event, unless this package is missing.
        cast("dict[str, Any]", sys.modules).setdefault("openvino_telemetry", None)
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        msg = (
            "EMBED_ENGINE is 'openvino', which is not installed or does not run here "
            f'({error}). Install it with `pip install "qwen3-triton-gateway[openvino]"`.'
        )
        raise OpenVinoError(msg) from error


def forget_mapped_files(folders: Sequence[Path]) -> None:
    """Drop this process's pages of the files that it has mapped from folders, on Linux.

    Pages that are needed again are read again.
    """
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    prefixes = tuple(f"{folder.resolve()}{os.sep}" for folder in folders)
    for line in maps.read_text().splitlines():
        addresses, permissions, *_, path = line.split(maxsplit=5)
        # In shared mappings nothing can be lost.
        if path.startswith(prefixes) and permissions.endswith("s"):
            start, stop = (int(address, 16) for address in addresses.split("-"))
            madvise(start, stop - start, mmap.MADV_DONTNEED)


def has_int8_weights(model: Any) -> bool:
    """Return whether most weights of a model of OpenVINO are 8-bit integers.

    The table of tokens does not count: it is looked up, not multiplied.
    """
    table = _source_of(lookup.input(0)) if (lookup := _token_lookup(model)) else None
    sizes = {True: 0, False: 0}
    for operator in model.get_ops():
        if operator.get_type_name() != "Constant" or operator.get_friendly_name() == table:
            continue
        size = prod(operator.get_output_shape(0))
        if size >= MIN_MATRIX_VALUES:
            sizes[operator.get_element_type().get_type_name() in INT8_TYPES] += size
    return sizes[True] > sizes[False]


def core_count() -> int:
    """Count the cores that this process may run on; a container's quota of time is not in it."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _placement(threads: int) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads or core_count(),
        # Pinned threads of two processes would share one core and leave another idle.
        "ENABLE_CPU_PINNING": False,
    }


def _vocabulary_size(model: Any) -> int | None:
    """Return the rows of the table in which the model looks up tokens, if it is known."""
    lookup = _token_lookup(model)
    table = lookup.input(0).get_source_output().partial_shape if lookup else None
    return table[0].get_length() if table is not None and table[0].is_static else None


def _token_lookup(model: Any) -> Any:
    """Return the operator that looks up tokens in a table, or None."""
    found = [port for port in model.inputs if port.get_any_name() == "input_ids"]
    while found:
        for target in found.pop().get_target_inputs():
            operator = target.get_node()
            if operator.get_type_name() == "Gather" and target.get_index() == 1:
                return operator
            if operator.get_type_name() in ("Convert", "Reshape", "Unsqueeze", "Squeeze"):
                found.append(operator.output(0))
    return None


def _source_of(port: Any) -> str:
    """Return the name of the constant that an input is computed from, scales aside."""
    operator = port.get_source_output().get_node()
    while operator.get_input_size():
        operator = operator.input(0).get_source_output().get_node()
    return operator.get_friendly_name()
