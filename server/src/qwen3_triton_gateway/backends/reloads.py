"""Whether Triton has loaded a model again, by its statistics.

Triton swaps a model without a gap in its readiness. Only its counters begin at 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What Triton's statistics tell about the model that it has in memory.

    Attributes:
        version: The version that answers: the latest one, since requests name none.
        batches: Batches that it answered since it was loaded, whoever sent them.
        sent: Batches that this gateway had got answers to, or was waiting for, when it read this.
    """

    version: int
    batches: int
    sent: int = 0

    def is_replaced_by(self, later: LoadedModel, *, answered: int) -> bool:
        """Return whether the model was loaded again between two readings.

        Its counter begins at 0 then. It may have passed its earlier value by now, but not by as
        much as this gateway alone added.

        Args:
            later: The later reading.
            answered: Batches that this gateway had got answers to, shortly before that.
        """
        added = max(0, answered - self.sent)
        return later.version != self.version or later.batches < self.batches + added


def read_loaded_model(statistics: dict[str, Any]) -> LoadedModel | None:
    """Read Triton's statistics; None if no version is loaded."""
    # In gRPC's JSON, numbers are strings, and zeros are left out.
    versions = [
        LoadedModel(
            int(entry["version"]),
            int(entry.get("inference_stats", {}).get("success", {}).get("count", 0)),
        )
        for entry in statistics.get("model_stats", [])
    ]
    return max(versions, key=lambda loaded: loaded.version, default=None)
