"""The collections of LangChain's old `PGVector`, all of which are in one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from psycopg import sql

from ..database import Connection
from ..errors import TableError
from ..layouts import LANGCHAIN_V1, JsonType, Table, VectorType, escaped_identifier
from .catalog import Column, Relation, find_relation

_COLLECTIONS = "langchain_pg_collection"
# The older table has the primary key `uuid`, and no `id`. A column of vectors of any length can be
# compared and indexed with a cast only.
_ROWS = """(
        SELECT {id} AS id, document, cmetadata, {embedding} AS embedding
        FROM {table} WHERE collection_id = {collection})"""


def read_collection(
    connection: Connection, relation: Relation, columns: Mapping[str, Column], name: str | None
) -> Table:
    """Return the rows of one collection as a table that can be searched.

    Raises:
        TableError: There is no such collection, several to choose from, or it is empty.
    """
    collection = _choose(connection, relation, name)
    embedding = columns["embedding"]
    dimensions = embedding.type_modifier
    vector: sql.Composable = sql.Identifier("embedding")
    if dimensions < 1:
        query = sql.SQL(
            "SELECT {}.vector_dims(embedding) FROM {} "
            "WHERE collection_id = %s AND embedding IS NOT NULL LIMIT 1"
        ).format(
            sql.Identifier(embedding.type_schema),
            escaped_identifier(relation.schema, relation.name),
        )
        row = connection.execute(query, (collection,)).fetchone()
        if row is None:
            msg = f"The collection {name or collection!r} of {relation} has no vectors."
            raise TableError(msg)
        dimensions = row[0]
        kind = sql.Identifier(embedding.type_schema, embedding.type)
        vector = sql.SQL("embedding::{}({})").format(kind, dimensions)
    table = Table(
        schema=relation.schema,
        name=relation.name,
        layout=LANGCHAIN_V1,
        dimensions=dimensions,
        vector_type=cast("VectorType", embedding.type),
        vector_schema=embedding.type_schema,
        metadata_type=cast("JsonType", columns["cmetadata"].type),
    )
    rows = sql.SQL(_ROWS).format(
        id=sql.SQL("id" if "id" in columns else "uuid::text"),
        embedding=vector,
        table=table.escaped_identifier,
        collection=sql.Literal(collection),
    )
    return replace(table, collection=rows)


def _choose(connection: Connection, relation: Relation, name: str | None) -> str:
    collections = find_relation(connection, relation.schema, _COLLECTIONS)
    if collections is None:
        msg = f"{relation} belongs to a table {relation.schema}.{_COLLECTIONS}, which is missing."
        raise TableError(msg)
    query = sql.SQL("SELECT name, uuid::text FROM {} ORDER BY name")
    rows = connection.execute(query.format(collections.identifier)).fetchall()
    ids: dict[str, str] = dict(rows)
    if name is None and len(ids) == 1:
        return next(iter(ids.values()))
    if name is None or name not in ids:
        wrong = "holds several collections" if name is None else f"has no collection {name!r}"
        msg = (
            f"{relation} {wrong}. Name one with `collection`: {', '.join(ids) or 'there is none'}."
        )
        raise TableError(msg)
    return ids[name]
