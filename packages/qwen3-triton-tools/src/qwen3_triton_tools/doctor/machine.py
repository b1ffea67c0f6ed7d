"""The machine: system, memory, disk, clock."""

from __future__ import annotations

import os
import platform
import shutil
import time
from pathlib import Path

from ..local_triton import unsupported_reason
from .checks import Check, failed, ok, readable_size, skipped, warning
from .programs import run_program

# What the runbook asks for: model, images and build cache.
WANTED_DISK_BYTES = 20 * 2**30
LEAST_DISK_BYTES = 2**30
LEAST_MEMORY_BYTES = 2 * 2**30
# Before this program was written; a clock that says so breaks TLS and every log.
FIRST_YEAR = 2025


def check_machine(*, model_bytes: int, folders: dict[str, Path]) -> list[Check]:
    """Look at the system itself; `folders` are those whose disks matter, by what they hold."""
    checks = [check_system(), check_local_triton(), check_memory(model_bytes)]
    checks += [check_disk(what, folder) for what, folder in folders.items()]
    return [*checks, check_clock()]


def check_system() -> Check:
    """Say what runs here."""
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        name = platform.system()
    libc = " ".join(platform.libc_ver()).strip() or "unknown C library"
    seen = f"{name}, {platform.machine()}, {libc}, Python {platform.python_version()}"
    return ok("system", seen)


def check_local_triton() -> Check:
    """Say whether `qwen3-triton triton` runs here, which needs glibc 2.35."""
    reason = unsupported_reason()
    if reason:
        remedy = "the gateway still runs: with a Triton elsewhere, or the model in its own process"
        return warning("local Triton", reason, remedy)
    return ok("local Triton", "this machine can run it")


def check_memory(model_bytes: int) -> Check:
    """Compare the memory that is available with the model's size."""
    available = _available_memory()
    if available is None:
        return skipped("memory", "/proc/meminfo cannot be read here")
    seen = f"{readable_size(available)} available"
    if model_bytes and available < model_bytes:
        seen += f", the model has {readable_size(model_bytes)}"
        return warning("memory", seen, "free memory or take a smaller model, if it runs on the CPU")
    if available < LEAST_MEMORY_BYTES:
        return warning("memory", seen, "free some: below 2 GiB the kernel may kill Triton")
    return ok("memory", seen)


def check_disk(what: str, folder: Path) -> Check:
    """Say how much room is left where a folder lies."""
    name = f"disk, {what}"
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return skipped(name, f"{folder}: {error.strerror}")
    seen = f"{readable_size(free)} free at {folder}"
    if free < LEAST_DISK_BYTES:
        return failed(name, seen, "make room: `docker system df` shows what images and caches take")
    if free < WANTED_DISK_BYTES:
        remedy = "model, images and cache of the 4B model want about 20 GiB"
        return warning(name, seen, remedy)
    return ok(name, seen)


def check_clock() -> Check:
    """Say whether the clock is plausible and kept."""
    now = time.gmtime()
    seen = time.strftime("%Y-%m-%dT%H:%M:%SZ", now)
    remedy = "sudo timedatectl set-ntp true"
    if now.tm_year < FIRST_YEAR:
        return failed("clock", seen, remedy)
    answer = run_program("timedatectl", "show", "--property=NTPSynchronized", "--value")
    if answer is not None and answer.output.strip() == "no":
        return warning("clock", f"{seen}, not synchronized", remedy)
    return ok("clock", seen)


def _available_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
