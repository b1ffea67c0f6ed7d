"""Choose and check TCP ports."""

from __future__ import annotations

import errno
import re
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass

from ..errors import LaunchError, PortInUseError

# Triton's options, which are also those of `qwen3-triton triton`.
PORT_OPTIONS = ("http-port", "grpc-port", "metrics-port")
_POLL_SECONDS = 0.05
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


def choose_ports(host: str, wanted: Ports, *, patience_seconds: float = 0.0) -> Ports:
    """Check that the `wanted` ports are free on `host`, and replace zeros by free ports.

    Waits up to `patience_seconds` for those that are taken. Nothing is reserved: another process
    may take a port before the server does.

    Raises:
        PortInUseError: A wanted port is taken.
        LaunchError: A port or the address cannot be bound at all.
    """
    deadline = time.monotonic() + patience_seconds
    with ExitStack() as open_sockets:
        # Kept open until all are chosen, so that no port is chosen twice.
        chosen = [
            _listen(open_sockets, host, port, purpose, deadline).getsockname()[1]
            for purpose, port in sorted(wanted.named(), key=lambda pair: not pair[1])
        ]
    return _in_order(wanted, chosen)


def _in_order(wanted: Ports, chosen: list[int]) -> Ports:
    free = iter([port for port in chosen if port not in {p for _, p in wanted.named()}])
    return Ports(*(port or next(free) for _, port in wanted.named()))


def _listen(
    open_sockets: ExitStack, host: str, port: int, purpose: str, deadline: float
) -> socket.socket:
    while True:
        listener = open_sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        try:
            # As Triton does: connections in TIME_WAIT do not count.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(1)
            return listener
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                reason = error.strerror or error
                message = f"Cannot listen on {host}:{port} (`{purpose}`): {reason}."
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
