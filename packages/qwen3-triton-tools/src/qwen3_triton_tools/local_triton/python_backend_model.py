# pyright: basic
"""Run one ONNX file with ONNX Runtime inside Triton's Python backend.

This file is copied into a model repository as `1/model.py`, and imports nothing of this project.
Tensors are exchanged by DLPack: the backend's own numpy conversion reads array headers with the
layout of numpy 1, and returns empty arrays with numpy 2.
"""

import json
import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]


class _Exporter:
    """An adapter for numpy's `from_dlpack`: a backend tensor's `__dlpack__` takes no keywords."""

    def __init__(self, tensor):
        self._tensor = tensor

    def __dlpack__(self, **_ignored):
        return self._tensor.to_dlpack()

    def __dlpack_device__(self):
        return self._tensor.__dlpack_device__()


class TritonPythonModel:
    """One instance of the model, with an ONNX Runtime session of its own."""

    def initialize(self, args):
        """Load the ONNX file that the parameter `onnx_path` names."""
        config = json.loads(args["model_config"])
        parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters.get("intra_op_threads", "0"))
        options.inter_op_num_threads = 1
        # Threads that spin between runs would take the cores that Triton needs to send its answers.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self._session = onnxruntime.InferenceSession(
            parameters.get("onnx_path", path), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [
            (entry["name"], pb_utils.triton_string_to_numpy(entry["data_type"]), len(entry["dims"]))
            for entry in config["input"]
        ]
        self._outputs = [entry["name"] for entry in config["output"]]
        self._merges = config["max_batch_size"] > 0

    def execute(self, requests):
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
                responses[index] = self._response(requests[index], answer)
        return responses

    def _feed(self, request):
        return {
            name: self._array(pb_utils.get_input_tensor_by_name(request, name))
            for name, _dtype, _rank in self._inputs
        }

    @staticmethod
    def _array(tensor):
        return np.from_dlpack(_Exporter(tensor))

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
            return self._session.run(self._outputs, feed)
        except Exception as error:
            return error

    def _response(self, request, answer):
        if isinstance(answer, Exception):
            message = f"ONNX Runtime could not run the model: {answer}"
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(message))
        wanted = set(request.requested_output_names())
        return pb_utils.InferenceResponse(
            output_tensors=[
                pb_utils.Tensor.from_dlpack(name, np.ascontiguousarray(array))
                for name, array in zip(self._outputs, answer, strict=True)
                if name in wanted
            ]
        )
