"""Install the files of the local Triton in an environment of their own, where it can run."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import RuntimeInstallError, UnsupportedMachineError

REQUIREMENTS = Path(__file__).with_name("requirements-triton.txt")
# Only installed where it is used: it doubles the size.
OPENVINO_REQUIREMENTS = Path(__file__).with_name("requirements-openvino.txt")
# Increase when the layout below changes, so that folders with the old one are not reused.
_LAYOUT = "1"
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_TAIL_CHARACTERS = 1500
# nvidia-pytriton 0.7.0 is built for manylinux_2_35 and has a backend stub for each of these.
MINIMUM_GLIBC = (2, 35)
SUPPORTED_PYTHONS = ((3, 11), (3, 12), (3, 13))
# The 3.13 stub includes a libpython; the others look for the interpreter's.
BUNDLED_LIBPYTHON = (3, 13)


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
        return self.packages / "pytriton" / "tritonserver"

    @property
    def packages(self) -> Path:
        """The folder of its Python packages."""
        return self.folder / "lib" / f"python{_PYTHON}" / "site-packages"

    @property
    def server(self) -> Path:
        """The tritonserver binary."""
        return self._triton / "bin" / "tritonserver"

    @property
    def openvino(self) -> Path:
        """The package that `ensure_openvino` adds."""
        return self.packages / "openvino"

    @property
    def backends(self) -> Path:
        """The value of `--backend-directory`."""
        return self._triton / "backends"

    def environment(self) -> dict[str, str]:
        """Return this process's environment, with the paths of Triton and its stub first."""
        variables = dict(os.environ)
        # ONNX Runtime's Linux builds collect usage events by default since 1.31.
        variables.setdefault("ORT_DISABLE_TELEMETRY", "1")
        for name, folder in (("PATH", "bin"), ("LD_LIBRARY_PATH", "libpython")):
            rest = variables.get(name)
            first = str(self.folder / folder)
            variables[name] = f"{first}{os.pathsep}{rest}" if rest else first
        return variables


def unsupported_reason() -> str | None:
    """Return None if the local Triton can run here, else why it cannot."""
    return _platform_reason() or _python_reason() or _shared_memory_reason()


def default_cache_dir() -> Path:
    """Return `QWEN3_TRITON_RUNTIME_DIR`, else `qwen3-triton` in the user's cache folder."""
    chosen = os.environ.get("QWEN3_TRITON_RUNTIME_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwen3-triton"


def ensure_runtime(progress: Callable[[str], None]) -> TritonRuntime:
    """Return the runtime below `default_cache_dir()`, and install it first if it is missing.

    Safe to call from several processes at once: one installs, the others wait for it.

    Args:
        progress: Called with a sentence per step; not called if there is nothing to do.

    Raises:
        UnsupportedMachineError: The local Triton cannot run here.
        RuntimeInstallError: The files could not be installed or written.
    """
    reason = unsupported_reason()
    if reason is not None:
        raise UnsupportedMachineError(reason)
    runtime = TritonRuntime(_folder())
    if not runtime.server.is_file():
        with _writing(runtime, progress):
            if not runtime.server.is_file():
                _create(runtime, progress)
    return runtime


def unused_runtimes() -> list[Path]:
    """List the folders of other versions and Pythons than this one."""
    folder = _folder()
    return sorted(other for other in folder.parent.glob("triton-*") if other != folder)


def ensure_openvino(runtime: TritonRuntime, progress: Callable[[str], None]) -> None:
    """Add OpenVINO to an installed runtime if it is missing; safe in several processes at once.

    Raises:
        RuntimeInstallError: It could not be installed or written.
    """
    if not runtime.openvino.is_dir():
        with _writing(runtime, progress):
            if not runtime.openvino.is_dir():
                _add_openvino(runtime, progress)


@contextlib.contextmanager
def _writing(runtime: TritonRuntime, progress: Callable[[str], None]) -> Generator[None]:
    """Lock the place of a runtime.

    Raises:
        RuntimeInstallError: It cannot be written.
    """
    parent = runtime.folder.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with _lock(parent / f".{runtime.folder.name}.lock", progress):
            # Of installations that were killed: only the owner of the lock writes these.
            for left in parent.glob(f"{_scratch_prefix(runtime)}*"):
                shutil.rmtree(left, ignore_errors=True)
            yield
    except OSError as error:
        raise RuntimeInstallError(
            f"The local Triton cannot be written to {parent} ({error}). Set "
            "QWEN3_TRITON_RUNTIME_DIR to a writable folder with 600 MB of free space."
        ) from error


def _folder() -> Path:
    return default_cache_dir() / f"triton-{_digest()}"


def _digest() -> str:
    # `pyvenv.cfg` and the link to libpython refer to this interpreter, so it is part of the key.
    locked = [path.read_text("utf-8") for path in (REQUIREMENTS, OPENVINO_REQUIREMENTS)]
    parts = (_LAYOUT, sys.version.split()[0], sys.base_prefix, *locked)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _scratch_prefix(runtime: TritonRuntime) -> str:
    return f".installing-{runtime.folder.name}-"


def _create(runtime: TritonRuntime, progress: Callable[[str], None]) -> None:
    progress(f"Installing the local Triton into {runtime.folder} (about 100 MB to download, once).")
    began = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix=_scratch_prefix(runtime), dir=runtime.folder.parent))
    try:
        unfinished = TritonRuntime(scratch / "runtime")
        _fill(unfinished, scratch)
        # What is there has no server: somebody has removed a part of it.
        shutil.rmtree(runtime.folder, ignore_errors=True)
        # mkdtemp's 0700 is not inherited by its content, so other users may read the result.
        unfinished.folder.rename(runtime.folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    seconds = time.monotonic() - began
    megabytes = sum(f.stat().st_size for f in runtime.folder.rglob("*") if f.is_file()) / 1e6
    progress(f"Installed the local Triton: {megabytes:.0f} MB in {seconds:.0f} s.")


def _add_openvino(runtime: TritonRuntime, progress: Callable[[str], None]) -> None:
    progress(f"Adding OpenVINO to {runtime.folder} (about 60 MB to download, once).")
    scratch = Path(tempfile.mkdtemp(prefix=_scratch_prefix(runtime), dir=runtime.folder.parent))
    try:
        added = scratch / "packages"
        _install_locked(OPENVINO_REQUIREMENTS, added, scratch)
        # The package itself comes last: where it is, all of it is.
        for entry in sorted(added.iterdir(), key=lambda path: path.name == runtime.openvino.name):
            if not (runtime.packages / entry.name).exists():
                entry.rename(runtime.packages / entry.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fill(runtime: TritonRuntime, scratch: Path) -> None:
    packages = runtime.packages
    packages.mkdir(parents=True)
    _install_locked(REQUIREMENTS, packages, scratch)
    stubs = packages / "pytriton" / "tritonserver" / "python_backend_stubs"
    name = "triton_python_backend_stub"
    # Its library path is relative, and correct at this depth.
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
    # A folder of its own for one link: the interpreter's library folder may contain other libraries
    # that tritonserver must not load.
    (folder / "libpython").mkdir()
    library = _find_libpython()
    if library is not None:
        (folder / "libpython" / library.name).symlink_to(library)


def _install_locked(requirements: Path, target: Path, scratch: Path) -> None:
    """Install the hash-checked `requirements` into the folder `target`.

    Tries uv, this Python's pip, and the pip of a temporary environment below `scratch`.

    Raises:
        RuntimeInstallError: None of them worked; the message has the output of each.
    """
    failures: list[str] = []
    for name, prefix in _installers(scratch):
        # Wheels only: nothing here should need a compiler or run a setup script.
        command = [*prefix, "--target", str(target), "--no-deps", "--require-hashes"]
        command += ["--only-binary", ":all:", "--requirement", str(requirements)]
        failure = _run(command)
        if failure is None:
            return
        failures.append(f"{name}: {failure}")
        shutil.rmtree(target, ignore_errors=True)
    raise RuntimeInstallError(
        "The files of the local Triton could not be installed. Check that a package index can be "
        "reached (behind a proxy or with a mirror, configure pip or uv first), or run the gateway "
        "with the in-process ONNX Runtime instead.\n" + "\n".join(failures)
    )


def _installers(scratch: Path) -> Iterator[tuple[str, list[str]]]:
    # With an explicit interpreter: the wheels must fit it, not whichever Python uv would find.
    uv = _find_uv()
    if uv is not None:
        yield "uv", [uv, "pip", "install", "--quiet", "--python", sys.executable]
    pip = ["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    # Compiling costs seconds now to save half a second at the first start.
    pip += ["--no-compile"]
    if importlib.util.find_spec("pip") is not None:
        yield "pip", [sys.executable, *pip]
        return
    environment = scratch / "installer"
    failure = _run([sys.executable, "-m", "venv", str(environment)])
    if failure is None:
        yield "pip (in a new environment)", [str(environment / "bin" / "python"), *pip]
    elif uv is None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise RuntimeInstallError(
            "The files of the local Triton cannot be installed: there is neither uv nor pip, and "
            "`python -m venv` failed. Install uv, or on Debian and Ubuntu the package "
            f"python{version}-venv.\n{failure}"
        )


def _find_uv() -> str | None:
    sibling = Path(sys.executable).with_name("uv")
    return str(sibling) if sibling.is_file() else shutil.which("uv")


def _run(command: Sequence[str]) -> str | None:
    """Run `command`; return None if it succeeded, else the end of its output."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        return f"{command[0]} does not start: {error}."
    if done.returncode == 0:
        return None
    return f"exit {done.returncode}: {done.stdout[-_TAIL_CHARACTERS:].strip()}"


@contextlib.contextmanager
def _lock(path: Path, progress: Callable[[str], None]) -> Generator[None]:
    import fcntl  # not on Windows, where the support check must still be importable

    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("Waiting for another process that is installing the local Triton.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _find_libpython() -> Path | None:
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
        return f"The local Triton runs on Linux x86-64 only; this is {platform.system()} {machine}."
    glibc = _glibc_version()
    if glibc is None:
        return "The local Triton needs the GNU C library; this system has another one (musl?)."
    if glibc < MINIMUM_GLIBC:
        return (
            f"The local Triton needs glibc {_dotted(MINIMUM_GLIBC)} or newer; this system has "
            f"{_dotted(glibc)} (Debian 12 and Ubuntu 22.04 are new enough)."
        )
    return None


def _python_reason() -> str | None:
    version = sys.version_info[:2]
    if sys.implementation.name != "cpython" or version not in SUPPORTED_PYTHONS:
        supported = ", ".join(_dotted(python) for python in SUPPORTED_PYTHONS)
        return (
            f"The local Triton needs CPython {supported}; this is {sys.implementation.name} "
            f"{_dotted(version)}."
        )
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "The local Triton needs a Python with the GIL; this is a free-threaded build."
    if version != BUNDLED_LIBPYTHON and _find_libpython() is None:
        name = f"libpython{_dotted(version)}"
        return (
            f"The local Triton needs {name}.so.1.0, which this Python ({sys.base_prefix}) lacks. "
            f"Run `apt-get install {name}` on Debian and Ubuntu, or use a Python built with "
            "--enable-shared or one from uv."
        )
    return None


def _shared_memory_reason() -> str | None:
    if not os.access("/dev/shm", os.W_OK | os.X_OK):
        return "The local Triton needs a writable /dev/shm."
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
