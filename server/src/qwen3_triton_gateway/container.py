"""What the limits of a container leave of this machine's memory and CPU time."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from .openvino_model import core_count

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
MEMORY_INFO = Path("/proc/meminfo")


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
    limits = [_machine_bytes()]
    for text in read_cgroups("memory", "memory.max", "memory.limit_in_bytes"):
        with suppress(ValueError):  # "max"
            limits.append(int(text))
    return min(limits)


def available_bytes() -> int:
    """Return the memory that this process can still take before the kernel ends it.

    It counts what the kernel would free first, and no swap.
    """
    free = [_machine_bytes()]
    with suppress(OSError, StopIteration, ValueError):
        lines = MEMORY_INFO.read_text().splitlines()
        free.append(1024 * next(_value(line) for line in lines if "MemAvailable:" in line))
    limits = read_cgroups("memory", "memory.max", "memory.limit_in_bytes")
    used = read_cgroups("memory", "memory.current", "memory.usage_in_bytes")
    statistics = read_cgroups("memory", "memory.stat", "memory.stat")
    for limit, taken, lines in zip(limits, used, statistics, strict=False):
        with suppress(ValueError):  # "max"
            names = ("inactive_file ", "total_inactive_file ")  # version 1 has both
            files = [_value(line) for line in lines.splitlines() if line.startswith(names)]
            free.append(int(limit) - int(taken) + max(files, default=0))
    return max(0, min(free))


def _value(line: str) -> int:
    return int(line.split()[1])


def _machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def read_cgroups(controller: str, name: str, old_name: str) -> Iterator[str]:
    """Read a file of this process's control group and of those around it, innermost first.

    In a container the group's own path may not exist, and the root is the container's.

    Args:
        controller: Whose file it is.
        name: The file in version 2.
        old_name: The file in version 1.
    """
    groups: list[str] = []
    with suppress(OSError):
        groups = OWN_CGROUPS.read_text().splitlines()
    for line in groups:
        controllers, group = line.split(":", 2)[1:]
        if controllers == "":
            root, file = CGROUPS, name
        elif controller in controllers.split(","):
            root, file = CGROUPS / controller, old_name
        else:
            continue
        folder = root / group.lstrip("/")
        for place in (folder, *folder.parents):
            with suppress(OSError):  # no such file
                yield (place / file).read_text()
