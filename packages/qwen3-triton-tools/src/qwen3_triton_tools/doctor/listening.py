"""The stack's ports: free, held by the stack itself, or by somebody else."""

from __future__ import annotations

import re
from typing import Any

from ..plain_http import UnreachableError, ask, listens
from .checks import Check, failed, ok
from .programs import run_program

GATEWAY_PORT = 8101
TRITON_PORTS = {8200: "http", 8201: "grpc", 8202: "metrics"}
HTTP_PATHS = {"gateway": "/health", "http": "/v2", "metrics": "/metrics"}
MARKS = {"gateway": b"triton_model", "http": b'"triton"', "metrics": b"nv_"}
PROBE_SECONDS = 3.0
PREFACE_PORT = "grpc"


def check_ports(ports: dict[int, str]) -> list[Check]:
    """Look at each port of this machine; the values say who should be there."""
    return [check_port(port, service) for port, service in ports.items()]


def check_port(port: int, service: str) -> Check:
    """Say whether a port is free, or who holds it."""
    name = f"port {port}"
    if not listens("127.0.0.1", port):
        return ok(name, f"free (for {_title(service)})")
    if _is_ours(port, service):
        return ok(name, f"held by {_title(service)}")
    holder = holder_of(port)
    seen = f"taken by {holder}, which is not {_title(service)}"
    remedy = f"stop it, or give {_title(service)} another port"
    return failed(name, seen, remedy)


def holder_of(port: int) -> str:
    """Name the program that listens on a port, as far as this user may know."""
    answer = run_program("ss", "--no-header", "--listening", "--tcp", "--numeric", "--processes")
    unknown = "another program (as root, `ss -ltnp` names it)"
    if answer is None:
        return unknown
    for line in answer.output.splitlines():
        # State, two queues, then the local address.
        if f":{port}" in line and re.match(rf"(\S+\s+){{3}}\S*:{port}\s", line):
            found = re.search(r'\("([^"]+)",pid=(\d+)', line)
            return f"{found[1]} (process {found[2]})" if found else unknown
    return unknown


def _title(service: str) -> str:
    return "the gateway" if service == "gateway" else f"Triton's {service} service"


def _is_ours(port: int, service: str) -> bool:
    if service == PREFACE_PORT:
        return is_grpc_alive(f"127.0.0.1:{port}")
    try:
        reply = ask(f"http://127.0.0.1:{port}{HTTP_PATHS[service]}", timeout_seconds=PROBE_SECONDS)
    except UnreachableError:
        return False
    return MARKS[service] in reply.body


def is_grpc_alive(netloc: str, timeout_seconds: float = PROBE_SECONDS) -> bool:
    """Ask a Triton over gRPC whether it lives."""
    import tritonclient.grpc as grpc_protocol
    from tritonclient.utils import InferenceServerException

    client: Any = grpc_protocol.InferenceServerClient(netloc)
    try:
        return bool(client.is_server_live(client_timeout=timeout_seconds))
    except InferenceServerException:
        return False
    finally:
        client.close()
