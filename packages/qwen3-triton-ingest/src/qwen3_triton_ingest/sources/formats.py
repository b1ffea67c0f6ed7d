"""Which format a file's name stands for, and which library reads it."""

from __future__ import annotations

import importlib.util
import posixpath

from ..config import ReadOptions, SourceFormat
from ..errors import SourceError

__all__ = [
    "DOCUMENT_KINDS",
    "check_encoding",
    "extension",
    "format_of",
    "unknown_format",
    "why_unreadable",
]

EXTENSIONS: dict[str, SourceFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".pdf": "pdf",
}
DOCUMENT_KINDS: frozenset[SourceFormat] = frozenset({"text", "markdown", "html", "pdf"})
"""Formats of which a file is one document; a file of another holds records."""

# Module that is looked for, and the extra that brings it.
_LIBRARIES: dict[SourceFormat, tuple[str, str]] = {
    "html": ("trafilatura", "html"),
    "parquet": ("pyarrow", "parquet"),
    "pdf": ("pypdfium2", "pdf"),
}


def extension(path: str) -> str:
    """Return the end of a file's name from its last dot on, in lower case; empty without one."""
    return posixpath.splitext(path)[1].lower()


def format_of(path: str, options: ReadOptions) -> SourceFormat | None:
    """Return the format that the user named, else the one of the file's name, else None."""
    return options.format or EXTENSIONS.get(extension(path))


def unknown_format(path: str) -> SourceError:
    """Return the error for a file that was named and whose name tells no format."""
    named = f"the extension {extension(path)!r}" if extension(path) else "no extension"
    msg = (
        f"{path} has {named}, which tells no format: name one of {', '.join(_formats())} by "
        f"`--format`. Known extensions: {', '.join(EXTENSIONS)}"
    )
    return SourceError(msg)


def why_unreadable(kind: SourceFormat, options: ReadOptions) -> str | None:
    """Say why no file of a format can be read here, and what to do about it; None if one can."""
    module, extra = _LIBRARIES.get(kind, ("", ""))
    if module and importlib.util.find_spec(module) is None:
        return f"reading {kind} needs {module}: pip install 'qwen3-triton-ingest[{extra}]'"
    if kind in {"jsonl", "csv"} and "\n".encode(options.encoding) != b"\n":
        return (
            f"`encoding` {options.encoding!r} cannot be read line by line: convert the files "
            f"first, as in `iconv -f {options.encoding} -t utf-8`"
        )
    return None


def check_encoding(options: ReadOptions) -> None:
    """Refuse an encoding that Python does not know.

    Raises:
        SourceError: `options.encoding` is unknown.
    """
    try:
        "\n".encode(options.encoding)
    except (LookupError, UnicodeError, ValueError):
        msg = f"`encoding` must be one that Python knows, such as utf-8, not {options.encoding!r}"
        raise SourceError(msg) from None


def _formats() -> list[str]:
    return list(dict.fromkeys(EXTENSIONS.values()))
