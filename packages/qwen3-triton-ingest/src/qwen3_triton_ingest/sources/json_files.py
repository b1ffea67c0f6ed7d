"""JSON files: records, or one text; and Jupyter notebooks, which are JSON with cells."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, cast

from ..config import ReadOptions
from ..documents import BadRecord, Document, Origin
from .markdown_files import markdown_headings
from .records import RecordReader
from .shards import Shard, SourceFile, shown
from .text_files import Extracted, decode, whole_text
from .values import UnreadableError, as_json

_LANGUAGE = re.compile(r"[\w+#.-]+")


def read_json(
    shard: Shard, file: SourceFile, options: ReadOptions, reader: RecordReader
) -> Iterator[Document | BadRecord | Extracted]:
    """Read the objects of an array, or one object that has the text column, as records.

    Any other file is one document: its text as it is.
    """
    # Not bounded as one document is: the bound is the memory of the process.
    with open(file.path, "rb") as stream:
        content = stream.read()
    if not content:
        raise UnreadableError("The file is empty.")
    text, reader.encoding = decode(content, options)
    del content
    parsed = _parsed(text)
    records = _records(parsed, options)
    if records is None:
        yield Extracted(text, encoding=reader.encoding)
        return
    for number, record in enumerate(records, 1):
        origin = Origin(shard.source, shown(file.path), number)
        if isinstance(record, dict):
            yield reader.read(cast("dict[str, Any]", record), origin)
        else:
            yield BadRecord(origin, f"The record is of type {type(record).__name__}, not an object")


def read_notebook(path: str, options: ReadOptions) -> Extracted:
    """Read the cells of a notebook as Markdown, without what they have printed.

    Raises:
        UnreadableError: It is not a notebook.
    """
    text, encoding = whole_text(path, options)
    notebook = _parsed(text)
    cells = _cells(notebook)
    if cells is None:
        raise UnreadableError("The file is not a Jupyter notebook: it has no `cells`.")
    language = _language(notebook)
    blocks = [block for cell in cells if (block := _block(cell, language))]
    markdown = "\n\n".join(blocks)
    marks = tuple(markdown_headings(markdown))
    return Extracted(markdown, "markdown", marks=marks, encoding=encoding)


def _parsed(text: str) -> Any:
    try:
        return as_json(json.loads(text, strict=False))
    except RecursionError:
        raise UnreadableError("The file is nested too deeply.") from None
    except ValueError as error:
        raise UnreadableError(
            f"The file is not JSON: {error}. If it has one object per line, call it .jsonl, or use "
            "`--format jsonl`."
        ) from None


def _records(parsed: Any, options: ReadOptions) -> Sequence[Any] | None:
    """Return the records in a file; None if it has none."""
    if isinstance(parsed, list):
        values = cast("list[Any]", parsed)
        return values if any(isinstance(value, dict) for value in values) else None
    if isinstance(parsed, dict) and options.text_column.split(".")[0] in parsed:
        return [parsed]
    return None


def _cells(notebook: Any) -> list[dict[str, Any]] | None:
    if not isinstance(notebook, dict):
        return None
    held: Any = cast("dict[str, Any]", notebook)
    sheets: Any = held.get("worksheets")  # of notebooks before version 4
    if isinstance(sheets, list) and sheets:
        held = cast("list[Any]", sheets)[0]
    cells: Any = cast("dict[str, Any]", held).get("cells") if isinstance(held, dict) else None
    if not isinstance(cells, list):
        return None
    return [cell for cell in cast("list[Any]", cells) if isinstance(cell, dict)]


def _language(notebook: dict[str, Any]) -> str:
    try:
        metadata = notebook["metadata"]
        info = metadata.get("language_info") or {"name": metadata["kernelspec"]["language"]}
        name = str(info["name"])
    except (KeyError, TypeError, AttributeError):
        return ""
    return name if _LANGUAGE.fullmatch(name) else ""


def _block(cell: dict[str, Any], language: str) -> str:
    source: Any = cell.get("source", cell.get("input", ""))
    lines = cast("list[Any]", source) if isinstance(source, list) else [source]
    text = "".join(str(line) for line in lines).strip("\n")
    if not text.strip():
        return ""
    if cell.get("cell_type") == "heading":  # before version 4
        level: Any = cell.get("level")
        return f"{'#' * (level if level in range(1, 7) else 1)} {text}"
    if cell.get("cell_type") != "code":
        return text
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"{fence}{language}\n{text}\n{fence}"
