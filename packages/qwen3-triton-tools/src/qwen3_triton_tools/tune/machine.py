"""What of this machine a measurement may use, and whether it is quiet."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

from qwen3_triton_gateway.run_memory import read_cgroups

MEMORY_INFO = Path("/proc/meminfo")
CPU_INFO = Path("/proc/cpuinfo")
# Share of all cores. A quiet machine has less; what others compute is missing in the rates.
QUIET_LOAD = 0.25


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
