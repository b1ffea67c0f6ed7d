"""Text, Markdown and HTML files: what is read, and the reasons for what cannot be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qwen3_triton_ingest.config import ReadOptions
from qwen3_triton_ingest.documents import BadRecord, Document
from qwen3_triton_ingest.sources import plan_shards, read_shard

ARTICLE = "The pump loses pressure when the seal is worn. " * 12


def read(path: Path, **options: object) -> Document | BadRecord:
    chosen = ReadOptions(**options)  # pyright: ignore[reportArgumentType]
    (item,) = (
        item for shard in plan_shards([str(path)], chosen) for item in read_shard(shard, chosen)
    )
    assert item.origin.path == str(path)
    assert item.doc_id == str(path)
    return item


def text_of(path: Path, **options: object) -> str:
    item = read(path, **options)
    assert isinstance(item, Document), item
    return item.text


def reason(path: Path, **options: object) -> str:
    item = read(path, **options)
    assert isinstance(item, BadRecord), item
    return item.reason


def test_text_is_read_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\ntw\xc3\xb6\n")
    item = read(path)
    assert isinstance(item, Document)
    assert item.text == "one\r\n\r\ntwö\n"
    assert item.metadata == {"source": str(path)}
    assert item.markup == "text"


def test_texts_are_not_in_the_repr(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("confidential")
    assert "confidential" not in repr(read(path))


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "gb18030"])
def test_other_encodings_are_read_if_the_options_name_them(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("größer", encoding=encoding)
    assert text_of(path, encoding=encoding) == "größer"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "The file is empty."),
        (b" \n\t\xe3\x80\x80", "The text is empty or blank."),
        (b"\x7fELF\0\0\0", "The file contains NUL bytes: it is binary, not text."),
        (b"ab\xff", "Byte 2 is not valid utf-8. Set the encoding with `--encoding`."),
        (b"x" * 1001, "The file has 1,001 bytes; the limit (`max_document_bytes`) is 1,000."),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.md"])
def test_what_is_not_text_is_rejected_with_a_reason(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert reason(path, max_document_bytes=1000) == words


TEXTS = {
    "cp1252": "Die Größe des Geräts beträgt 5 m – für Öl geeignet.",
    "latin-1": "Señor, ¿cómo está usted?",
    "cp1250": "Nie można otworzyć pliku, ponieważ nie istnieje. Sprawdź ścieżkę.",
    "cp1251": "Насос теряет давление, когда уплотнение изношено.",
    "koi8-r": "Насос теряет давление, когда уплотнение изношено.",
    "cp1253": "Η αντλία χάνει πίεση όταν η τσιμούχα φθαρεί.",
    "shift-jis": "ポンプのシールが摩耗すると圧力が低下します。",
    "euc-jp": "ポンプのシールが摩耗すると圧力が低下します。",
    "gb18030": "水泵的密封件磨损时压力会下降。",
    "big5": "水泵的密封件磨損時壓力會下降。",
    "euc-kr": "펌프의 씰이 마모되면 압력이 떨어집니다.",
    "utf-16": "hello",
    "utf-16-be": "Plain words without a mark",
    "utf-32": "größer",
}


@pytest.mark.parametrize("name", ["a.txt", "a.md"])
@pytest.mark.parametrize("encoding", TEXTS)
def test_encodings_are_detected_and_reported(tmp_path: Path, name: str, encoding: str) -> None:
    path = tmp_path / name
    path.write_bytes(TEXTS[encoding].encode(encoding))
    options = ReadOptions()
    (shard,) = plan_shards([str(path)], options)
    found: list[str] = []
    (item,) = read_shard(shard, options, on_encoding=found.append)
    assert isinstance(item, Document)
    assert item.text == TEXTS[encoding]
    assert len(found) == 1


def test_an_encoding_applies_to_the_files_of_its_pattern(tmp_path: Path) -> None:
    for name, encoding in {"old/a.txt": "cp850", "new/a.txt": "utf-8"}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes("Öl für Äxte".encode(encoding))
    for pattern in ("old/*.txt", "**/old/*", "a.txt"):
        options = ReadOptions(encodings={pattern: "cp850"})
        texts = [
            item.text
            for shard in plan_shards([str(tmp_path)], options)
            for item in read_shard(shard, options)
            if isinstance(item, Document)
        ]
        assert texts[1] == "Öl für Äxte"
        assert texts[0] != texts[1] or pattern != "a.txt"


def test_an_encoding_that_is_not_clear_is_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("5 € für 2 µm".encode("cp437", "replace") + b"\x81\xfe")
    assert "is not valid utf-8. Set the encoding with `--encoding`." in reason(path)


def test_nul_characters_are_replaced_on_request(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\0b")
    assert text_of(path, replace_nul=True) == "a\ufffdb"


def test_the_neighbors_of_a_bad_file_are_read(tmp_path: Path) -> None:
    for name, content in {"a.txt": b"a", "b.txt": b"\xff", "c.txt": b"c"}.items():
        (tmp_path / name).write_bytes(content)
    options = ReadOptions()
    (shard,) = plan_shards([str(tmp_path)], options)
    (tmp_path / "c.txt").unlink()
    (tmp_path / "d.txt").write_bytes(b"not planned")
    items = list(read_shard(shard, options))
    assert [type(item) for item in items] == [Document, BadRecord, BadRecord]
    assert isinstance(items[2], BadRecord)
    assert items[2].reason == "Cannot be read: No such file or directory."
    assert items[2].doc_id == str(tmp_path / "c.txt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x")
    path.chmod(0)
    assert reason(path) == "Cannot be read: Permission denied."


@pytest.mark.parametrize(
    ("front", "metadata"),
    [
        pytest.param(
            '---\ntitle: "On pumps"\ntags: [a]\ndraft: false\ndate: 2026-01-02\n---\n',
            {"title": "On pumps", "tags": ["a"], "draft": False, "date": "2026-01-02"},
            id="YAML",
        ),
        pytest.param("---\r\nn:\r\n  1: x\r\n...\r\n", {"n": {"1": "x"}}, id="dots and CR"),
        pytest.param(
            '+++\ntitle = "On pumps"\n[extra]\nx = 1\n+++\n',
            {"title": "On pumps", "extra": {"x": 1}},
            id="TOML",
        ),
        pytest.param("---\nsource: elsewhere\n---\n", {}, id="what the loader says wins"),
    ],
)
def test_front_matter_is_metadata(tmp_path: Path, front: str, metadata: dict[str, object]) -> None:
    path = tmp_path / "a.md"
    path.write_bytes(f"{front}# Pumps\n\n---\n\nText".encode())
    item = read(path)
    assert isinstance(item, Document)
    assert item.text == "# Pumps\n\n---\n\nText"
    assert item.metadata == {"source": str(path)} | metadata
    assert item.markup == "markdown"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("---\n\nThe meeting was moved.\n\n---\n\nBring lunch.\n", id="rules"),
        pytest.param("---\n\nNote: bring lunch.\n\n---\n\nText\n", id="a colon between rules"),
        pytest.param("---\nThe meeting was moved.\n---\nText\n", id="a sentence"),
        pytest.param("---\n- one\n- two\n---\nText\n", id="a list"),
        pytest.param("---\nno end of it\n", id="no end"),
        pytest.param("---\n---\nText\n", id="nothing"),
        pytest.param("---\na: [1\n---\nText\n", id="not YAML"),
        pytest.param("---\na: 2026-99-99\n---\nText\n", id="no date"),
        pytest.param("---\na: !!python/name:os.system\n---\nText\n", id="a Python object"),
        pytest.param(f"---\na: {'[' * 5000}\n---\nText\n", id="deep nesting"),
        pytest.param("---\na: &a [1, 1]\nb: [*a, *a]\n---\nText\n", id="aliases"),
        pytest.param("+++\na: 1\n+++\nText\n", id="not TOML"),
        pytest.param("+++\na = 1\n---\nText\n", id="mixed"),
        pytest.param(f"---\na: {'x' * 70_000}\n---\nText\n", id="too long"),
    ],
)
def test_what_is_not_front_matter_is_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.md"
    path.write_text(text)
    item = read(path)
    assert isinstance(item, Document), item
    assert item.text == text
    assert item.metadata == {"source": str(path)}


def test_html_is_read_as_markdown_of_its_main_content(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_text(
        '<?xml version="1.0" encoding="utf-8"?><html><head><title> On\n pumps </title></head>'
        f"<body><nav><a href='/'>Menu entry</a></nav><article><h1>Pumps</h1><p>{ARTICLE}</p>"
        "<h2>Größe</h2><ul><li>one</li><li>two</li></ul></article><script>var x</script></body>"
    )
    item = read(path)
    assert isinstance(item, Document)
    assert item.text.startswith("# Pumps\n\nThe pump loses")
    assert "## Größe" in item.text
    assert "- two" in item.text
    assert "Menu entry" not in item.text
    assert "var x" not in item.text
    assert item.metadata["title"] == "On pumps"
    assert item.markup == "markdown"


@pytest.mark.parametrize(
    ("declared", "written"),
    [("windows-1251", "cp1251"), ("iso-8859-1", "cp1252"), ("gb2312", "gb18030"), ("utf-8",) * 2],
)
def test_html_is_decoded_as_it_declares(tmp_path: Path, declared: str, written: str) -> None:
    word = {"cp1251": "Насос", "cp1252": "Maß €", "gb18030": "水泵", "utf-8": "Maß"}[written]
    path = tmp_path / "a.html"
    page = f"<html><head><meta charset='{declared}'></head><body><p>{word} {ARTICLE}</p></body>"
    path.write_text(page, encoding=written)
    assert word in text_of(path)


def test_html_without_main_content_is_read_as_all_of_its_text(tmp_path: Path) -> None:
    path = tmp_path / "a.htm"
    path.write_text("<title>T</title><nav><a>Menu</a> <b>entry</b></nav><style>x</style>")
    item = read(path)
    assert isinstance(item, Document)
    assert (item.text, item.markup) == ("Menu\nentry", "text")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "The file is empty."),
        (b"<!-- nothing -->", "The page has no text."),
        (b"<html><body><script>var x</script></body></html>", "The text is empty or blank."),
        (b"<p>ab\xff</p>", "Byte 5 is not valid utf-8. Set the encoding with `--encoding`."),
        (b"GIF89a\0\0", "The file contains NUL bytes: it is binary, not HTML."),
        (
            b"<b>text " * 3000,  # of which lxml returns a part
            "The page is nested too deeply. Close the elements that it opens.",
        ),
    ],
)
def test_a_page_without_text_or_end_is_rejected(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.html"
    path.write_bytes(content)
    assert reason(path) == words
