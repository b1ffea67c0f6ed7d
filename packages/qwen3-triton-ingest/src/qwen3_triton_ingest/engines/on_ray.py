"""Shards as tasks on a Ray cluster."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from ..errors import IngestError
from ..sources import Shard
from .base import MAX_DEATHS, PAUSE_SECONDS, ShardEngine, Work, missing_library

__all__ = ["ray_engine"]

# Work waits for the gateway most of the time, so two tasks share a core.
_CORES_PER_TASK = 0.5
_CONNECT_SECONDS = 10.0


@contextmanager
def ray_engine(work: Work, _: int, address: str | None) -> Generator[ShardEngine]:
    """Work on the cluster at `address`, or on the one of this machine, or on a new one.

    Raises:
        IngestError: Ray is not installed, or there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    try:
        import ray
    except ModuleNotFoundError:
        raise missing_library("ray") from None
    untyped: Any = ray
    started = not untyped.is_initialized()
    if started:
        _check_reachable(address)
        try:
            untyped.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        except Exception as error:  # Ray raises bare ones too
            raise IngestError(_no_cluster(address, error)) from error
    try:
        yield _Ray(untyped, work)
    finally:
        if started:
            untyped.shutdown()


def _check_reachable(address: str | None) -> None:
    """Look whether anybody listens at HOST:PORT, which Ray itself takes minutes to find out."""
    place = urlsplit(address if address and "//" in address else f"//{address or ''}")
    try:
        if place.hostname and place.port:
            socket.create_connection((place.hostname, place.port), _CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise IngestError(_no_cluster(address, error)) from error


def _no_cluster(address: str | None, error: Exception) -> str:
    return f"no Ray cluster at `{address or 'auto'}`: {error}. Give its --engine-address"


class _Ray:
    def __init__(self, ray: Any, work: Work) -> None:
        self._ray = ray
        remote = ray.remote(
            num_cpus=_CORES_PER_TASK, max_retries=MAX_DEATHS, retry_exceptions=False
        )
        self._work = remote(_as_task(work))

    def submit(self, shard: Shard) -> Any:
        return self._work.remote(shard)

    def first_done(self, handles: list[Any]) -> tuple[list[Any], list[Any]]:
        done, pending = self._ray.wait(handles, num_returns=1, timeout=PAUSE_SECONDS)
        try:
            self._ray.get(done)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from None
            raise
        except self._ray.exceptions.WorkerCrashedError as error:
            msg = (
                f"{MAX_DEATHS + 1} workers died over the same shard; look for the reason (out of "
                "memory?) in Ray's dashboard, then run the same command again"
            )
            raise IngestError(msg) from error
        except self._ray.exceptions.RayError as error:  # a node, its memory, the cluster itself
            msg = (
                f"Ray broke off ({type(error).__name__}: {error}). Look for the reason in Ray's "
                "logs, then run the same command again: it goes on where it stopped"
            )
            raise IngestError(msg) from error
        return done, pending

    def cancel(self, handles: list[Any]) -> None:
        for handle in handles:
            self._ray.cancel(handle, force=True)


def _as_task(work: Work) -> Callable[[Shard], None]:
    def ingest(shard: Shard) -> None:
        work(shard, lambda: False)  # Ray stops a task by ending its process

    return ingest
