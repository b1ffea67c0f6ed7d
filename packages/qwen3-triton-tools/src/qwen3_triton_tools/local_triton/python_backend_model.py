# pyright: basic
"""Run one ONNX file with ONNX Runtime or OpenVINO inside Triton's Python backend.

This file is copied into a model repository as `1/model.py`. All that it imports of this project are
the copies next to it: the gateway's `answer_checksum.py`, and where OpenVINO runs the model,
`openvino_model.py`, else `run_memory.py`.

Tensors are exchanged by DLPack: the backend's own numpy conversion reads array headers with the
layout of numpy 1, and returns empty arrays with numpy 2.
"""

import ctypes
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]
from answer_checksum import (  # pyright: ignore[reportMissingImports]
    CHECKSUM_OUTPUT,
    row_checksums,
)

# What DLPack calls a capsule whose content has another owner now. The name is not copied.
_USED = b"used_dltensor"
_set_capsule_name = ctypes.pythonapi.PyCapsule_SetName
_set_capsule_name.argtypes = [ctypes.py_object, ctypes.c_char_p]


class _Exporter:
    """An adapter for numpy's `from_dlpack`: a backend tensor's `__dlpack__` takes no keywords."""

    def __init__(self, tensor):
        self._tensor = tensor

    def __dlpack__(self, **_ignored):
        return self._tensor.to_dlpack()

    def __dlpack_device__(self):
        return self._tensor.__dlpack_device__()


class _OnnxRuntime:
    title = "ONNX Runtime"

    def __init__(self, path, parameters):
        import onnxruntime  # only one of the engines is loaded

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters.get("intra_op_threads", "0"))
        options.inter_op_num_threads = 1
        # Threads that spin between runs would take the cores that Triton needs to send its answers.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # As in the gateway's own process: activations are not rounded unless the graph says so.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        # Also as there: memory is taken as it is needed, and large runs return theirs.
        kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
        memory = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
        arena = onnxruntime.OrtArenaCfg({"arena_extend_strategy": 1})
        onnxruntime.create_and_register_allocator(memory, arena)
        options.add_session_config_entry("session.use_env_allocators", "1")
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self._large = onnxruntime.RunOptions()
        self._large.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._memory = None
        if "pair_bytes" in parameters:
            self._memory = importlib.import_module("run_memory")
            sizes = int(parameters["token_bytes"]), int(parameters["pair_bytes"])
            self._needed = self._memory.RunMemory(*sizes).bytes_of

    def run(self, names, feed):
        if self._memory is None:
            return self._session.run(names, feed)
        rows, length = feed["input_ids"].shape
        needed = self._needed(rows, length)
        free = self._memory.available_bytes() if needed >= self._memory.LARGE_RUN_BYTES else needed
        if needed > free:
            raise MemoryError(self._memory.describe_shortage(rows, length, needed, free))
        is_large = needed >= self._memory.RETURNED_BYTES
        return self._session.run(names, feed, self._large if is_large else None)


class _OpenVino:
    title = "OpenVINO"

    def __init__(self, path, parameters):
        model = importlib.import_module("openvino_model").OpenVinoModel(Path(path))
        cache_dir = parameters.get("engine_cache_dir")
        model.compile(
            parameters["precision"],
            json.loads(parameters["openvino_options"]),
            threads=int(parameters.get("intra_op_threads", "0")),
            cache_dir=Path(cache_dir) if cache_dir else None,
        )
        self.run = model.run


class TritonPythonModel:
    """One instance of the model, compiled for itself."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the ONNX file that the parameter `onnx_path` names."""
        config = json.loads(args["model_config"])
        parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        path = Path(args["model_repository"], args["model_version"], "model.onnx")
        engine = _OpenVino if "openvino_options" in parameters else _OnnxRuntime
        self._engine = engine(parameters.get("onnx_path", str(path)), parameters)
        self._inputs = [
            (entry["name"], pb_utils.triton_string_to_numpy(entry["data_type"]), len(entry["dims"]))
            for entry in config["input"]
        ]
        names = [entry["name"] for entry in config["output"]]
        self._outputs = [name for name in names if name != CHECKSUM_OUTPUT]
        # An output with hidden states, of which only the last token's leaves Triton.
        self._states = parameters.get("pooled_output")
        self._merges = config["max_batch_size"] > 0

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer `requests` in order; each that fails gets an error of its own."""
        feeds = [self._feed(request) for request in requests]
        groups: dict[tuple, list[int]] = {}
        for index, feed in enumerate(feeds):
            # Everything but the batch dimension must agree for two requests to share a run.
            key = tuple(array.shape[1:] for array in feed.values())
            groups.setdefault(key, []).append(index)
        responses = [None] * len(requests)
        for members in groups.values():
            answers = self._run_group([feeds[index] for index in members])
            for index, answer in zip(members, answers, strict=True):
                responses[index] = self._response(requests[index], feeds[index], answer)
        return responses

    def _feed(self, request):
        return {
            name: self._array(pb_utils.get_input_tensor_by_name(request, name))
            for name, _dtype, _rank in self._inputs
        }

    @staticmethod
    def _array(tensor):
        # A copy, so that the run and the checksum are of the same values: the backend may reuse the
        # memory of a batch that it has given up on.
        return np.array(np.from_dlpack(_Exporter(tensor)), order="C")

    def _run_group(self, feeds):
        if len(feeds) == 1 or not self._merges:
            return [self._run_alone(feed) for feed in feeds]
        merged = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
        answer = self._run_alone(merged)
        if isinstance(answer, Exception):
            # One bad request must not fail the others in its run.
            return [self._run_alone(feed) for feed in feeds]
        first = next(iter(feeds[0]))
        cuts = np.cumsum([len(feed[first]) for feed in feeds])[:-1]
        parts = [np.split(np.asarray(output), cuts) for output in answer]
        return [list(row) for row in zip(*parts, strict=True)]

    def _run_alone(self, feed):
        try:
            if self._states is None:
                return self._engine.run(self._outputs, feed)
            [states] = self._engine.run([self._states], feed)
            return [_pool_last_token(states, feed["attention_mask"])]
        except Exception as error:
            return error

    def _response(self, request, feed, answer):
        if isinstance(answer, Exception):
            message = f"{self._engine.title} could not run the model: {answer}"
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(message))
        wanted = set(request.requested_output_names())
        outputs = {
            name: np.ascontiguousarray(array)
            for name, array in zip(self._outputs, answer, strict=True)
            if name in wanted
        }
        if CHECKSUM_OUTPUT in wanted:
            checksums = row_checksums(feed, list(outputs.values()))
            outputs[CHECKSUM_OUTPUT] = np.array(checksums, dtype=np.int64)[:, None]
        tensors = [_tensor(name, array) for name, array in outputs.items()]
        return pb_utils.InferenceResponse(output_tensors=tensors)


def _tensor(name, array):
    """Hand an array over to the backend.

    The backend calls the capsule `used_dlpack` (`PbTensor::FromDLPackCapsule`), which numpy does
    not know: it would write an error for every output to Triton's log.
    """
    capsule = array.__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    _set_capsule_name(capsule, _USED)
    return tensor


def _pool_last_token(states, mask):
    """Select each row's state at its last `mask == 1`, for padding on either side."""
    length = states.shape[1]
    # The mask of a past comes first, and has no states.
    last = length - 1 - np.argmax(mask[:, -length:][:, ::-1], axis=1)
    return states[np.arange(len(states)), last]
