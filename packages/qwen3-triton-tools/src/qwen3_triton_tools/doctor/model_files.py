"""The files of a model, as `model inspect` judges them, and a Triton model repository."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from qwen3_triton_gateway.answer_checksum import CHECKSUM_OUTPUT
from qwen3_triton_gateway.backends.interface import POOLED_OUTPUT
from qwen3_triton_gateway.errors import StartupError
from qwen3_triton_gateway.tokenization import TextTokenizer

from ..errors import ModelError
from ..findings import Finding, failure, ok, skipped, warning
from ..model.files import TRITON_USER, find_model, is_readable_by_triton
from ..model.inspection import Inspection, inspect_model
from ..model.tokenizer_file import inspect_tokenizer
from ..onnx_model import OnnxModel, TensorInfo

CONFIG = "config.pbtxt"
TOKENIZER_MAX_LENGTH = 1024  # the gateway's default; any length loads the file
CONFIG_REMEDY = "Write the values of the ONNX file into config.pbtxt, then restart Triton."
# Optional in protobuf's own types, and absent from its stubs.
pb: Any = model_config_pb2


@dataclass(slots=True)
class ModelFilesReport:
    """Findings, and the models that could be read."""

    findings: list[Finding] = field(default_factory=list[Finding])
    inspections: list[Inspection] = field(default_factory=list[Inspection])

    @property
    def model_bytes(self) -> int:
        """Size of the largest model with its weights, 0 if there is none."""
        return max((inspection.size_bytes for inspection in self.inspections), default=0)


def check_model_files(
    model_dir: Path | None,
    repository: Path | None,
    *,
    model_name: str,
    is_model_explicit: bool,
    tokenizer_path: Path | None,
    rerank_model_dir: Path | None = None,
    rerank_model: str | None = None,
    rerank_tokenizer_path: Path | None = None,
) -> ModelFilesReport:
    """Check folders, repository and tokenizer, as far as this user may read them.

    Args:
        model_dir: Folder of an embedding model.
        repository: Triton's model repository.
        model_name: Name of the embedding model there.
        is_model_explicit: Whether the user chose it.
        tokenizer_path: The embedding model's tokenizer, by default in `model_dir`.
        rerank_model_dir: Folder of a reranker.
        rerank_model: Name of a reranker in the repository.
        rerank_tokenizer_path: The reranker's tokenizer, by default in its folder.
    """
    report = ModelFilesReport()
    try:
        if model_dir:
            _check_model_dir(model_dir, report)
        if repository:
            names = {model_name: is_model_explicit}
            if rerank_model:
                names[rerank_model] = True
            _check_repository(repository, names, report, rerank_model=rerank_model)
        if rerank_model_dir:
            _check_model_dir(
                rerank_model_dir, report, rerank=True, tokenizer_path=rerank_tokenizer_path
            )
        if not report.findings:
            remedy = "Check one with --model-dir DIR or --model-repository DIR."
            report.findings.append(skipped("model", "no folder to check", remedy))
        report.findings += _check_tokenizer(tokenizer_path or model_dir, report)
    except OSError as error:
        message = f"{error.filename}: {error.strerror} (for this user)."
        remedy = 'sudo chown -R "$USER":"$USER" on the folder, or run this command with sudo'
        report.findings = [failure("file permissions", message, remedy)]
    return report


def check_permissions(files: Sequence[Path], user_id: int, *, is_served: bool) -> Finding:
    """Check that Triton's user can read the files, and that `user_id` may change them."""
    name = "file permissions"
    folder = files[0].parent
    unreadable = [path.name for path in files if not is_readable_by_triton(path)]
    remedy = f'sudo chown -R "$USER":"$USER" {folder} && chmod -R a+rX {folder}'
    if unreadable:
        names = ", ".join(unreadable)
        message = f"Triton's user (uid {TRITON_USER}) cannot read {names} in {folder}."
        return (failure if is_served else warning)(name, message, remedy)
    if user_id != 0 and any(path.stat().st_uid == 0 for path in files):
        message = f"Files in {folder} belong to root, so you cannot change them."
        return warning(name, message, remedy)
    return ok(name, f"readable for Triton's user (uid {TRITON_USER})")


def _check_model_dir(
    model_dir: Path,
    report: ModelFilesReport,
    *,
    rerank: bool = False,
    tokenizer_path: Path | None = None,
) -> None:
    if not model_dir.is_dir():
        remedy = "Correct the path of the folder."
        report.findings.append(failure("model folder", f"{model_dir} does not exist.", remedy))
        return
    try:
        model_path = find_model(model_dir)
    except ModelError as error:
        report.findings.append(failure("model.onnx", str(error)))
        return
    _check_model(
        model_path,
        report,
        is_served=False,
        rerank=rerank,
        has_tokenizer=rerank,
        tokenizer_path=tokenizer_path,
    )


def _check_model(
    model_path: Path,
    report: ModelFilesReport,
    *,
    is_served: bool,
    rerank: bool = False,
    has_tokenizer: bool = False,
    tokenizer_path: Path | None = None,
) -> Inspection | None:
    """Add what `model inspect` finds.

    Args:
        model_path: The ONNX file.
        report: Where it is added.
        is_served: Whether Triton has to load these files.
        rerank: Whether it is a reranker, whatever its name says.
        has_tokenizer: Whether its tokenizer is checked with it.
        tokenizer_path: That tokenizer, by default the one in the model's folder.
    """
    if tokenizer_path is not None and tokenizer_path.is_dir():
        tokenizer_path = tokenizer_path / "tokenizer.json"
    try:
        inspection = inspect_model(model_path, rerank=rerank, tokenizer_path=tokenizer_path)
    except ModelError as error:
        report.findings.append(failure(model_path.name, str(error)))
        return None
    report.inspections.append(inspection)
    for finding in inspection.findings:
        # The tokenizer is checked on its own: in a repository it is in another folder.
        is_elsewhere = finding.name == "tokenizer" and not has_tokenizer
        if is_elsewhere or finding.severity == "note":
            continue
        # A linked file works for some versions of ONNX Runtime only; Triton's may refuse it.
        is_fatal = (
            is_served and finding.severity == "warning" and finding.name.startswith("weights ")
        )
        report.findings.append(replace(finding, severity="error") if is_fatal else finding)
    external = (model_path.parent / file.location for file in inspection.external_files)
    files = [path for path in (model_path, *external) if path.exists()]
    user_id = os.geteuid() if hasattr(os, "geteuid") else 0
    report.findings.append(check_permissions(files, user_id, is_served=is_served))
    return inspection


def _check_tokenizer(path: Path | None, report: ModelFilesReport) -> list[Finding]:
    if path is None:
        return [skipped("tokenizer", "no --tokenizer-path, TOKENIZER_PATH or --model-dir")]
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        remedy = "Fetch the tokenizer.json of the model, and pass its folder."
        return [failure("tokenizer", f"No tokenizer at {file}.", remedy)]
    embedders = [each for each in report.inspections if each.reranker is None]
    rows = embedders[0].embedding_rows if embedders else None
    tokenizer, findings = inspect_tokenizer(file, rows)
    if tokenizer is not None:
        try:
            TextTokenizer(path, max_length=TOKENIZER_MAX_LENGTH)
        except StartupError as error:  # JSON with the right fields, yet not what the gateway loads
            return [failure("tokenizer", str(error))]
    return [finding for finding in findings if finding.severity != "note"]


def _check_repository(
    repository: Path,
    wanted: Mapping[str, bool],
    report: ModelFilesReport,
    *,
    rerank_model: str | None,
) -> None:
    """Check the models of a repository that are wanted, or all if it does not have them.

    Args:
        repository: The folder.
        wanted: Their names, and whether the user chose them.
        report: Where the findings are added.
        rerank_model: Which of them is a reranker, whatever its name says.
    """
    name = "model repository"
    if not repository.is_dir():
        remedy = "Pass the folder with the model folders."
        report.findings.append(failure(name, f"{repository} does not exist.", remedy))
        return
    folders = sorted(path for path in repository.iterdir() if path.is_dir())
    if not folders:
        remedy = "Write one with `qwen3-triton model repository`."
        report.findings.append(failure(name, f"{repository} has no model folder.", remedy))
        return
    chosen = [folder for folder in folders if folder.name in wanted]
    found = [folder.name for folder in folders]
    for model, is_explicit in wanted.items():
        if model in found or not is_explicit:
            continue
        setting = "RERANK_TRITON_MODEL" if model == rerank_model else "TRITON_MODEL"
        message = f"{repository} has no model {model!r}. Its models: {', '.join(found)}."
        remedy = f"Set {setting} to the name of a folder, or rename the folder and its config."
        report.findings.append(failure(name, message, remedy))
    for folder in chosen or folders:
        _check_model_folder(folder, report, rerank=folder.name == rerank_model)


def _check_model_folder(folder: Path, report: ModelFilesReport, *, rerank: bool) -> None:
    """Check `<repository>/<model>`: version folder, ONNX file and configuration."""
    versions = sorted(
        (path for path in folder.iterdir() if path.is_dir() and path.name.isdigit()),
        key=lambda path: int(path.name),
    )
    if not versions:
        message = f"{folder} has no version folder."
        remedy = f"Move model.onnx and its weights to {folder}/1/."
        report.findings.append(failure(folder.name, message, remedy))
        return
    config, findings = _read_config(folder)
    model_path = _find_served_model(versions[-1], config)
    if model_path is None:
        message = f"{versions[-1]} has no model.onnx."
        remedy = "Copy model.onnx and model.onnx_data to it."
        report.findings += [*findings, failure(folder.name, message, remedy)]
        return
    # The Python backend's model is loaded by the local Triton, which runs as its user.
    is_local = config is not None and config.backend == "python"
    inspection = _check_model(model_path, report, is_served=not is_local, rerank=rerank)
    report.findings += findings
    if inspection is not None and config is not None:
        report.findings += _compare_config(folder, config, inspection.model)


def _read_config(folder: Path) -> tuple[Any | None, list[Finding]]:
    """Parse a model's config.pbtxt."""
    file = folder / CONFIG
    name = f"{folder.name}/{CONFIG}"
    try:
        config = text_format.Parse(file.read_text(), pb.ModelConfig())
    except FileNotFoundError:
        message = f"{file} is missing; Triton then guesses it (max_batch_size 4)."
        return None, [warning(name, message, "`qwen3-triton model repository` writes it.")]
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        message = f"{file} is not a valid model configuration: {error}"
        return None, [failure(name, message, "Correct it at that line and column.")]
    findings: list[Finding] = []
    if config.name not in ("", folder.name):
        message = f"{file} has the name {config.name!r}, its folder is {folder.name!r}."
        findings.append(failure(name, message, "Make them equal, or Triton refuses the model."))
    return config, findings


def _compare_config(folder: Path, config: Any, model: OnnxModel) -> list[Finding]:
    """Compare a configuration with the ONNX file, and check for harmful settings."""
    name = f"{folder.name}/{CONFIG}"
    is_batched = config.max_batch_size > 0
    problems = _compare_tensors("input", config.input, model.inputs, is_batched=is_batched)
    outputs = [entry for entry in config.output if not _is_of_local_triton(entry.name, config)]
    problems += _compare_tensors("output", outputs, model.outputs, is_batched=is_batched)
    listed = {entry.name for entry in config.input}
    problems += [
        f"Input `{tensor.name}` of the ONNX file is missing in config.pbtxt."
        for tensor in model.inputs
        if tensor.name not in listed
    ]
    findings = [failure(name, problem, CONFIG_REMEDY) for problem in problems]
    findings += [warning(name, message, remedy) for message, remedy in _harmful_settings(config)]
    if not findings:
        size = f"max_batch_size {config.max_batch_size}"
        message = f"{folder.name}: names, types and dims match the ONNX file, {size}"
        findings.append(ok(name, message))
    return findings


def _is_of_local_triton(output: str, config: Any) -> bool:
    """Return whether the local Triton's model makes an output, which is not in the file."""
    if config.backend != "python":
        return False
    is_pooled = output == POOLED_OUTPUT and "pooled_output" in config.parameters
    return is_pooled or output == CHECKSUM_OUTPUT


def _compare_tensors(
    role: str, configured: Sequence[Any], tensors: Sequence[TensorInfo], *, is_batched: bool
) -> list[str]:
    by_name = {tensor.name: tensor for tensor in tensors}
    problems: list[str] = []
    for entry in configured:
        label = f"{role.capitalize()} `{entry.name}`"
        tensor = by_name.get(entry.name)
        if tensor is None:
            names = ", ".join(by_name) or "none"
            problems.append(f"{label} is not in the ONNX file; its {role}s: {names}.")
            continue
        config_type = pb.DataType.Name(entry.data_type)
        file_type = tensor.dtype.triton or tensor.dtype.name
        if config_type != file_type:
            problems.append(
                f"{label} is {config_type} in config.pbtxt and {file_type} in the ONNX file."
            )
        dims = list(entry.dims)
        expected = list((tensor.shape or ())[1 if is_batched else 0 :])
        if tensor.shape is not None and not _dims_match(dims, expected):
            batch = "without the batch" if is_batched else "with the batch (max_batch_size is 0)"
            problems.append(
                f"{label} has dims {dims} in config.pbtxt and {expected} in the ONNX file, {batch}."
            )
    return problems


def _dims_match(dims: list[int], expected: list[int]) -> bool:
    if len(dims) != len(expected):
        return False
    return all(a == b or -1 in (a, b) for a, b in zip(dims, expected, strict=True))


def _harmful_settings(config: Any) -> list[tuple[str, str]]:
    problems: list[tuple[str, str]] = []
    if config.max_batch_size == 0:
        message = "max_batch_size is 0, so Triton merges no requests."
        problems.append((message, "Set it to 8 or more, and remove the batch from all dims."))
    sizes = list(config.dynamic_batching.preferred_batch_size)
    if sizes:
        message = (
            f"preferred_batch_size {sizes} splits the queue, and a size of 1 cancels the delay."
        )
        problems.append((message, "Use `dynamic_batching { }`: the gateway forms the batches."))
    kinds = {group.kind for group in config.instance_group}
    if pb.ModelInstanceGroup.KIND_CPU in kinds and config.backend != "python":
        message = "instance_group is KIND_CPU, so the model runs on the CPU."
        problems.append((message, "Use KIND_GPU, if this machine has a GPU."))
    instances = sum(max(group.count, 1) for group in config.instance_group)
    if instances > 1 and config.backend != "python":
        message = f"{instances} instances hold {instances} copies of the weights."
        problems.append((message, "Keep `count: 1` for the 4B and 8B models."))
    return problems


def _find_served_model(version: Path, config: Any | None) -> Path | None:
    candidates = [version / "model.onnx", version / "model.onnx" / "model.onnx"]
    if config is not None and "onnx_path" in config.parameters:
        candidates.insert(0, Path(config.parameters["onnx_path"].string_value))
    if config is not None and config.default_model_filename:
        candidates.insert(0, version / config.default_model_filename)
    return next((path for path in candidates if path.is_file()), None)
