"""A document belongs to its source: no load changes or removes what another source loaded."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from string import ascii_letters
from typing import Any

import pytest
from click.testing import CliRunner

from gateway_process import GatewayProcess
from ingest_corpus import SENTENCES
from ingest_loading import TABLE, Loading, notes, quick_loading, write_jsonl
from qwen3_triton_ingest.cli import main
from qwen3_triton_ingest.config import ReadOptions
from qwen3_triton_ingest.documents import Origin
from qwen3_triton_ingest.errors import ConflictError, NothingLoadedError, SourceError
from qwen3_triton_ingest.ledger.runs import Counts
from qwen3_triton_ingest.sources import (
    former_names,
    is_same_file,
    plan_shards,
    source_name,
    wider_source,
)


@pytest.fixture(name="loading")
def _loading(database_url: str, in_process_gateway: GatewayProcess) -> Loading:
    return quick_loading(database_url, in_process_gateway)


def write_files(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def texts(loading: Loading) -> dict[str, str]:
    return dict(loading.query(f"SELECT doc_id, content FROM {TABLE} ORDER BY 1"))


@pytest.fixture(name="numbered")
def _numbered(tmp_path: Path) -> tuple[Path, Path]:
    """Two files that number their records from 1."""
    whales = [{"id": n, "text": f"Article {n} is about whales."} for n in (1, 2)]
    chairs = [{"id": n, "text": f"Product {n} is a chair."} for n in (1, 2, 3)]
    return (
        write_jsonl(tmp_path / "whales.jsonl", whales),
        write_jsonl(tmp_path / "chairs.jsonl", chairs),
    )


def test_the_same_id_from_another_source_is_reported_and_replaces_nothing(
    loading: Loading, numbered: tuple[Path, Path]
) -> None:
    whales, chairs = numbered
    loading(whales)
    report = loading(chairs)
    assert report.counts == Counts(documents=1, chunks_written=1, failed=2)
    assert texts(loading) == {
        "1": "Article 1 is about whales.",
        "2": "Article 2 is about whales.",
        "3": "Product 3 is a chair.",
    }
    letters = loading.letters()
    assert [letter.doc_id for letter in letters] == ["1", "2"]
    for word in (str(whales), "--id-column", "--on-conflict replace"):
        assert word in letters[0].reason
    assert loading(whales).counts == Counts(unchanged=2), "and the owner notices nothing"
    loading.assert_ledger_agrees()


def test_equal_documents_of_another_source_are_a_conflict_too(
    loading: Loading, tmp_path: Path
) -> None:
    """Or the second source would lose them when the first one drops them."""
    loading(write_jsonl(tmp_path / "a.jsonl", notes(2)))
    report = loading(write_jsonl(tmp_path / "b.jsonl", notes(3)))
    assert report.counts == Counts(documents=1, chunks_written=1, failed=2)


def test_a_conflict_ends_the_load_on_request(loading: Loading, numbered: tuple[Path, Path]) -> None:
    whales, chairs = numbered
    loading(whales)
    with pytest.raises(ConflictError, match=r"chairs\.jsonl:1: The id '1' belongs to .*whales"):
        loading(chairs, on_conflict="fail")
    assert texts(loading)["1"] == "Article 1 is about whales."
    for _ in range(2):
        with pytest.raises(ConflictError, match=r"The id '1' belongs to .*\.jsonl:1"):
            loading(whales, chairs, table="in_one_run", on_conflict="fail")


def test_a_source_takes_the_place_of_another_on_request(
    loading: Loading, numbered: tuple[Path, Path]
) -> None:
    whales, chairs = numbered
    loading(whales)
    report = loading(chairs, on_conflict="replace")
    assert report.counts.documents == 3
    assert texts(loading)["1"] == "Product 1 is a chair."
    with pytest.raises(NothingLoadedError, match=r"Nothing was loaded from .*whales"):
        loading(whales)
    loading.assert_ledger_agrees()


def test_a_document_stays_with_the_source_that_loaded_it_first(
    loading: Loading, tmp_path: Path
) -> None:
    owner = write_jsonl(tmp_path / "z.jsonl", [*notes(9), {"id": "x", "text": "The owner's."}])
    other = write_jsonl(tmp_path / "a.jsonl", [{"id": "x", "text": "Another."}, *notes(12)[9:]])
    loading(owner)
    for _ in range(2):
        report = loading(other, owner)
        assert texts(loading)["x"] == "The owner's.", "although the other precedes it"
        assert report.counts.failed == 1
    write_jsonl(owner, notes(9))
    report = loading(other, owner)
    assert texts(loading)["x"] == "Another.", "once the owner does not have it any more"
    assert (report.counts.documents, report.counts.failed, report.removed) == (1, 0, 0)
    loading.assert_ledger_agrees()


def test_folders_of_the_same_name_are_different_sources(
    loading: Loading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, {f"one/docs/one-{n}.md": SENTENCES[n] for n in range(3)})
    write_files(tmp_path, {f"two/docs/two-{n}.md": SENTENCES[n] for n in range(20)})
    write_files(tmp_path, {"one/docs/README.md": "The first.", "two/docs/README.md": "No."})
    for project in ("one", "two", "one"):
        monkeypatch.chdir(tmp_path / project)
        report = loading("docs")
        assert (report.removed, report.vanished_kept) == (0, ())
    assert len(loading.doc_ids()) == 24
    assert texts(loading)["docs/README.md"] == "The first."
    (letter,) = loading.letters()
    assert str(tmp_path / "one/docs") in letter.reason


def test_one_folder_spelled_in_two_ways_is_one_source(
    loading: Loading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_files(tmp_path / "docs", {f"{n}.md": SENTENCES[n] for n in range(3)})
    monkeypatch.chdir(tmp_path)
    loading("docs")
    report = loading(str(folder))
    (kept,) = report.vanished_kept
    assert (kept.known, kept.vanished) == (3, 3), "the ids are other paths now"


@pytest.mark.parametrize("order", [("docs", "docs/0.md"), ("docs/0.md", "docs")])
def test_a_file_may_be_loaded_alone_and_with_its_folder(
    loading: Loading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[str, str]
) -> None:
    folder = write_files(tmp_path / "docs", {f"{n}.md": SENTENCES[n] for n in range(10)})
    monkeypatch.chdir(tmp_path)
    for source in order:
        assert loading(source).counts.failed == 0
    (folder / "0.md").write_text("A change.", encoding="utf-8")
    assert loading("docs/0.md").counts.documents == 1
    assert texts(loading)["docs/0.md"] == "A change."
    (folder / "0.md").unlink()
    assert loading("docs").removed == 1, "the folder notices"


def test_a_folder_notices_what_vanishes_although_its_file_was_named_before_it(
    loading: Loading, tmp_path: Path
) -> None:
    folder = write_files(tmp_path / "docs", {f"{n}.md": SENTENCES[n] for n in range(10)})
    (folder / "9.md").write_text(" ", encoding="utf-8")
    assert loading(folder / "0.md", folder, workers=1).counts.documents == 9
    (folder / "0.md").unlink()
    assert loading(folder).removed == 1


def test_a_folder_whose_only_good_file_was_named_before_it_is_not_a_failure(
    loading: Loading, tmp_path: Path
) -> None:
    folder = write_files(tmp_path / "docs", {"a.md": "A page.", "b.md": " "})
    for counts in (Counts(documents=1, chunks_written=1, failed=1), Counts(unchanged=1, failed=1)):
        assert loading(folder / "a.md", folder, workers=1).counts == counts
    (folder / "a.md").write_text(" ", encoding="utf-8")
    with pytest.raises(NothingLoadedError, match="2 failed"):
        loading(folder)


def test_sources_and_paths_of_any_length_are_loaded_and_reported(
    loading: Loading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    random = Random(13)
    for _ in range(14):  # of letters that PostgreSQL cannot compress
        name = "".join(random.choices(ascii_letters, k=200))
        Path(name).mkdir()
        monkeypatch.chdir(name)
    write_files(Path(), {"bad.md": "An id that is too long."})
    records = [{"id": "n", "text": "A note."}, {"id": "blank", "text": " "}]
    deep = str(write_jsonl(Path("a.jsonl"), records).absolute())
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path, {"fine.md": "A page."})
    long_name = ReadOptions(source_name="".join(random.choices(ascii_letters, k=4000)))
    assert loading(tmp_path, read=long_name).counts.failed == 2
    assert loading(tmp_path, table="unnamed").counts.failed == 2
    for documents in (1, 0):
        report = loading(deep, table="deep")
        assert (report.counts.documents, report.counts.failed) == (documents, 1)
    write_jsonl(Path(deep), [{"id": "m", "text": "Another."}])
    assert loading(deep, table="deep", vanished="delete").removed == 1


def test_a_blank_source_name_is_an_error(loading: Loading, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", notes(1))
    for name in ("", " "):
        with pytest.raises(SourceError, match="`source_name` is blank"):
            loading(path, read=ReadOptions(source_name=name))


def test_databases_that_a_uri_tells_apart_by_other_means_are_different_sources(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("PGHOST", "PGPORT", "PGDATABASE", "PGSERVICE", "PGOPTIONS"):
        monkeypatch.delenv(name, raising=False)
    read = ReadOptions(query="SELECT id, text FROM notes")
    uris = [
        *("postgresql:///?service=wiki", "postgresql:///?service=shop"),
        *("postgresql:///wiki?hostaddr=10.0.0.1", "postgresql:///wiki?hostaddr=10.0.0.2"),
        *("postgresql://anna@db/", "postgresql://bert@db/", "postgresql:///wiki"),
        "postgresql:///wiki?options=-csearch_path%3Dtenant",
    ]
    names = {source_name(uri, read) for uri in uris}
    monkeypatch.setenv("PGHOST", "elsewhere")
    names.add(source_name("postgresql:///wiki", read))
    assert len(names) == len(uris) + 1
    assert len({shard.key for shard in plan_shards(uris, read)}) == len(uris)
    assert "postgresql://db:5432/" in former_names("postgresql://anna@db/", read)


def test_two_queries_of_one_database_are_two_sources(loading: Loading) -> None:
    whales = "SELECT 'whale-' || n AS id, 'Whale ' || n AS text FROM generate_series(1, 5) n"
    chairs = "SELECT 'chair-' || n AS id, 'Chair ' || n AS text FROM generate_series(1, 50) n"
    for query in (whales, chairs, whales):
        assert loading("sql", read=ReadOptions(query=query)).removed == 0
    assert len(loading.doc_ids()) == 55
    same_ids = whales.replace("Whale ", "Dolphin ")
    with pytest.raises(NothingLoadedError, match=r"5 failed, such as .*whale-1.*belongs to"):
        loading("sql", read=ReadOptions(query=same_ids))


def test_a_named_source_stays_the_same_when_its_query_or_folder_changes(
    loading: Loading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = "SELECT 'n' || n AS id, 'Note ' || n AS text FROM generate_series(1, {}) n"
    loading("sql", read=ReadOptions(query=query.format(10), source_name="notes"))
    report = loading("sql", read=ReadOptions(query=query.format(9), source_name="notes"))
    assert (report.counts, report.removed) == (Counts(unchanged=9), 1)
    for checkout in ("build-1", "build-2"):
        folder = write_files(tmp_path / checkout, {"docs/a.md": "A page."})
        monkeypatch.chdir(folder)
        report = loading("docs", read=ReadOptions(source_name="manual"))
        assert report.counts.failed == 0


def test_a_source_that_gets_a_name_keeps_its_documents(
    loading: Loading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path / "docs", {f"{n}.md": SENTENCES[n] for n in range(10)})
    monkeypatch.chdir(tmp_path)
    loading("docs")
    (tmp_path / "docs/9.md").unlink()
    report = loading("docs", read=ReadOptions(source_name="manual"))
    assert (report.counts, report.removed) == (Counts(unchanged=9), 1)


def as_written_before(loading: Loading, names: dict[Path, str]) -> None:
    """Give the ledger the form in which a source was called as it was typed."""
    for path, name in names.items():
        loading.execute(
            f"UPDATE qwen3_ingest.documents SET source = '{name}' WHERE source = '{path}'"
        )
    loading.execute("ALTER TABLE qwen3_ingest.documents DROP COLUMN owned_since")
    loading.execute("DELETE FROM qwen3_ingest.migrations WHERE version >= 3")


def test_folders_that_shared_a_name_in_an_old_ledger_get_their_own_documents(
    loading: Loading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    projects = {"one": 10, "two": 5, "three": 4}
    for project, count in projects.items():
        files = {f"docs/{project}-{n}.md": f"{project} {SENTENCES[n]}" for n in range(count)}
        write_files(tmp_path / project, files)
        monkeypatch.chdir(tmp_path / project)
        loading("docs")
    as_written_before(loading, {tmp_path / project / "docs": "docs" for project in projects})
    (tmp_path / "one/docs/one-9.md").unlink()
    before = loading.texts()
    for project, removed in {"one": 1, "two": 0, "three": 0, "two ": 0}.items():
        monkeypatch.chdir(tmp_path / project.strip())
        report = loading("docs")
        assert (report.counts.unchanged, report.removed) == (
            projects[project.strip()] - removed,
            removed,
        )
    assert loading.texts() - before <= 4, "only the probes for the embedding space"
    assert len(loading.doc_ids()) == 18
    sources = loading.query("SELECT DISTINCT source FROM qwen3_ingest.documents ORDER BY 1")
    assert sources == [(str(tmp_path / each / "docs"),) for each in sorted(projects)]


def test_a_query_of_an_old_ledger_keeps_its_documents(loading: Loading) -> None:
    query = "SELECT 'n' || n AS id, 'Note ' || n AS text FROM generate_series(1, 4) n"
    read = ReadOptions(query=query)
    loading("sql", read=read)
    as_written_before(loading, {Path(source_name("sql", read)): "sql"})
    assert loading("sql", read=read).counts == Counts(unchanged=4)


def test_vanished_documents_are_compared_with_what_the_source_had(
    loading: Loading, tmp_path: Path
) -> None:
    folder = write_files(tmp_path / "docs", {f"old-{n}.md": SENTENCES[n] for n in range(3)})
    loading(folder)
    for n in range(3):
        (folder / f"old-{n}.md").unlink()
    write_files(folder, {f"new-{n}.md": SENTENCES[n] for n in range(40)})
    report = loading(folder)
    (kept,) = report.vanished_kept
    assert (report.removed, kept.known, kept.vanished, kept.fraction) == (0, 3, 3, 1.0)


@pytest.fixture(name="rules")
def _rules(tmp_path: Path) -> Path:
    """A folder with files, and a CSV file with records."""
    rules = {f"rule-{n}.txt": f"Rule {n}. {SENTENCES[n]}" for n in range(12)}
    costs = "id,text\n" + "".join(f"c{n},Costs {n}\n" for n in range(12))
    return write_files(tmp_path / "kb", {**rules, "costs.csv": costs})


@pytest.mark.parametrize("broken", ["name,amount\nAnna,3\n", 'id,text\nc1,"Costs\n', ""])
def test_a_file_with_unreadable_records_puts_only_its_own_documents_in_doubt(
    loading: Loading, rules: Path, broken: str
) -> None:
    loading(rules)
    (rules / "rule-3.txt").unlink()
    (rules / "costs.csv").write_text(broken)
    report = loading(rules)
    assert report.removed == 1
    assert len(loading.doc_ids()) == 23
    (kept,) = report.vanished_kept
    assert (kept.known, kept.vanished, kept.doubtful) == (24, 13, 12)


@pytest.mark.parametrize("policy", [{"max_vanished_fraction": 1.0}, {"vanished": "delete"}])
def test_the_user_has_the_last_word_on_vanished_documents(
    loading: Loading, rules: Path, policy: dict[str, Any]
) -> None:
    loading(rules)
    (rules / "costs.csv").write_text("name,amount\nAnna,3\n")
    assert loading(rules, **policy).removed == 12
    assert len(loading.doc_ids()) == 12


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "id;body\n1;Whales are mammals.\n", r"no text column 'text'.*'id', 'body'"),
        ("a.jsonl", '{"id": 1, "body": "a"}\n', r"1 failed, such as .*no text column 'text'"),
        ("a.jsonl", "", r"1 failed, such as .*empty"),
        ("a.txt", " \n", r"1 failed, such as .*blank"),
    ],
)
def test_a_source_of_which_nothing_can_be_loaded_is_a_failure(
    loading: Loading, tmp_path: Path, name: str, content: str, message: str
) -> None:
    write_files(tmp_path, {name: content, "good/b.txt": "Salt melts ice."})
    for sources in ([tmp_path / name], [tmp_path / "good", tmp_path / name]):
        with pytest.raises(SourceError, match=message):
            loading(*sources)
    if name != "a.csv":  # which is refused before anything is loaded
        assert texts(loading) == {str(tmp_path / "good/b.txt"): "Salt melts ice."}
        assert loading(tmp_path / "good").counts == Counts(unchanged=1), "the run was finished"


def test_the_command_reports_what_was_done_and_fails_if_nothing_was_loaded(
    loading: Loading, tmp_path: Path
) -> None:
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"id": 1}])
    arguments = ["load", str(bad), "--dsn", loading.dsn, "--table", TABLE, "--json"]
    result = CliRunner().invoke(main, [*arguments, "--gateway-url", loading.gateway.url])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["counts"]["failed"] == 1
    assert "Nothing was loaded from" in result.stderr


@pytest.mark.parametrize(
    ("first", "second", "path", "expected"),
    [
        ("/x/docs", "/x/docs/a.md", "docs/a.md", True),
        ("/x/docs", "/x", "docs/a.md", True),
        ("/x/docs", "/x/docs/*.md", "docs/a.md", True),
        ("/x/docs/**/*.md", "/x/docs/deep", "docs/deep/a.md", True),
        ("/x/docs", "/x/docs/a.md", "/x/docs/a.md", True),
        ("/x/one/docs", "/x/two/docs", "docs/a.md", False),
        ("/x/one/docs", "/x/two/docs/a.md", "docs/a.md", False),
        ("/x/one/docs", "/x/docs", "docs/a.md", False),
        ("name:docs", "/x/docs", "docs/a.md", False),
        ("sql#1", "sql#2", "SELECT 1", False),
    ],
)
def test_whether_two_sources_have_the_same_file(
    first: str, second: str, path: str, expected: bool
) -> None:
    assert is_same_file(Origin(first, path), Origin(second, path)) is expected
    assert not is_same_file(Origin(first, path), Origin(second, "docs/b.md"))


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [("/x", "/x/docs"), ("/x/docs", "/x/docs/*.md"), ("/x/**/*.md", "/x/docs")],
)
def test_the_wider_of_two_sources(wide: str, narrow: str) -> None:
    assert wider_source(wide, narrow) == wider_source(narrow, wide) == wide


def test_encodings_that_were_detected_are_in_the_report(
    tmp_path: Path, loading: Loading, in_process_gateway: GatewayProcess, database_url: str
) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.txt").write_bytes("Wale säugen ihre Jungen.".encode("cp1252"))
    (folder / "b.csv").write_bytes("id;text\nb;Ein Stuhl für größere Räume.\n".encode("cp1252"))
    (folder / "c.txt").write_text("UTF-8: größer", encoding="utf-8")
    assert loading(folder).encodings == {"cp1252": 2}
    arguments = ["load", str(folder), "--table", TABLE, "--encoding-of", "*.txt=utf-8"]
    arguments += ["--dsn", database_url, "--gateway-url", in_process_gateway.url]
    done = CliRunner().invoke(main, [*arguments, "--exclude", "c.*", "--max-vanished", "1"])
    assert done.exit_code == 0, done.output
    assert "Files that are not UTF-8, read 1 as cp1252." in done.output
    assert "1 documents were skipped" in done.output
    assert "1 removed" in done.output
