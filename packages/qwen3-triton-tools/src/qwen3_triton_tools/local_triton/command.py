"""Build tritonserver's command line."""

from __future__ import annotations

import secrets
from pathlib import Path

from .ports import Ports
from .runtime import TritonRuntime

# A stub must have loaded its model within this time; gigabytes from a cold disk take a while.
_STUB_TIMEOUT_SECONDS = 600
# No client of an embedding service needs these, and the first was the way in of CVE-2025-23319. The
# repository index stays open, to name the models there are; loading is off by the control mode.
_CLOSED_APIS = "shared-memory,trace,logging"


def server_command(
    runtime: TritonRuntime,
    *,
    repository: Path,
    host: str,
    ports: Ports,
    shm_prefix: str,
    exit_timeout_seconds: int,
    complete_config: bool,
) -> list[str]:
    """Return the argument list that starts tritonserver.

    `complete_config` lets Triton and the backends fill in what a `config.pbtxt` leaves out.
    """
    command = [
        str(runtime.server),
        f"--model-repository={repository}",
        f"--backend-directory={runtime.backends}",
        # Two servers that share a prefix corrupt each other's memory and die with signal 11.
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        f"--backend-config=python,stub-timeout-seconds={_STUB_TIMEOUT_SECONDS}",
        f"--http-address={host}",
        f"--grpc-address={host}",
        f"--metrics-address={host}",
        *(f"--{name}={port}" for name, port in ports.named()),
        f"--exit-timeout-secs={exit_timeout_seconds}",
        "--model-control-mode=none",
        "--exit-on-error=true",
        "--strict-readiness=true",
        "--allow-sagemaker=false",
        "--allow-vertex-ai=false",
        "--allow-gpu-metrics=false",
        "--pinned-memory-pool-byte-size=0",
        # Closed by asking for a header value that nobody knows.
        f"--http-restricted-api={_CLOSED_APIS}:closed={secrets.token_hex(16)}",
        f"--grpc-restricted-protocol={_CLOSED_APIS}:closed={secrets.token_hex(16)}",
    ]
    if not complete_config:
        command.append("--disable-auto-complete-config")
    return command
