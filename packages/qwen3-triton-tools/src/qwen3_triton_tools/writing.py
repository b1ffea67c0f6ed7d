"""Write files and folders completely or not at all, even on a full disk."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp, mkstemp

from qwen3_triton_gateway.model_files import describe_os_error

from .errors import ModelError

_FOLDER_MODE = 0o755  # Triton runs as another user
_UNFINISHED = ".qwen3-triton-unfinished-"
_LOCK_ATTEMPTS = 5


@contextmanager
def replacing_file(target: Path, mode: int = 0o644) -> Generator[Path]:
    """Yield a file to write to that replaces `target` at the end of the block.

    Raises:
        ModelError: It cannot be written.
    """
    unfinished: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.close(descriptor)
        unfinished = Path(name)
        yield unfinished
        unfinished.chmod(mode)
        unfinished.replace(target)
    except OSError as error:
        raise ModelError(describe_os_error(error, target)) from error
    finally:
        if unfinished is not None:
            unfinished.unlink(missing_ok=True)


@contextmanager
def temporary_folder(parent: Path, prefix: str) -> Generator[Path]:
    """Yield a folder that is removed at the end of the block, or by a later call after a kill.

    A process has a lock on its folders, which ends with it however it ends. Windows has no such
    locks: there, a folder stays after a kill.

    Args:
        parent: Where it is created.
        prefix: The beginning of its name. Folders of that name are removed if nothing has a lock.

    Raises:
        ModelError: It cannot be created.
    """
    if sys.platform == "win32":
        with TemporaryDirectory(dir=parent, prefix=prefix) as name:
            yield Path(name)
        return
    for left in parent.glob(f"{prefix}*"):
        if (descriptor := _lock(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(descriptor)
    folder, descriptor = _create_locked(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _create_locked(parent: Path, prefix: str) -> tuple[Path, int]:
    for _ in range(_LOCK_ATTEMPTS):
        try:
            folder = Path(mkdtemp(dir=parent, prefix=prefix))
        except OSError as error:
            raise ModelError(describe_os_error(error, parent)) from error
        if (descriptor := _lock(folder)) is not None:
            return folder, descriptor
        # Another process took it for one that was left, before it had the lock.
        shutil.rmtree(folder, ignore_errors=True)
    raise ModelError(f"A temporary folder in {parent} could not be locked.")


def _lock(folder: Path) -> int | None:
    """Lock a folder of this user; return a descriptor to close, None if that is not possible."""
    import fcntl  # not on Windows

    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(descriptor)
        if found.st_uid == os.geteuid() and os.path.samestat(found, folder.lstat()):
            return descriptor
    except OSError:  # locked by its owner, or removed since
        pass
    os.close(descriptor)
    return None


@contextmanager
def replacing_folder(folder: Path) -> Generator[Path]:
    """Yield a folder to write to that replaces `folder` at the end of the block.

    Until then it is next to the parent of `folder`, which may be a model repository: inside, a
    Triton that polls would load half a model. Where the parent is a volume, or nothing else may be
    written to, it is one level down in the parent, where Triton finds no model in it.

    Raises:
        ModelError: It cannot be written.
    """
    target = folder.absolute()
    with all_or_none([target]):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary_folder(_place_to_move(target.parent), _UNFINISHED) as place:
                unfinished = place / "new"
                unfinished.mkdir()
                unfinished.chmod(_FOLDER_MODE)
                yield unfinished
                _exchange(unfinished, target, place / "old")
        except OSError as error:
            raise ModelError(describe_os_error(error, folder)) from error


def _place_to_move(parent: Path) -> Path:
    """Return where to write what is moved to `parent`: above it, if that is as writable."""
    return parent.parent if is_place_next_to(parent) else parent


def is_place_next_to(folder: Path) -> bool:
    """Return whether something may be written next to a folder, on the same disk."""
    above = folder.absolute().parent
    is_one_disk = above.stat().st_dev == folder.stat().st_dev
    return is_one_disk and os.access(above, os.W_OK | os.X_OK)


def _exchange(new: Path, target: Path, old: Path) -> None:
    """Move `new` to `target`, and what was there to `old`; back if that fails."""
    if os.path.lexists(target):
        target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        if os.path.lexists(old):
            old.rename(target)
        raise


@contextmanager
def all_or_none(targets: Iterable[Path]) -> Generator[None]:
    """Remove the files that the block created, and the folders above them, if it fails.

    Args:
        targets: What the block may create. What exists already stays.
    """
    new = [target.absolute() for target in targets if not os.path.lexists(target)]
    folders = {parent for target in new for parent in target.parents if not parent.exists()}
    try:
        yield
    except BaseException:
        for target in new:
            with suppress(OSError):
                target.unlink()
        for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
            with suppress(OSError):  # not empty: something else is in it
                folder.rmdir()
        raise
