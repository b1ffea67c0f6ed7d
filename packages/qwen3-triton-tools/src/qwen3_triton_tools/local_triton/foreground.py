"""Run a local Triton in the foreground of a command."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from .launch import LocalTriton

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_POLL_SECONDS = 0.2


class _StopRequestedError(BaseException):
    """Raised in the main thread by SIGINT or SIGTERM; no `except Exception` may swallow it."""


def run_foreground(triton: LocalTriton, *, on_ready: Callable[[LocalTriton], None]) -> int:
    """Start `triton`, and block until it ends or a signal arrives; must run in the main thread.

    Its log is forwarded to standard error.

    Args:
        triton: The server.
        on_ready: Called once it is ready.

    Returns:
        0 after SIGINT or SIGTERM, 1 if Triton ended on its own.

    Raises:
        LocalTritonError: It did not start, or was not ready in time.
    """
    sink = sys.stderr.buffer
    before = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
    try:
        for number in _STOP_SIGNALS:
            signal.signal(number, _request_stop)
        with _forwarding(triton, sink):
            triton.start()
            triton.wait_ready()
            on_ready(triton)
            status = triton.wait()
        if not triton.end_reason:  # which the log states
            sink.write(f"Triton ended on its own with status {status}.\n".encode())
        return 1
    except _StopRequestedError:
        return 0
    finally:
        # A second Ctrl-C must not leave the server behind.
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        triton.stop()
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _request_stop(_number: int, _frame: FrameType | None) -> None:
    raise _StopRequestedError


@contextmanager
def _forwarding(triton: LocalTriton, sink: BinaryIO) -> Generator[None]:
    path = triton.log_file
    # The caller's log may already have content, which is not forwarded.
    start = path.stat().st_size if path.exists() else 0
    done = threading.Event()
    thread = threading.Thread(target=_forward, args=(path, start, sink, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _forward(path: Path, position: int, sink: BinaryIO, done: threading.Event) -> None:
    last = False
    while not last:
        last = done.wait(_POLL_SECONDS)
        if path.exists():
            with path.open("rb") as file:
                file.seek(position)
                text = file.read()
            position += len(text)
            sink.write(text)
            sink.flush()
