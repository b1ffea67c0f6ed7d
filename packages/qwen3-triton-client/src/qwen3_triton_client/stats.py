"""What a client has done so far, in numbers."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from .forking import start_afresh_in_children

__all__ = ["ClientStats", "StatsCounter"]


@dataclass(frozen=True, slots=True)
class ClientStats:
    """Hold the totals of a client since it was made."""

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

    def add(
        self,
        *,
        requests: int = 0,
        retries: int = 0,
        texts: int = 0,
        prompt_tokens: int = 0,
        request_seconds: float = 0.0,
    ) -> None:
        """Add to the totals."""
        with self._lock:
            now = self._total
            self._total = replace(
                now,
                requests=now.requests + requests,
                retries=now.retries + retries,
                texts=now.texts + texts,
                prompt_tokens=now.prompt_tokens + prompt_tokens,
                request_seconds=now.request_seconds + request_seconds,
            )
