"""Parameters that are in PostgreSQL's binary form already."""

from __future__ import annotations

from typing import Any

from psycopg import pq
from psycopg.abc import Buffer
from psycopg.adapt import Dumper

__all__ = ["Packed", "PackedDumper"]


class Packed(bytes):
    """Mark the binary form of a value; `PackedDumper` has to be registered for it."""

    def __repr__(self) -> str:
        return f"Packed({len(self)} bytes)"


class PackedDumper(Dumper):
    """Send it as it is: PostgreSQL knows the type from where the parameter stands."""

    format = pq.Format.BINARY
    oid = 0

    def dump(self, obj: Any) -> Buffer | None:
        return obj
