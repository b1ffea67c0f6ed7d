"""Write a Triton model repository for a plain folder with an ONNX file."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qwen3_triton_gateway import answer_checksum, openvino_model, run_memory
from qwen3_triton_gateway.answer_checksum import CHECKSUM_OUTPUT
from qwen3_triton_gateway.fingerprint import weights_digest
from qwen3_triton_gateway.model_files import ModelFileError, find_model, model_config
from qwen3_triton_gateway.onnx_file import operators

from ..errors import ModelError, ModelFolderError
from ..onnx_model import OnnxModel, TensorInfo, read_model, takes_single_texts
from ..writing import replacing_folder

_BATCHING = """\
# Empty on purpose. Priority levels, or a queue policy with a timeout or a size, make Triton miss
# the wake-up of about every tenth batch and leave it idle for half a second.
dynamic_batching { }"""
_NO_BATCHING = "# The graph takes one text at a time, so the batch is part of all dims."
# The Python backend starts a model's process through a shell, with its name as it is, and under
# some locales in ASCII.
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
MODEL_SOURCE = Path(__file__).with_name("python_backend_model.py")
CHECKSUM_SOURCE = Path(answer_checksum.__file__)
OPENVINO_SOURCE = Path(openvino_model.__file__)
MEMORY_SOURCE = Path(run_memory.__file__)
# Where this is among a model's parameters, OpenVINO runs it.
_OPENVINO_PARAMETER = "openvino_options"

_CONFIG = """\
name: {name}
backend: "python"
max_batch_size: {max_batch_size}
{tensors}
instance_group [ {{ kind: KIND_CPU count: {instance_count} }} ]
{batching}
parameters {{ key: "onnx_path" value {{ string_value: {onnx_path} }} }}
parameters {{ key: "intra_op_threads" value {{ string_value: "{intra_op_threads}" }} }}
# For the gateway's fingerprint; Triton's metadata does not include it.
parameters {{ key: "weights_digest" value {{ string_value: "{digest}" }} }}
"""
# The gateway's name for a pooled output.
_POOLED_NAME = "sentence_embedding"
# (batch, tokens, hidden size)
_STATES_RANK = 3
_FLOAT_BYTES = 4
_PARAMETER = "parameters {{ key: {key} value {{ string_value: {value} }} }}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVino:
    """How OpenVINO runs a model, as the gateway chooses it.

    Attributes:
        precision: What it computes in. Stated to the gateway, whose fingerprint depends on it.
        options: OpenVINO's options for that precision.
        cache_dir: Where compiled models are kept, if they are.
    """

    precision: str
    options: Mapping[str, Any]
    cache_dir: Path | None = None


def write_repository(
    model_dir: Path,
    repository: Path,
    *,
    model_name: str,
    max_batch_size: int = 32,
    instance_count: int = 1,
    intra_op_threads: int = 0,
    openvino: OpenVino | None = None,
    pooled_output: str | None = None,
    parameters: Mapping[str, str] | None = None,
    digest: str | None = None,
) -> Path:
    """Write `<repository>/<model_name>` for Triton's Python backend and return that folder.

    The ONNX file stays where it is (the model reads it by its absolute path), so gigabytes are
    neither copied nor linked.

    Args:
        model_dir: The ONNX file, or a folder with one.
        repository: The model repository.
        model_name: The model's name in Triton.
        max_batch_size: Rows of the largest batch.
        instance_count: Copies of the model.
        intra_op_threads: Threads of each; 0 means one per core.
        openvino: How OpenVINO runs the model; by default, ONNX Runtime does.
        pooled_output: An output with hidden states. Triton returns the last token's as
            `sentence_embedding` in its place, and no other output.
        parameters: Further parameters that Triton tells the gateway.
        digest: What identifies the weights, if they are those of another file.

    Raises:
        ModelFolderError: The folder has no ONNX file, or one with incomplete weights or a tensor
            that the local Triton cannot serve.
        ModelError: The repository cannot be written.
        ValueError: An option is out of range.
    """
    _check_options(model_name, max_batch_size, instance_count)
    try:
        onnx_file = find_model(model_dir)
        model = read_model(onnx_file)
        digest = digest or weights_digest(onnx_file)
    except (ModelError, ModelFileError) as error:
        raise ModelFolderError(str(error)) from error
    is_batched = not takes_single_texts(model)
    config = _CONFIG.format(
        name=_quote(model_name),
        max_batch_size=max_batch_size if is_batched else 0,
        tensors=_tensors(model, pooled_output, is_batched=is_batched),
        batching=_BATCHING if is_batched else _NO_BATCHING,
        instance_count=instance_count,
        onnx_path=_quote(str(onnx_file)),
        intra_op_threads=intra_op_threads,
        digest=digest,
    )
    stated = _openvino_parameters(openvino, digest) if openvino else _memory_parameters(model)
    if pooled_output is not None:
        stated["pooled_output"] = pooled_output
    for key, value in (stated | dict(parameters or {})).items():
        config += _PARAMETER.format(key=_quote(key), value=_quote(value))
    folder = repository / model_name
    with replacing_folder(folder) as unfinished:
        (unfinished / "1").mkdir()
        (unfinished / "config.pbtxt").write_text(config, encoding="utf-8")
        shutil.copyfile(MODEL_SOURCE, unfinished / "1" / "model.py")
        shutil.copyfile(CHECKSUM_SOURCE, unfinished / "1" / CHECKSUM_SOURCE.name)
        if openvino:
            shutil.copyfile(OPENVINO_SOURCE, unfinished / "1" / OPENVINO_SOURCE.name)
        else:
            shutil.copyfile(MEMORY_SOURCE, unfinished / "1" / MEMORY_SOURCE.name)
    return folder


def needs_openvino(repository: Path) -> bool:
    """Return whether OpenVINO runs a model of this repository in Triton's Python backend."""
    return any(
        f'"{_OPENVINO_PARAMETER}"' in text for text in _read_existing(repository, "*/config.pbtxt")
    )


def _read_existing(folder: Path, pattern: str) -> Iterator[str]:
    for path in folder.glob(pattern):
        with suppress(OSError):  # Triton reports what it cannot read
            yield path.read_text(encoding="utf-8", errors="replace")


def _openvino_parameters(openvino: OpenVino, digest: str) -> dict[str, str]:
    parameters = {
        "precision": openvino.precision,
        _OPENVINO_PARAMETER: json.dumps(dict(openvino.options)),
    }
    if openvino.cache_dir:
        # A folder for these weights; the gateway's own process names it alike.
        parameters["engine_cache_dir"] = str(openvino.cache_dir.absolute() / digest[:16])
    return parameters


def _memory_parameters(model: OnnxModel) -> dict[str, str]:
    """State what a run takes, as the gateway estimates it for its own process."""
    states = [output for output in model.outputs if len(output.shape or ()) == _STATES_RANK]
    width = max((output.shape[-1] for output in states if output.shape), default=0)
    memory = run_memory.estimate_run_memory(
        model_config(model.path),
        output_bytes=max(width, 0) * _FLOAT_BYTES,
        hidden_size=width,
        operators=operators(model.path),
        fuses_softmax=False,
        is_float16=any(output.dtype.triton == "TYPE_FP16" for output in model.outputs),
    )
    return {"token_bytes": str(memory.token_bytes), "pair_bytes": str(memory.pair_bytes)}


def _check_options(model_name: str, max_batch_size: int, instance_count: int) -> None:
    if not MODEL_NAME.fullmatch(model_name):
        msg = (
            f"`model_name` must consist of ASCII letters, digits, `.`, `_` and `-`: {model_name!r}."
        )
        raise ValueError(msg)
    if max_batch_size < 1:
        raise ValueError(f"`max_batch_size` must be at least 1, not {max_batch_size}.")
    if instance_count < 1:
        raise ValueError(f"`instance_count` must be at least 1, not {instance_count}.")


def _tensors(model: OnnxModel, pooled_output: str | None, *, is_batched: bool) -> str:
    if not model.inputs or not model.outputs:
        raise ModelFolderError(f"{model.path} has no inputs or no outputs.")
    lines = [_tensor(model.path, "input", tensor, is_batched=is_batched) for tensor in model.inputs]
    outputs = model.outputs
    if pooled_output is not None:
        outputs = (_pooled(model, pooled_output),)
    lines += [_tensor(model.path, "output", tensor, is_batched=is_batched) for tensor in outputs]
    dims = "1" if is_batched else "1, 1"
    lines.append(
        f"output [ {{ name: {_quote(CHECKSUM_OUTPUT)} data_type: TYPE_INT64 dims: [ {dims} ] }} ]"
    )
    return "\n".join(lines)


def _pooled(model: OnnxModel, name: str) -> TensorInfo:
    states = next((tensor for tensor in model.outputs if tensor.name == name), None)
    if states is None:
        raise ModelFolderError(f"{model.path} has no output `{name}` to pool.")
    shape = states.shape and (states.shape[0], states.shape[-1])
    return replace(states, name=_POOLED_NAME, shape=shape)


def _tensor(onnx_file: Path, role: str, tensor: TensorInfo, *, is_batched: bool) -> str:
    data_type = tensor.dtype.triton
    # The model exchanges numpy arrays of numbers, and numpy has no bfloat16.
    if data_type in (None, "TYPE_BF16", "TYPE_STRING"):
        raise ModelFolderError(
            f"{onnx_file}: {role} `{tensor.name}` is {tensor.dtype.name}, which the local Triton "
            "cannot serve. Export the model in float32 or float16."
        )
    if not tensor.shape or (is_batched and tensor.shape[0] != -1):
        raise ModelFolderError(
            f"{onnx_file}: {role} `{tensor.name}` has shape {tensor.shape}; its first dimension "
            "must be dynamic (the batch). Export the model with dynamic axes."
        )
    dims = ", ".join(str(size) for size in tensor.shape[1 if is_batched else 0 :])
    return f"{role} [ {{ name: {_quote(tensor.name)} data_type: {data_type} dims: [ {dims} ] }} ]"


def _quote(text: str) -> str:
    """Quote `text` for protocol buffers' text format, whose escapes are those of JSON."""
    return json.dumps(text, ensure_ascii=False)
