"""The scripts in `examples/` as people run them, twice, against the real stack."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2
import numpy as np
import psycopg
import pytest
from llama_index.core import Settings
from prometheus_client.parser import text_string_to_metric_families
from psycopg.sql import SQL, Identifier

from embed_call import cosines, embed
from filled_tables import times_used
from gateway_process import GatewayProcess
from psql import PARADEDB_SHIM, psql, sections
from tolerances import FLOAT32_COSINE

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
LINES = (EXAMPLES / "demo" / "documents.jsonl").read_text().splitlines(keepends=True)
BAT = "animals-02"
BATS = f"Hit: {BAT}, How bats hunt in the dark"
LINES_BY_ID = {entry["id"]: entry for entry in map(json.loads, LINES)}
FINGERPRINT = "[0-9a-f]{16}"


class Runner:
    """Runs a script with its settings in the environment, and counts what the gateway embedded."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.documents_embedded = 0

    def run(self, script: str, *arguments: object, code: int = 0) -> str:
        interpreter = ["bash"] if script.endswith(".sh") else [sys.executable]
        before = self._documents()
        done = subprocess.run(
            [*interpreter, str(EXAMPLES / script), *map(str, arguments)],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == code, done.stdout + done.stderr
        self.documents_embedded = self._documents() - before
        return done.stdout + done.stderr

    def _documents(self) -> int:
        text = httpx2.get(f"{self.url}/metrics", timeout=60).text
        return sum(
            int(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "qwen3_triton_texts_total"
            and sample.labels["input_type"] == "document"
        )


@pytest.fixture(name="runner")
def _runner(gateway_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.setenv("QWEN3_TRITON_URL", gateway_url)
    return Runner(gateway_url, tmp_path)


@pytest.fixture(name="reranking_runner")
def _reranking_runner(
    reranking_gateway: GatewayProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Runner:
    monkeypatch.setenv("QWEN3_TRITON_URL", reranking_gateway.url)
    return Runner(reranking_gateway.url, tmp_path)


@pytest.fixture(name="run_here")
def _run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run a script in this process, which has imported the framework already."""

    def run(script: str, *arguments: object) -> str:
        for setting in ("_embed_model", "_llm"):
            monkeypatch.setattr(Settings, setting, None)  # LlamaIndex's, for the whole process
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture(name="database")
def _database(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty database, in which PostgreSQL uses every index that can serve a query."""
    name = Identifier(database_url.rpartition("/")[2])
    with psycopg.connect(database_url, autocommit=True) as connection:
        # With a few hundred rows it would otherwise rather read them all.
        connection.execute(SQL("ALTER DATABASE {} SET enable_seqscan = off").format(name))
    monkeypatch.setenv("DATABASE_URL", database_url)
    return database_url


@pytest.fixture(name="paradedb")
def _paradedb(database: str) -> str:
    """A database in which the names of pg_search exist, and its index does not."""
    psql(database, PARADEDB_SHIM.read_text(), {})
    return database


@pytest.fixture(name="documents")
def _documents(tmp_path: Path) -> Path:
    """A third of the documents, each subject among them."""
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(LINES[1::3]))
    assert '"animals-02"' in path.read_text()
    return path


@pytest.fixture(name="fewer")
def _fewer(documents: Path) -> Path:
    """The same without the first."""
    path = documents.with_name("fewer.jsonl")
    path.write_text("".join(LINES[4::3]))
    return path


def only(uri: str, query: str) -> int:
    """Read the one number that a query gives."""
    with psycopg.connect(uri) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])


def found(pattern: str, output: str) -> str:
    match = re.search(pattern, output)
    assert match, output
    return match[1]


def ids_of(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


# LangChain


def test_the_langchain_script_embeds_once_and_its_store_searches_by_index(
    runner: Runner,
    run_here: Callable[..., str],
    database: str,
    documents: Path,
    fewer: Path,
) -> None:
    flags = ("--cache", "cache", "--documents")
    first = runner.run("langchain_pgvector.py", *flags, documents)
    table = found(rf"Index (langchain_{FINGERPRINT}):", first)
    rows = only(database, f"SELECT count(*) FROM {table}")
    assert int(found(r"Texts embedded: (\d+)", first)) == rows > len(ids_of(documents))
    assert BATS in first
    assert f"Index that a query can use: {table}langchainvectorindex" in first
    assert times_used(database, f"{table}langchainvectorindex") >= 2  # the hits and the answer

    second = runner.run("langchain_pgvector.py", "--documents", fewer)
    assert "Texts embedded: 0" in second
    assert runner.documents_embedded <= 1  # the probe that tells the fingerprint
    assert only(database, f"SELECT count(*) FROM {table}") == rows - 1
    assert BATS in second

    half = run_here("langchain_pgvector.py", "--halfvec", *flags, documents)
    table = found(rf"Index (langchain_half_{FINGERPRINT}):", half)
    assert "Texts embedded: 0" in half  # all were in the cache
    assert only(database, f"SELECT count(*) FROM {table}") == rows
    assert f"Index that a query can use: {table}langchainvectorindex" in half
    assert times_used(database, f"{table}langchainvectorindex") >= 2
    assert BATS in half


# LlamaIndex


def test_the_llamaindex_script_embeds_once_and_its_store_searches_by_index(
    runner: Runner,
    run_here: Callable[..., str],
    database: str,
    documents: Path,
    fewer: Path,
) -> None:
    first = runner.run("llamaindex_pgvector.py", "--documents", documents)
    table = "data_" + found(rf"Index (llamaindex_{FINGERPRINT}):", first)
    rows = only(database, f"SELECT count(*) FROM {table}")
    assert int(found(r"Texts embedded: (\d+)", first)) == rows > len(ids_of(documents))
    assert BATS in first
    assert f"Index that a query can use: {table}_embedding_idx" in first
    assert times_used(database, f"{table}_embedding_idx") >= 2  # the hits and the answer

    leave_rows_of_a_killed_run(database, table)
    second = runner.run("llamaindex_pgvector.py", "--documents", fewer)
    assert "0 new nodes, 1 deleted" in second
    assert "Texts embedded: 0" in second
    assert runner.documents_embedded <= 1  # the probe that tells the fingerprint
    assert only(database, f"SELECT count(*) FROM {table}") == rows - 1
    assert BATS in second

    half = run_here("llamaindex_pgvector.py", "--halfvec", "--documents", documents)
    table = "data_" + found(rf"Index (llamaindex_half_{FINGERPRINT}):", half)
    assert only(database, f"SELECT count(*) FROM {table}") == rows
    assert f"Index that a query can use: {table}_embedding_idx" in half
    assert times_used(database, f"{table}_embedding_idx") >= 2
    assert BATS in half


def leave_rows_of_a_killed_run(uri: str, table: str) -> None:
    """Add rows of a document that no docstore knows."""
    insert = """
        INSERT INTO {table} (text, metadata_, node_id, embedding)
        SELECT text, metadata_ || '{{"ref_doc_id": "unknown"}}', node_id || 'x', embedding
        FROM {table} LIMIT 5
    """
    with psycopg.connect(uri) as connection:
        connection.execute(SQL(insert).format(table=Identifier(table)))


# ParadeDB, as far as a shim goes


def test_the_paradedb_script_embeds_once_and_fuses_both_arms(
    runner: Runner, paradedb: str, documents: Path
) -> None:
    first = runner.run("paradedb_hybrid.py", "--documents", documents)
    count = len(ids_of(documents))
    assert f"Texts embedded: {count}" in first
    assert only(paradedb, "SELECT count(*) FROM passages") == count
    assert times_used(paradedb, "passages_embedding_hnsw") >= 1
    assert "Text index: passages_words (tsvector)" in first  # without pg_search

    documents.write_text("".join(LINES[4::3]))  # the same without the first
    flags = ("--question", "moth echoes", "--show-sql")
    second = runner.run("paradedb_hybrid.py", "--documents", documents, *flags)
    assert "||| %(question)s" in second
    assert "Texts embedded: 0" in second
    assert runner.documents_embedded <= 1
    assert only(paradedb, "SELECT count(*) FROM passages") == count - 1
    # This one alone has the words; each of the others is in one arm only.
    assert found(r"Hit: (.*?),", second) == "animals-02"


def test_the_paradedb_script_says_what_is_missing_in_a_plain_postgresql(
    runner: Runner, database: str, documents: Path
) -> None:
    documents.write_text(LINES[0])
    output = runner.run("paradedb_hybrid.py", "--documents", documents, code=1)
    assert 'schema "pdb" does not exist' in output
    assert "The text backend paradedb needs pg_search" in output
    assert only(database, "SELECT count(*) FROM passages") == 1


def test_every_statement_for_paradedb_runs_but_those_that_make_its_index(paradedb: str) -> None:
    script = (EXAMPLES / "paradedb.sql").read_text()
    vector = [1.0] + [0.0] * 1023
    psql(paradedb, script, {"question": "x", "vector": vector, "subject": "animals"})
    indexes = re.findall(r"ON passages\s+USING (?:bm25|paradedb) \(([^;]*)\)", script)
    assert len(indexes) == 3
    for index in indexes:
        columns = re.sub(r" vector_cosine_ops|\).*", "", index)
        psql(paradedb, f"SELECT {columns} FROM passages", {})


def test_the_vector_arm_of_the_hybrid_query_stops_early_in_the_hnsw_index(paradedb: str) -> None:
    statements = sections((EXAMPLES / "paradedb.sql").read_text())
    with psycopg.connect(paradedb) as connection:
        for statement in (*statements["table"], *statements["hnsw"]):
            connection.execute(statement)
        values = {"question": "x", "vector": str([1.0] + [0.0] * 1023)}
        rows = connection.execute(b"EXPLAIN " + statements["hybrid"][1], values).fetchall()
    steps = [re.sub(r"[( ]*(cost|Window:).*|-> +", "", line).strip() for (line,) in rows]
    steps = [step for step in steps if step]
    end = steps.index("Index Scan using passages_hnsw on passages passages_2")
    assert steps[end - 2 : end] == ["Limit", "WindowAgg"]  # and no Sort


# The loader


def test_the_folder_script_loads_what_is_new_and_answers(runner: Runner, database: str) -> None:
    folder = runner.folder / "notes"
    folder.mkdir()
    for entry in map(json.loads, LINES[1::30]):
        (folder / f"{entry['id']}.txt").write_text(entry["text"])
    (folder / "blank.txt").write_text(" ")
    count = len(LINES[1::30])
    flags = ("notes", "--table", "notes", "--question", LINES_BY_ID[BAT]["question"])

    first = runner.run("load_folder.py", *flags)
    assert f"Documents: {count} written, 0 unchanged" in first
    assert "Skipped: notes/blank.txt: The text is empty or blank." in first
    assert found(r"Hit: (.*?),", first) == f"notes/{BAT}.txt"
    assert only(database, "SELECT count(*) FROM notes") == count

    (folder / f"{BAT}.txt").write_text("Bats sleep upside down.")
    second = runner.run("load_folder.py", *flags)
    assert f"Documents: 1 written, {count - 1} unchanged" in second
    assert "Chunks written: 1" in second


def test_the_folder_script_says_what_is_wrong(runner: Runner, database: str) -> None:
    assert database
    output = runner.run("load_folder.py", "nowhere", code=1)
    assert "Error: `nowhere` is not a file or folder" in output


def test_the_hybrid_script_finds_by_each_way(
    runner: Runner, database: str, documents: Path
) -> None:
    first = runner.run("hybrid_search.py", "--documents", documents)
    assert f"Chunks written: {len(ids_of(documents))}, index: built" in first
    by_words = first.partition("Question: moth echoes")[2]
    assert found(r"text: (\S+)", by_words) == found(r"hybrid: (\S+)", by_words) == BAT
    assert times_used(database, "hybrid_passages_embedding_hnsw") >= 1

    flags = ("--filter", '{"subject": "painting"}', "--question", "light")
    documents.write_text("".join(LINES[4::3]))  # the same without the first
    second = runner.run("hybrid_search.py", "--documents", documents, *flags)
    assert "Chunks written: 0, index: kept" in second
    hits = re.findall(r"(\S+) \(", second)
    assert hits
    assert all(hit.startswith("painting-") for hit in hits)


def test_the_hybrid_script_reranks_what_both_ways_find(
    reranking_runner: Runner, database: str, documents: Path
) -> None:
    assert database
    flags = ("--question", LINES_BY_ID[BAT]["question"], "--rerank")
    output = reranking_runner.run("hybrid_search.py", "--documents", documents, *flags)
    assert len(re.findall(r"\S+ \(rank \d+ before\)", output)) == 3


# The plain client, and curl


def test_the_file_script_embeds_what_is_missing_and_no_more(
    runner: Runner, documents: Path
) -> None:
    output = runner.folder / "vectors.jsonl"
    texts = [json.loads(line)["text"] for line in documents.read_text().splitlines()]
    first = runner.run("embed_texts.py", documents, output)
    assert f"{len(texts)} embedded, 0 already done, 0 failed" in first

    second = runner.run("embed_texts.py", documents, output, "--npy", "vectors.npy")
    assert f"0 embedded, {len(texts)} already done, 0 failed" in second
    assert runner.documents_embedded <= 1
    matrix = np.load(runner.folder / "vectors.npy")
    assert matrix.dtype == np.float32
    assert cosines(matrix, embed(runner.url, texts)).min() >= FLOAT32_COSINE
    ids = (runner.folder / "vectors.ids.txt").read_text().splitlines()
    assert ids == ids_of(output) == ids_of(documents)


def test_the_file_script_goes_on_after_a_torn_line(runner: Runner) -> None:
    lines, output = runner.folder / "lines.txt", runner.folder / "vectors.jsonl"
    lines.write_text("one\ntwo\nthree\n")
    runner.run("embed_texts.py", lines, output)
    whole = output.read_text()
    output.write_text(whole[:-100])
    assert "1 embedded, 2 already done" in runner.run("embed_texts.py", lines, output)
    assert ids_of(output) == ["1", "2", "3"]


def test_the_file_script_names_a_bad_text_and_embeds_the_others(runner: Runner) -> None:
    lines, vectors = runner.folder / "lines.txt", runner.folder / "vectors.jsonl"
    lines.write_text("one\n \nthree\n")
    output = runner.run("embed_texts.py", lines, vectors, code=1)
    assert re.search(r"^2: .* is blank", output, re.MULTILINE)
    assert "2 embedded, 0 already done, 1 failed" in output
    assert ids_of(vectors) == ["1", "3"]


def test_the_file_script_keeps_two_models_out_of_one_file(runner: Runner) -> None:
    lines, output = runner.folder / "lines.txt", runner.folder / "vectors.jsonl"
    lines.write_text("one\n")
    output.write_text('{"id": "9", "fingerprint": "another", "embedding": []}\n')
    assert "of another model" in runner.run("embed_texts.py", lines, output, code=1)


def test_the_curl_script_gives_the_native_vectors_in_order_every_time(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ['say "hi"', "back\\slash", "Bären\u2028and tea", "x", "words"]
    lines = runner.folder / "lines.txt"
    lines.write_text("\n".join(texts))
    monkeypatch.setenv("BATCH", "2")
    for _ in range(2):
        output = runner.run("embed.sh", lines)
        vectors = np.array([json.loads(line) for line in output.splitlines()], dtype=np.float32)
        assert cosines(vectors, embed(runner.url, texts)).min() >= FLOAT32_COSINE


def test_the_curl_script_shows_the_reason_of_a_refusal(runner: Runner) -> None:
    lines = runner.folder / "lines.txt"
    lines.write_text("one\n\nthree\n")
    assert "Text 1 is blank" in runner.run("embed.sh", lines, code=1)


# All of them


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_every_script_explains_itself(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert ended.value.code == 0
    assert f"usage: {script}" in capsys.readouterr().out
