"""Prepares a release: sets the version, cuts the changelog, builds and checks the distributions.

Examples:
    python scripts/release.py set 0.2.0      # every file that states the version, and the changelog
    python scripts/release.py build dist     # wheels and sdists, each installed alone and run
    python scripts/release.py check 0.2.0    # whether this checkout is that release (in CI)
    python scripts/release.py notes 0.2.0    # the changelog's section
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from datetime import UTC, date, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHANGELOG = "CHANGELOG.md"
PYPROJECTS = ("server/pyproject.toml", "packages/*/pyproject.toml")
# Every place that states the version, as a pattern with the version in its last group. At run time
# the distributions read their own metadata.
PLACES = {
    r'^(version = ")([^"]+)': PYPROJECTS,
    r"^((?:appVersion|version): )(\S+)": ("deploy/chart/Chart.yaml",),
    r"(qwen3-triton-(?:gateway|tools):)(\d+\.\d+\.\d+)": (
        "deploy/compose.yaml",
        "deploy/.env.example",
        "docs/**/*.md",
    ),
    r'^(    "version": ")([^"]+)': ("docs/openapi.json",),
}
# A dependency on another distribution of this repository.
OWN_RANGE = r'("{name}(?:\[[\w,]+\])?)>=[\d.]+,<[\d.]+'
VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
SECTION = re.compile(r"^## (?P<title>.+)\n(?P<body>(?:(?!^## ).*\n?)*)", re.MULTILINE)
# Imports what a wheel holds, loads its entry points and prints the version that it reports.
PROBE = """
import importlib, importlib.metadata, sys
for module in sys.argv[2:]:
    importlib.import_module(module)
for entry in importlib.metadata.distribution(sys.argv[1]).entry_points:
    entry.load()
print(importlib.metadata.version(sys.argv[1]))
"""


class ReleaseError(Exception):
    """The checkout or a distribution is not fit to be released."""


def set_version(root: Path, version: str, day: date) -> None:
    """Write the version into every place that states it, and date the changelog's top section.

    Raises:
        ReleaseError: The version is malformed or older, or the changelog has nothing to release.
    """
    current = read_version(root)
    if not VERSION.fullmatch(version):
        raise ReleaseError(f"The version {version!r} is not of the form 1.2.3.")
    if _parts(version) < _parts(current):
        raise ReleaseError(f"The version {version} is older than the current one, {current}.")
    changelog = _cut(root, version, day)
    for pattern, path in _places(root):
        text = re.sub(pattern, rf"\g<1>{version}", path.read_text(), flags=re.MULTILINE)
        path.write_text(text)
    for path in _paths(root, PYPROJECTS):
        text = path.read_text()
        for name in distributions(root):
            text = re.sub(OWN_RANGE.format(name=name), rf"\g<1>{_range(version)}", text)
        path.write_text(text)
    (root / CHANGELOG).write_text(changelog)


def check_version(root: Path, version: str) -> None:
    """Check that every place states this version and that the changelog dates it.

    Raises:
        ReleaseError: A place states another version, or the changelog has no dated section for it.
    """
    if (stated := read_version(root)) != version:
        raise ReleaseError(f"The files state version {stated}, not {version}.")
    release_notes(root, version)


def read_version(root: Path) -> str:
    """Return the one version that all places state.

    Raises:
        ReleaseError: They state several.
    """
    stated: dict[str, str] = {}
    for pattern, path in _places(root):
        found = re.findall(pattern, path.read_text(), re.MULTILINE)
        stated |= {groups[-1]: str(path.relative_to(root)) for groups in found}
    if len(stated) > 1:
        raise ReleaseError(f"The files state several versions: {stated}.")
    return next(iter(stated))


def release_notes(root: Path, version: str) -> str:
    """Return the body of a released version's section of the changelog.

    Raises:
        ReleaseError: There is no such section, or it has no date.
    """
    for section in SECTION.finditer((root / CHANGELOG).read_text()):
        if re.fullmatch(rf"{re.escape(version)} - \d{{4}}-\d\d-\d\d", section["title"]):
            return section["body"].strip() + "\n"
    raise ReleaseError(f"{CHANGELOG} has no section `## {version} - YYYY-MM-DD`.")


def distributions(root: Path) -> dict[str, Path]:
    """Return the folder of each distribution by its name."""
    paths = _paths(root, PYPROJECTS)
    return {tomllib.loads(path.read_text())["project"]["name"]: path.parent for path in paths}


def build_distributions(root: Path, target: Path) -> None:
    """Build the sdist of each distribution, and its wheel from that sdist.

    Args:
        root: The checkout.
        target: Folder for the files; earlier builds in it are removed.
    """
    target.mkdir(parents=True, exist_ok=True)
    for old in [*target.glob("*.whl"), *target.glob("*.tar.gz")]:
        old.unlink()
    for folder in distributions(root).values():
        # No isolation: the locked hatchling of this environment builds.
        _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", target, folder)


def check_distributions(root: Path, target: Path) -> None:
    """Check the metadata of built files, then install each wheel alone and run what it holds.

    Raises:
        ReleaseError: A file fails a check.
    """
    check_metadata(target)
    for wheel in sorted(target.glob("*.whl")):
        with tempfile.TemporaryDirectory() as folder:
            check_installed(install(root, target, Path(folder), wheel), wheel)


def check_metadata(target: Path) -> None:
    """Check that the package index would accept and render the metadata of built files.

    Raises:
        ReleaseError: It would not.
    """
    files = [*target.glob("*.whl"), *target.glob("*.tar.gz")]
    _run(sys.executable, "-m", "twine", "check", "--strict", *files)


def install(root: Path, target: Path, folder: Path, *requirements: str | Path) -> Path:
    """Install requirements, and what they declare, in an empty environment.

    Args:
        root: The checkout, whose locked versions are used.
        target: Folder of built wheels, preferred to the index.
        folder: Folder for the environment.
        requirements: Wheels, or requirements as pip takes them.

    Returns:
        The environment's Python.

    Raises:
        ReleaseError: The requirements cannot be installed.
    """
    python = folder / "bin" / "python"
    _run(sys.executable, "-m", "uv", "venv", "--quiet", "--python", sys.executable, folder)
    _run(
        *(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python),
        *("--no-sources", "--no-verify-hashes", "--find-links", target),
        *("--constraint", root / "requirements" / "dev.txt", *requirements),
    )
    return python


def check_installed(python: Path, wheel: Path) -> None:
    """Import and run what an installed wheel holds.

    Raises:
        ReleaseError: A module, an entry point or a command fails, or the version is another.
    """
    name, version = wheel.name.split("-")[:2]
    reported = _run(python, "-I", "-c", PROBE, name, *_modules(wheel)).strip()
    if reported != version:
        raise ReleaseError(f"{wheel.name} reports version {reported}.")
    for script, *command in _commands(wheel):
        _run(python.with_name(script), "--version")
        _run(python.with_name(script), *command, "--help")


def _modules(wheel: Path) -> list[str]:
    """Return the packages of a wheel; each is typed and has a `py.typed`."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith("/py.typed")]
    return [name.removesuffix("/py.typed").replace("/", ".") for name in names]


def _commands(wheel: Path) -> Iterator[list[str]]:
    """Yield the scripts of a wheel, and the commands that it adds to `qwen3-triton`."""
    entries = ConfigParser(delimiters="=")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".dist-info/entry_points.txt"):
                entries.read_string(archive.read(name).decode())
    if entries.has_section("console_scripts"):
        yield from ([script] for script in entries.options("console_scripts"))
    if entries.has_section("qwen3_triton.commands"):
        yield from (["qwen3-triton", name] for name in entries.options("qwen3_triton.commands"))


def _cut(root: Path, version: str, day: date) -> str:
    """Return the changelog with its unreleased top section dated, below a new empty one."""
    text = (root / CHANGELOG).read_text()
    top = SECTION.search(text)
    if top is None or not top["title"].lower().endswith("unreleased"):
        raise ReleaseError(f"The top section of {CHANGELOG} is not marked as unreleased.")
    if not top["body"].strip():
        raise ReleaseError(f"The top section of {CHANGELOG} is empty: there is nothing to release.")
    heading = f"## Unreleased\n\n## {version} - {day.isoformat()}\n"
    return text[: top.start()] + heading + top["body"] + text[top.end() :]


def _range(version: str) -> str:
    """Return the range in which a distribution accepts its siblings: compatible versions."""
    major, minor, _ = _parts(version)
    return f">={major}.{minor},<{f'0.{minor + 1}' if major == 0 else major + 1}"


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _places(root: Path) -> Iterator[tuple[str, Path]]:
    for pattern, globs in PLACES.items():
        for path in _paths(root, globs):
            yield pattern, path


def _paths(root: Path, globs: tuple[str, ...]) -> list[Path]:
    return [path for glob in globs for path in sorted(root.glob(glob))]


def _run(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        output = (done.stdout + done.stderr)[-4000:]
        raise ReleaseError(f"`{' '.join(map(str, command))}` failed:\n{output}")
    return done.stdout


def main() -> None:
    """Run one of the subcommands; a failed check ends with 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("set", "check", "notes"):
        commands.add_parser(name).add_argument("version", help="for example 0.2.0")
    commands.add_parser("build").add_argument("target", type=Path, help="folder for the files")
    options = parser.parse_args()
    try:
        if options.command == "build":
            build_distributions(ROOT, options.target)
            check_distributions(ROOT, options.target)
            print(f"Built and checked {len(list(options.target.glob('*.whl')))} distributions.")
        elif options.command == "set":
            set_version(ROOT, options.version, datetime.now(tz=UTC).date())
            print(f"Set version {options.version}.")
        elif options.command == "check":
            check_version(ROOT, options.version)
        else:
            print(release_notes(ROOT, options.version), end="")
    except ReleaseError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
