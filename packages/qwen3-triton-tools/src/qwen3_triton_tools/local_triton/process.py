"""Hold one tritonserver process, through its supervisor."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from .errors import LaunchError

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_TAIL_LINES = 20
_LINE_CHARACTERS = 400


class TritonProcess:
    """A running (or ended) tritonserver, its status and what it logged.

    Args:
        command: what to run.
        environment: all of its environment variables.
        log_file: gets its output, after what is already there.
        shm_prefix: begins the names of everything it leaves in /dev/shm.
        work_dir: removed by the supervisor if this very process is killed outright.
        grace_seconds: from the wish to stop until SIGKILL.

    Raises:
        LaunchError: the command does not start.
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
            raise LaunchError(f"{command[0]} does not start")
        self.pid = int(first_line)

    def poll(self) -> int | None:
        """Return None while it runs, else its exit status, 128 + n for signal n."""
        return self._supervisor.poll()

    def wait(self, timeout_seconds: float | None = None) -> int:
        """Wait for its end and return the exit status.

        Raises:
            TimeoutError: it still runs after `timeout_seconds`.
        """
        try:
            return self._supervisor.wait(timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"Triton still runs after {timeout_seconds} s") from error

    def stop(self) -> None:
        """End it, with SIGTERM first, and wait until it and everything of its is gone."""
        if self._supervisor.stdin is not None:
            with suppress(BrokenPipeError):
                self._supervisor.stdin.close()
        self._supervisor.wait()

    def log(self) -> bytes:
        """Return what this run logged, without the older runs that the file may hold."""
        with self.log_file.open("rb") as file:
            file.seek(self._log_start)
            return file.read()

    def log_tail(self) -> str:
        """Return the last lines of the log under a line that says what they are."""
        lines = self.log().decode(errors="replace").splitlines()
        # Triton draws its options as tables as wide as a house, after the line that matters.
        telling = [line[:_LINE_CHARACTERS] for line in lines if line and line[0] not in "|+"]
        shown = "\n".join(telling[-_TAIL_LINES:])
        return f"The end of its log ({self.log_file}):\n{shown}"
