"""Provide the files that the local Triton runs on, in an environment of their own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

from .errors import RuntimeInstallError, UnsupportedMachineError
from .install import install_locked
from .support import BUNDLED_LIBPYTHON, find_libpython, unsupported_reason

REQUIREMENTS = Path(__file__).with_name("requirements-triton.txt")
# Raise when the layout below changes, so that folders of the old one are not taken for the new.
_LAYOUT = "1"
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True, slots=True)
class TritonRuntime:
    """A folder with tritonserver, its Python backend and the packages that `model.py` imports.

    Laid out as a virtual environment: the backend's stub ignores `PYTHONPATH` and `PYTHONHOME`
    (it runs isolated), and finds its packages through the `python3` that comes first on `PATH`
    and the `pyvenv.cfg` above that.
    """

    folder: Path

    @property
    def _triton(self) -> Path:
        return self._packages / "pytriton" / "tritonserver"

    @property
    def _packages(self) -> Path:
        return self.folder / "lib" / f"python{_PYTHON}" / "site-packages"

    @property
    def server(self) -> Path:
        """The tritonserver binary."""
        return self._triton / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        """The value of `--backend-directory`."""
        return self._triton / "backends"

    def environment(self) -> dict[str, str]:
        """Return this process's environment with what Triton and its stub need put first."""
        variables = dict(os.environ)
        # ONNX Runtime's Linux builds gather usage events by default since 1.31.
        variables.setdefault("ORT_DISABLE_TELEMETRY", "1")
        for name, folder in (("PATH", "bin"), ("LD_LIBRARY_PATH", "libpython")):
            rest = variables.get(name)
            first = str(self.folder / folder)
            variables[name] = f"{first}{os.pathsep}{rest}" if rest else first
        return variables


def default_cache_dir() -> Path:
    """Return `QWEN3_TRITON_RUNTIME_DIR`, else `qwen3-triton` in the user's cache folder."""
    chosen = os.environ.get("QWEN3_TRITON_RUNTIME_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwen3-triton"


def ensure_runtime(
    progress: Callable[[str], None], *, cache_dir: Path | None = None
) -> TritonRuntime:
    """Return the runtime below `cache_dir`, installing it first where it is missing.

    Safe to call from several processes at once: one installs, the others wait for it. `progress`
    gets a sentence now and then, and none if there is nothing to do.

    Raises:
        UnsupportedMachineError: the local Triton cannot run here.
        RuntimeInstallError: the files could not be installed, or not be written.
    """
    reason = unsupported_reason()
    if reason is not None:
        raise UnsupportedMachineError(reason)
    parent = cache_dir or default_cache_dir()
    runtime = TritonRuntime(parent / f"triton-{_digest()}")
    if runtime.server.is_file():
        return runtime
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with _lock(parent / f".{runtime.folder.name}.lock", progress):
            if not runtime.server.is_file():
                _create(runtime, progress)
    except OSError as error:
        raise RuntimeInstallError(
            f"cannot write the local Triton to {parent} ({error}): set QWEN3_TRITON_RUNTIME_DIR "
            "to a folder of yours with 400 MB free"
        ) from error
    return runtime


def _digest() -> str:
    # `pyvenv.cfg` and the link to libpython name this very interpreter, so it is part of the key.
    parts = (_LAYOUT, sys.version.split()[0], sys.base_prefix, REQUIREMENTS.read_text("utf-8"))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _create(runtime: TritonRuntime, progress: Callable[[str], None]) -> None:
    progress(f"installing the local Triton into {runtime.folder} (about 100 MB to fetch, once)")
    began = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix=".installing-", dir=runtime.folder.parent))
    try:
        made = TritonRuntime(scratch / "runtime")
        _fill(made, scratch)
        # mkdtemp's 0700 is not inherited by its content, so other users may read the result.
        made.folder.rename(runtime.folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    seconds = time.monotonic() - began
    megabytes = sum(f.stat().st_size for f in runtime.folder.rglob("*") if f.is_file()) / 1e6
    progress(f"installed the local Triton: {megabytes:.0f} MB in {seconds:.0f} s")


def _fill(runtime: TritonRuntime, scratch: Path) -> None:
    packages = runtime._packages  # pyright: ignore[reportPrivateUsage]
    packages.mkdir(parents=True)
    install_locked(REQUIREMENTS, packages, scratch)
    stubs = packages / "pytriton" / "tritonserver" / "python_backend_stubs"
    name = "triton_python_backend_stub"
    # Its library path is relative, and holds at this depth.
    (stubs / _PYTHON / name).rename(runtime.backends / "python" / name)
    shutil.rmtree(stubs)
    if sys.version_info[:2] != BUNDLED_LIBPYTHON:
        for unused in (packages / "nvidia_pytriton.libs").glob("libpython3*"):
            unused.unlink()
    _make_environment(runtime.folder)


def _make_environment(folder: Path) -> None:
    executable = Path(sys.base_prefix) / "bin" / f"python{_PYTHON}"
    if not executable.exists():
        executable = Path(getattr(sys, "_base_executable", sys.executable))
    (folder / "bin").mkdir()
    (folder / "bin" / "python3").symlink_to(executable)
    (folder / "pyvenv.cfg").write_text(
        f"home = {executable.parent}\ninclude-system-site-packages = false\n"
        f"version = {sys.version.split()[0]}\n",
        encoding="utf-8",
    )
    # A folder of its own for one link: the interpreter's library folder may hold other libraries
    # that tritonserver must not pick up.
    (folder / "libpython").mkdir()
    library = find_libpython()
    if library is not None:
        (folder / "libpython" / library.name).symlink_to(library)


@contextlib.contextmanager
def _lock(path: Path, progress: Callable[[str], None]) -> Generator[None]:
    import fcntl  # not on Windows, where the support check must still be importable

    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another process is installing the local Triton: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
