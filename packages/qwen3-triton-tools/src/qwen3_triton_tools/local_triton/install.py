"""Install locked requirements into a plain folder, with whatever installer is at hand."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from .errors import RuntimeInstallError

_TAIL_CHARACTERS = 1500


def install_locked(requirements: Path, target: Path, scratch: Path) -> None:
    """Install the hash-checked `requirements` into the folder `target`.

    Tries uv, this Python's pip, and the pip of a throwaway environment below `scratch`.

    Raises:
        RuntimeInstallError: none of them worked; the message holds what each one said.
    """
    failures: list[str] = []
    for name, prefix in _installers(scratch):
        # Wheels only: nothing here should ever need a compiler or run a foreign setup script.
        command = [*prefix, "--target", str(target), "--no-deps", "--require-hashes"]
        command += ["--only-binary", ":all:", "--requirement", str(requirements)]
        failure = _run(command)
        if failure is None:
            return
        failures.append(f"{name}: {failure}")
        shutil.rmtree(target, ignore_errors=True)
    raise RuntimeInstallError(
        "could not install the files of the local Triton. Check that a package index can be "
        "reached (behind a proxy or with a mirror: set it up for pip or uv first), or run the "
        "gateway with the in-process ONNX Runtime instead.\n" + "\n".join(failures)
    )


def _installers(scratch: Path) -> Iterator[tuple[str, list[str]]]:
    # The interpreter is named: the wheels must fit it, not whichever Python uv would find.
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
            "found neither uv nor pip to install the files of the local Triton with, and "
            f"`python -m venv` failed: install uv, or on Debian and Ubuntu the package "
            f"python{version}-venv.\n{failure}"
        )


def _find_uv() -> str | None:
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.is_file() else shutil.which("uv")


def _run(command: Sequence[str]) -> str | None:
    """Run `command`; return None if it succeeded, else the end of what it said."""
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
        return f"{command[0]} does not start: {error}"
    if done.returncode == 0:
        return None
    return f"exit {done.returncode}: {done.stdout[-_TAIL_CHARACTERS:].strip()}"
