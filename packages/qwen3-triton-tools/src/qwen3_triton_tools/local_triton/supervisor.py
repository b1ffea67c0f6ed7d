"""Run tritonserver, or a gateway that is measured, for as long as its owner process lives.

Runs as a script, with the standard library alone. It is a process of its own because only a parent
of Triton can do all of this when the owner is killed: stop Triton and the backend's stubs, and
remove what they leave in /dev/shm. It also stops a Triton whose stub died, which would keep
reporting that it is ready and fail every request.

Arguments: the owner's process id, the log file, the prefix in /dev/shm, the folder to remove if the
owner is gone ("" for none), seconds of grace before SIGKILL, then the command. Prints Triton's
process id. End of input, or the owner's end, means stop. Exits with Triton's status, 128 + n for
signal n.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_POLL_SECONDS = 0.5


def main(arguments: list[str]) -> int:
    """Start the command, wait for its end, clean up, and return its status."""
    parent, log_path, shm_prefix, work_dir, grace = arguments[:5]
    with Path(log_path).open("ab") as log:
        process = subprocess.Popen(
            arguments[5:],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - no thread runs yet
        )
    print(process.pid, flush=True)  # noqa: T201 - this line is the protocol

    def pass_on(_number: int, _frame: FrameType | None) -> None:
        _terminate(process.pid)

    signal.signal(signal.SIGTERM, pass_on)
    watcher = threading.Thread(
        target=_stop_with_parent, args=(process.pid, int(parent), float(grace)), daemon=True
    )
    watcher.start()
    # Not reaped yet, so that the process group's id cannot be reused.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    status = process.wait()
    for leftover in Path("/dev/shm").glob(f"{shm_prefix}*"):
        leftover.unlink(missing_ok=True)
    if work_dir and os.getppid() != int(parent):
        shutil.rmtree(work_dir, ignore_errors=True)
    return status if status >= 0 else 128 - status


def _die_with_parent() -> None:
    """Have the kernel stop the server if this supervisor is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop_with_parent(triton: int, parent: int, grace_seconds: float) -> None:
    dead_before = False
    # The pipe alone is not enough: a forked child of the owner may keep its other end open.
    while os.getppid() == parent:
        readable, _, _ = select.select([sys.stdin], [], [], _POLL_SECONDS)
        if readable and not os.read(sys.stdin.fileno(), 1):
            break
        # Twice in a row: Triton briefly leaves a stub unreaped when it unloads a model.
        dead = _has_dead_stub(triton)
        if dead and dead_before:
            break
        dead_before = dead
    _terminate(triton)
    time.sleep(grace_seconds)
    with suppress(ProcessLookupError):
        os.killpg(triton, signal.SIGKILL)


def _has_dead_stub(triton: int) -> bool:
    """Return whether a child of Triton ended; Triton does not reap its children while it runs."""
    with suppress(OSError):
        for children in Path(f"/proc/{triton}/task").glob("*/children"):
            for child in children.read_text().split():
                state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
                if state == "Z":
                    return True
    return False


def _terminate(triton: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(triton, signal.SIGTERM)
        # A stopped process would not handle SIGTERM.
        os.kill(triton, signal.SIGCONT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
