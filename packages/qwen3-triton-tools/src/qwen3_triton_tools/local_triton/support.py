"""Say whether the local Triton can run on this machine."""

from __future__ import annotations

import os
import platform
import re
import sys
import sysconfig
from pathlib import Path

# nvidia-pytriton 0.7.0 is built for manylinux_2_35 and has a backend stub for each of these.
MINIMUM_GLIBC = (2, 35)
SUPPORTED_PYTHONS = ((3, 11), (3, 12), (3, 13))
# The 3.13 stub brings a libpython of its own; the others look for the interpreter's.
BUNDLED_LIBPYTHON = (3, 13)


def unsupported_reason() -> str | None:
    """Return None if the local Triton can run here, else one sentence that says why not."""
    return _platform_reason() or _python_reason() or _shared_memory_reason()


def find_libpython() -> Path | None:
    """Find the shared library of the running interpreter, which the backend's stub links to."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    configured = sysconfig.get_config_var("LIBDIR")
    multiarch = sysconfig.get_config_var("MULTIARCH")
    folders = [Path(sys.base_prefix) / "lib", Path(sys.base_prefix) / "lib64"]
    if isinstance(configured, str):
        folders.insert(0, Path(configured))
    if isinstance(multiarch, str):
        folders += [folder / multiarch for folder in tuple(folders)]
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _platform_reason() -> str | None:
    machine = platform.machine()
    if sys.platform != "linux" or machine not in {"x86_64", "AMD64"}:
        return f"the local Triton runs on Linux x86-64 only, this is {platform.system()} {machine}"
    glibc = _glibc_version()
    if glibc is None:
        return "the local Triton needs the GNU C library, this system has another one (musl?)"
    if glibc < MINIMUM_GLIBC:
        return (
            f"the local Triton needs glibc {_dotted(MINIMUM_GLIBC)} or newer, "
            f"this system has {_dotted(glibc)} (Debian 12 and Ubuntu 22.04 are new enough)"
        )
    return None


def _python_reason() -> str | None:
    version = sys.version_info[:2]
    if sys.implementation.name != "cpython" or version not in SUPPORTED_PYTHONS:
        known = ", ".join(_dotted(python) for python in SUPPORTED_PYTHONS)
        return (
            f"the local Triton needs CPython {known}, "
            f"this is {sys.implementation.name} {_dotted(version)}"
        )
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "the local Triton needs a Python with the GIL, this is a free-threaded build"
    if version != BUNDLED_LIBPYTHON and find_libpython() is None:
        name = f"libpython{_dotted(version)}"
        return (
            f"the local Triton needs {name}.so.1.0, which this Python ({sys.base_prefix}) lacks: "
            f"on Debian and Ubuntu `apt-get install {name}`, else use a Python built with "
            "--enable-shared or one from uv"
        )
    return None


def _shared_memory_reason() -> str | None:
    if not os.access("/dev/shm", os.W_OK | os.X_OK):
        return "the local Triton needs a writable /dev/shm"
    return None


def _glibc_version() -> tuple[int, ...] | None:
    try:
        text = os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError, OSError):
        return None
    match = re.search(r"(\d+)\.(\d+)", text or "")
    return (int(match[1]), int(match[2])) if match else None


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)
