"""Tables are found, checked and created; every obstacle is reported with what to do."""

import re
from typing import LiteralString

import psycopg
import pytest
from langchain_postgres import PGEngine
from llama_index.vector_stores.postgres import PGVectorStore
from psycopg.sql import SQL, Identifier

from qwen3_triton_ingest.database import Connection
from qwen3_triton_ingest.errors import TableError
from qwen3_triton_ingest.layouts import LAYOUTS, LayoutName
from qwen3_triton_ingest.tables.catalog import split_name
from qwen3_triton_ingest.tables.preparation import find_table, prepare_table, version_warning

LAYOUT_NAMES: tuple[LayoutName, ...] = ("own", "langchain", "llamaindex")
EVERY_RIGHT = ("SELECT", "INSERT", "UPDATE", "DELETE")


@pytest.fixture(name="connection")
def _connection(database_url: str):
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def columns(connection: Connection, table: str) -> list[tuple[object, ...]]:
    query = """
        SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
            regexp_replace(pg_get_expr(d.adbin, d.adrelid), 'data_\\w+_id_seq', 'sequence')
        FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = %s::regclass AND a.attnum > 0 ORDER BY a.attnum"""
    return connection.execute(query, [table]).fetchall()


def indexes(connection: Connection, table: str) -> set[str]:
    query = "SELECT indexdef FROM pg_indexes WHERE tablename = %s"
    found = connection.execute(query, [table]).fetchall()
    return {row[0].replace(table.removeprefix("data_"), "NAME") for row in found}


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_a_missing_table_is_created_once_and_recognized_by_its_columns(
    connection: Connection, layout: LayoutName
):
    made = prepare_table(connection, "chunks", layout, 1024)
    assert made.layout == LAYOUTS[layout]
    assert (made.dimensions, made.vector_type, made.schema) == (1024, "vector", "public")
    assert made.name == f"{made.layout.table_prefix}chunks"
    assert prepare_table(connection, "chunks", layout, 1024) == made
    assert find_table(connection, "chunks") == made


@pytest.mark.parametrize("name", ["chunks", "public.chunks"])
def test_everything_is_rolled_back_with_the_callers_transaction(database_url: str, name: str):
    with psycopg.connect(database_url) as connection:
        prepare_table(connection, name, "own", 8)
        connection.rollback()
        with pytest.raises(TableError, match="pgvector is not enabled in the database"):
            find_table(connection, "chunks")


def test_the_table_equals_the_one_that_langchain_creates(connection: Connection, database_url: str):
    prepare_table(connection, "ours", "langchain", 1024)
    engine = PGEngine.from_connection_string(sqlalchemy_url(database_url, "asyncpg"))
    engine.init_vectorstore_table("theirs", 1024)
    engine._run_as_sync(engine.close())
    assert columns(connection, "ours") == columns(connection, "theirs")
    assert indexes(connection, "ours") == indexes(connection, "theirs")
    assert find_table(connection, "theirs").metadata_type == "json"


@pytest.mark.parametrize("jsonb", [True, False])
def test_the_table_equals_the_one_that_llamaindex_creates_except_for_the_unique_index(
    connection: Connection, database_url: str, jsonb: bool
):
    prepare_table(connection, "Ours", "llamaindex", 1024)
    store = llamaindex_store(database_url, "theirs", use_jsonb=jsonb)
    store._initialize()
    store._engine.dispose()
    ours, theirs = columns(connection, "data_ours"), columns(connection, "data_theirs")
    assert [column for column in ours if column[0] != "metadata_" or jsonb] == [
        column for column in theirs if column[0] != "metadata_" or jsonb
    ]
    additional = indexes(connection, "data_ours") - indexes(connection, "data_theirs")
    assert [re.sub(r"\s+", " ", each) for each in additional] == [
        "CREATE UNIQUE INDEX data_NAME_node_id_key ON public.data_NAME USING btree (node_id)"
    ]
    adopted = prepare_table(connection, "theirs", "llamaindex", 1024)
    assert adopted.metadata_type == ("jsonb" if jsonb else "json")
    assert indexes(connection, "data_ours") == indexes(connection, "data_theirs")


def test_duplicate_nodes_are_refused_with_the_sql_that_keeps_the_newest(connection: Connection):
    prepare_table(connection, "docs", "llamaindex", 2)
    connection.execute("DROP INDEX data_docs_node_id_key")
    connection.execute(
        "INSERT INTO data_docs (text, node_id, embedding) VALUES "
        "('old', 'a', '[1,0]'), ('new', 'a', '[1,0]'), ('other', 'b', '[1,0]')"
    )
    with pytest.raises(TableError, match="Several rows") as caught:
        prepare_table(connection, "docs", "llamaindex", 2)
    cure = str(caught.value).partition("with: ")[2]
    connection.execute(cure.encode())
    prepare_table(connection, "docs", "llamaindex", 2)
    left = connection.execute("SELECT text FROM data_docs ORDER BY text").fetchall()
    assert left == [("new",), ("other",)]


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_other_dimensions_are_refused_with_what_to_do(connection: Connection, layout: LayoutName):
    prepare_table(connection, "chunks", layout, 768)
    with pytest.raises(TableError) as caught:
        prepare_table(connection, "chunks", layout, 1024)
    for part in ("1024", "vectors of 768", "--table", "--dimensions 768", "--reembed"):
        assert part in str(caught.value)
    assert find_table(connection, "chunks", layout).dimensions == 768


@pytest.mark.parametrize("dimensions", [0, -1, 16_001])
def test_dimensions_that_no_column_has_are_refused(connection: Connection, dimensions: int):
    with pytest.raises(TableError, match="it must be from 1 to 16000"):
        prepare_table(connection, "chunks", "own", dimensions)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("ALTER TABLE chunks DROP COLUMN doc_id", "it has no column doc_id"),
        ("ALTER TABLE chunks DROP COLUMN embedding, DROP seq", "no column embedding, seq"),
        (
            "ALTER TABLE chunks ALTER COLUMN embedding TYPE real[]",
            "embedding is _float4 instead of vector or halfvec",
        ),
        ("ALTER TABLE chunks ALTER COLUMN seq TYPE bigint", "seq is int8 instead of int4"),
        ("ALTER TABLE chunks ALTER COLUMN embedding TYPE vector", "vectors of any length"),
        ("ALTER TABLE chunks ADD COLUMN tenant text NOT NULL", "requires values for tenant"),
    ],
)
def test_a_table_of_another_shape_is_refused(connection: Connection, change: str, message: str):
    prepare_table(connection, "chunks", "own", 1024)
    connection.execute(change.encode())
    with pytest.raises(TableError, match=re.escape(message)):
        prepare_table(connection, "chunks", "own", 1024)


def test_additional_columns_that_need_no_value_are_ignored(connection: Connection):
    table = prepare_table(connection, "chunks", "own", 1024)
    connection.execute(
        "ALTER TABLE chunks ADD COLUMN at timestamptz NOT NULL DEFAULT now(), ADD note text, "
        "ADD words tsvector GENERATED ALWAYS AS (to_tsvector('simple', content)) STORED"
    )
    assert prepare_table(connection, "chunks", "own", 1024) == table


@pytest.mark.parametrize(
    ("created", "reason"),
    [
        ("TABLE t (id integer, content text)", r"columns of no known layout \(own lacks metadata"),
        ("VIEW t AS SELECT * FROM chunks", "t is not a table"),
    ],
    ids=["columns", "view"],
)
def test_what_is_no_table_of_a_known_layout_is_refused(
    connection: Connection, created: LiteralString, reason: str
):
    prepare_table(connection, "chunks", "own", 8)
    connection.execute("CREATE " + created)
    with pytest.raises(TableError, match=reason):
        find_table(connection, "t")


def test_a_missing_table_is_reported_with_all_names_that_were_tried(connection: Connection):
    prepare_table(connection, "other", "own", 8)
    with pytest.raises(TableError, match=r"no table public\.docs or public\.data_docs"):
        find_table(connection, "docs")
    with pytest.raises(TableError, match=r"no table public\.data_other\."):
        find_table(connection, "other", "llamaindex")


def test_half_precision_and_langchains_metadata_columns_are_detected(connection: Connection):
    connection.execute("CREATE EXTENSION vector")
    connection.execute(
        "CREATE TABLE docs (langchain_id text PRIMARY KEY, content text NOT NULL, "
        "embedding halfvec(64) NOT NULL, content_tsv tsvector NOT NULL, lang text, "
        "pages integer[], langchain_metadata jsonb)"
    )
    table = prepare_table(connection, "docs", "langchain", 64)
    assert (table.vector_type, table.layout.id_type) == ("halfvec", "text")
    assert (table.metadata_type, table.metadata_columns) == ("jsonb", ("lang", "pages"))
    assert table.tsv_column == "content_tsv"


def test_without_a_unique_id_a_langchain_table_gets_the_index(connection: Connection):
    connection.execute("CREATE EXTENSION vector")
    connection.execute(
        "CREATE TABLE docs (langchain_id uuid, content text, embedding vector(8), "
        "langchain_metadata json)"
    )
    prepare_table(connection, "docs", "langchain", 8)
    assert any("UNIQUE" in index for index in indexes(connection, "docs"))


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_missing_rights_are_reported_with_the_grants_that_fix_them(
    connection: Connection, user: str, layout: LayoutName
):
    connection.execute('CREATE SCHEMA "my docs"')
    table = prepare_table(connection, '"my docs".chunks', layout, 8)
    connection.execute(SQL("GRANT SELECT ON {} TO {}").format(table.identifier, Identifier(user)))
    connection.execute(SQL("SET ROLE {}").format(Identifier(user)))
    with pytest.raises(TableError, match="may not use") as caught:
        prepare_table(connection, '"my docs".chunks', layout, 8)
    message = str(caught.value)
    assert repr(user) in message
    assert "INSERT, UPDATE, DELETE" in message
    assert "SELECT" not in message
    connection.execute("RESET ROLE")
    connection.execute(message.partition("can run: ")[2].encode())
    connection.execute(SQL("SET ROLE {}").format(Identifier(user)))
    assert prepare_table(connection, '"my docs".chunks', layout, 8) == table


def test_a_reader_needs_no_right_to_write(connection: Connection, user: str):
    table = prepare_table(connection, "chunks", "own", 8)
    connection.execute(SQL("GRANT SELECT ON chunks TO {}").format(Identifier(user)))
    connection.execute(SQL("SET ROLE {}").format(Identifier(user)))
    assert find_table(connection, "chunks") == table
    with pytest.raises(TableError, match="GRANT INSERT, UPDATE, DELETE ON"):
        find_table(connection, "chunks", rights=EVERY_RIGHT)


def test_a_user_without_rights_is_told_what_a_superuser_must_run(connection: Connection, user: str):
    connection.execute(SQL("SET ROLE {}").format(Identifier(user)))
    with pytest.raises(TableError, match="A superuser must run there: CREATE EXTENSION vector;"):
        prepare_table(connection, "chunks", "own", 8)
    connection.execute("RESET ROLE")
    connection.execute("CREATE EXTENSION vector")
    connection.execute(SQL("SET ROLE {}").format(Identifier(user)))
    with pytest.raises(TableError, match='GRANT USAGE, CREATE ON SCHEMA "public" TO') as caught:
        prepare_table(connection, "chunks", "own", 8)
    connection.execute("RESET ROLE")
    connection.execute(str(caught.value).partition("can run: ")[2].encode())
    connection.execute(SQL("SET ROLE {}").format(Identifier(user)))
    assert prepare_table(connection, "chunks", "own", 8).name == "chunks"


def test_a_user_who_does_not_own_a_llamaindex_table_is_told_what_the_owner_must_run(
    connection: Connection, user: str
):
    prepare_table(connection, "docs", "llamaindex", 8)
    connection.execute("DROP INDEX data_docs_node_id_key")
    role = Identifier(user)
    connection.execute(SQL("GRANT ALL ON data_docs, data_docs_id_seq TO {}").format(role))
    connection.execute(SQL("SET ROLE {}").format(role))
    with pytest.raises(TableError, match="Its owner must run: CREATE UNIQUE INDEX"):
        prepare_table(connection, "docs", "llamaindex", 8)


def test_a_missing_schema_is_named(connection: Connection):
    with pytest.raises(TableError, match='Run CREATE SCHEMA "away";'):
        prepare_table(connection, "away.chunks", "own", 8)
    connection.execute("SET search_path = nowhere")
    connection.execute("CREATE SCHEMA extensions")
    with pytest.raises(TableError, match=r"Write SCHEMA\.chunks"):
        prepare_table(connection, "chunks", "own", 8)


def test_pgvector_may_be_in_a_schema_off_the_search_path(connection: Connection):
    connection.execute("CREATE SCHEMA extensions")
    connection.execute("CREATE EXTENSION vector SCHEMA extensions")
    assert prepare_table(connection, "chunks", "own", 8).vector_schema == "extensions"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("chunks", (None, "chunks")),
        ("docs.chunks", ("docs", "chunks")),
        ('"docs.v2".chunks', ("docs.v2", "chunks")),
        ('"say ""hi"""', (None, 'say "hi"')),
    ],
)
def test_names_are_parsed_as_in_sql(name: str, parts: tuple[str | None, str]):
    assert split_name(name) == parts


@pytest.mark.parametrize("name", ["", "a.b.c", ".a", "a.", '"a', "x" * 64, "a\0b"])
def test_names_that_cannot_be_parsed_are_refused(name: str):
    with pytest.raises(TableError, match="`table` is"):
        split_name(name)


def test_a_name_too_long_for_llamaindex_is_refused(connection: Connection):
    with pytest.raises(TableError, match="too long"):
        prepare_table(connection, "x" * 60, "llamaindex", 8)


@pytest.mark.parametrize(
    ("version", "refused", "warned"),
    [
        ("0.7.4", True, True),
        ("0.8.0", False, True),
        ("0.8.3", False, True),
        ("0.8.4", False, False),
        ("0.10.0", False, False),
        ("1.0", False, False),
    ],
)
def test_old_versions_of_pgvector_are_refused_or_cause_a_warning(
    connection: Connection, version: str, refused: bool, warned: bool
):
    prepare_table(connection, "chunks", "own", 8)
    connection.execute(
        "UPDATE pg_extension SET extversion = %s WHERE extname = 'vector'", [version]
    )
    assert (version_warning(connection) is not None) == warned
    if refused:
        with pytest.raises(TableError, match=f"pgvector is {version}; at least 0.8.0"):
            find_table(connection, "chunks")
    else:
        find_table(connection, "chunks")


_OWN = (
    "(id uuid PRIMARY KEY, doc_id text NOT NULL, seq int NOT NULL, content text NOT NULL, "
    "metadata jsonb NOT NULL, embedding vector(8) NOT NULL)"
)


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        (
            _OWN.replace("content text NOT NULL", "content text GENERATED ALWAYS AS ('') STORED"),
            "computes content itself",
        ),
        (f"{_OWN} PARTITION BY RANGE (id)", "no partitions that could hold rows"),
        (
            _OWN.replace("vector(8)", "vector"),
            r'ALTER TABLE "public"."My chunks" ALTER COLUMN embedding TYPE vector',
        ),
    ],
)
def test_a_table_that_takes_no_rows_is_refused_before_it_is_filled(
    connection: Connection, definition: str, message: str
):
    connection.execute("CREATE EXTENSION vector")
    connection.execute(f'CREATE TABLE "My chunks" {definition}'.encode())
    with pytest.raises(TableError, match=message):
        prepare_table(connection, "My chunks", "own", 8)


def test_a_user_without_rights_on_pgvectors_schema_gets_the_grant(
    connection: Connection, user: str
):
    connection.execute(
        "CREATE SCHEMA extensions; CREATE EXTENSION vector SCHEMA extensions; "
        f"GRANT CREATE ON SCHEMA public TO {user}; SET ROLE {user}".encode()
    )
    message = f'may not use pgvector.*: GRANT USAGE ON SCHEMA "extensions" TO "{user}";'
    with pytest.raises(TableError, match=message):
        prepare_table(connection, "chunks", "own", 8)


def test_a_user_to_whom_row_level_security_applies_is_refused(connection: Connection, user: str):
    prepare_table(connection, "chunks", "own", 8)
    connection.execute(
        f"GRANT ALL ON chunks TO {user}; ALTER TABLE chunks ENABLE ROW LEVEL SECURITY".encode()
    )
    prepare_table(connection, "chunks", "own", 8)
    connection.execute(f"SET ROLE {user}".encode())
    with pytest.raises(TableError, match=r"Row-level security applies.*BYPASSRLS"):
        prepare_table(connection, "chunks", "own", 8)
    assert find_table(connection, "chunks").name == "chunks", "a reader may use it"
    connection.execute("RESET ROLE")


@pytest.fixture(name="user")
def _user(connection: Connection):
    """A user without rights; roles belong to the server, so the name is the database's."""
    name = f"user_{connection.info.dbname}"
    role = Identifier(name)
    connection.execute(SQL("CREATE ROLE {}").format(role))
    yield name
    connection.execute("RESET ROLE")
    connection.execute(SQL("DROP OWNED BY {}").format(role))
    connection.execute(SQL("DROP ROLE {}").format(role))


def sqlalchemy_url(database_url: str, driver: str) -> str:
    return database_url.replace("postgresql://", f"postgresql+{driver}://")


def llamaindex_store(database_url: str, name: str, **options: object) -> PGVectorStore:
    return PGVectorStore.from_params(
        connection_string=sqlalchemy_url(database_url, "psycopg2"),
        async_connection_string=sqlalchemy_url(database_url, "asyncpg"),
        table_name=name,
        embed_dim=1024,
        **options,  # pyright: ignore[reportArgumentType]
    )
