"""How far a call is: a callback of the user's, or a bar."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

__all__ = ["OnProgress", "Progress", "ProgressReport"]

OnProgress = Callable[[int, int | None], None]
"""Called with the texts that are done and with all there are; None where nobody knows yet."""

Progress = bool | OnProgress
"""True for a bar, a function to be told, False for neither."""


class Bar(Protocol):
    """What is needed of tqdm, which has no types."""

    def update(self, n: int) -> object: ...

    def close(self) -> object: ...


class ProgressReport:
    """Count the texts that are done and tell whoever asked; safe to share by threads.

    Raises:
        ImportError: A bar is asked for and tqdm is not installed.
    """

    def __init__(self, progress: Progress, total: int | None) -> None:
        self._lock = threading.Lock()
        self._done = 0
        self._total = total
        self._bar = _bar(total) if progress is True else None
        self._tell = progress if callable(progress) else None

    def advance(self, texts: int) -> None:
        """Report further texts as done."""
        if not texts or (self._bar is None and self._tell is None):
            return
        with self._lock:  # so that the numbers only grow
            self._done += texts
            if self._tell is not None:
                self._tell(self._done, self._total)
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
