"""Shards on threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Generator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

from ..sources import Shard
from .base import PAUSE_SECONDS, ShardEngine, Work

__all__ = ["thread_engine"]


@contextmanager
def thread_engine(work: Work, workers: int, _: str | None) -> Generator[ShardEngine]:
    """Work in a pool of threads, which end soon when the caller leaves."""
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
        for future in done:
            future.result()
        return list(done), [handle for handle in handles if handle not in done]

    def cancel(self, handles: list[Future[None]]) -> None:
        self._stopped.set()
        for handle in handles:
            handle.cancel()
