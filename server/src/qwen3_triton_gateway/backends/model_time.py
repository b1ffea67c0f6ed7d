"""What a batch takes of the model's time, by Triton's statistics.

A round trip also contains the wait behind other batches, the network, and under load the delays of
the gateway's event loop. Larger batches are not slower for those, so they must not count.
"""

from __future__ import annotations


class ModelTime:
    """The part of this gateway's round trips that the model was at work, read at intervals."""

    def __init__(self) -> None:
        self._runs: dict[int, tuple[int, int]] | None = None
        self._rows = 0
        self._seconds = 0.0
        self._share = 0.0

    def count(self, rows: int, seconds: float) -> float:
        """Count a batch and its round trip; return the model's part, 0 while unknown."""
        self._rows += rows
        self._seconds += seconds
        return self._share * seconds

    def read(self, runs: dict[int, tuple[int, int]]) -> None:
        """Compare what Triton has counted since the last call with the batches since then.

        Args:
            runs: By rows: how often the model ran on that many, and the nanoseconds that this took.
        """
        earlier, self._runs = self._runs, runs
        rows, seconds = self._rows, self._seconds
        self._rows, self._seconds = 0, 0.0
        if earlier is None or not rows:
            return
        added = {size: _subtract(run, earlier.get(size, (0, 0))) for size, run in runs.items()}
        all_rows = sum(size * count for size, (count, _) in added.items())
        nanoseconds = sum(spent for _, spent in added.values())
        # The counters of a model that was loaded again show nothing until the next reading.
        if all_rows <= 0 or nanoseconds <= 0 or min(count for count, _ in added.values()) < 0:
            return
        own_seconds = nanoseconds / 1e9 * min(1.0, rows / all_rows)  # others may use this Triton
        self._share = min(1.0, own_seconds / seconds)


def _subtract(later: tuple[int, int], earlier: tuple[int, int]) -> tuple[int, int]:
    return later[0] - earlier[0], later[1] - earlier[1]
