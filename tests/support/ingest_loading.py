"""Loads into one table of one database, and queries of the result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg

from gateway_process import GatewayProcess
from ingest_corpus import SENTENCES
from qwen3_triton_ingest.config import GatewayOptions, IndexOptions, LoadOptions, SplitOptions
from qwen3_triton_ingest.ledger.runs import DeadLetter
from qwen3_triton_ingest.load import LoadReport, load
from qwen3_triton_ingest.status import status

TABLE = "chunks"
# More tokens than the model accepts.
POISON = "word " * 40_000


@dataclass(frozen=True, slots=True)
class Loading:
    """Loads with these options, overridden by those of a call."""

    dsn: str
    gateway: GatewayProcess
    options: LoadOptions

    def __call__(
        self,
        *sources: Path | str,
        table: str = TABLE,
        dsn: str | None = None,
        on_progress: Any = None,
        **changes: Any,
    ) -> LoadReport:
        return load(
            sources,
            dsn=dsn or self.dsn,
            table=table,
            options=replace(self.options, **changes),
            on_progress=on_progress,
        )

    def texts(self) -> float:
        """Count the embedded texts of documents; the gateway's canary is a query."""
        return self.gateway.metric("qwen3_triton_texts_total", input_type="document")

    def query(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn) as connection:
            return connection.execute(statement.encode(), parameters or None).fetchall()

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.dsn) as connection:
            connection.execute(statement.encode())

    def ids(self, doc_id: str) -> list[str]:
        rows = self.query(f"SELECT id::text FROM {TABLE} WHERE doc_id = %s ORDER BY seq", doc_id)
        return [row[0] for row in rows]

    def doc_ids(self) -> list[str]:
        return [row[0] for row in self.query(f"SELECT DISTINCT doc_id FROM {TABLE} ORDER BY 1")]

    def versions(self, doc_id: str) -> dict[str, Any]:
        """Return the versions of the rows by id; a version changes whenever its row is written."""
        rows = self.query(f"SELECT id::text, xmin::text FROM {TABLE} WHERE doc_id = %s", doc_id)
        return dict(rows)

    def letters(self) -> list[DeadLetter]:
        return list(status(self.dsn, TABLE).latest_dead_letters)

    def assert_ledger_agrees(self) -> None:
        """Compare the ids in the ledger with those in the table."""
        noted = self.query(
            "SELECT doc_id, chunk, seq - 1 FROM qwen3_ingest.documents, "
            "unnest(chunk_ids) WITH ORDINALITY AS c (chunk, seq) ORDER BY 1, 3"
        )
        there = self.query(f"SELECT doc_id, id, seq FROM {TABLE} ORDER BY 1, 3")
        assert noted == there


def quick_loading(dsn: str, gateway: GatewayProcess) -> Loading:
    """Options for small chunks, no index, and short waits."""
    options = LoadOptions(
        split=SplitOptions(chunk_tokens=48, overlap_tokens=0),
        gateway=GatewayOptions(url=gateway.url),
        index=IndexOptions(policy="none", text="none"),
        retry_seconds=2,
    )
    return Loading(dsn, gateway, options)


def write_jsonl(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def notes(count: int) -> list[dict[str, Any]]:
    """Return records of one sentence each."""
    return [{"id": f"n{n}", "text": SENTENCES[n], "shelf": n} for n in range(count)]
