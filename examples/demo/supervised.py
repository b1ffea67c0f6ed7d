"""Start servers that never outlive this process, however it ends."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

_SUPERVISOR = Path(__file__).with_name("supervisor.py")


@dataclass(frozen=True, slots=True)
class Supervised:
    """A server with the supervisor process that watches over it, and its directory."""

    supervisor: subprocess.Popen[bytes]
    directory: Path

    def has_ended(self) -> bool:
        return self.supervisor.poll() is not None

    def log_tail(self, size_bytes: int = 2000) -> str:
        """Return the last whole lines of what the server wrote, at most `size_bytes` of them."""
        try:
            log = (self.directory / "log").read_bytes()
        except FileNotFoundError:
            return ""
        tail = log[-size_bytes:]
        if len(log) > size_bytes:
            tail = tail[tail.find(b"\n") + 1 :]
        return tail.decode("utf-8", "replace").strip()

    def stop(self) -> None:
        """End the server, wait until it is gone, and remove its directory."""
        assert self.supervisor.stdin is not None
        # A word, not end of file alone: a forked child of ours may hold the pipe open too.
        # Where the server ended before, nobody listens any more.
        with suppress(BrokenPipeError):
            self.supervisor.stdin.write(b"stop")
            self.supervisor.stdin.close()
        self.supervisor.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def start_supervised(
    command: Sequence[str],
    *,
    directory: Path,
    setup: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    uid: int | None = None,
    stop_signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
    stop_seconds: float = 20,
) -> Supervised:
    """Run `command` in `directory`, which is removed with the server.

    Args:
        command: The server, in the foreground; what it prints goes to `directory / "log"`.
        directory: An empty directory that becomes the server's own.
        setup: What to run before it, under the same conditions.
        environment: All the server's environment variables; this process's without.
        uid: User to run as, where this process is root.
        stop_signals: What ends the server, one after the other; SIGKILL comes last.
        stop_seconds: How long to wait after each of them.
    """
    plan = {
        "command": list(command),
        "directory": str(directory),
        "setup": list(setup),
        "uid": uid,
        "stop_signals": [int(number) for number in stop_signals],
        "stop_seconds": stop_seconds,
    }
    supervisor = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_SUPERVISOR), json.dumps(plan)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=dict(os.environ if environment is None else environment),
        start_new_session=True,  # Ctrl-C is for us; the server is stopped in order afterwards
    )
    return Supervised(supervisor, directory)


def free_ports(count: int) -> list[int]:
    """Return different TCP ports of 127.0.0.1 that were free a moment ago."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
