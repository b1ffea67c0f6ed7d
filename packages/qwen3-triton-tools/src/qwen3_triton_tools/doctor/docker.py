"""Docker: the engine, its GPU runtime, and the containers of this stack with their logs."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from .checks import Check, Outcome, absent, failed, ok, skipped, version_tuple
from .known_problems import explain
from .programs import Answer, run_program

LOG_LINES = 300
OURS = re.compile(r"triton|embed|qwen3", re.IGNORECASE)
# What a server survives, line by line; the rest of a healthy one's log is its own affair.
RUNTIME_FAULTS = re.compile(r".*(?:via JSON is not supported|out of memory|allocate memory).*")
KILLED = re.compile(r"Exited \(137\)")
TOOLKIT_REMEDY = (
    "install nvidia-container-toolkit, then: sudo nvidia-ctk runtime configure --runtime=docker; "
    "sudo systemctl restart docker"
)
# Since this Docker, `--gpus` also works by CDI, without a runtime of its own.
CDI_DOCKER = (28, 3)


@dataclass(frozen=True, slots=True)
class DockerState:
    """What was found, and where Docker keeps its images."""

    checks: list[Check]
    root: Path | None = None


def check_docker(*, has_gpu: bool) -> DockerState:
    """Look at the engine, the container toolkit and the containers of this stack."""
    answer = run_program("docker", "info", "--format", "{{json .}}")
    if answer is None:
        return DockerState(
            [skipped("Docker", "no docker here; only the container set-up needs it")]
        )
    info = _first_object(answer.output)
    if answer.code or not info.get("ServerVersion"):
        return DockerState([_no_engine(answer)])
    version = str(info["ServerVersion"])
    checks = [ok("Docker", f"engine {version}"), _toolkit(info, version, has_gpu=has_gpu)]
    checks += _containers()
    root = info.get("DockerRootDir")
    return DockerState(checks, Path(root) if root and Path(root).is_dir() else None)


def _no_engine(answer: Answer) -> Check:
    said = " ".join(answer.errors.split())[:160]
    if "permission denied" in answer.text.lower():
        seen = "permission denied on the Docker socket: this user is not in the group docker"
        return failed("Docker", seen, 'sudo usermod -aG docker "$USER", then log out and in again')
    remedy = "sudo systemctl start docker, if the stack runs in containers"
    return skipped("Docker", said or "the engine does not answer", remedy)


def _toolkit(info: dict[str, Any], version: str, *, has_gpu: bool) -> Check:
    name = "container toolkit"
    if "nvidia" in (info.get("Runtimes") or {}):
        toolkit = run_program("nvidia-ctk", "--version")
        found = re.search(r"\d+\.\d+\S*", toolkit.text) if toolkit else None
        return ok(name, f"runtime nvidia, toolkit {found[0] if found else 'of unknown version'}")
    if (
        info.get("CDISpecDirs")
        and version_tuple(version) >= CDI_DOCKER
        and Path("/etc/cdi").exists()
    ):
        return ok(name, "GPUs by CDI")
    seen = "Docker has no runtime `nvidia`, so containers get no GPU"
    return absent(name, seen, TOOLKIT_REMEDY, named=has_gpu)


def _containers() -> list[Check]:
    answer = run_program("docker", "ps", "--all", "--no-trunc", "--format", "{{json .}}")
    if answer is None or answer.code:
        return []
    found = [_object(line) for line in answer.output.splitlines()]
    ours = [item for item in found if OURS.search(f"{item.get('Names')} {item.get('Image')}")]
    if not ours:
        return [skipped("containers", "none of Triton or the gateway")]
    return [check_container(item) for item in ours]


def check_container(item: dict[str, Any]) -> Check:
    """Say how a container is, and where it is not well, what its log tells."""
    container = str(item.get("Names"))
    name = f"container {container}"
    status = str(item.get("Status", ""))
    seen = f"{item.get('Image')}: {status}"
    state = str(item.get("State", "")).lower()
    well = state == "running" and "unhealthy" not in status
    if state == "exited" and "Exited (0)" in status:
        return skipped(name, seen, f"docker start {container}")
    logs = run_program("docker", "logs", "--tail", str(LOG_LINES), container)
    log = logs.text if logs else ""
    if not well and (KILLED.search(status) or _was_killed(container)):
        log = f"OOM-killed: {status}\n{log}"
    known = explain("\n".join(RUNTIME_FAULTS.findall(log)) if well else log)
    if well and known is None:
        return ok(name, seen)
    outcome: Outcome = "warning" if well else "failed"
    if known is None:
        remedy = f"docker logs -n {LOG_LINES} {container}"
        return Check(name, outcome, seen, remedy)
    line, problem = known
    return Check(name, outcome, f"{seen}; {problem.cause}; its log: {line}", problem.remedy)


def _was_killed(container: str) -> bool:
    answer = run_program("docker", "inspect", "--format", "{{.State.OOMKilled}}", container)
    return answer is not None and answer.output.strip() == "true"


def _first_object(output: str) -> dict[str, Any]:
    return _object(output.strip().partition("\n")[0])


def _object(line: str) -> dict[str, Any]:
    try:
        parsed: object = json.loads(line)
    except ValueError:
        return {}
    return cast("dict[str, Any]", parsed) if isinstance(parsed, dict) else {}
