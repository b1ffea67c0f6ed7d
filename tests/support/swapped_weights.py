"""A served model whose weights are replaced under an unchanged `config.pbtxt`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import httpx2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import qwen3_nano
from qwen3_triton_gateway.backends.base import CANARY_PARAMETER
from qwen3_triton_tools.local_triton import LocalTriton, launch, write_repository
from qwen3_triton_tools.local_triton.process import server_command
from qwen3_triton_tools.model.inspection import inspect_model
from qwen3_triton_tools.model.probing import canary_of

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


class ServedModel:
    """The nano model in a model repository of its own.

    Attributes:
        repository: The model repository; every Triton on it reads the same `path`.
        path: The ONNX file.
    """

    def __init__(self, folder: Path) -> None:
        self.repository = folder / "repository"
        self.path = folder / "model.onnx"
        shutil.copy(qwen3_nano.model_dir() / "model.onnx", self.path)
        write_repository(folder, self.repository, model_name=qwen3_nano.MODEL_ID, max_batch_size=8)

    def triton(self) -> LocalTriton:
        return LocalTriton(model_repository=self.repository)

    def swap_weights(self) -> None:
        """Replace the weights; what is loaded keeps the ones it has."""
        write_other_weights(self.path)

    def restore_weights(self) -> None:
        shutil.copy(qwen3_nano.model_dir() / "model.onnx", self.path)

    def state_canary(self) -> None:
        """Write the vector of the present weights into `config.pbtxt`, as `model repository`."""
        nano = inspect_model(qwen3_nano.model_dir() / "model.onnx")
        stated = canary_of(nano, self.path, max_length=1024)
        with (self.repository / qwen3_nano.MODEL_ID / "config.pbtxt").open("a") as config:
            config.write(
                f'parameters {{ key: "{CANARY_PARAMETER}" value {{ string_value: "{stated}" }} }}'
            )

    def add_version(self) -> None:
        """Add version 2, which has the weights that `path` has from now on."""
        folder = self.repository / qwen3_nano.MODEL_ID
        shutil.copytree(folder / "1", folder / "2")

    def reload(self, triton: LocalTriton) -> None:
        """Let Triton load the model again, while it keeps serving."""
        # Triton reloads a model only if a file in its folder is newer.
        os.utime(self.repository / qwen3_nano.MODEL_ID / "1" / "model.py")
        url = f"{triton.http_url}/v2/repository/models/{qwen3_nano.MODEL_ID}/load"
        httpx2.post(url, json={}, timeout=60).raise_for_status()


def write_other_weights(path: Path) -> None:
    """Shuffle the largest weights of the nano model, and write the result to `path`."""
    model = onnx.load(qwen3_nano.model_dir() / "model.onnx")
    floats = [tensor for tensor in model.graph.initializer if tensor.data_type in FLOATS]
    largest = max(floats, key=lambda tensor: int(np.prod(tensor.dims)))
    values = numpy_helper.to_array(largest).copy()
    np.random.default_rng(0).shuffle(values)
    largest.CopyFrom(numpy_helper.from_array(values, largest.name))
    onnx.save(model, path)


def allow_reloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start Tritons that load models on request, which the local Triton refuses."""

    def reloading(*arguments: object, **options: object) -> list[str]:
        command = server_command(*arguments, **options)  # pyright: ignore[reportArgumentType]
        command.remove("--model-control-mode=none")
        return [*command, "--model-control-mode=explicit", "--load-model=*"]

    monkeypatch.setattr(launch, "server_command", reloading)
