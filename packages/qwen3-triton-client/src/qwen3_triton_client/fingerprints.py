"""One embedding space for the life of a client."""

from __future__ import annotations

from .errors import FingerprintChangedError

__all__ = ["FingerprintGuard"]


class FingerprintGuard:
    """Remember the fingerprint of the first answer and refuse another; safe to share by threads.

    The number of dimensions is part of what a fingerprint names, so there is one for each.
    """

    def __init__(self) -> None:
        self._seen: dict[int, str] = {}

    def check(self, dimensions: int, fingerprint: str) -> None:
        """Compare with the fingerprint seen before.

        Raises:
            FingerprintChangedError: It is another one.
        """
        if not fingerprint:
            return
        known = self._seen.setdefault(dimensions, fingerprint)  # atomic, so no lock
        if known != fingerprint:
            msg = (
                f"the gateway changed its embedding space from {known!r} to {fingerprint!r} while "
                "this client was in use: another model, tokenizer or precision is served now. "
                "Vectors of the two cannot be compared. Serve the former model again, or embed "
                "everything anew with a new client"
            )
            raise FingerprintChangedError(msg)
