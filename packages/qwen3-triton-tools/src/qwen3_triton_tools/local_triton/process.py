"""One tritonserver process: its ports, its command line, and its supervisor.

The supervisor stops any server that should not outlive this process.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import LaunchError, PortInUseError
from . import supervisor
from .runtime import TritonRuntime

_SUPERVISOR = Path(supervisor.__file__)
_TAIL_LINES = 20
_MAX_LINE_CHARACTERS = 400
# A stub must have loaded its model within this time; gigabytes from a cold disk take a while.
_STUB_TIMEOUT_SECONDS = 600
# No client of an embedding service needs these, and the first was exploited by CVE-2025-23319. The
# repository index stays open, to list the models; loading is off through the control mode.
_CLOSED_APIS = "shared-memory,trace,logging"
# Triton's options, which are also those of `qwen3-triton triton`.
PORT_OPTIONS = ("http-port", "grpc-port", "metrics-port")
_POLL_SECONDS = 0.05
# Free ports are drawn from here up to those of outgoing connections, of which Linux has these.
_FIRST_PORT = 20_000
_PORT_DRAWS = 100
_EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_USUAL_FIRST_EPHEMERAL_PORT = 32_768
_CLASH = re.compile(r"already in use|Address already|Failed to bind|failed to start \w+ service")


@dataclass(frozen=True, slots=True)
class Ports:
    """The TCP ports of one server; 0 means any free one."""

    http: int
    grpc: int
    metrics: int

    def __post_init__(self) -> None:
        chosen = [port for _, port in self.named() if port]
        if len(set(chosen)) != len(chosen):
            raise ValueError(f"The three ports must differ, not be {chosen}.")

    def named(self) -> tuple[tuple[str, int], ...]:
        """Pair the name of each port's option with the port."""
        return tuple(zip(PORT_OPTIONS, (self.http, self.grpc, self.metrics), strict=True))


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
        f"--http-address={_evhtp_address(host)}",
        f"--grpc-address={bracketed(host)}",
        f"--metrics-address={_evhtp_address(host)}",
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


class SupervisedProcess:
    """A running (or ended) server that its supervisor stops with this process.

    Attributes:
        pid: The process id of the server, not of its supervisor.
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
        self.pid: int = int(first_line)

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
            raise TimeoutError(f"The server still runs after {timeout_seconds} s.") from error

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

    def end_reason(self) -> str:
        """Return why the supervisor killed it, in a sentence; empty if it did not."""
        lines = self.log().decode(errors="replace").splitlines()
        reasons = [line for line in lines if line.startswith(supervisor.PREFIX)]
        return reasons[-1].removeprefix(supervisor.PREFIX) if reasons else ""

    def log_tail(self) -> str:
        """Return the last lines of the log, under a heading."""
        lines = self.log().decode(errors="replace").splitlines()
        # Triton prints its options as very wide tables, after the line that matters.
        relevant = [line[:_MAX_LINE_CHARACTERS] for line in lines if line and line[0] not in "|+"]
        shown = "\n".join(relevant[-_TAIL_LINES:])
        return f"The end of its log ({self.log_file}):\n{shown}"


def bracketed(host: str) -> str:
    """Write a host as it is in a URL: an IPv6 address has brackets there."""
    return f"[{host}]" if ":" in host else host


def _evhtp_address(host: str) -> str:
    """Write a host as libevhtp, Triton's HTTP server, takes it (`evhtp_bind_socket`)."""
    return f"ipv6:{host}" if ":" in host else host


def choose_ports(host: str, wanted: Ports, *, patience_seconds: float = 0.0) -> Ports:
    """Check that the `wanted` ports are free on `host`, and replace zeros by free ports.

    Waits up to `patience_seconds` for those that are taken. Nothing is reserved: another process
    may take a port before the server does.

    Raises:
        PortInUseError: A wanted port is taken.
        LaunchError: A port or the address cannot be bound at all.
    """
    deadline = time.monotonic() + patience_seconds
    fixed = [(purpose, port) for purpose, port in wanted.named() if port]
    with ExitStack() as open_sockets:
        # Kept open until all are chosen, so that no port is chosen twice.
        for purpose, port in fixed:
            open_sockets.enter_context(_listen_patiently(host, port, purpose, deadline))
        free = iter([_listen_anywhere(open_sockets, host) for _ in range(3 - len(fixed))])
    return Ports(*(port or next(free) for _, port in wanted.named()))


def free_ports(count: int) -> list[int]:
    """Return distinct TCP ports of 127.0.0.1 that were free a moment ago.

    No outgoing connection takes them, so that a server can be restarted on its port.
    """
    with ExitStack() as open_sockets:
        return [_listen_anywhere(open_sockets, "127.0.0.1") for _ in range(count)]


def _listen_anywhere(open_sockets: ExitStack, host: str) -> int:
    for _ in range(_PORT_DRAWS):
        # Not by `random`: programs that seed it alike would draw the same ports.
        port = _FIRST_PORT + secrets.randbelow(_first_ephemeral_port() - _FIRST_PORT)
        with suppress(OSError):
            open_sockets.enter_context(_listen(host, port))
            return port
    # Whatever is wrong with the address shows here.
    listener = open_sockets.enter_context(_listen_patiently(host, 0, "any port", 0.0))
    return int(listener.getsockname()[1])


def _first_ephemeral_port() -> int:
    """Return where the ports begin that the kernel gives to outgoing connections (ip(7))."""
    try:
        first = int(_EPHEMERAL_PORTS.read_text().split()[0])
    except OSError:
        return _USUAL_FIRST_EPHEMERAL_PORT
    return first if first > _FIRST_PORT else _USUAL_FIRST_EPHEMERAL_PORT


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        # As Triton does: connections in TIME_WAIT do not count.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener


def _listen_patiently(host: str, port: int, purpose: str, deadline: float) -> socket.socket:
    while True:
        try:
            return _listen(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                reason = error.strerror or error
                message = f"Cannot listen on {bracketed(host)}:{port} (`{purpose}`): {reason}."
                raise LaunchError(message) from error
            if time.monotonic() >= deadline:
                raise PortInUseError(port, purpose) from error
        time.sleep(_POLL_SECONDS)


def is_port_clash(log: str, fixed: Ports) -> bool:
    """Return whether a server ended because a port was taken, judging by its log.

    Raises:
        PortInUseError: It was one of the `fixed` ports.
    """
    if not _CLASH.search(log):
        return False
    for purpose, port in fixed.named():
        if port and re.search(rf":{port}\b", log):
            raise PortInUseError(port, purpose)
    return True
