"""Whether Triton has loaded a model again, by its statistics.

Triton swaps a model without a gap in its readiness. Only the model's counters begin again: at 0, or
at what its warm-up counts.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

# About a minute of readings. A rolling update puts two servers behind one address for a while.
SEVERAL_READINGS = 120
FORMER_LOADS = 8


class Verdict(Enum):
    """What a reading shows."""

    SAME = "the model was not loaded again since the last reading"
    DOUBTFUL = "it may have been"
    RELOADED = "it was"
    SEVERAL = "several servers answer at the address, each with counters of its own"


@dataclass(frozen=True, slots=True)
class Reading:
    """What Triton's statistics say about the model that it has in memory.

    Attributes:
        version: The version that answers: the latest one, since requests name none.
        batches: Batches that it answered since it was loaded, whoever sent them.
        runs: By rows: how often the model ran on that many, and the nanoseconds that this took.
        answered: Batches of this gateway that were answered before it asked: all are counted.
        sent: Those and the ones that it had sent until Triton replied: some of them are counted.
    """

    version: int
    batches: int
    runs: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])
    answered: int = 0
    sent: int = 0

    @property
    def uncertain(self) -> int:
        """How many batches of this gateway may be counted or not."""
        return self.sent - self.answered

    @property
    def others_at_least(self) -> int:
        """How many of the counted batches others sent: other gateways, and Triton's warm-up."""
        return self.batches - self.sent

    @property
    def others_at_most(self) -> int:
        return self.batches - self.answered

    def has_load_of(self, other: Reading) -> bool:
        """Return whether two readings certainly are of one load: its nanoseconds never recur."""
        return self.version == other.version and bool(self.runs.items() & other.runs.items())

    def is_behind(self, other: Reading) -> bool:
        """Return whether a counter is lower than in the other reading."""
        runs = ((self.runs.get(rows, (0, 0)), run) for rows, run in other.runs.items())
        return self.batches < other.batches or any(
            own[0] < run[0] or own[1] < run[1] for own, run in runs
        )


class LoadHistory:
    """The readings of one address, each of which is compared with those before it."""

    def __init__(self) -> None:
        self._latest: Reading | None = None
        self._first = self._floor = Reading(0, 0)
        self._former: deque[Reading] = deque(maxlen=FORMER_LOADS)
        self._several_left = 0

    def judge(self, reading: Reading) -> Verdict:
        """Add a reading, and compare it with the earlier ones."""
        latest, self._latest = self._latest, reading
        self._several_left = max(0, self._several_left - 1)
        if latest is None:
            self._first = self._floor = reading
            return Verdict.SAME
        verdict = self._compare(latest, reading)
        if verdict in (Verdict.RELOADED, Verdict.SEVERAL):
            self._former.append(latest)
            self._first = self._floor = reading
        elif reading.others_at_least > self._floor.others_at_least:
            self._floor = reading
        if verdict is Verdict.SEVERAL:
            self._several_left = SEVERAL_READINGS
        elif self._several_left:  # counters that jump tell nothing then
            return Verdict.SAME
        return verdict

    def _compare(self, latest: Reading, reading: Reading) -> Verdict:
        if reading.has_load_of(latest):
            return Verdict.SAME
        if any(reading.has_load_of(former) for former in self._former):
            return Verdict.SEVERAL  # a load that was replaced does not come back
        if reading.version != latest.version or reading.is_behind(latest):
            return Verdict.RELOADED
        # Every counter may have passed its earlier value since a reload. The batches that this
        # gateway got answered before it are missing then, unless they are too few to tell from
        # those that are still on their way.
        missing = latest.answered - self._first.sent
        is_noticeable = missing > reading.uncertain + self._floor.uncertain
        if is_noticeable and reading.others_at_most >= self._floor.others_at_least:
            return Verdict.SAME
        return Verdict.DOUBTFUL


def read_statistics(statistics: dict[str, Any], *, answered: int, sent: int) -> Reading | None:
    """Read Triton's statistics of a model; None if no version is loaded.

    Args:
        statistics: The answer of the statistics extension, as JSON.
        answered: See `Reading`.
        sent: See `Reading`.
    """
    versions = statistics.get("model_stats", [])
    if not versions:
        return None
    # In gRPC's JSON, numbers are strings, and zeros are left out.
    served = max(versions, key=lambda entry: int(entry["version"]))
    return Reading(
        version=int(served["version"]),
        batches=int(served.get("inference_stats", {}).get("success", {}).get("count", 0)),
        runs={
            int(run["batch_size"]): _count_and_nanoseconds(run.get("compute_infer", {}))
            for run in served.get("batch_stats", [])
        },
        answered=answered,
        sent=sent,
    )


def _count_and_nanoseconds(duration: dict[str, Any]) -> tuple[int, int]:
    return int(duration.get("count", 0)), int(duration.get("ns", 0))
