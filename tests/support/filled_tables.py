"""A corpus of real text with its vectors, tables filled with it by the loader, and databases."""

from __future__ import annotations

import fcntl
import secrets
import uuid
from array import array
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from psycopg.sql import SQL, Identifier

from polling import wait_until_alone
from qwen3_triton_client import EmbeddingClient
from qwen3_triton_ingest.documents import Chunk, EmbeddedChunk
from qwen3_triton_ingest.layouts import LayoutName, Table
from qwen3_triton_ingest.ledger.schema import prepare_ledger
from qwen3_triton_ingest.ledger.tables import Space, claim_table
from qwen3_triton_ingest.rows.chunks import copy_chunks
from qwen3_triton_ingest.tables.preparation import prepare_table

DOCUMENTS = Path(__file__).parents[2] / "examples" / "demo" / "documents.jsonl"
LAYOUTS: tuple[LayoutName, ...] = ("own", "langchain", "llamaindex")


@dataclass(frozen=True)
class Entry:
    """A document of one chunk, and a question that it answers in other words."""

    id: uuid.UUID
    doc_id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    question: str = ""


@dataclass(frozen=True)
class Corpus:
    """Texts with their vectors, and the gateway that computed these."""

    gateway_url: str
    entries: Sequence[Entry]
    chunks: Sequence[EmbeddedChunk]
    space: Space

    def fill(
        self, dsn: str, name: str, layout: LayoutName = "own", *, ledger: bool = True
    ) -> Table:
        """Create a table and write the corpus to it, as the loader does."""
        with psycopg.connect(dsn) as connection:
            table = prepare_table(connection, name, layout, self.space.dimensions)
            if ledger:
                prepare_ledger(connection)
                claim_table(connection, table, self.space)
            copy_chunks(connection, table, self.chunks)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(SQL("ANALYZE {}").format(table.identifier))
        return table


@dataclass(frozen=True)
class Library:
    """A database with the corpus in one table per layout: `manuals_own` and so on."""

    dsn: str
    corpus: Corpus
    tables: Mapping[LayoutName, str]

    @property
    def entries(self) -> Sequence[Entry]:
        return self.corpus.entries

    @property
    def gateway_url(self) -> str:
        return self.corpus.gateway_url


def embed(gateway_url: str, entries: Sequence[Entry], store: Path) -> Corpus:
    """Embed the texts, unless another worker has stored their vectors in the file `store`."""
    with store.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not store.exists():
            with EmbeddingClient(gateway_url) as client:
                result = client.embed([entry.text for entry in entries])
            name = (result.fingerprint, result.model)
            np.savez(store, vectors=np.stack(list(result.vectors)), name=name)
    with np.load(store) as file:
        fingerprint, model = file["name"].tolist()
        space = Space(fingerprint, model, file["vectors"].shape[1])
        vectors = [array("f", row.tobytes()) for row in file["vectors"]]
    chunks = [
        EmbeddedChunk(Chunk(entry.id, entry.doc_id, 0, entry.text, entry.metadata), vector)
        for entry, vector in zip(entries, vectors, strict=True)
    ]
    return Corpus(gateway_url, entries, chunks, space)


def create_database(uri: str) -> Generator[str]:
    """Yield the libpq URI of an empty database, and drop it afterwards."""
    name = f"test_{secrets.token_hex(4)}"
    with psycopg.connect(uri, autocommit=True) as connection:
        # The default copies through the log, which takes five times the CPU.
        create = SQL("CREATE DATABASE {} STRATEGY FILE_COPY")
        connection.execute(create.format(Identifier(name)))
        yield f"{uri.rpartition('/')[0]}/{name}"
        connection.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


def is_exclusive_lock_awaited(connection: psycopg.Connection[Any], table: str) -> bool:
    """Return whether a session waits until it can lock a table exclusively, before all others."""
    query = """
        SELECT 1 FROM pg_locks WHERE relation = %s::regclass
        AND mode = 'AccessExclusiveLock' AND NOT granted
    """
    return connection.execute(query, (table,)).fetchone() is not None


def times_used(uri: str, index: str) -> int:
    """Read how many scans of an index there were, once all who may have scanned it are gone."""
    wait_until_alone(uri)
    with psycopg.connect(uri) as connection:
        query = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = %s"
        row = connection.execute(query, (index,)).fetchone()
    assert row is not None, f"There is no index {index}."
    return row[0]
