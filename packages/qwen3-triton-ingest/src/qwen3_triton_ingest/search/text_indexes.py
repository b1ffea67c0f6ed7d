"""Text indexes: which ones a table has, and how they are created and dropped."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import psycopg
from psycopg import sql

from ..config import IndexOptions
from ..database import Connection, explain
from ..errors import TableError
from ..layouts import Table, fit_name

TextBackend: TypeAlias = Literal["tsvector", "paradedb"]
TextBackendChoice: TypeAlias = TextBackend | Literal["auto"]

BACKENDS: tuple[TextBackendChoice, ...] = ("auto", *get_args(TextBackend))
AUTO_CONFIG = IndexOptions().text_search_config
PARADEDB_EXTENSION = "pg_search"
# Stemmers of ParadeDB with the same name as a text search configuration of PostgreSQL.
PARADEDB_STEMMERS = {
    *("arabic", "danish", "dutch", "english", "finnish", "french", "german", "greek"),
    *("hungarian", "italian", "norwegian", "portuguese", "romanian", "russian", "spanish"),
    *("swedish", "tamil", "turkish"),
}
_RENAMED, _KEYLESS = (0, 25), (0, 26)  # releases of pg_search that changed the statement

_FIND = """
SELECT c.relname::text, a.amname::text, coalesce(c.reloptions, '{}'),
    ARRAY(SELECT pg_get_indexdef(i.indexrelid, n, true) FROM generate_series(1, i.indnatts) n)
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_am a ON a.oid = c.relam
JOIN pg_class t ON t.oid = i.indrelid
JOIN pg_namespace s ON s.oid = t.relnamespace
LEFT JOIN pg_depend d
    ON d.classid = 'pg_am'::regclass AND d.objid = a.oid AND d.deptype = 'e'
LEFT JOIN pg_extension e ON e.oid = d.refobjid
WHERE s.nspname = %s AND t.relname = %s AND i.indisvalid AND i.indpred IS NULL
    AND (a.amname = 'gin' OR e.extname = 'pg_search')
ORDER BY c.oid"""
# Columns of type tsvector, with their generation expressions.
_FIND_COLUMNS = """
SELECT a.attname::text, pg_get_expr(d.adbin, d.adrelid)
FROM pg_attribute a
JOIN pg_class t ON t.oid = a.attrelid
JOIN pg_namespace s ON s.oid = t.relnamespace
LEFT JOIN pg_attrdef d ON d.adrelid = t.oid AND d.adnum = a.attnum AND a.attgenerated <> ''
WHERE s.nspname = %s AND t.relname = %s AND a.atttypid = 'tsvector'::regtype
    AND NOT a.attisdropped
ORDER BY a.attnum"""
# The two stemmers with the most stop words in a sample of the texts; the part that these are of the
# words; and the part of words with letters beyond ASCII. Ids are random in most layouts, and only
# the commonest words are looked up: stop words are among them.
_LANGUAGE = """
WITH sampled AS (
    SELECT left({content}, 1000) AS text FROM {table} AS rows ORDER BY {key} LIMIT 100
), words AS (
    SELECT lower(token) AS word, count(*) AS uses
    FROM sampled, ts_parse('default', text) AS parsed (type, token)
    WHERE type IN (1, 2) GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 200
), stemmers AS (
    SELECT c.cfgname::text AS config, m.mapdict::regdictionary AS stemmer
    FROM pg_ts_config c JOIN pg_ts_config_map m ON m.mapcfg = c.oid AND m.maptokentype = 2
    JOIN pg_ts_dict d ON d.oid = m.mapdict JOIN pg_ts_template t ON t.oid = d.dicttemplate
    WHERE t.tmplname = 'snowball' AND c.cfgnamespace = 'pg_catalog'::regnamespace
)
SELECT config,
    (sum(CASE ts_lexize(stemmer, word) WHEN '{{}}' THEN uses ELSE 0 END) / sum(uses))::float8,
    (sum(CASE WHEN word ~ '[^ -~]' THEN uses ELSE 0 END) / sum(uses))::float8
FROM words CROSS JOIN stemmers
GROUP BY config ORDER BY 2 DESC, 1 LIMIT 2"""
PLAIN_CONFIG = "english"
# Measured: sentences have 0.26 (Russian, without articles) to 0.77 of their own stop words, Czech
# 0.18 of Portuguese and a Chinese manual with English in it 0.21 of English ones.
_MANY_STOP_WORDS, _LEAST_STOP_WORDS, _LEAST_LEAD, _LEAST_FOREIGN_WORDS = 0.4, 0.2, 1.5, 0.1
_CONFIG = re.compile(r"to_tsvector\('((?:[^']|'')+)'::regconfig, (.+)\)")


@dataclass(frozen=True, slots=True)
class TextIndex:
    """An index for text search.

    Attributes:
        backend: Which text search uses it.
        config: Text search configuration; None if the index does not record one.
        keys: Columns and expressions, as PostgreSQL writes them.
        key_field: Of ParadeDB's index: the column that identifies rows.
    """

    schema: str
    name: str
    backend: TextBackend
    config: str | None
    keys: tuple[str, ...]
    key_field: str | None = None

    @property
    def identifier(self) -> sql.Identifier:
        """The quoted, qualified name."""
        return sql.Identifier(self.schema, self.name)


def find_text_indexes(connection: Connection, table: Table) -> list[TextIndex]:
    """Return the valid text indexes on the table's content, oldest first."""
    columns = tsvector_columns(connection, table)
    rows = connection.execute(_FIND, (table.schema, table.name)).fetchall()
    found = (_read(table, columns, row) for row in rows)
    return [index for index in found if index is not None]


def detect_text_backend(connection: Connection, table: Table) -> TextBackend:
    """Return the best backend for the table: BM25 if there is an index for it."""
    return best_backend(find_text_indexes(connection, table))


def check_backend(backend: str) -> None:
    """Refuse a backend that does not exist, for callers without a type checker.

    Raises:
        ValueError: The backend is unknown.
    """
    if backend not in BACKENDS:
        msg = f"The text backend must be one of {', '.join(BACKENDS)}, not {backend!r}."
        raise ValueError(msg)


def best_backend(indexes: Sequence[TextIndex]) -> TextBackend:
    """Return the best backend that has one of the indexes; `tsvector` needs none."""
    return "paradedb" if any(index.backend == "paradedb" for index in indexes) else "tsvector"


def create_text_index(
    connection: Connection,
    table: Table,
    backend: TextBackendChoice = "auto",
    config: str = AUTO_CONFIG,
) -> TextIndex:
    """Create a text index, unless the backend already has one on the table, with any options.

    Create it after a load, which is faster. To change an index, drop it first. PostgreSQL's own
    full-text search parses each matching text again to rank it. For large tables prefer BM25, or
    add a generated column of type `tsvector`, which is then indexed and searched.

    Args:
        connection: Everything happens in its transaction, or in a new one.
        table: The table to index.
        backend: Which backend the index is for; `auto` prefers an installed extension.
        config: Text search configuration; for ParadeDB the language of its stemmer. `auto` takes
            that of the language of the texts.

    Raises:
        TableError: The extension is missing, the configuration is unknown, or the user does not
            own the table.
        ValueError: The backend is unknown.
    """
    existing = find_text_index_for(connection, table, backend, config)
    if existing is not None:
        return existing
    if config == AUTO_CONFIG:
        config = detect_config(connection, table)
    version = _paradedb_version(connection)
    chosen = _choose(backend, version)
    columns = tsvector_columns(connection, table)
    statement = text_index_statement(
        table, chosen, config, version=version or "", tsvector_column=next(iter(columns), None)
    )
    try:
        with connection.transaction():
            connection.execute(statement)
    except psycopg.errors.DatabaseError as error:
        msg = f"The text index of {chosen} on {table} cannot be created: {explain(error)}."
        raise TableError(msg) from None
    created = _of_backend(connection, table, chosen)
    assert created is not None
    return created


def find_text_index_for(
    connection: Connection, table: Table, backend: TextBackendChoice, config: str
) -> TextIndex | None:
    """Return the index that `create_text_index` would leave as it is; None if it would create one.

    Raises:
        TableError: It could not: the extension is missing, or the configuration is unknown.
        ValueError: The backend is unknown.
    """
    check_backend(backend)
    version = _paradedb_version(connection)
    chosen = _choose(backend, version)
    if chosen == "paradedb" and version is None:
        msg = (
            f"The text index of {chosen} needs the extension {PARADEDB_EXTENSION}. Run as a "
            f"superuser: CREATE EXTENSION {PARADEDB_EXTENSION}; or choose tsvector."
        )
        raise TableError(msg)
    is_known = config == AUTO_CONFIG or (chosen == "paradedb" and config in PARADEDB_STEMMERS)
    if not is_known:
        _check_config(connection, config)
    return _of_backend(connection, table, chosen)


def _choose(backend: TextBackendChoice, paradedb_version: str | None) -> TextBackend:
    if backend != "auto":
        return backend
    return "paradedb" if paradedb_version else "tsvector"


def _check_config(connection: Connection, config: str) -> None:
    try:
        with connection.transaction():
            connection.execute("SELECT %s::regconfig", (config,))
    except psycopg.errors.DatabaseError:
        rows = connection.execute("SELECT cfgname::text FROM pg_ts_config ORDER BY cfgname")
        msg = (
            f"There is no text search configuration {config!r}. The database has "
            f"{', '.join(row[0] for row in rows)}."
        )
        raise TableError(msg) from None


def text_index_statement(
    table: Table,
    backend: TextBackend,
    config: str,
    *,
    version: str = "",
    tsvector_column: str | None = None,
) -> sql.Composed:
    """Return the statement that creates a text index.

    Args:
        table: The table to index.
        backend: Which backend the index is for.
        config: Text search configuration.
        version: Of pg_search, whose statement changed in 0.25 and 0.26.
        tsvector_column: Column to index instead of the content.
    """
    if backend == "tsvector":
        expression = tsvector_expression(table, config)
        key = sql.Identifier(tsvector_column) if tsvector_column else expression
        tail, suffix = sql.SQL("gin ({})").format(key), "_words"
    else:
        tail, suffix = _paradedb_tail(table, config, _numbers(version)), "_bm25"
    name = sql.Identifier(fit_name(table.name, suffix))
    return sql.SQL("CREATE INDEX {} ON {} USING {}").format(name, table.identifier, tail)


def tsvector_expression(table: Table, config: str) -> sql.Composable:
    """Return the expression that the index and the queries share."""
    content = sql.Identifier(table.layout.content)
    return sql.SQL("to_tsvector({}, {})").format(regconfig(config), content)


def regconfig(config: str) -> sql.Composable:
    """Return a text search configuration as an SQL literal."""
    return sql.SQL("{}::regconfig").format(sql.Literal(config))


def detect_config(connection: Connection, table: Table) -> str:
    """Return the text search configuration for the language of a table's texts.

    PostgreSQL's stemmers know the stop words of their languages. The language is that of which the
    texts have the most, if they are enough to be sentences. Otherwise letters beyond ASCII mean a
    language without a configuration, such as Czech or Chinese.
    """
    # A database of another encoding cannot read the stop words of all languages.
    if connection.info.parameter_status("server_encoding") != "UTF8":
        return PLAIN_CONFIG
    query = sql.SQL(_LANGUAGE).format(
        content=sql.Identifier(table.layout.content),
        table=table.rows,
        key=sql.Identifier(table.layout.primary_key),
    )
    rows = connection.execute(query, {}).fetchall()
    if not rows:
        return PLAIN_CONFIG
    (config, stop_words, foreign_words), (_, others, _) = rows
    is_foreign = foreign_words >= _LEAST_FOREIGN_WORDS
    is_likely = stop_words >= max(_LEAST_STOP_WORDS, _LEAST_LEAD * others)
    if (is_likely or stop_words >= _MANY_STOP_WORDS) and not (config == "english" and is_foreign):
        return config
    return "simple" if is_foreign else PLAIN_CONFIG


def tsvector_columns(connection: Connection, table: Table) -> dict[str, str | None]:
    """Return the columns of type `tsvector` with their configurations, None if unknown."""
    if table.collection is not None:
        return {}
    rows = connection.execute(_FIND_COLUMNS, (table.schema, table.name)).fetchall()
    columns: dict[str, str | None] = {}
    for name, expression in rows:
        match = _CONFIG.search(expression or "")
        declared = table.tsv_config if name == table.tsv_column else None
        columns[name] = _config_name(match[1]) if match else _config_name(declared)
    return columns


def _paradedb_tail(table: Table, config: str, version: tuple[int, ...]) -> sql.Composed:
    content = sql.Identifier(table.layout.content)
    field: sql.Composable = content
    if config in PARADEDB_STEMMERS:
        tokenizer = sql.SQL("({}::pdb.simple({}))")
        field = tokenizer.format(content, sql.Literal(f"stemmer={config}"))
    key = table.layout.primary_key
    keyed = sql.SQL(" WITH (key_field = {})").format(sql.Literal(key))
    return sql.SQL("{} ({}, {}){}").format(
        sql.SQL("bm25" if version < _RENAMED else "paradedb"),
        sql.Identifier(key),
        field,
        keyed if version < _KEYLESS else sql.SQL(""),
    )


def _of_backend(connection: Connection, table: Table, backend: TextBackend) -> TextIndex | None:
    found = find_text_indexes(connection, table)
    return next((index for index in found if index.backend == backend), None)


def _read(table: Table, columns: Mapping[str, str | None], row: Sequence[Any]) -> TextIndex | None:
    """Return the index in a row of the catalog; None if it is not on the content."""
    name, method, options, keys = row
    on_content = re.compile(rf"\b{re.escape(table.layout.content)}\b")
    if method == "gin":
        if keys[0] in columns:
            return TextIndex(table.schema, name, "tsvector", columns[keys[0]], tuple(keys))
        match = _CONFIG.fullmatch(keys[0])
        if match is None or not on_content.search(match[2]):
            return None
        return TextIndex(table.schema, name, "tsvector", _config_name(match[1]), tuple(keys))
    if not any(on_content.search(key) for key in keys):
        return None
    settings: dict[str, str] = dict(option.split("=", 1) for option in options)
    key_field = settings.get("key_field", keys[0].strip('"'))
    return TextIndex(table.schema, name, "paradedb", None, tuple(keys), key_field)


def _config_name(config: str | None) -> str | None:
    return config.removeprefix("pg_catalog.") if config else None


def _paradedb_version(connection: Connection) -> str | None:
    query = "SELECT extversion FROM pg_extension WHERE extname = %s"
    row = connection.execute(query, (PARADEDB_EXTENSION,)).fetchone()
    return row[0] if row else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
