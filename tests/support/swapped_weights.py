"""A served model whose weights are replaced under an unchanged `config.pbtxt`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

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
from reranker_exports import random_weights
from reranker_graph import write_reranker
from traffic import Embedding, Traffic

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


class ServedModel:
    """A model in a model repository of its own: the nano model, or a small reranker.

    Attributes:
        repository: The model repository; every Triton on it reads the same `path`.
        path: The ONNX file.
        name: The model's name.
        flags: What serves it, after `--triton-url`.
    """

    def __init__(self, folder: Path, kind: type[Traffic] = Embedding) -> None:
        self.repository = folder / "repository"
        self.path = folder / "model.onnx"
        self._original = folder / "original" / "model.onnx"
        if kind is Embedding:
            self.name, self.flags = qwen3_nano.MODEL_ID, Embedding.flags
            self._original.parent.mkdir()
            shutil.copy(qwen3_nano.model_dir() / "model.onnx", self._original)
        else:
            self.name = "small_reranker"
            tokenizer = ("--rerank-tokenizer-path", str(qwen3_nano.model_dir()))
            self.flags = ("--rerank-triton-model", self.name, *tokenizer)
            write_reranker(self._original.parent, trunk=random_weights())
        self.restore_weights()
        write_repository(folder, self.repository, model_name=self.name, max_batch_size=8)

    def triton(self) -> LocalTriton:
        return LocalTriton(model_repository=self.repository)

    def swap_weights(self) -> None:
        """Replace the weights; what is loaded keeps the ones it has."""
        write_other_weights(self.path, self._original)

    def restore_weights(self) -> None:
        shutil.copy(self._original, self.path)

    def state_canary(self) -> None:
        """Write the vector of the present weights into `config.pbtxt`, as `model repository`."""
        nano = inspect_model(qwen3_nano.model_dir() / "model.onnx")
        stated = canary_of(nano, self.path, max_length=1024)
        with (self.repository / self.name / "config.pbtxt").open("a") as config:
            config.write(
                f'parameters {{ key: "{CANARY_PARAMETER}" value {{ string_value: "{stated}" }} }}'
            )

    def add_version(self) -> None:
        """Add version 2, which has the weights that `path` has from now on."""
        folder = self.repository / self.name
        shutil.copytree(folder / "1", folder / "2")

    def reload(self, triton: LocalTriton) -> None:
        """Let Triton load the model again, while it keeps serving."""
        # Triton reloads a model only if a file in its folder is newer.
        os.utime(self.repository / self.name / "1" / "model.py")
        change_repository(triton, self.name, "load")


def change_repository(triton: LocalTriton, model: str, verb: Literal["load", "unload"]) -> None:
    """Load or unload a model of a Triton that allows it."""
    url = f"{triton.http_url}/v2/repository/models/{model}/{verb}"
    httpx2.post(url, json={}, timeout=60).raise_for_status()


def write_other_weights(path: Path, original: Path | None = None) -> None:
    """Shuffle the largest weights of a model, by default the nano model; write it to `path`."""
    model = onnx.load(original or qwen3_nano.model_dir() / "model.onnx")
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
