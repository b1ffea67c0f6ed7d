"""Run tritonserver, or a gateway that is measured, for as long as its owner process lives.

Runs as a script, with the standard library alone. It is a process of its own because only a parent
of Triton can do all of this when the owner is killed: stop Triton and the backend's stubs, and
remove what they leave in /dev/shm.

It also kills a Triton that has lost one of its stubs, the processes that run the models for the
Python backend. If a stub dies, Triton would keep reporting that it is ready and fail every request.
If a stub gets no CPU for a second, the backend gives up on its batch and reuses the memory; the
stub then answers the next request with the late answer, until one of both hangs or crashes
(python_backend 24.10, `ReceiveMessageFromStub`).

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
_POLL_SECONDS = 0.1
# The children of each of Triton's threads are listed to find new stubs: soon after a change, and
# half as often each time that there is none, since a Triton of ten models has 400 threads.
_MIN_SCAN_SECONDS = 0.5
_MAX_SCAN_SECONDS = 2.0
# Triton briefly leaves a stub unreaped when it unloads a model. Otherwise, it does not reap its
# children while it runs.
_MAX_UNREAPED_SECONDS = 0.5
# A stub tells the backend every 0.3 s that it lives, and the backend gives up after this time. Less
# would kill it when the whole machine stalls, and nothing is lost.
_MAX_SILENCE_SECONDS = 1.0
# What its own lines in the log begin with.
PREFIX = "qwen3-triton: "


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
        target=_watch,
        args=(process.pid, int(parent), float(grace), Path(log_path)),
        daemon=True,
    )
    watcher.start()
    if sys.platform == "linux":
        # Not reaped yet, so that the process group's id cannot be reused.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    else:  # macOS, for a gateway: it has no such call before Python 3.13
        process.wait()
    _kill(process.pid)
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


def _watch(triton: int, parent: int, grace_seconds: float, log_path: Path) -> None:
    """Stop Triton with its owner, or kill it when it has lost a stub."""
    stubs = _Stubs(triton)
    # The pipe alone is not enough: a forked child of the owner may keep its other end open.
    while os.getppid() == parent:
        readable, _, _ = select.select([sys.stdin], [], [], _POLL_SECONDS)
        if readable and not os.read(sys.stdin.fileno(), 1):
            break
        problem = stubs.find_problem()
        if problem:
            with suppress(OSError), log_path.open("a") as log:
                log.write(f"{PREFIX}{problem}\n")
            # With time for a clean end, it would go on answering.
            _kill(triton)
            return
    _terminate(triton)
    time.sleep(grace_seconds)
    _kill(triton)


class _Stubs:
    """The stubs of one Triton."""

    def __init__(self, triton: int) -> None:
        self._triton = triton
        self._heartbeats: dict[int, _Heartbeat] = {}
        self._scan_at = 0.0
        self._interval = _MIN_SCAN_SECONDS

    def find_problem(self) -> str:
        """Return a sentence about a stub that is lost, empty if there is none."""
        if _now() >= self._scan_at:
            self._scan()
        for heartbeat in self._heartbeats.values():
            if heartbeat.is_silent():
                return (
                    "A model's process got no CPU for a second. Triton's Python backend may mix up "
                    "answers after that, so Triton was killed."
                )
            if heartbeat.is_dead():
                return "A model's process died. Triton cannot answer without it, so it was killed."
        return ""

    def _scan(self) -> None:
        """Find the stubs."""
        known, stubs = self._heartbeats, _children(self._triton)
        self._heartbeats = {stub: known.get(stub) or _Heartbeat(stub) for stub in stubs}
        is_same = known.keys() == self._heartbeats.keys()
        longer = min(2 * self._interval, _MAX_SCAN_SECONDS)
        self._interval = longer if is_same else _MIN_SCAN_SECONDS
        self._scan_at = _now() + self._interval


class _Heartbeat:
    """The thread of a stub that tells the backend that the stub is alive.

    It sleeps in between, so its voluntary context switches count its signs of life.
    """

    def __init__(self, stub: int) -> None:
        self._stub = f"/proc/{stub}"
        self._tasks = f"{self._stub}/task"
        self._thread = ""
        self._dead_since = 0.0
        self._count = 0
        self._heard_at = _now()

    def is_silent(self) -> bool:
        """Return whether the backend may have given up on the stub."""
        count, now = self._read(), _now()
        steps, silence = count - self._count, now - self._heard_at
        if steps or not count:
            self._count, self._heard_at = count, now
        # A single step may be the one that ends the silence. With more, the silence was shorter
        # than it seems: this process was paused, too.
        return count > 0 and steps <= 1 and silence >= _MAX_SILENCE_SECONDS

    def is_dead(self) -> bool:
        """Return whether the stub has died; its last `is_silent` found no thread then."""
        if self._count or self._state() != "Z":
            self._dead_since = 0.0
            return False
        self._dead_since = self._dead_since or _now()
        return _now() - self._dead_since >= _MAX_UNREAPED_SECONDS

    def _state(self) -> str:
        """Return the state of the stub, empty if it does not exist."""
        try:
            return _read(f"{self._stub}/stat").rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return ""

    def _read(self) -> int:
        """Return the count, 0 while the thread does not exist or if the kernel does not tell."""
        try:
            if not self._thread:
                # Listed in the order of their creation; the stub starts this one first.
                self._thread = os.listdir(self._tasks)[1]
            status = _read(f"{self._tasks}/{self._thread}/status")
            return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
        except (OSError, IndexError, ValueError):
            return 0


def _children(process: int) -> list[int]:
    """Return the ids of the children, also of those that died and were not reaped."""
    children: list[int] = []
    tasks = f"/proc/{process}/task"
    with suppress(OSError):
        for thread in os.listdir(tasks):
            with suppress(OSError):
                children += map(int, _read(f"{tasks}/{thread}/children").split())
    return children


def _read(path: str) -> str:
    """Read a file of /proc, at a fifth of what `Path.read_text` costs.

    A Triton has sixty threads or more.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 65_536).decode(errors="replace")
    finally:
        os.close(descriptor)


def _now() -> float:
    """Return a time that only moves forward, also while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _kill(triton: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(triton, signal.SIGKILL)


def _terminate(triton: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(triton, signal.SIGTERM)
        # A stopped process would not handle SIGTERM.
        os.kill(triton, signal.SIGCONT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
