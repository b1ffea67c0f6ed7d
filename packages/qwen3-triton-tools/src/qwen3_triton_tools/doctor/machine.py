"""The machine: system, memory, disk, clock and GPUs, also as its programs report them."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from ..findings import Finding, failure, ok, skipped, warning
from ..local_triton import unsupported_reason, unused_runtimes

PROGRAM_TIMEOUT_SECONDS = 15.0
# Recommended by the runbook for model, images and build cache.
RECOMMENDED_DISK_BYTES = 20 * 2**30
MIN_DISK_BYTES = 2**30
MIN_MEMORY_BYTES = 2 * 2**30
# Before this program was written; a clock in the past breaks TLS and every log.
FIRST_YEAR = 2025
GPU_FIELDS = ("name", "memory.total", "memory.used", "driver_version", "compute_cap")
# Weights beyond this share of a GPU leave no room for activations and the arena.
MAX_WEIGHT_SHARE = 0.8
NEARLY_FULL_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """The exit code and the output of a program."""

    code: int
    output: str
    errors: str

    @property
    def text(self) -> str:
        """Standard output and standard error."""
        return f"{self.output}\n{self.errors}".strip()


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU; `compute_capability` is empty if the driver does not report it."""

    name: str
    total_bytes: int
    used_bytes: int
    driver: str
    compute_capability: str


def run_program(name: str, *arguments: str) -> ProgramResult | None:
    """Run a program of the search path; None if it is not installed.

    A program that hangs is killed, with the exit code 124 as with `timeout`.
    """
    path = shutil.which(name)
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=PROGRAM_TIMEOUT_SECONDS,
            # The output is parsed, so it must be in English.
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        message = f"{name} did not answer within {PROGRAM_TIMEOUT_SECONDS:g} s."
        return ProgramResult(124, "", message)
    except OSError as error:
        return ProgramResult(126, "", f"{name} does not start: {error.strerror or error}.")
    return ProgramResult(done.returncode, done.stdout, done.stderr)


def check_machine(
    *, model_bytes: int, folders: dict[str, Path], engine_cache_dir: Path | None
) -> list[Finding]:
    """Check the system itself.

    Args:
        model_bytes: Size of the model, 0 if unknown.
        folders: Folders whose disks matter, by what they contain.
        engine_cache_dir: Where OpenVINO keeps compiled models.
    """
    findings = [_check_system(), _check_local_triton(), _check_memory(model_bytes)]
    findings += [_check_disk(content, folder) for content, folder in folders.items()]
    findings += _check_old_tritons() + _check_compiled_models(engine_cache_dir)
    return [*findings, _check_clock()]


def check_gpus(model_bytes: int) -> tuple[list[Finding], bool]:
    """Check driver and GPUs, and return whether there is a working GPU."""
    result = _query_gpus(GPU_FIELDS)
    if result is None:
        reason = "no nvidia-smi, so no NVIDIA driver; only Triton on a GPU needs one"
        return [skipped("GPU", reason)], False
    if result.code and "not a valid field" in result.text:
        result = _query_gpus(GPU_FIELDS[:-1])
    assert result is not None
    gpus = _parse_gpus(result.output)
    if result.code or not gpus:
        return [_explain_driver_failure(result.text)], False
    findings = [ok("NVIDIA driver", gpus[0].driver)]
    findings += [_check_gpu(index, gpu, model_bytes) for index, gpu in enumerate(gpus)]
    return findings, True


def format_gib(size_bytes: float) -> str:
    """Format a size in GiB, as memory is sold."""
    if size_bytes < 2**30:
        return f"{size_bytes / 2**20:.1f} MiB"
    return f"{size_bytes / 2**30:.1f} GiB"


def _check_system() -> Finding:
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        name = platform.system()
    libc = " ".join(platform.libc_ver()).strip() or "unknown C library"
    python = platform.python_version()
    return ok("system", f"{name}, {platform.machine()}, {libc}, Python {python}")


def _check_local_triton() -> Finding:
    reason = unsupported_reason()
    if reason:
        remedy = "The gateway still runs, with a Triton elsewhere or the model in its own process."
        return warning("local Triton", reason, remedy)
    return ok("local Triton", "supported on this machine")


def _check_memory(model_bytes: int) -> Finding:
    available = _available_memory()
    if available is None:
        return skipped("memory", "/proc/meminfo cannot be read here")
    message = f"{format_gib(available)} available"
    if model_bytes and available < model_bytes:
        message += f", and the model has {format_gib(model_bytes)}"
        remedy = "If it runs on the CPU, free memory or use a smaller model."
        return warning("memory", message, remedy)
    if available < MIN_MEMORY_BYTES:
        remedy = "Free some: below 2 GiB, the kernel may kill Triton."
        return warning("memory", message, remedy)
    return ok("memory", message)


def _check_disk(content: str, folder: Path) -> Finding:
    name = f"disk, {content}"
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return skipped(name, f"{folder}: {error.strerror}")
    message = f"{format_gib(free)} free at {folder}"
    if free < MIN_DISK_BYTES:
        remedy = "Free some space: `docker system df` shows what images and caches take."
        return failure(name, message, remedy)
    if free < RECOMMENDED_DISK_BYTES:
        remedy = "Model, images and build cache of the 4B model need about 20 GiB."
        return warning(name, message, remedy)
    return ok(name, message)


def _check_old_tritons() -> list[Finding]:
    """List local Tritons of other versions: whether something still runs from them is not known."""
    folders = unused_runtimes()
    if not folders:
        return []
    taken = format_gib(sum(map(_size_of, folders)))
    message = f"{taken} at {folders[0].parent}, of other versions of this project or of Python"
    remedy = f"Once nothing runs from them: rm -r {shlex.join(map(str, folders))}"
    return [Finding("old local Tritons", "ok", message, remedy=remedy)]


def _check_compiled_models(cache_dir: Path | None) -> list[Finding]:
    """List what OpenVINO keeps: a folder for each digest of weights that was ever served."""
    folders = list(cache_dir.glob("*/")) if cache_dir else []
    if len(folders) <= 1:
        return []
    taken = format_gib(sum(map(_size_of, folders)))
    message = f"{taken} at {cache_dir}, of {len(folders)} models or versions of them"
    remedy = (
        "Each can be removed while the gateway is stopped; the models that are served are compiled "
        "again at the next start."
    )
    return [Finding("compiled models", "ok", message, remedy=remedy)]


def _size_of(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())


def _check_clock() -> Finding:
    now = time.gmtime()
    message = time.strftime("%Y-%m-%dT%H:%M:%SZ", now)
    remedy = "Run `sudo timedatectl set-ntp true`."
    if now.tm_year < FIRST_YEAR:
        return failure("clock", message, remedy)
    result = run_program("timedatectl", "show", "--property=NTPSynchronized", "--value")
    if result is not None and result.output.strip() == "no":
        return warning("clock", f"{message}, not synchronized", remedy)
    return ok("clock", message)


def _available_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _query_gpus(fields: tuple[str, ...]) -> ProgramResult | None:
    query = f"--query-gpu={','.join(fields)}"
    return run_program("nvidia-smi", query, "--format=csv,noheader,nounits")


def _parse_gpus(output: str) -> list[Gpu]:
    """Parse the lines of `nvidia-smi --query-gpu`, with memory in MiB."""
    gpus: list[Gpu] = []
    for line in output.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) < len(GPU_FIELDS) - 1 or not cells[1].isdigit():
            continue
        used = int(cells[2]) if cells[2].isdigit() else 0
        capability = cells[4] if len(cells) == len(GPU_FIELDS) else ""
        gpus.append(Gpu(cells[0], int(cells[1]) * 2**20, used * 2**20, cells[3], capability))
    return gpus


def _check_gpu(index: int, gpu: Gpu, model_bytes: int) -> Finding:
    """Compare a GPU's memory with the model's size."""
    name = f"GPU {index}"
    message = f"{gpu.name}, {format_gib(gpu.used_bytes)} of {format_gib(gpu.total_bytes)} used"
    if gpu.compute_capability:
        message += f", compute capability {gpu.compute_capability}"
    remedy = (
        "Lower max_batch_size and EMBED_MAX_BATCH_TOKENS, keep one instance, or serve a smaller "
        "model; remove unused models from the repository."
    )
    if model_bytes > gpu.total_bytes:
        message += f"; the model alone has {format_gib(model_bytes)}"
        return failure(name, message, remedy)
    if model_bytes > MAX_WEIGHT_SHARE * gpu.total_bytes:
        return warning(name, f"{message}; the model alone has {format_gib(model_bytes)}", remedy)
    if gpu.used_bytes > NEARLY_FULL_SHARE * gpu.total_bytes:
        return warning(name, f"{message}: memory is nearly full", remedy)
    return ok(name, message)


def _explain_driver_failure(text: str) -> Finding:
    message = " ".join(text.split())[:200] or "nvidia-smi lists no GPU."
    if "version mismatch" in text:
        remedy = "The driver was updated while it was in use: sudo reboot"
        return failure("NVIDIA driver", message, remedy)
    remedy = "sudo ubuntu-drivers install && sudo reboot; then nvidia-smi must list the GPU."
    return failure("NVIDIA driver", message, remedy)
