"""Engines that process shards: threads of this process, or tasks of a Ray cluster."""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlsplit

from .config import Engine
from .errors import IngestError
from .sources import Shard

Work: TypeAlias = Callable[[Shard, Callable[[], bool]], None]
"""Ingests one shard; the second argument returns whether to stop early. Safe to run twice."""

# A worker that dies takes its shard with it, and the shard is given to another worker. A shard
# that kills this many workers is itself the problem.
MAX_DEATHS = 10
# Upper bound on how long the caller goes without a look at the state of the load.
PAUSE_SECONDS = 0.5

# A task waits for the gateway most of the time, so two of them share a core.
RAY_CORES_PER_TASK = 0.5
RAY_CONNECT_SECONDS = 10.0
# A running task notices within PAUSE_SECONDS and a batch that it should stop. Not waited for
# longer, because a task that still waits for a place in the cluster notices only when it has one.
RAY_STOP_SECONDS = 10.0


class ShardEngine(Protocol):
    """A place where work on shards runs."""

    def submit(self, shard: Shard) -> Any:
        """Start work on a shard and return a handle."""
        ...

    def first_done(self, handles: list[Any]) -> tuple[list[Any], list[Any]]:
        """Wait briefly for some shards; return the finished handles, and the others."""
        ...

    def raise_errors(self, done: list[Any]) -> None:
        """Raise what the work on a finished shard raised."""
        ...

    def stop(self, handles: list[Any]) -> None:
        """Drop the shards that have not started, and stop the others soon."""
        ...


def map_shards(engine: ShardEngine, shards: Iterable[Shard], *, workers: int) -> Iterator[int]:
    """Work on all shards, `workers` at a time; yield how many finished, at least twice a second.

    Raises:
        Exception: What the first failing shard raised. No further shard is started.
    """
    upcoming = iter(shards)
    pending: list[Any] = []
    try:
        while True:
            pending += [engine.submit(shard) for shard in islice(upcoming, workers - len(pending))]
            if not pending:
                return
            done, pending = engine.first_done(pending)
            engine.raise_errors(done)
            yield len(done)
    finally:
        engine.stop(pending)


@contextmanager
def open_engine(
    engine: Engine, work: Work, *, workers: int, address: str | None = None
) -> Generator[ShardEngine]:
    """Open an engine, and close on exit whatever was started for it.

    Raises:
        IngestError: Ray is not installed, or its cluster cannot be reached.
    """
    opened = _ray(work, address) if engine == "ray" else _threads(work, workers)
    with opened as place:
        yield place


@contextmanager
def _threads(work: Work, workers: int) -> Generator[ShardEngine]:
    with ThreadPoolExecutor(workers, "qwen3-triton-ingest") as pool:
        yield _Threads(pool, work)


class _Threads:
    def __init__(self, pool: ThreadPoolExecutor, work: Work) -> None:
        self._pool = pool
        self._work = work
        self._stopped = threading.Event()

    def submit(self, shard: Shard) -> Future[None]:
        return self._pool.submit(self._work, shard, self._stopped.is_set)

    def first_done(
        self, handles: list[Future[None]]
    ) -> tuple[list[Future[None]], list[Future[None]]]:
        done, _ = wait(handles, timeout=PAUSE_SECONDS, return_when=FIRST_COMPLETED)
        return list(done), [handle for handle in handles if handle not in done]

    def raise_errors(self, done: list[Future[None]]) -> None:
        for future in done:
            future.result()

    def stop(self, handles: list[Future[None]]) -> None:
        self._stopped.set()
        for handle in handles:
            handle.cancel()


@contextmanager
def _ray(work: Work, address: str | None) -> Generator[ShardEngine]:
    """Use the cluster at `address`, else the one on this machine, else start one."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    try:
        import ray
    except ModuleNotFoundError:
        msg = "`--engine ray` needs Ray: pip install 'qwen3-triton-ingest[ray]'."
        raise IngestError(msg) from None
    untyped: Any = ray
    started = not untyped.is_initialized()
    if started:
        _check_reachable(address)
        try:
            untyped.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        except Exception as error:  # Ray raises plain Exceptions too
            raise _no_cluster(address, error) from error
    try:
        yield _Ray(untyped, work, is_ours=started)
    finally:
        if started:
            untyped.shutdown()


def _check_reachable(address: str | None) -> None:
    """Check that something listens at HOST:PORT, which takes Ray itself minutes to find out."""
    place = urlsplit(address if address and "//" in address else f"//{address or ''}")
    try:
        if place.hostname and place.port:
            socket.create_connection((place.hostname, place.port), RAY_CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str | None, error: Exception) -> IngestError:
    return IngestError(
        f"There is no Ray cluster at `{address or 'auto'}`: {error}. Check `--engine-address`."
    )


class _Ray:
    """Shards as tasks.

    Tasks are not stopped with `ray.cancel`, which aborts this process when it meets a task that is
    just finishing ("Tried to complete task that was not pending", seen in Ray 2.60; see
    https://github.com/ray-project/ray/pull/54798 for an earlier form). A connection of our own is
    shut down, which ends its tasks. On the connection of the program that called us, the tasks ask
    a flag, an actor, whether to stop.
    """

    def __init__(self, ray: Any, work: Work, *, is_ours: bool) -> None:
        self._ray = ray
        remote = ray.remote(
            num_cpus=RAY_CORES_PER_TASK, max_retries=MAX_DEATHS, retry_exceptions=False
        )
        self._work = remote(_as_task(work))
        flag = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Flag)
        self._flag = None if is_ours else flag.remote()

    def submit(self, shard: Shard) -> Any:
        return self._work.remote(shard, self._flag)

    def first_done(self, handles: list[Any]) -> tuple[list[Any], list[Any]]:
        return self._ray.wait(handles, num_returns=1, timeout=PAUSE_SECONDS)

    def raise_errors(self, done: list[Any]) -> None:
        try:
            self._ray.get(done)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from None
            raise
        except self._ray.exceptions.WorkerCrashedError as error:
            msg = (
                f"{MAX_DEATHS + 1} workers died on the same shard. Look for the cause (out of "
                "memory?) in Ray's dashboard, then run the same command again."
            )
            raise IngestError(msg) from error
        except self._ray.exceptions.RayError as error:  # a node, its memory, the cluster itself
            msg = (
                f"Ray failed ({type(error).__name__}: {error}). Look for the cause in Ray's logs, "
                "then run the same command again: it resumes where it stopped."
            )
            raise IngestError(msg) from error

    def stop(self, handles: list[Any]) -> None:
        if handles and self._flag is not None:
            self._flag.set.remote()
            self._ray.wait(handles, num_returns=len(handles), timeout=RAY_STOP_SECONDS)


class _Flag:
    """Whether the tasks of a load should stop."""

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    def is_set(self) -> bool:
        return self._is_set


def _as_task(work: Work) -> Callable[[Shard, Any], None]:
    def ingest(shard: Shard, flag: Any) -> None:
        import ray

        untyped: Any = ray
        asked, stopped = -math.inf, False

        def is_stopped() -> bool:
            nonlocal asked, stopped
            if flag is not None and time.monotonic() - asked > PAUSE_SECONDS:
                stopped = untyped.get(flag.is_set.remote())
                asked = time.monotonic()
            return stopped

        if not is_stopped():
            work(shard, is_stopped)

    return ingest
