"""A Triton model repository: folders, and each config.pbtxt against its ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from ..onnx_file import OnnxSignature, TensorSignature
from .checks import Check, absent, failed, ok, warning
from .model_files import check_onnx_file

CONFIG = "config.pbtxt"
CONFIG_REMEDY = "write into config.pbtxt what the ONNX file has, then restart Triton"
# ONNX TensorProto.DataType -> Triton's DataType (onnx.proto, model_config.proto).
TRITON_TYPES = {
    1: "TYPE_FP32",
    6: "TYPE_INT32",
    7: "TYPE_INT64",
    9: "TYPE_BOOL",
    10: "TYPE_FP16",
    11: "TYPE_FP64",
    16: "TYPE_BF16",
}
# Optional in protobuf's own types, and absent from its stubs.
pb: Any = model_config_pb2


def check_repository(repository: Path, model: str | None, *, model_named: bool) -> list[Check]:
    """Look at one model of a repository, or at all of them where none is named or found."""
    if not repository.is_dir():
        seen = f"{repository} does not exist"
        return [failed("model repository", seen, "name the folder that holds the model folders")]
    folders = sorted(path for path in repository.iterdir() if path.is_dir())
    if not folders:
        seen = f"{repository} holds no model folder"
        return [failed("model repository", seen, "`qwen3-triton model repository` writes one")]
    chosen = [folder for folder in folders if folder.name == model]
    checks: list[Check] = []
    if model and not chosen and model_named:
        held = ", ".join(folder.name for folder in folders)
        seen = f"{repository} holds no model {model!r}; it holds: {held}"
        remedy = "set TRITON_MODEL to the folder's name, or rename the folder and its config"
        checks.append(absent("model repository", seen, remedy, named=True))
    for folder in chosen or folders:
        checks += check_model_folder(folder)
    return checks


def check_model_folder(folder: Path) -> list[Check]:
    """Look at `<repository>/<model>`: version folder, ONNX file and configuration."""
    versions = sorted(
        (path for path in folder.iterdir() if path.is_dir() and path.name.isdigit()),
        key=lambda path: int(path.name),
    )
    if not versions:
        seen = f"{folder} has no version folder"
        return [failed(f"{folder.name}", seen, f"move model.onnx and its data to {folder}/1/")]
    config, checks = read_config(folder)
    onnx_file = _onnx_file(versions[-1], config)
    if onnx_file is None:
        seen = f"{versions[-1]} holds no model.onnx"
        remedy = "copy model.onnx and model.onnx_data there"
        return [*checks, failed(f"{folder.name}", seen, remedy)]
    # The Python backend's model runs as whoever started it: the local Triton, on this machine.
    local = config is not None and config.backend == "python"
    found, signature = check_onnx_file(onnx_file, served=not local)
    if signature is not None and config is not None:
        checks += compare_config(folder, config, signature)
    return [*found, *checks]


def read_config(folder: Path) -> tuple[Any | None, list[Check]]:
    """Parse a model's config.pbtxt, where there is one and it can be parsed."""
    file = folder / CONFIG
    name = _name(folder)
    try:
        config = text_format.Parse(file.read_text(), pb.ModelConfig())
    except FileNotFoundError:
        seen = f"{file} is missing; Triton then guesses it (max_batch_size 4)"
        return None, [warning(name, seen, "`qwen3-triton model repository` writes it")]
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        seen = f"{file} is no valid model configuration: {error}"
        return None, [failed(name, seen, "mend the line and column that are named")]
    checks: list[Check] = []
    if config.name not in ("", folder.name):
        seen = f"{file} says name {config.name!r}, its folder is {folder.name!r}"
        checks.append(failed(name, seen, "make both the same, or Triton refuses the model"))
    return config, checks


def compare_config(folder: Path, config: Any, signature: OnnxSignature) -> list[Check]:
    """Hold a configuration against the ONNX file, and look for the settings that hurt."""
    name = _name(folder)
    batched = config.max_batch_size > 0
    problems = [
        *_compare("input", config.input, signature.inputs, batched=batched, every=True),
        *_compare("output", config.output, signature.outputs, batched=batched, every=False),
    ]
    checks = [failed(name, problem, CONFIG_REMEDY) for problem in problems]
    checks += [warning(name, seen, remedy) for seen, remedy in _traps(config)]
    if not checks:
        size = f"max_batch_size {config.max_batch_size}"
        checks.append(ok(name, f"{folder.name}: names, types and dims are the file's, {size}"))
    return checks


def _compare(
    role: str,
    configured: Sequence[Any],
    actual: Sequence[TensorSignature],
    *,
    batched: bool,
    every: bool,
) -> list[str]:
    known = {tensor.name: tensor for tensor in actual}
    stated = {entry.name for entry in configured}
    problems: list[str] = []
    for entry in configured:
        tensor = known.get(entry.name)
        if tensor is None:
            has = ", ".join(known) or "none"
            problems.append(f"{role} `{entry.name}` is not in the ONNX file, which has: {has}")
            continue
        config_type = pb.DataType.Name(entry.data_type)
        file_type = TRITON_TYPES.get(tensor.element_type, f"ONNX type {tensor.element_type}")
        if config_type != file_type:
            problems.append(
                f"{role} `{entry.name}` is {config_type} in config.pbtxt and {file_type} in the "
                "ONNX file"
            )
        dims = list(entry.dims)
        if tensor.shape is not None and not _dims_fit(dims, tensor.shape, batched=batched):
            expected = list(tensor.shape[1:] if batched else tensor.shape)
            batch = "without the batch" if batched else "with the batch (max_batch_size is 0)"
            problems.append(
                f"{role} `{entry.name}` has dims {dims} in config.pbtxt; the file's are {expected} "
                f"{batch}"
            )
    if every:
        missing = [tensor.name for tensor in actual if tensor.name not in stated]
        problems += [f"{role} `{lost}` of the ONNX file is missing" for lost in missing]
    return problems


def _dims_fit(dims: list[int], shape: tuple[int, ...], *, batched: bool) -> bool:
    expected = shape[1:] if batched else shape
    if len(dims) != len(expected):
        return False
    return all(a == b or -1 in (a, b) for a, b in zip(dims, expected, strict=True))


def _traps(config: Any) -> list[tuple[str, str]]:
    traps: list[tuple[str, str]] = []
    if config.max_batch_size == 0:
        seen = "max_batch_size is 0, so Triton merges no requests"
        traps.append((seen, "set it to 8 or more, and take the batch out of all dims"))
    sizes = list(config.dynamic_batching.preferred_batch_size)
    if sizes:
        seen = f"preferred_batch_size {sizes} splits the queue, and a size of 1 undoes the delay"
        traps.append((seen, "write `dynamic_batching { }`: the gateway forms the batches"))
    kinds = {group.kind for group in config.instance_group}
    if pb.ModelInstanceGroup.KIND_CPU in kinds and config.backend != "python":
        seen = "instance_group is KIND_CPU, so the model runs on the CPU"
        traps.append((seen, "write KIND_GPU, if this machine has a card"))
    instances = sum(max(group.count, 1) for group in config.instance_group)
    if instances > 1 and config.backend != "python":
        seen = f"{instances} instances hold {instances} copies of the weights"
        traps.append((seen, "keep `count: 1` for the 4B and 8B models"))
    return traps


def _onnx_file(version: Path, config: Any | None) -> Path | None:
    stated = ""
    if config is not None and "onnx_path" in config.parameters:
        stated = config.parameters["onnx_path"].string_value
    candidates = [version / "model.onnx", version / "model.onnx" / "model.onnx"]
    if stated:
        candidates.insert(0, Path(stated))
    if config is not None and config.default_model_filename:
        candidates.insert(0, version / config.default_model_filename)
    return next((path for path in candidates if path.is_file()), None)


def _name(folder: Path) -> str:
    return f"{folder.name}/{CONFIG}"
