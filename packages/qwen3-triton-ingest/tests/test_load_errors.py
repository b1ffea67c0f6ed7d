"""Every error message says what to do, and the rest of the corpus is loaded."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier, Literal

from gateway_process import GatewayProcess, running_gateway
from ingest_corpus import SENTENCES
from ingest_loading import Loading, notes, quick_loading
from qwen3_triton_client import EmbeddingError
from qwen3_triton_ingest import embedding
from qwen3_triton_ingest.cli import main
from qwen3_triton_ingest.config import GatewayOptions, IndexOptions, ReadOptions, SplitOptions
from qwen3_triton_ingest.errors import DatabaseError, IngestError, SourceError, TableError
from qwen3_triton_ingest.status import status
from qwen3_triton_tools.local_triton.process import free_ports

GOOD = notes(5)


@pytest.fixture(name="loading")
def _loading(database_url: str, in_process_gateway: GatewayProcess) -> Loading:
    return quick_loading(database_url, in_process_gateway)


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    """A folder with one good file."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = "".join(json.dumps(record) + "\n" for record in GOOD)
    (folder / "good.jsonl").write_text(lines, encoding="utf-8")
    return folder


def assert_rest_is_loaded(loading: Loading) -> None:
    assert {record["id"] for record in GOOD} <= set(loading.doc_ids())


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.txt", b"", "empty"),
        ("empty.jsonl", b"", "empty"),
        ("empty.csv", b"", "empty"),
        ("empty.parquet", b"", "Parquet"),
        ("empty.pdf", b"", "empty"),
        ("binary.txt", bytes(range(256)) * 40, "binary"),
        ("binary.jsonl", bytes(range(256)) * 40, "binary"),
        ("binary.md", bytes(range(256)) * 40, "binary"),
        ("broken.pdf", b"%PDF-1.4\nnothing", "PDF"),
        ("broken.parquet", b"PAR1nothing", "Parquet"),
        ("unclear.txt", b"K\x81che", "--encoding"),
        ("wide.md", "A text".encode("utf-16") + b"\0", "binary"),
        ("nul.txt", b"A text\0and more", "NUL"),
        ("blank.txt", b"  \n \t \n", "no text|blank|empty"),
    ],
)
def test_an_unreadable_file_is_reported(
    loading: Loading, folder: Path, name: str, content: bytes, reason: str
) -> None:
    (folder / name).write_bytes(content)
    report = loading(folder)
    assert_rest_is_loaded(loading)
    assert report.counts.failed == 1
    (letter,) = loading.letters()
    assert letter.origin.path.endswith(name)
    assert re.search(reason, letter.reason), letter.reason


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"id": "bad", "text": "cut', "not JSON"),
        (b'["a", "b"]', "one object per line"),
        (b'{"id": "bad", "text": "K\x81che"}', "--encoding"),
        (b'{"id": "bad", "body": "other name"}', "--text-column"),
        (b'{"id": "bad", "text": null}', "--text-column"),
        (b'{"id": "bad", "text": "a\\u0000b"}', "--replace-nul"),
        (b'{"id": "b\\u0000d", "text": "a"}', "--replace-nul"),
        (b'{"id": "bad", "text": "a", "note": "x\\u0000"}', "--replace-nul"),
        (b'{"id": "bad", "text": "   "}', "text"),
    ],
)
def test_a_bad_record_is_reported(loading: Loading, folder: Path, line: bytes, reason: str) -> None:
    path = folder / "good.jsonl"
    first, rest = path.read_bytes().split(b"\n", 1)
    path.write_bytes(b"\n".join([first, line, rest]))
    report = loading(folder)
    assert_rest_is_loaded(loading)
    assert report.counts.failed == 1
    (letter,) = loading.letters()
    assert reason in letter.reason
    assert str(letter.origin).startswith(f"{path}:")


def test_nul_characters_are_replaced_on_request(loading: Loading, folder: Path) -> None:
    (folder / "nul.jsonl").write_text('{"id": "nul", "text": "a\\u0000b", "n": "\\u0000"}\n')
    report = loading(folder, read=ReadOptions(replace_nul=True))
    assert report.counts.failed == 0
    with psycopg.connect(loading.dsn) as connection:
        row = connection.execute(
            "SELECT content, metadata->>'n' FROM chunks WHERE doc_id = 'nul'"
        ).fetchone()
    assert row == ("a\N{REPLACEMENT CHARACTER}b", "\N{REPLACEMENT CHARACTER}")


def test_a_huge_line_is_reported(loading: Loading, folder: Path) -> None:
    with (folder / "huge.jsonl").open("wb") as file:
        file.write(b'{"id": "huge", "text": "')
        file.write(b"a" * 8192)  # no NUL in the part that is checked
        file.truncate(200 << 20)  # sparse
    report = loading(folder)
    assert_rest_is_loaded(loading)
    assert report.counts.failed >= 1
    assert any("max_document_bytes" in letter.reason for letter in loading.letters())


@pytest.mark.parametrize(
    "megabytes", [pytest.param(1), pytest.param(10, marks=pytest.mark.campaign)]
)
def test_a_large_document_is_loaded(loading: Loading, folder: Path, megabytes: int) -> None:
    text = "\n\n".join(" ".join(SENTENCES[n % 900 : n % 900 + 4]) for n in range(megabytes * 3_000))
    text = text[: megabytes << 20]
    assert len(text.encode()) >= megabytes << 20
    (folder / "big.txt").write_text(text, encoding="utf-8")
    # Large chunks, most of which the model truncates: this tests the loader, not the model.
    with running_gateway("--max-length", "32") as gateway:
        report = loading(
            folder,
            split=SplitOptions(chunk_tokens=20_000, overlap_tokens=0),
            gateway=GatewayOptions(url=gateway.url, truncate=True),
        )
    assert report.counts.failed == 0, loading.letters()
    assert_rest_is_loaded(loading)
    (row,) = loading.query("SELECT sum(length(content)) FROM chunks WHERE doc_id LIKE '%big.txt'")
    assert row[0] > 0.99 * len(text)


def test_a_hundred_thousand_metadata_keys_are_reported(loading: Loading, folder: Path) -> None:
    record = {"id": "wide", "text": "Short."} | {f"key {n}": n for n in range(100_000)}
    (folder / "wide.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    report = loading(folder)
    assert_rest_is_loaded(loading)
    assert report.counts.failed == 1
    (letter,) = loading.letters()
    assert letter.doc_id == "wide"
    assert "metadata" in letter.reason
    assert len(letter.reason) < 1000
    read = ReadOptions(max_metadata_bytes=8 << 20)
    assert loading(folder, read=read).counts.failed == 0
    assert "wide" in loading.doc_ids()


def test_a_column_of_other_dimensions_is_an_error(loading: Loading, folder: Path) -> None:
    with psycopg.connect(loading.dsn) as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute(
            "CREATE TABLE chunks (id uuid PRIMARY KEY, doc_id text NOT NULL, seq int NOT NULL, "
            "content text NOT NULL, metadata jsonb NOT NULL, embedding vector(768) NOT NULL)"
        )
    with pytest.raises(TableError, match=r"1024.*768.*--table") as raised:
        loading(folder)
    assert "--dimensions 768" in str(raised.value)


@pytest.fixture(name="weak_dsn")
def _weak_dsn(database_url: str, postgres_uri: str) -> Generator[str]:
    """The same database for a role that owns nothing."""
    name, password = f"weak_{secrets.token_hex(4)}", secrets.token_hex(8)
    with psycopg.connect(postgres_uri, autocommit=True) as admin:
        admin.execute(
            SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(Identifier(name), Literal(password))
        )
        parts = urlsplit(database_url)
        yield urlunsplit(parts._replace(netloc=f"{name}:{password}@{parts.netloc.split('@')[1]}"))
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(SQL("DROP OWNED BY {}").format(Identifier(name)))
        admin.execute(SQL("DROP ROLE {}").format(Identifier(name)))


def test_a_role_that_may_create_nothing_gets_the_grants_to_run(
    loading: Loading, folder: Path, weak_dsn: str
) -> None:
    with pytest.raises(TableError) as raised:
        loading(folder, dsn=weak_dsn)
    assert "vector" in str(raised.value), "pgvector comes first"
    with psycopg.connect(loading.dsn) as connection:
        connection.execute("CREATE EXTENSION vector")
    with pytest.raises(TableError, match="GRANT"):
        loading(folder, dsn=weak_dsn)


def test_a_role_that_may_not_use_the_table_is_an_error(
    loading: Loading, folder: Path, weak_dsn: str
) -> None:
    loading(folder)
    with pytest.raises(TableError, match="GRANT"):
        loading(folder, dsn=weak_dsn)


def test_a_role_that_may_not_create_the_ledger_is_an_error(
    loading: Loading, folder: Path, weak_dsn: str
) -> None:
    role = conninfo_to_dict(weak_dsn)["user"]
    with psycopg.connect(loading.dsn) as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute(SQL("GRANT CREATE ON SCHEMA public TO {}").format(Identifier(str(role))))
    with pytest.raises(TableError, match=r"qwen3_ingest.*GRANT CREATE ON DATABASE"):
        loading(folder, dsn=weak_dsn)


def test_a_role_that_may_not_use_the_ledger_is_an_error(
    loading: Loading, folder: Path, weak_dsn: str
) -> None:
    loading(folder)
    role = conninfo_to_dict(weak_dsn)["user"]
    with psycopg.connect(loading.dsn) as connection:
        connection.execute(SQL("GRANT ALL ON chunks TO {}").format(Identifier(str(role))))
    message = r"GRANT USAGE ON SCHEMA \"qwen3_ingest\" TO .*; GRANT SELECT, INSERT, UPDATE"
    with pytest.raises(TableError, match=message):
        loading(folder, dsn=weak_dsn)
    with pytest.raises(TableError, match=r"GRANT SELECT ON \"qwen3_ingest\".\"runs\" TO"):
        status(weak_dsn, "chunks")


def test_a_role_with_its_grants_can_load(loading: Loading, folder: Path, weak_dsn: str) -> None:
    role = Identifier(str(conninfo_to_dict(weak_dsn)["user"]))
    with psycopg.connect(loading.dsn) as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute(SQL("GRANT CREATE ON SCHEMA public TO {}").format(role))
        database = Identifier(connection.info.dbname)
        connection.execute(SQL("GRANT CREATE ON DATABASE {} TO {}").format(database, role))
    assert loading(folder, dsn=weak_dsn).counts.documents == len(GOOD)


def test_a_right_on_the_ledger_that_is_missing_is_named_before_anything_is_embedded(
    loading: Loading, folder: Path, weak_dsn: str
) -> None:
    loading(folder)
    role = str(conninfo_to_dict(weak_dsn)["user"])
    loading.execute(
        f"GRANT ALL ON chunks TO {role}; GRANT USAGE ON SCHEMA qwen3_ingest TO {role}; "
        f"GRANT ALL ON ALL TABLES IN SCHEMA qwen3_ingest TO {role}; "
        f"REVOKE INSERT, UPDATE ON qwen3_ingest.documents FROM {role}"
    )
    (folder / "new.txt").write_text("A new document.")
    texts = loading.texts()
    with pytest.raises(TableError, match=r"GRANT INSERT, UPDATE ON .*documents.* TO"):
        loading(folder, dsn=weak_dsn)
    assert loading.texts() - texts <= 1  # the probe for the embedding space
    loading.execute(f"GRANT INSERT, UPDATE ON qwen3_ingest.documents TO {role}")
    with pytest.raises(TableError, match=r"only its owner .*--index none"):
        loading(folder, dsn=weak_dsn, index=IndexOptions())
    assert loading(folder, dsn=weak_dsn).counts.documents == 1, "without an index"
    loading(folder, index=IndexOptions())
    loading.execute(f"REVOKE CREATE ON SCHEMA public FROM {role}")
    (folder / "newer.txt").write_text("A newer document.")
    report = loading(folder, dsn=weak_dsn, index=IndexOptions())
    assert (report.counts.documents, report.index) == (1, "kept")


def test_a_database_that_allows_no_changes_is_an_error(loading: Loading, folder: Path) -> None:
    separator = "&" if "?" in loading.dsn else "?"
    read_only = f"{loading.dsn}{separator}options=-cdefault_transaction_read_only%3Don"
    with pytest.raises(TableError, match=r"allows no changes.*not to a standby"):
        loading(folder, dsn=read_only)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (IndexOptions(text_search_config="englsh"), r"no text search configuration 'englsh'.*, en"),
        (IndexOptions(text_search_config="nix.x"), r"no text search configuration 'nix.x'"),
        (IndexOptions(text="paradedb"), "needs the extension pg_search"),
        (IndexOptions(maintenance_work_mem="2 pounds"), "`maintenance_work_mem` is '2 pounds'"),
        (IndexOptions(maintenance_work_mem="1kB"), "`maintenance_work_mem` is '1kB'"),
        (IndexOptions(m=300), "`m` is 300"),
        (IndexOptions(parallel_workers=9999), "`parallel_workers` is 9999"),
    ],
)
def test_an_index_that_cannot_be_built_is_an_error_before_anything_is_embedded(
    loading: Loading, folder: Path, index: IndexOptions, message: str
) -> None:
    texts = loading.texts()
    with pytest.raises((TableError, ValueError), match=message):
        loading(folder, index=index)
    assert loading.texts() - texts <= 1
    assert loading.query("SELECT FROM pg_class WHERE relname = 'chunks'") == []


@pytest.mark.parametrize(
    ("chunk_tokens", "instruction", "most"), [(65, None, 64), (64, "Find the twin", None)]
)
def test_chunks_longer_than_the_gateway_takes_are_an_error_at_once(
    loading: Loading, folder: Path, chunk_tokens: int, instruction: str | None, most: int | None
) -> None:
    with running_gateway("--max-length", "64") as gateway:
        options = GatewayOptions(url=gateway.url, instruction=instruction)
        split = SplitOptions(chunk_tokens=chunk_tokens, overlap_tokens=0)
        message = rf"`--chunk-tokens` is {chunk_tokens}, .* takes 64 tokens.* at most {most or ''}"
        with pytest.raises(IngestError, match=message):
            loading(folder, gateway=options, split=split)
        assert loading(folder, gateway=replace(options, truncate=True), split=split)


def test_an_unavailable_server_is_an_error_after_a_while(loading: Loading, folder: Path) -> None:
    port = free_ports(1)[0]
    with pytest.raises(DatabaseError, match="unavailable for") as raised:
        loading(folder, dsn=f"postgresql://me:geheim@127.0.0.1:{port}/db", retry_seconds=1)
    assert "run the same command again" in str(raised.value)
    assert "geheim" not in str(raised.value)


def test_a_wrong_password_is_not_shown(loading: Loading, folder: Path) -> None:
    parts = urlsplit(loading.dsn)
    place = parts.netloc.split("@")[1]
    wrong = urlunsplit(parts._replace(netloc=f"postgres:geheim@{place}"))
    with pytest.raises(DatabaseError, match="password") as raised:
        loading(folder, dsn=wrong, retry_seconds=3600)  # it does not become right by waiting
    assert "geheim" not in _all_messages(raised.value)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://me:geheim@[nonsense",
        "geheim",
        "host=localhost pasword=geheim",
        "mysql://me:geheim@localhost/db",
    ],
)
def test_a_malformed_dsn_is_an_error_without_the_password(
    loading: Loading, folder: Path, dsn: str
) -> None:
    with pytest.raises(DatabaseError, match="postgresql://user:password@host") as raised:
        loading(folder, dsn=dsn)
    assert "geheim" not in _all_messages(raised.value)


def _all_messages(error: BaseException | None) -> str:
    """Return what a traceback would print."""
    messages: list[str] = []
    while error is not None:
        messages.append(str(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(messages)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("sslmode=require", "does not support SSL"),
        ("sslmode=nonsense", 'invalid sslmode value: "nonsense"'),
        ("require_auth=md5", 'requirement "md5" failed'),
        ("channel_binding=require", "channel binding required"),
        ("password=", "no password supplied"),
    ],
)
def test_what_no_retry_of_a_connection_can_change_is_an_error_at_once(
    loading: Loading, folder: Path, parameters: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGPASSWORD", raising=False)
    with pytest.raises(DatabaseError, match=f"refused the connection: .*{message}"):
        loading(folder, dsn=f"{loading.dsn}?{parameters}", retry_seconds=3600)


def test_a_missing_database_is_an_error(loading: Loading, folder: Path) -> None:
    dsn = loading.dsn.rpartition("/")[0] + "/nowhere"
    with pytest.raises(DatabaseError, match="nowhere"):
        loading(folder, dsn=dsn)


@pytest.mark.parametrize(
    "retries", [1, pytest.param(embedding.DEFAULT_MAX_RETRIES, marks=pytest.mark.campaign)]
)
def test_an_unavailable_gateway_is_an_error_with_its_address(
    loading: Loading, folder: Path, monkeypatch: pytest.MonkeyPatch, retries: int
) -> None:
    monkeypatch.setattr(embedding, "DEFAULT_MAX_RETRIES", retries)
    port = free_ports(1)[0]
    with pytest.raises(EmbeddingError, match=str(port)):
        loading(folder, gateway=GatewayOptions(url=f"http://127.0.0.1:{port}"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "`nowhere` is not a file or folder"),
        ("nowhere/*.jsonl", "no file of a known format"),
        ("corpus/strange.xyz", "--format"),
        ("void", "no file of a known format"),
    ],
)
def test_a_source_without_readable_files_is_an_error(
    loading: Loading,
    folder: Path,
    source: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder.parent)
    (folder / "strange.xyz").write_text("text")
    (folder.parent / "void").mkdir()
    with pytest.raises(SourceError, match=message):
        loading(source)


def test_a_failing_query_is_an_error(loading: Loading) -> None:
    read = ReadOptions(query="SELECT * FROM nowhere")
    with pytest.raises(SourceError, match="nowhere"):
        loading(loading.dsn, read=read)


def test_a_malformed_table_name_is_an_error(loading: Loading, folder: Path) -> None:
    with psycopg.connect(loading.dsn) as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute("CREATE TABLE chunks (a int)")
    with pytest.raises(TableError, match="chunks"):
        loading(folder)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--gateway-url", "ftp://x"), "`base_url` must look like"),
        (("--label", "lang"), "must look like KEY=VALUE"),
        (("--workers", "0"), "not in the range"),
        (("--max-vanished", "nan"), "nan is not a finite number"),
        (("--max-document-mib", "inf"), "inf is not a finite number"),
        (("--retry-seconds", "nan"), "nan is not a finite number"),
    ],
)
def test_an_option_out_of_range_is_bad_usage(flags: tuple[str, ...], message: str) -> None:
    arguments = ["load", "a.jsonl", "--dsn", "postgresql://nobody@127.0.0.1:1/x", "--table", "t"]
    result = CliRunner().invoke(main, [*arguments, *flags])
    assert result.exit_code == 2
    assert message in result.output
