"""`qwen3-triton doctor`: checks of this machine and of a running stack, in their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..findings import Finding, Section, failure, has_errors
from ..http import host_and_port, is_local
from .database import check_database
from .docker import check_docker
from .gateway import GatewayReport, check_gateway
from .machine import check_gpus, check_machine
from .model_files import ModelFilesReport, check_model_files
from .triton_server import check_ports, check_triton

DEFAULT_TRITON = "http://localhost:8200"
GATEWAY_PORT = 8101
TRITON_PORTS = {8200: "http", 8201: "grpc", 8202: "metrics"}
# The words of `--json` and their severities.
_OUTCOMES = {"ok": "ok", "warning": "warning", "error": "failed", "skipped": "skipped"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What to check; what was chosen explicitly must exist.

    Attributes:
        url: The gateway's base URL.
        is_url_explicit: Whether the user chose it; likewise for `is_model_explicit`.
        rerank_model: Name of a reranker in Triton; by default the one that the gateway uses.
        triton_headers: What every request to Triton carries.
        triton_ca_file: Certificates to trust instead of the system's, for TLS to Triton.
        output_dim: Dimensions of the vectors, if no gateway reports them.
        settings_problem: Why `serve` would refuse the environment, or empty.
    """

    url: str
    is_url_explicit: bool
    triton_urls: tuple[str, ...]
    triton_headers: Mapping[str, str]
    triton_ca_file: Path | None
    triton_model: str
    is_model_explicit: bool
    rerank_model: str | None
    model_dir: Path | None
    rerank_model_dir: Path | None
    rerank_tokenizer_path: Path | None
    model_repository: Path | None
    engine_cache_dir: Path | None
    tokenizer_path: Path | None
    output_dim: int
    api_key: str | None
    database_url: str | None
    settings_problem: str
    timeout_seconds: float


def run_checks(target: Target) -> list[Section]:
    """Run every check that this machine and the target allow."""
    gateway = check_gateway(
        target.url,
        is_required=target.is_url_explicit,
        api_key=target.api_key,
        timeout_seconds=target.timeout_seconds,
    )
    files = check_model_files(
        target.model_dir,
        target.model_repository,
        model_name=target.triton_model,
        is_model_explicit=target.is_model_explicit,
        tokenizer_path=target.tokenizer_path,
        rerank_model_dir=target.rerank_model_dir,
        rerank_model=target.rerank_model,
        rerank_tokenizer_path=target.rerank_tokenizer_path,
    )
    sections = [
        Section("Machine", tuple(_check_machine(target, gateway, files))),
        Section("Model files", tuple(files.findings)),
        Section("Triton", tuple(_check_triton(target, gateway))),
        Section("Gateway", (*_check_settings(target), *gateway.findings)),
    ]
    if target.database_url:
        dimensions = gateway.dimensions or target.output_dim
        findings = check_database(target.database_url, dimensions=dimensions)
        sections.append(Section("Database", tuple(findings)))
    return sections


def as_document(sections: Sequence[Section]) -> dict[str, Any]:
    """Return the report as plain data for `--json`."""
    findings = [(section.title, finding) for section in sections for finding in section.findings]
    return {
        "ok": not has_errors(finding for _, finding in findings),
        "counts": dict(Counter(_OUTCOMES[finding.severity] for _, finding in findings)),
        "checks": [
            {
                "section": title,
                "name": finding.name,
                "outcome": _OUTCOMES[finding.severity],
                "seen": finding.message,
                "cause": finding.cause,
                "remedy": finding.remedy,
            }
            for title, finding in findings
        ],
    }


def _check_machine(
    target: Target, gateway: GatewayReport, files: ModelFilesReport
) -> list[Finding]:
    gpus, has_gpu = check_gpus(files.model_bytes)
    docker = check_docker(has_gpu=has_gpu)
    folders = {"model": _existing(target.model_repository or target.model_dir or Path.cwd())}
    if docker.root:
        folders["Docker"] = docker.root
    system = check_machine(
        model_bytes=files.model_bytes, folders=folders, engine_cache_dir=target.engine_cache_dir
    )
    return [*system, *gpus, *docker.findings, *check_ports(_local_ports(target, gateway))]


def _check_triton(target: Target, gateway: GatewayReport) -> list[Finding]:
    # A gateway in a container names Triton as its network does, so it may be unreachable from here.
    urls = target.triton_urls or gateway.triton_urls or (DEFAULT_TRITON,)
    rerank_model = target.rerank_model or (gateway.rerank_model if gateway.triton_urls else None)
    model, is_model_certain = target.triton_model, target.is_model_explicit
    if not target.is_model_explicit and gateway.triton_urls and gateway.triton_model:
        model, is_model_certain = gateway.triton_model, True
    is_needed = is_model_certain or rerank_model is None
    findings: list[Finding] = []
    for url in urls:
        findings += check_triton(
            url,
            model if is_needed else None,
            rerank_model=rerank_model,
            headers=target.triton_headers,
            ca_file=target.triton_ca_file,
            is_required=bool(target.triton_urls),
            is_model_certain=is_model_certain,
            output_dim=target.output_dim,
            timeout_seconds=target.timeout_seconds,
        )
    return findings


def _check_settings(target: Target) -> list[Finding]:
    if not target.settings_problem:
        return []
    remedy = "Fix or unset the variable; `qwen3-triton serve` would not start with it."
    return [failure("settings", target.settings_problem, remedy)]


def _local_ports(target: Target, gateway: GatewayReport) -> dict[int, str]:
    """Return the ports of this machine that the stack uses, and the service on each."""
    ports: dict[int, str] = {}
    if is_local(target.url):
        ports[host_and_port(target.url)[1]] = "gateway"
    elif not target.is_url_explicit:
        ports[GATEWAY_PORT] = "gateway"
    urls = target.triton_urls or gateway.triton_urls
    if not urls:
        return {**ports, **TRITON_PORTS}
    for url in urls:
        if is_local(url):
            ports[host_and_port(url)[1]] = "grpc" if url.startswith("grpc") else "http"
    return ports


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
