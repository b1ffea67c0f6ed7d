"""What the limits of a container leave of this machine's memory and CPU time."""

from __future__ import annotations

import math
import os
from contextlib import suppress

from .openvino_model import core_count
from .run_memory import machine_bytes, read_cgroups


def thread_count(threads: int) -> int:
    """Return how many threads an engine gets: `threads`, or with 0 as many as a quota pays for.

    Engines know the cores, but no quota of CPU time: with more threads, the container is stopped
    for the rest of each period. And ONNX Runtime knows those of the machine, not which of them this
    process may run on (https://github.com/microsoft/onnxruntime/issues/10113). Without such limits
    it remains 0, and the engine decides.
    """
    cores = usable_cores()
    return threads or (cores if cores < (os.cpu_count() or 1) else 0)


def usable_cores() -> int:
    """Count the cores that have work: fewer than this process may run on if there is a quota."""
    return math.ceil(min(core_count(), cpu_quota()))


def cpu_quota() -> float:
    """Return the CPU time per second that this container may use; infinite without a limit."""
    # Version 2 has both numbers in one file, "max" for no quota; in version 1 that is -1.
    quotas = read_cgroups("cpu", "cpu.max", "cpu.cfs_quota_us")
    periods = read_cgroups("cpu", "cpu.max", "cpu.cfs_period_us")
    limits = [math.inf]
    for quota, period in zip(quotas, periods, strict=False):
        with suppress(ValueError, IndexError, ZeroDivisionError):
            share = int(quota.split()[0]) / int(period.split()[-1])
            if share > 0:
                limits.append(share)
    return min(limits)


def memory_bytes() -> int:
    """Return the memory of this machine, or what its container may have of it."""
    limits = [machine_bytes()]
    for text in read_cgroups("memory", "memory.max", "memory.limit_in_bytes"):
        with suppress(ValueError):  # "max"
            limits.append(int(text))
    return min(limits)
