"""Run one server and stop it as soon as the parent process is gone.

`supervised` starts this script with standard input held open. The kernel closes that pipe however
the parent ends, so even `kill -9` leaves no server behind.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import IO, Any


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Do nothing; the signal writes to the wake pipe."""


def _wake_pipe() -> int:
    """Return a file descriptor that becomes readable on any signal that concerns the server."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _ignore)
    return read_end


def _run(command: list[str], plan: dict[str, Any], log: IO[bytes]) -> subprocess.Popen[bytes]:
    uid: int | None = plan["uid"]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd=plan["directory"],
        user=uid,
        group=uid,
        extra_groups=None if uid is None else [],
    )


def _stop(server: subprocess.Popen[bytes], plan: dict[str, Any]) -> None:
    for number in (*plan["stop_signals"], signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            server.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(plan["stop_seconds"])
            return


def main() -> int:
    """Run the setup and the server, and remove the directory when the parent stops it or is gone.

    Returns:
        0 after an orderly stop. Anything else means that the server ended on its own; its directory
        stays, so that the parent can read the log.
    """
    plan = json.loads(sys.argv[1])
    wake = _wake_pipe()
    with open(Path(plan["directory"]) / "log", "wb") as log:
        if plan["setup"]:
            if (code := _run(plan["setup"], plan, log).wait()) != 0:
                return code
            log.seek(0)
            log.truncate()  # the log is for the server only
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 1024)  # the end of the setup is not a reason to stop
        server = _run(plan["command"], plan, log)
        select.select([sys.stdin, wake], [], [])
        if (code := server.poll()) is not None:
            return code or 1
        _stop(server, plan)
    shutil.rmtree(plan["directory"], ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
