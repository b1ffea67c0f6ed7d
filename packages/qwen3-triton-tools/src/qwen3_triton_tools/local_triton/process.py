"""Run one tritonserver process, through its supervisor."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import LaunchError
from .ports import Ports
from .runtime import TritonRuntime

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_TAIL_LINES = 20
_MAX_LINE_CHARACTERS = 400
# A stub must have loaded its model within this time; gigabytes from a cold disk take a while.
_STUB_TIMEOUT_SECONDS = 600
# No client of an embedding service needs these, and the first was exploited by CVE-2025-23319. The
# repository index stays open, to list the models; loading is off through the control mode.
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
    """Return the command line of tritonserver.

    Args:
        runtime: The installed server.
        repository: The model repository.
        host: The address to bind.
        ports: The ports to bind.
        shm_prefix: Prefix of the names of its shared memory.
        exit_timeout_seconds: How long requests may delay its end.
        complete_config: Let Triton and the backends complete each `config.pbtxt`.
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
        # Closed by requiring a header value that no client knows.
        f"--http-restricted-api={_CLOSED_APIS}:closed={secrets.token_hex(16)}",
        f"--grpc-restricted-protocol={_CLOSED_APIS}:closed={secrets.token_hex(16)}",
    ]
    if not complete_config:
        command.append("--disable-auto-complete-config")
    return command


class TritonProcess:
    """A running (or ended) tritonserver, its status and its log.

    Attributes:
        pid: The process id of tritonserver.
        log_file: The file with its output.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log_file: Path,
        shm_prefix: str,
        work_dir: Path | None,
        grace_seconds: float,
    ) -> None:
        """Start the command.

        Args:
            command: The command line.
            environment: All of its environment variables.
            log_file: The file to which its output is appended.
            shm_prefix: Prefix of the names of everything it leaves in /dev/shm.
            work_dir: Removed by the supervisor if this very process is killed.
            grace_seconds: Time between the request to stop and SIGKILL.

        Raises:
            LaunchError: The command does not start.
        """
        self.log_file = log_file
        log_file.parent.mkdir(parents=True, exist_ok=True)
        log_file.touch()
        self._log_start = log_file.stat().st_size
        settings = [str(os.getpid()), str(log_file), shm_prefix, str(work_dir or "")]
        settings.append(str(grace_seconds))
        self._supervisor = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_SUPERVISOR), *settings, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(environment),
            # Ctrl-C on a terminal must reach the caller alone, who then stops things in order.
            start_new_session=True,
        )
        assert self._supervisor.stdout is not None
        with self._supervisor.stdout as answer:
            first_line = answer.readline()
        if not first_line:
            self.stop()
            raise LaunchError(f"{command[0]} does not start.")
        self.pid = int(first_line)

    def poll(self) -> int | None:
        """Return None while it runs, else its exit status: 128 + n for signal n."""
        return self._supervisor.poll()

    def wait(self, timeout_seconds: float | None = None) -> int:
        """Wait for its end and return the exit status.

        Raises:
            TimeoutError: It still runs after `timeout_seconds`.
        """
        try:
            return self._supervisor.wait(timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"Triton still runs after {timeout_seconds} s.") from error

    def stop(self) -> None:
        """Stop it, with SIGTERM first, and wait until it and its children are gone."""
        if self._supervisor.stdin is not None:
            with suppress(BrokenPipeError):
                self._supervisor.stdin.close()
        self._supervisor.wait()

    def log(self) -> bytes:
        """Return the log of this run, without those of earlier runs in the file."""
        with self.log_file.open("rb") as file:
            file.seek(self._log_start)
            return file.read()

    def log_tail(self) -> str:
        """Return the last lines of the log, under a heading."""
        lines = self.log().decode(errors="replace").splitlines()
        # Triton prints its options as very wide tables, after the line that matters.
        relevant = [line[:_MAX_LINE_CHARACTERS] for line in lines if line and line[0] not in "|+"]
        shown = "\n".join(relevant[-_TAIL_LINES:])
        return f"The end of its log ({self.log_file}):\n{shown}"
