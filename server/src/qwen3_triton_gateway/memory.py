"""What bounds the gateway's memory: a budget for requests, few worker threads, and room for runs.

`MemoryBudget` bounds what requests in progress take, and `ModelRuns` what the models take that run
in this process.
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import ParamSpec, Self, TypeVar

from .container import memory_bytes
from .errors import MAX_RETRY_AFTER_SECONDS, InsufficientMemoryError, QueueFullError
from .metrics import Metrics
from .run_memory import LARGE_RUN_BYTES, available_bytes, describe_shortage

P = ParamSpec("P")
Result = TypeVar("Result")

# With it, the gateway and the nano model stay below 400 MiB under any load. It is room for a
# thousand small requests in progress, or for six of 2,048 texts each.
DEFAULT_MAX_BYTES = 128 << 20
# A quarter of a container's memory; the rest is for the process itself and a batch.
SHARE_OF_LIMIT = 4
# A request's connection, headers, tasks and frames, before it has a body.
REQUEST_BYTES = 16 << 10
# A body is there as its chunks, as a whole, and as the texts parsed from it.
BODY_COPIES = 3
# How fast memory is released is measured over about this time.
RATE_SECONDS = 5.0

# A task for a worker is short, so two suffice. More would take their memory at the same time.
_WORKERS = ThreadPoolExecutor(max_workers=2, thread_name_prefix="worker")


class MemoryBudget:
    """The bytes that all requests in progress may take together.

    A request is charged from its first byte until its last one has left or its caller has gone.
    What is charged is an estimate from above of what the request holds: body, texts, tokens,
    vectors and the encoded part of its answer.
    """

    def __init__(self, max_bytes: int | None, metrics: Metrics) -> None:
        """Create an unused budget; None derives it from the memory of container or machine."""
        self.max_bytes: int = max_bytes or default_max_bytes()
        self.used_bytes: int = 0
        self._peak_bytes = 0
        self._metrics = metrics
        self._released_bytes = 0.0
        self._released_at = time.monotonic()

    def reserve(self, body_bytes: int) -> Reservation:
        """Begin to charge a request; its reservation is released by using it as a context.

        Args:
            body_bytes: The length of its body, if it is known. It has to fit now, and is charged
                as it arrives.

        Raises:
            QueueFullError: The body would not fit.
        """
        reservation = Reservation(self)
        reservation.resize(request_bytes(body_bytes))
        reservation.resize(request_bytes(0))
        return reservation

    def resize(self, reservation: Reservation, size_bytes: int) -> None:
        """Change what a request is charged; see `Reservation.resize`."""
        more_bytes = size_bytes - reservation.size_bytes
        used_bytes = self.used_bytes + more_bytes
        is_alone = self.used_bytes == reservation.size_bytes
        if more_bytes > 0 and used_bytes > self.max_bytes and not is_alone:
            self._metrics.rejected_requests.labels("memory").inc()
            msg = (
                f"Requests in progress take {self.used_bytes} bytes and this one needs "
                f"{more_bytes} more; the limit is {self.max_bytes} (EMBED_MAX_MEMORY_BYTES). "
                "Retry later, or send fewer texts per request."
            )
            wait = self._seconds_until_released(used_bytes - self.max_bytes)
            raise QueueFullError(msg, retry_after_seconds=wait)
        if more_bytes < 0:
            self._released_bytes = self._recently_released() - more_bytes
        self.used_bytes = used_bytes
        self._peak_bytes = max(self._peak_bytes, used_bytes)
        reservation.size_bytes = size_bytes

    def take_peak_bytes(self) -> int:
        """Return the most that was charged since the last call."""
        peak, self._peak_bytes = self._peak_bytes, self.used_bytes
        return peak

    def _recently_released(self) -> float:
        now = time.monotonic()
        passed, self._released_at = now - self._released_at, now
        self._released_bytes *= math.exp(-passed / RATE_SECONDS)
        return self._released_bytes

    def _seconds_until_released(self, size_bytes: int) -> int:
        bytes_per_second = max(self._recently_released() / RATE_SECONDS, 1.0)
        return min(max(1, math.ceil(size_bytes / bytes_per_second)), MAX_RETRY_AFTER_SECONDS)


class Reservation:
    """What one request is charged, of a budget."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self.size_bytes = 0

    def resize(self, size_bytes: int) -> None:
        """Change what the request is charged.

        Raises:
            QueueFullError: It does not fit, and others are in progress: a request that is alone
                always fits. The charge remains what it was.
        """
        self._budget.resize(self, size_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.resize(0)


class ModelRuns:
    """The runs of the models in this process, which share the memory that is left."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running_bytes = 0

    @contextmanager
    def room_for(self, rows: int, length: int, size_bytes: int) -> Generator[None]:
        """Wait until the other runs leave enough memory for one, while it runs.

        Args:
            rows: The texts of its batch, for the error.
            length: Their padded length.
            size_bytes: What it takes, by an estimate.

        Raises:
            InsufficientMemoryError: There is not enough, and no other run that would leave some.
        """
        if size_bytes < LARGE_RUN_BYTES:
            yield
            return
        with self._changed:
            # What the others have taken so far is counted twice, which at worst waits for them.
            while size_bytes > (free := available_bytes() - self._running_bytes):
                if not self._running_bytes:
                    msg = describe_shortage(rows, length, size_bytes, free)
                    raise InsufficientMemoryError(msg)
                self._changed.wait()
            self._running_bytes += size_bytes
        try:
            yield
        finally:
            with self._changed:
                self._running_bytes -= size_bytes
                self._changed.notify_all()


def request_bytes(body_bytes: int) -> int:
    """Estimate what a request takes while its body is read and parsed."""
    return REQUEST_BYTES + BODY_COPIES * body_bytes


def default_max_bytes() -> int:
    """Return the budget for this machine: a share of the container's or machine's memory."""
    return min(DEFAULT_MAX_BYTES, memory_bytes() // SHARE_OF_LIMIT)


async def in_worker(function: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
    """Run a function in a worker thread. It should take a tenth of a second at most.

    The next request's turn comes after it, and it runs to its end even if its caller is gone.
    """
    work = partial(function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_WORKERS, work)


def trim_heap() -> None:
    """Return freed memory to the system; glibc by itself returns only the end of its heaps."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
