"""Shards as tasks on a Dask cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import IngestError
from ..sources import Shard
from .base import MAX_DEATHS, PAUSE_SECONDS, ShardEngine, Work, missing_library

__all__ = ["dask_engine"]

_CONNECT_SECONDS = 10


@contextmanager
def dask_engine(work: Work, workers: int, address: str | None) -> Generator[ShardEngine]:
    """Work on the cluster whose scheduler is at `address`, or on processes of this machine.

    Raises:
        IngestError: Dask is not installed, or there is no such scheduler.
    """
    try:
        import dask
        import distributed
    except ModuleNotFoundError:
        raise missing_library("dask") from None
    untyped: tuple[Any, Any] = (dask, distributed)
    settings, library = untyped
    with settings.config.set({"distributed.scheduler.allowed-failures": MAX_DEATHS}):
        local: dict[str, Any] = {"n_workers": workers, "threads_per_worker": 1}
        local["dashboard_address"] = ":0"  # any free port: the usual one may be taken
        local["silence_logs"] = logging.CRITICAL  # a failed task is told once, by us
        try:
            client = (
                library.Client(address, timeout=_CONNECT_SECONDS)
                if address
                else library.Client(**local)
            )
        except OSError as error:
            msg = f"no Dask scheduler at `{address}`: {error}. Give its --engine-address"
            raise IngestError(msg) from error
        with client:
            yield _Dask(library, client, work)


class _Dask:
    def __init__(self, distributed: Any, client: Any, work: Work) -> None:
        self._distributed = distributed
        self._client = client
        self._work = _as_task(work)

    def submit(self, shard: Shard) -> Any:
        return self._client.submit(self._work, shard, pure=False, retries=0)

    def first_done(self, handles: list[Any]) -> tuple[list[Any], list[Any]]:
        with suppress(TimeoutError):
            self._distributed.wait(handles, PAUSE_SECONDS, return_when="FIRST_COMPLETED")
        done = [handle for handle in handles if handle.done()]
        for future in done:
            future.result()
        return done, [handle for handle in handles if handle not in done]

    def cancel(self, handles: list[Any]) -> None:
        self._client.cancel(handles, force=True)


def _as_task(work: Work) -> Callable[[Shard], None]:
    def ingest(shard: Shard) -> None:
        work(shard, lambda: False)  # a running task cannot be stopped, but is safe to do twice

    return ingest
