"""Running the statements of a search in one transaction."""

from __future__ import annotations

from typing import Any

from psycopg.rows import tuple_row

from ..database import AsyncConnection, Connection
from ..rows.binary import Packed, PackedDumper
from .steps import Fetch, Fetched

__all__ = ["afetch", "fetch"]


def fetch(connection: Connection, wanted: Fetch) -> Fetched:
    """Fetch the rows in a thread."""
    # In a pipeline all of it is one round trip.
    with connection.pipeline(), connection.transaction():
        for statement in wanted.settings:
            connection.execute(statement.query, statement.parameters)
        found = connection.cursor(row_factory=tuple_row)
        found.adapters.register_dumper(Packed, PackedDumper)
        found.execute(wanted.search.query, wanted.search.parameters)
        space = connection.cursor(row_factory=tuple_row)
        if wanted.space:
            space.execute(wanted.space.query, wanted.space.parameters)
    return Fetched(found.fetchall(), _first(space.fetchone() if wanted.space else None))


async def afetch(connection: AsyncConnection, wanted: Fetch) -> Fetched:
    """Fetch the rows in an event loop."""
    async with connection.pipeline(), connection.transaction():
        for statement in wanted.settings:
            await connection.execute(statement.query, statement.parameters)
        found = connection.cursor(row_factory=tuple_row)
        found.adapters.register_dumper(Packed, PackedDumper)
        await found.execute(wanted.search.query, wanted.search.parameters)
        space = connection.cursor(row_factory=tuple_row)
        if wanted.space:
            await space.execute(wanted.space.query, wanted.space.parameters)
    rows = await found.fetchall()
    return Fetched(rows, _first(await space.fetchone() if wanted.space else None))


def _first(row: tuple[Any, ...] | None) -> str | None:
    return row[0] if row else None
