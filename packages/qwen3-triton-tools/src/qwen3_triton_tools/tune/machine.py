"""What of this machine a measurement may use, and whether it is quiet."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

from qwen3_triton_gateway.memory import read_cgroups
from qwen3_triton_gateway.openvino_model import core_count

MEMORY_INFO = Path("/proc/meminfo")
CPU_INFO = Path("/proc/cpuinfo")
# Of all cores. A quiet machine has less; what others compute is missing in the rates.
QUIET_LOAD = 0.25


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


def available_bytes(held_bytes: int) -> float:
    """Return the memory that more processes may take; infinite where the system does not tell.

    Args:
        held_bytes: What this command's processes have. A container's own count of its memory has
            the cached files in it, which would make room.
    """
    free = [math.inf]
    with suppress(OSError):
        for line in MEMORY_INFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free.append(int(line.split()[1]) * 1024)
    for limit in read_cgroups("memory", "memory.max", "memory.limit_in_bytes"):
        with suppress(ValueError):  # "max"
            free.append(int(limit) - held_bytes)
    return min(free)


def resident_bytes(pid: int) -> int | None:
    """Return the resident memory of a process, None where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return None


def processor_name() -> str:
    """Return the processor as its maker calls it; empty where the system does not tell."""
    with suppress(OSError):
        for line in CPU_INFO.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return ""


def load_warning(cores: int) -> str:
    """Return a sentence if other programs compute, too; else nothing."""
    with suppress(OSError):
        load = os.getloadavg()[0]
        if load > QUIET_LOAD * cores:
            return (
                f"Other programs use this machine: the load average is {load:.1f} on {cores} "
                "cores. The rates will be too low, and vary."
            )
    return ""
