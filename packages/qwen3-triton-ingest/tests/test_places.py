"""Chunks carry their place: the path of headings, the page and the line where they begin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import qwen3_nano
from qwen3_triton_ingest.config import ReadOptions, SplitOptions
from qwen3_triton_ingest.documents import ChunkText, Document, Markup, Origin
from qwen3_triton_ingest.places import (
    MAX_HEADING_CHARACTERS,
    Mark,
    PlaceFinder,
    with_context,
)
from qwen3_triton_ingest.sources.markdown_files import markdown_headings, read_markdown
from qwen3_triton_ingest.sources.text_files import FIRST_LINE, Extracted, read_text
from qwen3_triton_ingest.splitting import Splitter

TOKENIZER_FILE = Path(qwen3_nano.model_dir()) / "tokenizer.json"
TOKENIZER_JSON = TOKENIZER_FILE.read_bytes()
TOKENIZER = Tokenizer.from_file(str(TOKENIZER_FILE))
SPLITTER = Splitter(SplitOptions(chunk_tokens=32, overlap_tokens=0), TOKENIZER_JSON)
SENTENCES = "The pump loses pressure. Check the seal, then the valve. " * 3
MANUAL = f"""\
# Pumps

{SENTENCES}

## Seals ##

{SENTENCES}

Valves
------

```sh
# not a heading
```

### `valve` of [steel](x.html) {{#steel}}

{SENTENCES}

# Index

{SENTENCES}

- # in a list
"""


def split(extracted: Extracted) -> list[ChunkText]:
    document = Document(
        "d", extracted.text, Origin("s", "p"), markup=extracted.markup, marks=extracted.marks
    )
    return SPLITTER.split(document)


def read(tmp_path: Path, content: str, name: str = "a.md") -> Extracted:
    path = tmp_path / name
    path.write_bytes(content.encode())
    reader = read_markdown if name.endswith(".md") else read_text
    return reader(str(path), ReadOptions())


def find(text: str, marks: list[Mark], chunk: str) -> dict[str, Any]:
    begin = text.index(chunk)
    return PlaceFinder(text, marks).find(begin, begin + len(chunk))


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_chunks_of_markdown_have_the_path_of_their_headings(tmp_path: Path, newline: str) -> None:
    chunks = split(read(tmp_path, MANUAL.replace("\n", newline)))
    paths = {tuple(chunk.place["headings"]): None for chunk in chunks}
    assert list(paths) == [
        ("Pumps",),
        ("Pumps", "Seals"),
        ("Pumps", "Valves"),
        ("Pumps", "Valves", "valve of steel"),
        ("Index",),
    ]
    assert len(chunks) > len(paths)


@pytest.mark.parametrize("name", ["a.md", "a.txt"])
def test_chunks_of_text_have_the_line_where_they_begin(tmp_path: Path, name: str) -> None:
    lines = MANUAL.splitlines()
    for chunk in split(read(tmp_path, MANUAL, name)):
        assert chunk.text.splitlines()[0] in lines[chunk.place["line"] - 1]


def test_lines_are_counted_from_the_beginning_of_the_file(tmp_path: Path) -> None:
    extracted = read(tmp_path, "---\ntitle: Pumps\n---\n\n# Seals\n")
    assert [chunk.place for chunk in split(extracted)] == [{"headings": ["Seals"], "line": 5}]


def test_a_text_without_marks_has_no_place() -> None:
    assert split(Extracted("One sentence.")) == [ChunkText("One sentence.", {})]


def test_a_chunk_that_begins_with_headings_is_under_them() -> None:
    text = "# A\n\n## B\n\ntext\n\n# C"
    marks = [Mark(0, "heading", "A", 1), Mark(5, "heading", "B", 2), Mark(17, "heading", "C", 1)]
    assert find(text, marks, "# A\n\n## B\n\ntext")["headings"] == ["A", "B"]
    assert find(text, marks, "# A\n\n")["headings"] == ["A"]
    assert find(text, marks, "text")["headings"] == ["A", "B"]
    assert find(text, marks, "# C")["headings"] == ["C"]


def test_levels_may_be_skipped() -> None:
    levels = [2, 4, 3, 1, 6]
    marks = [Mark(at, "heading", f"h{level}", level) for at, level in enumerate(levels)]
    finder = PlaceFinder("x" * 5, marks)
    assert [finder.find(at, at + 1)["headings"] for at in range(5)] == [
        ["h2"],
        ["h2", "h4"],
        ["h2", "h3"],
        ["h1"],
        ["h1", "h6"],
    ]


def test_a_page_and_a_line_last_until_the_next() -> None:
    text = "one\n\ntwo\nthree\n\nfour"
    marks = [
        Mark(0, "page", 7),
        Mark(5, "line", 20),
        Mark(9, "page", 8),
        Mark(16, "line", 90),
    ]
    assert find(text, marks, "one") == {"page": 7}
    assert find(text, marks, "two") == {"page": 7, "line": 20}
    assert find(text, marks, "three") == {"page": 8, "line": 21}
    assert find(text, marks, "four") == {"page": 8, "line": 90}


def test_a_long_heading_is_shortened() -> None:
    place = PlaceFinder("x", [Mark(0, "heading", "long " * 100, 1)]).find(0, 1)
    (heading,) = place["headings"]
    assert len(heading) <= MAX_HEADING_CHARACTERS
    assert heading.endswith("long…")


def test_headings_precede_the_embedded_text_within_the_limit(tmp_path: Path) -> None:
    options = SplitOptions(chunk_tokens=128, overlap_tokens=0, context="headings")
    long_path = "\n\n".join(f"{'#' * level} Section {level} of it" for level in range(1, 7))
    text = f"{long_path}\n\n{SENTENCES * 8}\n\n# {'Seals and valves ' * 20}\n\n{SENTENCES * 8}"
    extracted = read(tmp_path, text)
    document = Document(
        "d", extracted.text, Origin("s", "p"), markup="markdown", marks=extracted.marks
    )
    chunks = Splitter(options, TOKENIZER_JSON).split(document)
    assert len(chunks) > 4
    for chunk in chunks:
        embedded = with_context(chunk.context, chunk.text)
        assert len(TOKENIZER.encode(embedded, add_special_tokens=False).ids) < 128
    assert any(chunk.context.endswith("Section 5 of it > Section 6 of it") for chunk in chunks)
    assert chunks[-1].context.startswith("Seals and valves Seals")
    # It is the same without the context otherwise, and texts without headings have none.
    assert all(not chunk.context for chunk in SPLITTER.split(document))
    plain = Document("d", extracted.text, Origin("s", "p"), marks=(FIRST_LINE,))
    assert all(not chunk.context for chunk in Splitter(options, TOKENIZER_JSON).split(plain))


@given(st.text(alphabet="a #\n-=`>\r", max_size=200), st.sampled_from(["text", "markdown"]))
@settings(deadline=None, derandomize=True)
def test_any_text_has_marks_in_order_and_lines_that_agree(text: str, markup: Markup) -> None:
    marks = (FIRST_LINE, *markdown_headings(text))
    assert [mark.offset for mark in marks] == sorted(mark.offset for mark in marks)
    document = Document("d", text, Origin("s", "p"), markup=markup, marks=marks)
    for chunk in SPLITTER.split(document):
        line = chunk.text.lstrip("\n").split("\n")[0]
        assert line in text.split("\n")[chunk.place["line"] - 1]
