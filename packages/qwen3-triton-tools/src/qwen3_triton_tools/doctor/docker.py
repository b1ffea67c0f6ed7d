"""Docker: the engine, its GPU runtime, and the containers of this stack with their logs."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..findings import Finding, Severity, failure, missing, ok, skipped
from .error_patterns import find_known_error
from .machine import ProgramResult, run_program

LOG_LINES = 300
OURS = re.compile(r"triton|embed|qwen3", re.IGNORECASE)
# Lines that matter in the log of a healthy server; others are left out.
RUNTIME_ERRORS = re.compile(r".*(?:via JSON is not supported|out of memory|allocate memory).*")
KILLED = re.compile(r"Exited \(137\)")
TOOLKIT_REMEDY = (
    "Install nvidia-container-toolkit, then: sudo nvidia-ctk runtime configure --runtime=docker; "
    "sudo systemctl restart docker"
)


@dataclass(frozen=True, slots=True)
class DockerReport:
    """Findings, and where Docker keeps its images."""

    findings: list[Finding]
    root: Path | None = None


def check_docker(*, has_gpu: bool) -> DockerReport:
    """Check the engine, the container toolkit and the containers of this stack."""
    result = run_program("docker", "info", "--format", "{{json .}}")
    if result is None:
        return DockerReport(
            [skipped("Docker", "not installed; only a stack in containers needs it")]
        )
    info = _parse_object(result.output.strip().partition("\n")[0])
    if result.code or not info.get("ServerVersion"):
        return DockerReport([_explain_engine_failure(result)])
    findings = [
        ok("Docker", f"engine {info['ServerVersion']}"),
        _check_toolkit(info, has_gpu=has_gpu),
    ]
    findings += _check_containers()
    root = info.get("DockerRootDir")
    return DockerReport(findings, Path(root) if root and Path(root).is_dir() else None)


def _explain_engine_failure(result: ProgramResult) -> Finding:
    if "permission denied" in result.text.lower():
        message = "Permission denied on the Docker socket: this user is not in the group docker."
        remedy = 'sudo usermod -aG docker "$USER", then log out and in again'
        return failure("Docker", message, remedy)
    message = " ".join(result.errors.split())[:160] or "the engine does not answer"
    remedy = "If the stack runs in containers: sudo systemctl start docker"
    return skipped("Docker", message, remedy)


def _check_toolkit(info: dict[str, Any], *, has_gpu: bool) -> Finding:
    name = "container toolkit"
    if "nvidia" in (info.get("Runtimes") or {}):
        toolkit = run_program("nvidia-ctk", "--version")
        version = re.search(r"\d+\.\d+\S*", toolkit.text) if toolkit else None
        return ok(
            name, f"runtime nvidia, toolkit {version[0] if version else 'of unknown version'}"
        )
    # Since Docker 28.3, `--gpus` also works through CDI, without a runtime of its own.
    if info.get("CDISpecDirs") and Path("/etc/cdi").exists():
        return ok(name, "GPUs through CDI")
    message = "Docker has no runtime `nvidia`, so containers get no GPU."
    return missing(name, message, TOOLKIT_REMEDY, is_required=has_gpu)


def _check_containers() -> list[Finding]:
    result = run_program("docker", "ps", "--all", "--no-trunc", "--format", "{{json .}}")
    if result is None or result.code:
        return []
    items = [_parse_object(line) for line in result.output.splitlines()]
    ours = [item for item in items if OURS.search(f"{item.get('Names')} {item.get('Image')}")]
    if not ours:
        return [skipped("containers", "none with Triton or the gateway")]
    return [_check_container(item) for item in ours]


def _check_container(item: dict[str, Any]) -> Finding:
    """Report the state of a container, and what its log says about an error."""
    container = str(item.get("Names"))
    name = f"container {container}"
    status = str(item.get("Status", ""))
    message = f"{item.get('Image')}: {status}"
    state = str(item.get("State", "")).lower()
    is_healthy = state == "running" and "unhealthy" not in status
    if state == "exited" and "Exited (0)" in status:
        return skipped(name, message, f"docker start {container}")
    logs = run_program("docker", "logs", "--tail", str(LOG_LINES), container)
    log = logs.text if logs else ""
    if not is_healthy and (KILLED.search(status) or _was_killed(container)):
        log = f"OOM-killed: {status}\n{log}"
    match = find_known_error("\n".join(RUNTIME_ERRORS.findall(log)) if is_healthy else log)
    if is_healthy and match is None:
        return ok(name, message)
    severity: Severity = "warning" if is_healthy else "error"
    if match is None:
        return Finding(name, severity, message, remedy=f"docker logs -n {LOG_LINES} {container}")
    line, pattern = match
    message = f"{message}; its log: {line}"
    return Finding(name, severity, message, cause=pattern.cause, remedy=pattern.remedy)


def _was_killed(container: str) -> bool:
    result = run_program("docker", "inspect", "--format", "{{.State.OOMKilled}}", container)
    return result is not None and result.output.strip() == "true"


def _parse_object(line: str) -> dict[str, Any]:
    try:
        parsed: object = json.loads(line)
    except ValueError:
        return {}
    return cast("dict[str, Any]", parsed) if isinstance(parsed, dict) else {}
