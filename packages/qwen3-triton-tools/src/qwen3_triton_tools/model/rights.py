"""Whether Triton's image, which runs under an account of its own, may read a file."""

from __future__ import annotations

import stat
from pathlib import Path

# `triton-server` of NVIDIA's image, and its group; also in KServe and in Helm charts.
TRITON_USER = 1000


def is_readable_for_triton(path: Path) -> bool:
    """Say whether that account may read a file, by the rights of the file and of its folder."""
    return _allows(path, stat.S_IRUSR) and _allows(path.parent, stat.S_IXUSR)


def _allows(path: Path, user_bit: int) -> bool:
    """Read a permission bit as the kernel does for Triton's user and its group of the same id."""
    status = path.stat()
    if status.st_uid == TRITON_USER:
        return bool(status.st_mode & user_bit)
    if status.st_gid == TRITON_USER:
        return bool(status.st_mode & user_bit >> 3)
    return bool(status.st_mode & user_bit >> 6)
