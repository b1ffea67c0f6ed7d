"""Files read in processes of their own, with bounds of memory and time.

A PDF of 300 KB can take gigabytes and minutes, and a library can crash. A process reads one file
after the other, so that small files do not pay for its start. One that exceeds a bound is killed,
the file is reported, and the next file gets a new process.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

from ..config import MIB, ReadOptions
from ..errors import SourceError
from .shards import Shard, SourceFile
from .values import UnreadableError

# Between looks at the memory of a process: long for a file, short for an allocation.
_LOOK_SECONDS = 0.05
# The start imports this package; longer than any slow disk takes.
_START_SECONDS = 120.0
# Before each message in either direction: its bytes.
HEADER = struct.Struct(">Q")
# Columns of /proc/PID/statm: memory in use, and writable memory, whether it is used or not.
RESIDENT_PAGES, DATA_PAGES = 1, 5
_BLOCK_BYTES = 1 << 20
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Request:
    """A file to read, as `formats.read_file` does.

    Attributes:
        folder: Where the file's path begins, if it is relative.
    """

    shard: Shard
    file: SourceFile
    options: ReadOptions
    dimensions: int | None
    folder: str | None = None

    @classmethod
    def of(
        cls, shard: Shard, file: SourceFile, options: ReadOptions, dimensions: int | None
    ) -> Request:
        """Return the request for a file of a shard.

        Raises:
            OSError: The path is relative, and the working folder is gone.
        """
        folder = None if os.path.isabs(file.path) else os.getcwd()
        return cls(replace(shard, files=()), file, options, dimensions, folder)


@dataclass(frozen=True, slots=True)
class Started:
    """The process is about to read the file, and its libraries are loaded.

    Attributes:
        resident_bytes: What it has in memory.
    """

    resident_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a file.

    Attributes:
        problem: Why it could not be read, or not to its end.
        encoding: Of the file, if it had to be detected.
        resident_bytes: What the process keeps in memory.
    """

    problem: str | None = None
    encoding: str | None = None
    resident_bytes: int = 0


class _EndedError(UnreadableError):
    """The process ended by itself."""


def read_isolated(request: Request) -> Generator[Any, None, str | None]:
    """Yield what a process reads from a file; return the encoding if it had to be detected.

    Raises:
        UnreadableError: It cannot be read within the bounds.
        SourceError: No process can be started.
    """
    options = request.options
    process = _POOL.take()
    is_reusable = False
    try:
        try:
            process.start(request)
        except _EndedError:
            if not process.is_used:
                raise
            process.close()  # it had ended while it was idle
            process = _Process()
            process.start(request)
        while not isinstance(message := process.receive(options), Done):
            yield from message
        grown = message.resident_bytes - process.base_bytes
        is_reusable = grown < options.max_convert_bytes // 2
        if message.problem:
            raise UnreadableError(message.problem)
        return message.encoding
    finally:
        _POOL.give_back(process, is_reusable=is_reusable)


class _Process:
    """A process that reads files: `conversion_process`.

    Attributes:
        is_used: Whether it has read a file before.
        base_bytes: What it had in memory before the present file.
    """

    def __init__(self) -> None:
        self.is_used = False
        self.base_bytes = 0
        # Without the current folder, in which a file could have the name of a module.
        path = os.pathsep.join(entry for entry in sys.path if entry)
        folder = None
        try:
            folder = tempfile.mkdtemp(prefix="qwen3-triton-ingest-")
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", f"{__package__}.conversion_process"),
                    *(str(os.getpid()), folder),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # Arrow's own allocator reserves a gigabyte that it may never use.
                env={
                    **os.environ,
                    "PYTHONPATH": path,
                    "ARROW_DEFAULT_MEMORY_POOL": "system",
                    "TMPDIR": folder,
                },
                bufsize=0,
                process_group=0,  # Ctrl-C is for the loader
            )
        except OSError as error:
            if folder is not None:
                os.rmdir(folder)
            raise SourceError(f"No process that reads files can be started: {error}.") from None
        self._folder = folder
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._poll = select.poll()
        self._poll.register(self._answers, select.POLLIN)
        try:
            self._receive(_START_SECONDS, sys.maxsize)
        except UnreadableError:
            self.close()
            code = self._process.returncode
            msg = f"The process that reads files ended at its start with exit code {code}."
            raise SourceError(msg) from None

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def start(self, request: Request) -> None:
        """Have it read a file.

        Raises:
            UnreadableError: It does not.
        """
        data = pickle.dumps(request)
        with contextlib.suppress(BrokenPipeError):  # the answer is the reason
            self._requests.write(HEADER.pack(len(data)) + data)
        started: Started = self._receive(_START_SECONDS, sys.maxsize)
        self.base_bytes = started.resident_bytes

    def receive(self, options: ReadOptions) -> Any:
        """Return the next message.

        Raises:
            UnreadableError: It does not come within the bounds.
        """
        return self._receive(options.max_convert_seconds, options.max_convert_bytes)

    def _receive(self, seconds: float, max_bytes: int) -> Any:
        deadline = time.monotonic() + seconds
        (size,) = HEADER.unpack(self._read(HEADER.size, deadline, seconds, max_bytes))
        return pickle.loads(self._read(size, deadline, seconds, max_bytes))

    def _read(self, size: int, deadline: float, seconds: float, max_bytes: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            if self._poll.poll(_LOOK_SECONDS * 1000):
                block = os.read(self._answers.fileno(), min(size - len(data), _BLOCK_BYTES))
                if not block:
                    raise _EndedError(self._why_ended())
                data += block
            elif time.monotonic() > deadline:
                msg = f"Reading it took more than {seconds:g} seconds (`--max-convert-seconds`)."
                raise UnreadableError(msg)
            elif memory_bytes(self._process.pid, RESIDENT_PAGES) > self.base_bytes + max_bytes:
                raise UnreadableError(too_much_memory(max_bytes))
        return bytes(data)

    def _why_ended(self) -> str:
        code = self._process.wait()
        if code >= 0:
            return f"The process that read it ended with exit code {code}."
        name = signal.Signals(-code).name
        # What a library in C does when it gets no memory cannot be told from a crash.
        return (
            f"The process that read it was ended by {name}: the file is damaged, or takes more "
            "memory than `--max-convert-mib` allows."
        )

    def close(self) -> None:
        """Kill the process, and what it has started."""
        if self._process.returncode is None:  # else the group's number may be another's
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._requests.close()
        self._answers.close()
        shutil.rmtree(self._folder, ignore_errors=True)  # a killed process leaves what it unpacked


class _Pool:
    """Processes that wait for a file; as many as there were threads at once."""

    def __init__(self) -> None:
        self._idle: list[_Process] = []
        self._lock = threading.Lock()

    def take(self) -> _Process:
        while True:
            with self._lock:
                if not self._idle:
                    break
                process = self._idle.pop()
            if process.is_running:
                return process
            process.close()
        return _Process()

    def give_back(self, process: _Process, *, is_reusable: bool) -> None:
        if is_reusable:
            process.is_used = True
            with self._lock:
                self._idle.append(process)
        else:
            process.close()

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            process.close()

    def forget(self) -> None:
        """Leave the processes to the parent of this process, which was forked."""
        self._idle, self._lock = [], threading.Lock()


def memory_bytes(pid: int, column: int) -> int:
    """Return a size of a process; 0 if it has ended, or the system, such as macOS, lists none."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[column]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def too_much_memory(max_bytes: int) -> str:
    """Return the message for a file above the bound of memory."""
    return f"Reading it takes more than {max_bytes // MIB:,} MiB of memory (`--max-convert-mib`)."


def close_idle_processes() -> None:
    """End the processes that wait for a file."""
    _POOL.close()


_POOL = _Pool()
atexit.register(_POOL.close)
os.register_at_fork(after_in_child=_POOL.forget)
