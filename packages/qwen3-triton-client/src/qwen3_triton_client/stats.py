"""What a client has done so far, in numbers."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from .forking import start_afresh_in_children

__all__ = ["ClientStats", "StatsCounter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientStats:
    """Hold what requests did: of a client since it was made, of one call, or of one batch."""

    requests: int = 0
    """Requests sent, further tries included."""
    retries: int = 0
    """Further tries among them."""
    texts: int = 0
    """Texts that got their vector."""
    prompt_tokens: int = 0
    """Tokens that the model read for them."""
    request_seconds: float = 0.0
    """Seconds spent in requests, added up over those that ran at the same time."""

    def __add__(self, other: ClientStats) -> ClientStats:
        return ClientStats(
            requests=self.requests + other.requests,
            retries=self.retries + other.retries,
            texts=self.texts + other.texts,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            request_seconds=self.request_seconds + other.request_seconds,
        )


class StatsCounter:
    """Add up what requests report; safe to share by threads."""

    def __init__(self) -> None:
        self.start_afresh()
        self._total = ClientStats()
        start_afresh_in_children(self)

    @property
    def total(self) -> ClientStats:
        """Return the totals as of now."""
        return self._total

    def start_afresh(self) -> None:
        """Forget a lock that another thread held when this process was forked."""
        self._lock = threading.Lock()

    def add(self, stats: ClientStats) -> None:
        """Add to the totals."""
        with self._lock:
            self._total += stats
