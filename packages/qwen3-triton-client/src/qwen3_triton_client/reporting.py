"""What a client reports while it works: statistics, retries, and progress."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Protocol

from .exchange import RetryDetails
from .results import ClientStats

OnRetry = Callable[[RetryDetails], None]
OnStats = Callable[[ClientStats], None]

OnProgress = Callable[[int, int | None], None]
"""Called with the number of finished texts and the total; None if the total is unknown."""

Progress = bool | OnProgress
"""True for a progress bar, a function to call, or False for neither."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """The user's callbacks; called by whichever thread or task does the work."""

    on_retry: OnRetry | None = None
    on_stats: OnStats | None = None

    def retried(self, details: RetryDetails) -> None:
        """Report a retry that is about to happen."""
        if self.on_retry is not None:
            self.on_retry(details)

    def counted(self, stats: ClientStats) -> None:
        """Report what the requests for one batch did."""
        if self.on_stats is not None:
            self.on_stats(stats)


class StatsCounter:
    """A running total of statistics, safe to share between threads.

    Each thread adds to its own entry. There is no lock, which a fork could leave locked in the
    child.
    """

    def __init__(self) -> None:
        self._by_thread: dict[int, ClientStats] = {}

    @property
    def total(self) -> ClientStats:
        """The total so far."""
        return sum(list(self._by_thread.values()), ClientStats())

    def add(self, stats: ClientStats) -> None:
        """Add to the total."""
        thread = threading.get_ident()
        self._by_thread[thread] = self._by_thread.get(thread, ClientStats()) + stats


class Bar(Protocol):
    """The part of tqdm's interface used here; tqdm has no types."""

    def update(self, n: int) -> object: ...

    def close(self) -> object: ...


class ProgressReport:
    """A count of finished texts, shown as the user asked; safe to share between threads.

    Raises:
        ImportError: A bar was requested and tqdm is not installed.
    """

    def __init__(self, progress: Progress, texts: object) -> None:
        """Begin a report on a list, or on a stream of unknown length."""
        self._lock = threading.Lock()
        self._done = 0
        self._total = len(texts) if isinstance(texts, Sized) else None
        self._bar = _bar(self._total) if progress is True else None
        self._callback = progress if callable(progress) else None

    def advance(self, texts: int) -> None:
        """Report further texts as finished."""
        if not texts or (self._bar is None and self._callback is None):
            return
        with self._lock:  # so that the numbers only grow
            self._done += texts
            if self._callback is not None:
                self._callback(self._done, self._total)
            elif self._bar is not None:
                self._bar.update(texts)

    def close(self) -> None:
        """Leave the bar as it is and end its line."""
        if self._bar is not None:
            self._bar.close()


def _bar(total: int | None) -> Bar:
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        msg = "`progress=True` needs tqdm: pip install 'qwen3-triton-client[progress]'"
        raise ImportError(msg) from error
    bar: Bar = tqdm(total=total, desc="Embedding", unit=" texts")
    return bar
