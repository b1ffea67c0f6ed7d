"""The order of the checks, and what each learns from those before it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..local_triton import LocalTritonError, find_onnx_file
from ..plain_http import host_and_port, is_local
from .checks import Check, Section, failed, skipped
from .database import check_database
from .docker import check_docker
from .gateway import GatewayFindings, check_gateway
from .gpu import check_gpu
from .listening import GATEWAY_PORT, TRITON_PORTS, check_ports
from .machine import check_machine
from .model_files import check_model_dir, check_tokenizer, model_size
from .model_repository import check_repository
from .triton_server import check_triton

DEFAULT_TRITON = "http://localhost:8200"


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """What to look at. What is `named` or given was chosen by the user: its absence is a fault."""

    url: str
    url_named: bool
    triton_urls: tuple[str, ...]
    triton_model: str
    triton_model_named: bool
    model_dir: Path | None
    model_repository: Path | None
    tokenizer_path: Path | None
    output_dim: int
    api_key: str | None
    database_url: str | None
    settings_problem: str
    timeout_seconds: float


def examine(patient: Patient) -> list[Section]:
    """Run every check that this machine and these options allow."""
    gateway = check_gateway(
        patient.url,
        named=patient.url_named,
        api_key=patient.api_key,
        timeout_seconds=patient.timeout_seconds,
    )
    sections = [
        Section("Machine", tuple(_machine(patient, gateway))),
        Section("Model files", tuple(check_model_files(patient))),
        Section("Triton", tuple(_triton(patient, gateway))),
        Section("Gateway", (*_settings(patient), *gateway.checks)),
    ]
    if patient.database_url:
        dimensions = gateway.dimensions or patient.output_dim
        checks = check_database(patient.database_url, dimensions=dimensions)
        sections.append(Section("Database", tuple(checks)))
    return sections


def _machine(patient: Patient, gateway: GatewayFindings) -> list[Check]:
    size = _model_bytes(patient)
    gpu, has_gpu = check_gpu(size)
    docker = check_docker(has_gpu=has_gpu)
    folders = {"model": _existing(patient.model_repository or patient.model_dir or Path.cwd())}
    if docker.root:
        folders["Docker"] = docker.root
    ports = _local_ports(patient, gateway)
    system = check_machine(model_bytes=size, folders=folders)
    return [*system, *gpu, *docker.checks, *check_ports(ports)]


def check_model_files(patient: Patient) -> list[Check]:
    """Look at folder, repository and tokenizer, as far as this user may."""
    try:
        return _look_at_files(patient)
    except OSError as error:
        seen = f"{error.filename}: {error.strerror} (for this user)"
        remedy = 'sudo chown -R "$USER":"$USER" on the folder, or run this with sudo'
        return [failed("file rights", seen, remedy)]


def _look_at_files(patient: Patient) -> list[Check]:
    checks: list[Check] = []
    if patient.model_dir:
        checks += check_model_dir(patient.model_dir)
    if patient.model_repository:
        checks += check_repository(
            patient.model_repository,
            patient.triton_model,
            model_named=patient.triton_model_named,
        )
    if not checks:
        remedy = "--model-dir DIR or --model-repository DIR looks at them"
        checks.append(skipped("model", "no folder named", remedy))
    return [*checks, check_tokenizer(patient.tokenizer_path or patient.model_dir)]


def _triton(patient: Patient, gateway: GatewayFindings) -> list[Check]:
    named = bool(patient.triton_urls)
    # A gateway in a container names Triton as its network does: worth a try, and no fault.
    urls = patient.triton_urls or gateway.triton_urls or (DEFAULT_TRITON,)
    learnt = gateway.triton_model if gateway.triton_urls else None
    model_named = patient.triton_model_named or learnt is not None
    model = patient.triton_model if patient.triton_model_named else learnt or patient.triton_model
    checks: list[Check] = []
    for url in urls:
        checks += check_triton(
            url,
            model,
            named=named,
            model_named=model_named,
            output_dim=patient.output_dim,
            timeout_seconds=patient.timeout_seconds,
        )
    return checks


def _settings(patient: Patient) -> list[Check]:
    if not patient.settings_problem:
        return []
    remedy = "mend the variable, or unset it; `qwen3-triton serve` would end with the same"
    return [failed("settings", patient.settings_problem, remedy)]


def _local_ports(patient: Patient, gateway: GatewayFindings) -> dict[int, str]:
    ports: dict[int, str] = {}
    if is_local(patient.url):
        ports[host_and_port(patient.url)[1]] = "gateway"
    elif not patient.url_named:
        ports[GATEWAY_PORT] = "gateway"
    tritons = patient.triton_urls or gateway.triton_urls
    if not tritons:
        return {**ports, **TRITON_PORTS}
    for url in tritons:
        if is_local(url):
            ports[host_and_port(url)[1]] = "grpc" if url.startswith("grpc") else "http"
    return ports


def _model_bytes(patient: Patient) -> int:
    try:
        return _largest_model(patient)
    except OSError:
        # Told with the model files.
        return 0


def _largest_model(patient: Patient) -> int:
    if patient.model_repository and patient.model_repository.is_dir():
        folder = patient.model_repository / patient.triton_model
        files = list(folder.glob("*/model.onnx")) or list(
            patient.model_repository.glob("*/*/model.onnx")
        )
        return max((model_size(file) for file in files if file.is_file()), default=0)
    if patient.model_dir is None:
        return 0
    try:
        return model_size(find_onnx_file(patient.model_dir))
    except LocalTritonError:
        return 0


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
