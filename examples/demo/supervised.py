"""Start servers that never outlive this process."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_SUPERVISOR = Path(__file__).with_name("supervisor.py")


@dataclass(frozen=True, slots=True)
class Supervised:
    """A running server, its supervisor process, and its directory."""

    supervisor: subprocess.Popen[bytes]
    directory: Path

    def has_ended(self) -> bool:
        return self.supervisor.poll() is not None

    def log_tail(self, size_bytes: int = 2000) -> str:
        """Return the last complete lines of the log, up to `size_bytes`."""
        try:
            log = (self.directory / "log").read_bytes()
        except FileNotFoundError:
            return ""
        tail = log[-size_bytes:]
        if len(log) > size_bytes:
            tail = tail[tail.find(b"\n") + 1 :]
        return tail.decode("utf-8", "replace").strip()

    def stop(self) -> None:
        """Stop the server, wait for it, and remove its directory."""
        assert self.supervisor.stdin is not None
        # Write a word: closing alone is not enough if a forked child of ours holds the pipe open.
        # The pipe is broken if the server has already ended.
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
        command: The server, in the foreground. Its output goes to `directory / "log"`.
        directory: An empty directory for the server.
        setup: A command to run first, in the same way.
        environment: The server's environment variables. Default: those of this process.
        uid: User to run as, if this process is root.
        stop_signals: Signals that stop the server, in order. SIGKILL comes last.
        stop_seconds: How long to wait after each signal.
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
        start_new_session=True,  # Ctrl-C reaches us only; we then stop the server in order
    )
    return Supervised(supervisor, directory)
