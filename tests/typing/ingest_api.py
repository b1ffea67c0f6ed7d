"""Types that callers of the loader see. Checked by pyright in `make lint`; never executed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, assert_type

import psycopg

from qwen3_triton_client import EmbeddingClient
from qwen3_triton_ingest import (
    GatewayOptions,
    Hit,
    IngestError,
    LoadOptions,
    LoadProgress,
    LoadReport,
    ReembedReport,
    Searcher,
    TableError,
    TableStatus,
    load,
    reembed,
    search,
    status,
)

DSN = "postgresql://localhost/rag"


def a_load_returns_a_report() -> None:
    def on_progress(progress: LoadProgress) -> None: ...

    assert_type(load(["a.jsonl", Path("b")], dsn=DSN, table="manuals"), LoadReport)
    load([], dsn=DSN, table="manuals", options=LoadOptions(), on_progress=on_progress)
    load(["a.jsonl"], DSN, "manuals")  # pyright: ignore[reportCallIssue]


def a_table_has_a_status_and_can_be_embedded_again() -> None:
    assert_type(status(DSN, "manuals"), TableStatus)
    assert_type(reembed(DSN, "manuals", LoadOptions()), ReembedReport)


async def a_search_returns_hits(connection: psycopg.Connection, client: EmbeddingClient) -> None:
    assert_type(search(DSN, "manuals", "How?", k=3, filter={"lang": "en"}), list[Hit])
    with Searcher(connection, "manuals", client=client) as searcher:
        assert_type(searcher, Searcher)
        assert_type(searcher.search("How?", mode="hybrid"), list[Hit])
        searcher.search("How?", mode="semantic")  # pyright: ignore[reportArgumentType]
        searcher.search("How?", top=3)  # pyright: ignore[reportCallIssue]
    async with Searcher(DSN, "manuals", gateway=GatewayOptions()) as searcher:
        assert_type(await searcher.asearch("How?"), list[Hit])
        assert_type(await searcher.asearch("How?", rerank=True, fetch_k=50), list[Hit])
        await searcher.asearch("How?", rerank="yes")  # pyright: ignore[reportArgumentType]


def a_hit_has_text_metadata_and_scores(hit: Hit) -> None:
    assert_type(hit.id, str)
    assert_type(hit.text, str)
    assert_type(hit.metadata, Mapping[str, Any])
    assert_type(hit.score, float)
    assert_type(hit.distance, float | None)
    assert_type(hit.rerank_score, float | None)


def errors_have_one_base() -> None:
    error: IngestError = TableError("why")
    raise error
