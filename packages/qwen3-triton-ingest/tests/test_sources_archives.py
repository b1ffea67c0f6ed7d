"""Archives: members are read in their own formats, under the path of the archive."""

from __future__ import annotations

import gzip
import json
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from qwen3_triton_ingest.config import ReadOptions
from qwen3_triton_ingest.documents import BadRecord
from qwen3_triton_ingest.sources import conversion, plan_shards
from record_files import good, read, reasons, write

RECORDS = [{"text": "Öl", "n": 1}, {"text": "Fett", "n": 2}]


def zipped(path: Path, files: Mapping[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_members_are_documents_of_their_own_formats(tmp_path: Path) -> None:
    files = {
        "docs/": b"",
        "docs/größe.md": "# Größe\n\nKlein.",
        "__MACOSX/a.md": "x",
        "docs/.hidden.md": "x",
        "picture.png": b"\x89PNG",
        "page.html": "<h1>Öl</h1><p>Gut.</p>",
    }
    path = zipped(tmp_path / "a.zip", files)
    first, second = good(read(path))
    assert first.doc_id == first.origin.path == f"{path}/docs/größe.md"
    assert (first.markup, first.metadata) == ("markdown", {"source": first.doc_id})
    assert [mark.kind for mark in first.marks] == ["line", "heading"]
    assert (second.doc_id, second.text) == (f"{path}/page.html", "# Öl\n\nGut.")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_members_may_have_records(tmp_path: Path, kind: str) -> None:
    member = write(tmp_path, kind, RECORDS).read_bytes()
    plain = [item.doc_id.rpartition("#")[2] for item in good(read(tmp_path / f"a.{kind}"))]
    path = zipped(tmp_path / "b.zip", {f"x/a.{kind}": member})
    items = good(read(path))
    assert [item.text for item in items] == ["Öl", "Fett"]
    assert [item.doc_id for item in items] == [f"{path}/x/a.{kind}#{digest}" for digest in plain]
    assert {item.origin.path for item in items} == {f"{path}/x/a.{kind}"}
    assert items[0].origin.position


def test_gzip_has_one_member(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"id": 1, "text": "Öl"}).encode()))
    (item,) = good(read(path))
    assert (item.doc_id, item.text, item.origin.path) == ("1", "Öl", f"{path}/a.jsonl")


def test_in_a_folder_gzip_of_unknown_formats_is_skipped(tmp_path: Path) -> None:
    for name in ("a.1.gz", "b.tar.gz", "c.zip.gz", "d.gz", "e.txt.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"x"))
    skipped: list[str] = []
    shards = list(plan_shards([str(tmp_path)], ReadOptions(), on_skip=skipped.append))
    assert [Path(file.path).name for shard in shards for file in shard.files] == ["e.txt.gz"]
    assert skipped == [".gz"] * 4


def test_bad_members_are_reported_and_the_others_read(tmp_path: Path) -> None:
    files = {
        "a.zip": b"PK",
        "b.txt": b"",
        "../../c.docx": b"broken",
        "d.jsonl": b"no json\n",
        "e.txt": b"Text",
    }
    path = zipped(tmp_path / "x.zip", files)
    items = read(path)
    bad = [item for item in items if isinstance(item, BadRecord)]
    assert [item.origin.path.removeprefix(f"{path}/") for item in bad] == [
        "a.zip",
        "b.txt",
        "c.docx",
        "d.jsonl",
    ]
    assert [item.doc_id is None for item in bad] == [False, False, False, True]
    assert "archive in an archive" in bad[0].reason
    assert items[-1].doc_id == f"{path}/e.txt"


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    bomb = b"\0" * (80 << 20)
    zipped(tmp_path / "a.zip", {"a.txt": b"Before", "b.txt": bomb, "c.txt": b"After"})
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(bomb, 1))
    items = read(tmp_path)
    assert items[0].doc_id == f"{tmp_path}/a.zip/a.txt"
    assert ["200 times its size" in reason for reason in reasons(items)] == [True, True]
    # Documents of an archive that cannot be read to its end may still be in it.
    assert [item.doc_id for item in items[1:]] == [None, None]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.zip", b"no archive", "The archive is damaged."),
        ("a.txt.gz", b"no archive", "The archive is damaged."),
        ("b.txt.gz", gzip.compress(b"x" * 1000, mtime=0)[:-9], "The archive is damaged."),
    ],
    ids=["zip", "gzip", "cut-off"],
)
def test_a_damaged_archive_is_reported(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert reasons(read(tmp_path / name)) == [words]


def test_an_archive_without_readable_members_is_reported(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", {"a.png": b"x", "b": b"x"})
    (reason,) = reasons(read(tmp_path / "a.zip"))
    assert "no file of a known format (only .png, no extension)" in reason


def test_nothing_stays_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of a read archive, nor of one whose reader was killed."""
    conversion.close_idle_processes()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    path = zipped(tmp_path / "a.zip", {"a.txt": b"Text", "b.docx": b"broken", "c.dwg": b"x"})
    items = read(path, converters={"dwg": "tail -f {path}"}, max_convert_seconds=3)
    assert "--max-convert-seconds" in reasons(items)[-1]
    read(path)
    conversion.close_idle_processes()
    assert not list((tmp_path / "temporary").iterdir())
