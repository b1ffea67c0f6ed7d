"""Duplicate ids, poison texts, other embedding spaces and concurrent loads."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from gateway_process import GatewayProcess
from ingest_corpus import SENTENCES, rows_of, write_corpus
from ingest_loading import POISON, TABLE, Loading, notes, quick_loading, write_jsonl
from polling import wait_for
from qwen3_triton_ingest.config import SplitOptions
from qwen3_triton_ingest.errors import BusyError, FingerprintError, TableError
from qwen3_triton_ingest.ledger.runs import Counts
from qwen3_triton_ingest.load import LoadReport
from qwen3_triton_ingest.status import status

LONG = " ".join(SENTENCES[:30])


@pytest.fixture(name="loading")
def _loading(database_url: str, in_process_gateway: GatewayProcess) -> Loading:
    return quick_loading(database_url, in_process_gateway)


def state_of_run(loading: Loading) -> str | None:
    run = status(loading.dsn, TABLE).run
    return run.state if run else None


def test_first_record_of_an_id_wins(loading: Loading, tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "a.jsonl",
        [{"id": "a", "text": "First."}, {"id": "a", "text": "Second."}],
    )
    for documents in (1, 0):
        report = loading(path)
        assert report.counts == Counts(
            documents=documents,
            unchanged=1 - documents,
            failed=1,
            duplicates=1,
            chunks_written=documents,
        )
        assert loading.query(f"SELECT content FROM {TABLE}") == [("First.",)]
        (letter,) = status(loading.dsn, TABLE).latest_dead_letters
        assert letter.doc_id == "a"
        assert "same id" in letter.reason
        assert "--id-column" in letter.reason


def test_equal_records_are_counted_only(loading: Loading, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": "a", "text": "Same."}] * 3)
    report = loading(path)
    assert report.counts == Counts(documents=1, duplicates=2, chunks_written=1)
    assert status(loading.dsn, TABLE).dead_letters == 0


@pytest.mark.parametrize("workers", [1, 4])
def test_smaller_origin_wins_over_files(loading: Loading, tmp_path: Path, workers: int) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    # In the first file it comes last, in the second first: workers come to the second before.
    write_jsonl(
        folder / "a.jsonl",
        [{"id": f"a{n}", "text": SENTENCES[n]} for n in range(300)]
        + [{"id": "x", "text": "Of the first."}],
    )
    write_jsonl(folder / "b.jsonl", [{"id": "x", "text": "Of the second."}])
    loading(folder, workers=workers)
    assert loading.query(f"SELECT content FROM {TABLE} WHERE doc_id = 'x'") == [("Of the first.",)]
    loading.assert_ledger_agrees()
    before = loading.texts()
    report = loading(folder, workers=workers)
    assert loading.query(f"SELECT content FROM {TABLE} WHERE doc_id = 'x'") == [("Of the first.",)]
    assert report.counts.chunks_written == 0
    assert loading.texts() - before <= 1
    assert report.removed == 0
    loading.assert_ledger_agrees()


def test_poison_text_does_not_affect_its_neighbors(loading: Loading, tmp_path: Path) -> None:
    records = notes(20)
    records[7]["text"] = POISON
    path = write_jsonl(tmp_path / "a.jsonl", records)
    whole = SplitOptions(chunk_tokens=0)
    report = loading(path, split=whole)
    assert report.counts == Counts(documents=19, failed=1, chunks_written=19)
    assert "n7" not in loading.doc_ids()
    (letter,) = status(loading.dsn, TABLE).latest_dead_letters
    assert (letter.doc_id, letter.stage) == ("n7", "embed")
    assert "word word" not in letter.reason, "a reason must not show the text"
    write_jsonl(path, notes(20))
    report = loading(path, split=whole)
    assert report.counts == Counts(documents=1, unchanged=19, chunks_written=1)
    assert status(loading.dsn, TABLE).dead_letters == 0


def test_poisoned_change_keeps_the_previous_rows(loading: Loading, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", notes(3))
    loading(path, split=SplitOptions(chunk_tokens=0))
    records = notes(3)
    records[1]["text"] = POISON
    write_jsonl(path, records)
    report = loading(path, split=SplitOptions(chunk_tokens=0))
    assert report.counts.failed == 1
    assert report.removed == 0
    found = loading.query(f"SELECT content FROM {TABLE} WHERE doc_id = 'n1'")
    assert found == [(SENTENCES[1],)]


def test_unfinished_run_counts_bad_records_once(loading: Loading, tmp_path: Path) -> None:
    """Three bad records, a run that ends in the middle of the shard, and one that finishes it."""
    records = [*notes(20), {"id": "n1", "text": "A twin."}, {"id": "no text"}]
    path = write_jsonl(tmp_path / "a.jsonl", records)
    records[5]["text"] = POISON
    write_jsonl(path, records)
    loading(path, split=SplitOptions(chunk_tokens=0))
    # As if it had been killed just before it was done.
    loading.execute("UPDATE qwen3_ingest.shards SET done = false")
    loading.execute("UPDATE qwen3_ingest.runs SET state = 'running', finished_at = NULL")
    assert state_of_run(loading) == "interrupted"
    report = loading(path, split=SplitOptions(chunk_tokens=0))
    assert report.resumed
    assert report.counts == Counts(documents=19, failed=3, duplicates=1, chunks_written=19)


def test_another_embedding_space_is_refused(loading: Loading, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", notes(2))
    loading(path)
    smaller = replace(loading.options.gateway, dimensions=256)
    with pytest.raises(TableError, match="--reembed") as raised:
        loading(path, gateway=smaller)
    assert "--table" in str(raised.value)
    with pytest.raises(FingerprintError, match=r"--instruction.*--reembed"):
        loading(path, gateway=replace(loading.options.gateway, instruction="Find the twin"))
    assert loading(path).counts == Counts(unchanged=2)


def test_other_model_of_the_same_length_is_refused(loading: Loading, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", notes(2))
    loading(path)
    loading.execute("UPDATE qwen3_ingest.tables SET fingerprint = 'another/1024/0123456789abcdef'")
    with pytest.raises(FingerprintError, match="--reembed"):
        loading(path)


def test_rows_of_unknown_origin_need_adoption(loading: Loading, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", notes(5))
    loading(path)
    loading.execute("DROP SCHEMA qwen3_ingest CASCADE")
    with pytest.raises(TableError, match="--adopt"):
        loading(path)
    report = loading(path, adopt=True)
    assert report.counts.documents == 5
    assert len(rows_of(loading.dsn, TABLE)) == 5
    loading.assert_ledger_agrees()


def test_two_loads_of_one_table(loading: Loading, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", files=2, documents=50)
    inside = threading.Event()
    go_on = threading.Event()

    def hold(_: object) -> None:
        inside.set()
        assert go_on.wait(60)

    ended: list[LoadReport] = []

    def first() -> None:
        ended.append(loading(corpus, on_progress=hold))

    thread = threading.Thread(target=first)
    thread.start()
    try:
        wait_for(lambda: inside.is_set() or not thread.is_alive(), "the load is at work")
        with pytest.raises(BusyError, match="Another load is running"):
            loading(corpus)
        assert state_of_run(loading) == "running"
        loading(corpus, table="another")
    finally:
        go_on.set()
        thread.join()
    assert ended[0].counts.documents == 100
    assert loading(corpus).counts == Counts(unchanged=100)


def test_duplicate_is_loaded_when_the_first_record_vanishes(
    loading: Loading, tmp_path: Path
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    first = write_jsonl(folder / "a.jsonl", [*notes(20), {"id": "x", "text": "Of the first."}])
    write_jsonl(folder / "b.jsonl", [{"id": "x", "text": "Of the second."}])
    loading(folder)
    write_jsonl(first, notes(20))
    report = loading(folder)
    assert loading.query(f"SELECT content FROM {TABLE} WHERE doc_id = 'x'") == [("Of the second.",)]
    assert report.counts == Counts(documents=1, unchanged=20, chunks_written=1, chunks_removed=1)
    assert report.removed == 0
    assert loading.letters() == []
    loading.assert_ledger_agrees()
