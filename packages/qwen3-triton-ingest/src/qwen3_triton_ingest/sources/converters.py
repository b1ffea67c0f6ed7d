"""Users' own converters of files to Markdown: commands, and functions of installed packages."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import IO

from ..config import ReadOptions
from ..errors import SourceError
from .markdown_files import markdown_headings
from .shards import extension
from .text_files import Extracted
from .values import UnreadableError, too_large

ENTRY_POINTS = "qwen3_triton_ingest.converters"
"""Group of functions that take a path and return Markdown; each has the name of an extension."""

_PATH = "{path}"
_SHOWN_CHARACTERS = 300


def converted_extensions(options: ReadOptions) -> frozenset[str]:
    """Return the extensions for which users have a converter, with the dot."""
    return frozenset(f".{ending}" for ending in (*_commands(options), *_installed()))


def has_converter(path: str, options: ReadOptions) -> bool:
    """Return whether users have a converter for files with the extension of a file."""
    ending = _normalized(extension(path))
    return bool(ending) and (ending in _commands(options) or ending in _installed())


def check_converters(options: ReadOptions) -> None:
    """Check that the commands can be started.

    Raises:
        SourceError: One cannot.
    """
    for ending, command in options.converters.items():
        try:
            arguments = shlex.split(command)
        except ValueError as error:
            raise SourceError(f"The converter {command!r} is not a command: {error}.") from None
        if not _normalized(ending) or not any(_PATH in argument for argument in arguments[1:]):
            raise SourceError(
                f"The converter {f'{ending}={command}'!r} must look like `EXT=COMMAND {_PATH}`, "
                "such as `org=pandoc -t gfm {path}`."
            )
        if shutil.which(arguments[0]) is None:
            raise SourceError(f"The converter {arguments[0]!r} is not an installed program.")


def read_converted(path: str, options: ReadOptions) -> Extracted:
    """Read the Markdown that a user's converter makes of a file.

    Raises:
        UnreadableError: The converter fails, or none is set for this kind of file.
    """
    ending = _normalized(extension(path))
    # Absolute, so that a name like `-x` is not taken for an option.
    place = os.path.abspath(path)
    if command := _commands(options).get(ending):
        text = _output([part.replace(_PATH, place) for part in shlex.split(command)], options)
    elif installed := _installed().get(ending):
        convert: Callable[[str], str] = installed.load()
        text = convert(place)
    else:
        raise UnreadableError(
            f"Files ending in {ending!r} have no converter. Set one with `--converter`."
        )
    text = text.replace("\r\n", "\n")
    return Extracted(text, "markdown", marks=tuple(markdown_headings(text)))


def _output(arguments: list[str], options: ReadOptions) -> str:
    """Return what a command prints.

    It runs in the process group of this process, which is killed as a whole when a bound of time or
    memory is exceeded, and each of its processes has the limits of this one.
    """
    limit = options.max_document_bytes
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
            )
        except OSError as error:
            reason = f"{error.strerror or error}"
            raise UnreadableError(
                f"The converter {arguments[0]!r} cannot be started: {reason}."
            ) from None
        with process:
            assert process.stdout is not None
            output = process.stdout.read(limit + 1)
            if len(output) > limit:
                process.kill()
                raise UnreadableError(too_large("The converter's output", len(output), options))
        if process.returncode:
            raise UnreadableError(
                f"The converter {arguments[0]!r} failed with exit code {process.returncode}"
                f"{_last_line(errors)}."
            )
    return output.decode("utf-8", "replace")


def _last_line(errors: IO[bytes]) -> str:
    errors.seek(max(0, errors.seek(0, os.SEEK_END) - _SHOWN_CHARACTERS))
    lines = errors.read().decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {last.rstrip('.')}" if last else ""


def _commands(options: ReadOptions) -> dict[str, str]:
    return {_normalized(ending): command for ending, command in options.converters.items()}


@cache
def _installed() -> dict[str, EntryPoint]:
    return {_normalized(each.name): each for each in entry_points(group=ENTRY_POINTS)}


def _normalized(ending: str) -> str:
    return ending.lower().removeprefix(".")
