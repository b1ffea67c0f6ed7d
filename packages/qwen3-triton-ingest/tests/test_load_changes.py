"""A second load does only what has changed."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from gateway_process import GatewayProcess
from ingest_corpus import SENTENCES, write_corpus
from ingest_loading import TABLE, Loading, notes, quick_loading, write_jsonl
from qwen3_triton_client import EmbeddingClient
from qwen3_triton_ingest.config import Context, IndexOptions, SplitOptions
from qwen3_triton_ingest.documents import BadRecord, Origin, metadata_digest
from qwen3_triton_ingest.layouts import LayoutName
from qwen3_triton_ingest.ledger.documents import Ownership, mark_unchanged
from qwen3_triton_ingest.ledger.runs import Counts, add_dead_letters, run_counts
from qwen3_triton_ingest.load import LoadReport
from qwen3_triton_ingest.reembed import reembed
from qwen3_triton_ingest.status import status

LONG = " ".join(SENTENCES[:30])


@pytest.fixture(name="loading")
def _loading(database_url: str, in_process_gateway: GatewayProcess) -> Loading:
    return quick_loading(database_url, in_process_gateway)


def test_second_run_embeds_nothing(loading: Loading, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", files=2, documents=20)
    loading(corpus)
    before, versions = loading.texts(), loading.versions("000/0000")
    report = loading(corpus)
    assert report.counts == Counts(unchanged=40)
    assert loading.texts() - before <= 1  # the probe for the embedding space
    assert loading.versions("000/0000") == versions
    assert not report.resumed


def test_changed_chunk_alone_is_embedded(loading: Loading, tmp_path: Path) -> None:
    paragraphs = ["\n".join(SENTENCES[n : n + 2]) for n in range(0, 12, 2)]
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"id": "a", "text": "\n\n".join(paragraphs)}])
    split = SplitOptions(chunk_tokens=160, overlap_tokens=0)
    loading(path, split=split)
    before, versions = loading.ids("a"), loading.versions("a")
    paragraphs[-1] = "A completely different end that was never loaded before."
    write_jsonl(path, [{"id": "a", "text": "\n\n".join(paragraphs)}])
    report = loading(path, split=split)
    after = loading.ids("a")
    stayed = set(before) & set(after)
    assert len(stayed) == report.counts.chunks_kept > 0
    assert report.counts.chunks_written == len(after) - len(stayed) < len(after)
    assert report.counts.chunks_removed == len(before) - len(stayed)
    assert {each: loading.versions("a")[each] for each in stayed} == {
        each: versions[each] for each in stayed
    }, "rows that stay are not written"
    loading.assert_ledger_agrees()


def test_text_at_the_top_keeps_the_other_chunks(loading: Loading, tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    sections = [f"## Section {n}\n\n{SENTENCES[n]}" for n in range(8)]
    path.write_text("\n\n".join(sections), encoding="utf-8")
    loading(path)
    (doc_id,) = loading.doc_ids()
    before = loading.ids(doc_id)
    new = f"## New\n\n{SENTENCES[100]} {SENTENCES[101]} {SENTENCES[102]}"
    path.write_text("\n\n".join([new, *sections]), encoding="utf-8")
    report = loading(path)
    after = loading.ids(doc_id)
    assert after[-len(before) + 1 :] == before[1:], "ids follow from the texts"
    assert report.counts.chunks_written <= len(after) - len(before) + 1
    places = loading.query(f"SELECT seq FROM {TABLE} ORDER BY seq")
    assert places == [(n,) for n in range(len(after))]
    loading.assert_ledger_agrees()


def test_chunks_keep_their_vectors_and_get_their_places(loading: Loading, tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    wears = "wears out after some years of use, and has to be replaced by a new one of its kind"
    sections = [f"# Part {n}\n\nPart {n} {wears}." for n in range(6)]
    path.write_text("\n\n".join(sections), encoding="utf-8")
    loading(path)
    places = f"SELECT metadata->'headings'->>0, (metadata->>'line')::int FROM {TABLE} ORDER BY seq"
    expected = [(f"Part {n}", 1 + 4 * n) for n in range(6)]
    assert loading.query(places) == expected
    # As an earlier release wrote them, which knew no places.
    (doc_id,) = loading.doc_ids()
    old = metadata_digest({"source": str(path), "title": "Old"}).hex()
    loading.execute(f"UPDATE {TABLE} SET metadata = metadata - 'headings' - 'line'")
    loading.execute(f"UPDATE qwen3_ingest.documents SET metadata_hash = '\\x{old}'")
    ids, before = loading.ids(doc_id), loading.texts()
    assert loading(path).counts == Counts(documents=1, chunks_kept=6)
    assert loading.query(places) == expected
    # A line more in the first paragraph moves the others, which have the same text and number.
    path.write_text("\n\n".join([f"# Part 0\n\n\nThis {wears}.", *sections[1:]]), "utf-8")
    loading(path)
    assert loading.query(places)[1:] == [(f"Part {n}", 2 + 4 * n) for n in range(1, 6)]
    assert loading.ids(doc_id)[1:] == ids[1:]
    assert loading.texts() - before <= 3  # two probes, and the changed paragraph


def test_the_context_of_a_table_changes_only_on_request(loading: Loading, tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("# Pumps\n\n## Seals\n\nReplace it once in a year.\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("A text without headings.", encoding="utf-8")
    split = SplitOptions(chunk_tokens=128)
    stored = "# Pumps\n\n## Seals\n\nReplace it once in a year."
    embedded = {"headings": f"Pumps > Seals\n\n{stored}", "none": stored}

    def check(context: Context, report: LoadReport, written: int) -> None:
        assert report.counts.chunks_written == written
        assert status(loading.dsn, TABLE).context == context
        rows = loading.query(f"SELECT content, embedding::text FROM {TABLE} ORDER BY doc_id")
        assert [text for text, _ in rows] == [stored, "A text without headings."]
        with EmbeddingClient(loading.gateway.url) as client:
            (expected,) = client.embed([embedded[context]]).vectors
        assert json.loads(rows[0][1]) == pytest.approx(list(expected), abs=1e-5)

    check("headings", loading(tmp_path, split=split), 2)
    check("headings", loading(tmp_path, split=split), 0)
    check("none", loading(tmp_path, split=replace(split, context="none")), 1)
    # As a table of an earlier release.
    check("none", loading(tmp_path, split=split), 0)
    check("headings", loading(tmp_path, split=replace(split, context="headings")), 1)
    loading.assert_ledger_agrees()


def test_reembedding_keeps_the_context(loading: Loading, tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("# Pumps\n\n## Seals\n\nReplace it once in a year.\n", encoding="utf-8")
    loading(path, split=SplitOptions(chunk_tokens=128))
    gateway = replace(loading.options.gateway, dimensions=64)
    reembed(loading.dsn, TABLE, replace(loading.options, gateway=gateway))
    ((text, vector),) = loading.query(f"SELECT content, embedding::text FROM {TABLE}")
    with EmbeddingClient(loading.gateway.url, dimensions=64) as client:
        (expected,) = client.embed([f"Pumps > Seals\n\n{text}"]).vectors
    assert json.loads(vector) == pytest.approx(list(expected), abs=1e-5)


def test_other_metadata_is_written_without_embedding(loading: Loading, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"id": "a", "text": LONG, "shelf": 1}])
    loading(path)
    ids, before = loading.ids("a"), loading.texts()
    write_jsonl(path, [{"id": "a", "text": LONG, "shelf": 2}])
    report = loading(path)
    assert report.counts == Counts(documents=1, chunks_kept=len(ids))
    assert loading.texts() - before <= 1
    assert loading.ids("a") == ids
    assert loading.query(f"SELECT DISTINCT metadata->>'shelf' FROM {TABLE}") == [("2",)]


@pytest.mark.parametrize(
    ("left", "changes", "remain"),
    [
        (9, {}, 9),
        (5, {}, 10),
        (5, {"max_vanished_fraction": 1.0}, 5),
        (9, {"vanished": "keep"}, 10),
        (5, {"vanished": "delete"}, 5),
        (5, {"vanished": "delete", "max_vanished_fraction": 0.1}, 10),
    ],
    ids=["few go", "many stay", "many go if allowed", "kept by policy", "last word", "limited"],
)
def test_vanished_documents(
    loading: Loading, tmp_path: Path, left: int, changes: dict[str, Any], remain: int
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", notes(10))
    loading(path)
    write_jsonl(path, notes(left))
    report = loading(path, **changes)
    assert len(loading.doc_ids()) == remain
    assert report.removed == 10 - remain
    reported = remain == 10 and changes != {"vanished": "keep"}  # which the user asked for
    assert [kept.vanished for kept in report.vanished_kept] == ([10 - left] if reported else [])
    loading.assert_ledger_agrees()


def test_unreadable_record_may_be_a_vanished_one(loading: Loading, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", notes(10))
    loading(path)
    write_jsonl(path, notes(9))
    with path.open("a", encoding="utf-8") as lines:
        lines.write('{"id": "n9", "text": "cut off\n')
    report = loading(path)
    assert len(loading.doc_ids()) == 10
    assert report.counts.nameless == report.counts.failed == 1
    (kept,) = report.vanished_kept
    assert (kept.known, kept.vanished, kept.doubtful) == (10, 1, 1)
    assert loading(path, max_vanished_fraction=1.0).removed == 1


def test_documents_of_an_archive_that_cannot_be_read_may_still_be_in_it(
    loading: Loading, tmp_path: Path
) -> None:
    path = tmp_path / "docs" / "a.zip"
    path.parent.mkdir()
    (tmp_path / "docs" / "b.txt").write_text("Another")
    with zipfile.ZipFile(path, "w") as archive:
        for n in range(3):
            archive.writestr(f"{n}.txt", SENTENCES[n])
    loading(path.parent)
    content = path.read_bytes()
    path.write_bytes(content[:-30])
    report = loading(path.parent)
    assert (report.counts.failed, report.removed, len(loading.doc_ids())) == (1, 0, 4)
    (kept,) = report.vanished_kept
    assert (kept.known, kept.vanished, kept.doubtful) == (4, 3, 3)
    path.write_bytes(content)
    assert loading(path.parent).counts.documents == 0


def test_vanished_file_of_a_folder(loading: Loading, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    for n in range(10):
        (folder / f"{n}.txt").write_text(SENTENCES[n], encoding="utf-8")
    loading(f"{folder}/")
    (folder / "3.txt").unlink()
    report = loading(f"{folder}/")
    assert report.removed == 1
    assert len(loading.doc_ids()) == 9


def test_other_sources_are_left_alone(loading: Loading, tmp_path: Path) -> None:
    first = write_jsonl(tmp_path / "a.jsonl", [{"id": "a", "text": SENTENCES[0]}])
    second = write_jsonl(tmp_path / "b.jsonl", [{"id": "b", "text": SENTENCES[1]}])
    loading(first)
    loading(second)
    report = loading(second, max_vanished_fraction=1.0)
    assert report.removed == 0
    assert loading.doc_ids() == ["a", "b"]


@pytest.mark.parametrize("layout", ["own", "langchain", "llamaindex"])
def test_each_layout(loading: Loading, tmp_path: Path, layout: LayoutName) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*notes(5), {"id": "long", "text": LONG}])
    report = loading(path, layout=layout)
    record = status(loading.dsn, TABLE, layout=layout)
    assert record.rows == report.counts.chunks_written > 6
    write_jsonl(path, [*notes(5), {"id": "long", "text": f"{LONG} More."}])
    report = loading(path, layout=layout)
    assert report.counts.documents == 1
    assert report.counts.chunks_kept > 0
    rows = record.rows + report.counts.chunks_written - report.counts.chunks_removed
    assert status(loading.dsn, TABLE, layout=layout).rows == rows
    assert loading(path, layout=layout).counts == Counts(unchanged=6)


def test_labels_are_metadata_of_each_row(loading: Loading, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", notes(3))
    loading(path, labels={"team": "a"})
    assert loading.query(f"SELECT DISTINCT metadata->>'team' FROM {TABLE}") == [("a",)]
    report = loading(path, labels={"team": "b"})
    assert report.counts == Counts(documents=3, chunks_kept=3)
    assert loading.query(f"SELECT DISTINCT metadata->>'team' FROM {TABLE}") == [("b",)]


def test_index_is_built_after_the_load_and_kept(loading: Loading, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", notes(50))
    index = IndexOptions()
    assert loading(path, index=index).index == "built"
    write_jsonl(path, notes(60))
    assert loading(path, index=index).index == "kept"
    (found,) = status(loading.dsn, TABLE).indexes
    assert found.valid


@pytest.mark.parametrize("statement", [f"TRUNCATE {TABLE}", f"DROP TABLE {TABLE}"])
def test_emptied_table_is_loaded_from_scratch(
    loading: Loading, tmp_path: Path, statement: str
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", notes(5))
    loading(path)
    with psycopg.connect(loading.dsn) as connection:
        connection.execute(statement.encode())
    report = loading(path)
    assert report.counts.documents == 5
    assert len(loading.doc_ids()) == 5
    loading.assert_ledger_agrees()


def test_what_is_recorded_twice_is_counted_once(loading: Loading, tmp_path: Path) -> None:
    """As happens when the answer to a commit is lost."""
    loading(write_jsonl(tmp_path / "a.jsonl", notes(3)))
    met = [(f"n{number}", Origin("elsewhere", "b.jsonl", number)) for number in range(3)]
    bad = [BadRecord(Origin("elsewhere", "b.jsonl", 9), "is no JSON")]
    with psycopg.connect(loading.dsn) as connection:
        (table_id, run_id) = loading.query("SELECT table_id, id + 1 FROM qwen3_ingest.runs")[0]
        owner = Ownership(run_id)
        assert mark_unchanged(connection, table_id, owner, met) == 3
        assert mark_unchanged(connection, table_id, owner, met) == 0
        for _ in range(2):
            add_dead_letters(connection, table_id, owner, bad)
        counts, _ = run_counts(connection, run_id)
    assert (counts.failed, counts.nameless) == (1, 1)


def test_second_record_with_an_id_is_reported_even_if_only_its_metadata_differs(
    loading: Loading, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(
        path, [{"id": "a", "text": LONG, "shelf": 1}, {"id": "a", "text": LONG, "shelf": 2}]
    )
    report = loading(path)
    assert (report.counts.documents, report.counts.duplicates, report.counts.failed) == (1, 1, 1)
    assert loading.query(f"SELECT DISTINCT metadata->>'shelf' FROM {TABLE}") == [("1",)]
