"""Write a Triton model repository for a plain folder that holds an ONNX file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from qwen3_triton_gateway.fingerprint import weights_digest

from ..onnx_file import OnnxFileError, OnnxSignature, TensorSignature, read_signature
from .errors import ModelFolderError

MODEL_SOURCE = Path(__file__).with_name("python_backend_model.py")

# ONNX TensorProto.DataType -> Triton's DataType, for the types that numpy has as well.
_TRITON_TYPES = {
    1: "TYPE_FP32",
    2: "TYPE_UINT8",
    3: "TYPE_INT8",
    4: "TYPE_UINT16",
    5: "TYPE_INT16",
    6: "TYPE_INT32",
    7: "TYPE_INT64",
    9: "TYPE_BOOL",
    10: "TYPE_FP16",
    11: "TYPE_FP64",
    12: "TYPE_UINT32",
    13: "TYPE_UINT64",
}

_CONFIG = """\
name: {name}
backend: "python"
max_batch_size: {max_batch_size}
{tensors}
instance_group [ {{ kind: KIND_CPU count: {instance_count} }} ]
# Empty on purpose. Priority levels, or a queue policy with a timeout or a size, make Triton miss
# the wake-up of about every tenth batch and let it lie for half a second, idle.
dynamic_batching {{ }}
parameters {{ key: "onnx_path" value {{ string_value: {onnx_path} }} }}
parameters {{ key: "intra_op_threads" value {{ string_value: "{intra_op_threads}" }} }}
# Read by the gateway for its fingerprint, which Triton's metadata could not tell.
parameters {{ key: "weights_digest" value {{ string_value: "{digest}" }} }}
"""


def find_onnx_file(model_dir: Path) -> Path:
    """Find `model.onnx` in `model_dir`, or in its subfolder `onnx`, where the hub keeps it.

    Raises:
        ModelFolderError: neither is there.
    """
    for candidate in (model_dir / "model.onnx", model_dir / "onnx" / "model.onnx"):
        if candidate.is_file():
            # Not resolved: external data is looked up beside the name, not beside a link's target.
            return candidate.absolute()
    raise ModelFolderError(f"{model_dir} holds neither `model.onnx` nor `onnx/model.onnx`")


def write_repository(
    model_dir: Path,
    repository: Path,
    *,
    model_name: str,
    max_batch_size: int = 32,
    instance_count: int = 1,
    intra_op_threads: int = 0,
) -> Path:
    """Write `<repository>/<model_name>` for Triton's Python backend and return that folder.

    The ONNX file stays where it is (the model reads it by its absolute path), so gigabytes are
    neither copied nor linked. `intra_op_threads` 0 means one thread for each core.

    Raises:
        ModelFolderError: no ONNX file, or a graph that cannot be batched.
        ValueError: an option is out of its range.
    """
    _check_options(model_name, max_batch_size, instance_count)
    onnx_file = find_onnx_file(model_dir)
    signature = _read(onnx_file)
    config = _CONFIG.format(
        name=_quote(model_name),
        max_batch_size=max_batch_size,
        tensors=_tensors(onnx_file, signature),
        instance_count=instance_count,
        onnx_path=_quote(str(onnx_file)),
        intra_op_threads=intra_op_threads,
        digest=weights_digest(onnx_file),
    )
    folder = repository / model_name
    version = folder / "1"
    version.mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    shutil.copyfile(MODEL_SOURCE, version / "model.py")
    return folder


def _check_options(model_name: str, max_batch_size: int, instance_count: int) -> None:
    if not model_name or model_name.startswith(".") or "/" in model_name:
        raise ValueError(f"`model_name` must be a plain folder name, got {model_name!r}")
    if max_batch_size < 1:
        raise ValueError(f"`max_batch_size` must be at least 1, got {max_batch_size}")
    if instance_count < 1:
        raise ValueError(f"`instance_count` must be at least 1, got {instance_count}")


def _read(onnx_file: Path) -> OnnxSignature:
    try:
        return read_signature(onnx_file)
    except OnnxFileError as error:
        raise ModelFolderError(str(error)) from error


def _tensors(onnx_file: Path, signature: OnnxSignature) -> str:
    if not signature.inputs or not signature.outputs:
        raise ModelFolderError(f"{onnx_file} has no inputs or no outputs")
    lines = [_tensor(onnx_file, "input", tensor) for tensor in signature.inputs]
    lines += [_tensor(onnx_file, "output", tensor) for tensor in signature.outputs]
    return "\n".join(lines)


def _tensor(onnx_file: Path, role: str, tensor: TensorSignature) -> str:
    data_type = _TRITON_TYPES.get(tensor.element_type)
    if data_type is None:
        raise ModelFolderError(
            f"{onnx_file}: {role} `{tensor.name}` has ONNX element type {tensor.element_type}, "
            f"allowed are {sorted(_TRITON_TYPES)}"
        )
    if not tensor.shape or tensor.shape[0] != -1:
        raise ModelFolderError(
            f"{onnx_file}: {role} `{tensor.name}` has shape {tensor.shape}; its first dimension "
            "must be dynamic (the batch), so export the model with dynamic axes"
        )
    dims = ", ".join(str(size) for size in tensor.shape[1:])
    return f"{role} [ {{ name: {_quote(tensor.name)} data_type: {data_type} dims: [ {dims} ] }} ]"


def _quote(text: str) -> str:
    """Quote `text` for protocol buffers' text format, whose escapes are those of JSON."""
    return json.dumps(text, ensure_ascii=False)
