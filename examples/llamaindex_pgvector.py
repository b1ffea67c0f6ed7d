"""Index documents in pgvector with LlamaIndex, keep the index up to date, and answer from it.

Run it twice: the second run embeds nothing. `docs/llamaindex.md` explains each step.
"""

import argparse
import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any

import psycopg
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.llms.mock import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.vector_stores.postgres import PGVectorStore
from psycopg import sql
from psycopg.types.json import Json

from llama_index.embeddings.qwen3_triton import Qwen3TritonEmbedding

DOCUMENTS = Path(__file__).parent / "demo" / "documents.jsonl"
DIMENSIONS = 1024
QUESTION = "How do flying mammals find their prey in total darkness?"
EXAMPLES = """examples:
  python examples/llamaindex_pgvector.py
  python examples/llamaindex_pgvector.py --halfvec
  python examples/llamaindex_pgvector.py --question "What keeps the planets in orbit?"
"""


def load(path: Path) -> list[Document]:
    """Read one document per line. Upserts go by its id. Any reader works in its place."""
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Document(
            id_=entry["id"],
            text=entry["text"],
            metadata={"title": entry["title"]},
            excluded_embed_metadata_keys=["title"],  # otherwise embedded in front of the text
        )
        for entry in entries
    ]


def open_store(table: str, *, halfvec: bool, indexed: bool) -> PGVectorStore:
    """Open the table `data_{table}`; with `indexed`, create its HNSW index if it has none."""
    hnsw = {
        "hnsw_m": 16,
        "hnsw_ef_construction": 64,
        "hnsw_ef_search": 100,
        # The store queries by cosine distance. Its default for halfvec is another one, and useless.
        "hnsw_dist_method": "halfvec_cosine_ops" if halfvec else "vector_cosine_ops",
    }
    address = os.environ["DATABASE_URL"].removeprefix("postgresql://")
    return PGVectorStore(
        connection_string=f"postgresql+psycopg2://{address}",
        # asyncpg has its own name for one of the libpq parameters.
        async_connection_string=f"postgresql+asyncpg://{address.replace('sslmode=', 'ssl=')}",
        table_name=table,
        embed_dim=DIMENSIONS,
        use_jsonb=True,
        use_halfvec=halfvec,
        hybrid_search=True,
        hnsw_kwargs=hnsw if indexed else None,
        initialization_fail_on_error=True,  # otherwise a failed setup is only logged
    )


def load_docstore(connection: psycopg.Connection, table: str) -> SimpleDocumentStore:
    """Return the state of earlier runs, stored in the same database as the vectors.

    A killed run may have left vectors of documents that no docstore lists: delete them.
    """
    connection.execute("CREATE TABLE IF NOT EXISTS docstores (name text PRIMARY KEY, state json)")
    found = connection.execute("SELECT to_regclass(%s)", (f"data_{table}",)).fetchone()
    row = connection.execute("SELECT state FROM docstores WHERE name = %s", (table,)).fetchone()
    if found == (None,):
        return SimpleDocumentStore()
    state: dict[str, Any] = row[0] if row else {}
    docstore = SimpleDocumentStore.from_dict(state)  # pyright: ignore[reportUnknownMemberType]
    stray = sql.SQL("DELETE FROM {} WHERE metadata_->>'ref_doc_id' <> ALL(%s)")
    connection.execute(stray.format(sql.Identifier(f"data_{table}")), (list(docstore.docs),))
    return docstore


def save_docstore(
    connection: psycopg.Connection, table: str, docstore: SimpleDocumentStore
) -> None:
    state = Json(docstore.to_dict())  # pyright: ignore[reportUnknownMemberType]
    connection.execute(
        "INSERT INTO docstores VALUES (%s, %s)"
        " ON CONFLICT (name) DO UPDATE SET state = EXCLUDED.state",
        (table, state),
    )


def used_index(connection: psycopg.Connection, table: str, vector: list[float]) -> str:
    """Return the index that PostgreSQL uses for the store's query, from its plan."""
    query = sql.SQL("EXPLAIN SELECT id, embedding <=> {} AS d FROM {} ORDER BY d LIMIT 3")
    with connection.transaction():
        # Reading a few hundred rows is faster than any index; we only ask whether it could be used.
        connection.execute("SET LOCAL enable_seqscan = off")
        table_name = sql.Identifier(f"data_{table}")
        rows = connection.execute(query.format(str(vector), table_name)).fetchall()
    scans = [str(line) for (line,) in rows if " using " in line]
    return scans[0].split(" using ")[1].split()[0] if scans else "none"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=Path, default=DOCUMENTS, help="JSON lines to index")
    parser.add_argument("--halfvec", action="store_true", help="store 16-bit vectors")
    parser.add_argument("--question", default=QUESTION)
    options = parser.parse_args()

    embedding = Qwen3TritonEmbedding()  # reads QWEN3_TRITON_URL
    Settings.embed_model = embedding
    Settings.llm = MockLLM()  # repeats its prompt; use your model
    # Another model has another fingerprint, and so another table: spaces never mix.
    table = f"llamaindex_{'half_' if options.halfvec else ''}{embedding.fingerprint()}"
    splitter = SentenceSplitter(
        chunk_size=100,
        chunk_overlap=10,
        chunking_tokenizer_fn=lambda text: re.split(r"(?<=[.!?]\s)", text),
    )

    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        docstore = load_docstore(connection, table)
        # Building the graph over a full table is several times faster than growing it row by row.
        loading = open_store(table, halfvec=options.halfvec, indexed=bool(docstore.docs))
        pipeline = IngestionPipeline(
            transformations=[splitter, embedding],
            docstore=docstore,
            docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
            vector_store=loading,
            disable_cache=True,
        )
        documents, before = load(options.documents), embedding.stats.texts
        known = set(docstore.docs)
        nodes = pipeline.run(documents=documents)
        save_docstore(connection, table, docstore)
        deleted = len(known - set(docstore.docs))
        print(
            f"Index {table}: {len(documents)} documents, {len(nodes)} new nodes, {deleted} deleted"
        )
        print(f"Texts embedded: {embedding.stats.texts - before}")

        store = open_store(table, halfvec=options.halfvec, indexed=True)
        index = VectorStoreIndex.from_vector_store(store)
        for hit in index.as_retriever(similarity_top_k=3).retrieve(options.question):
            print(f"Hit: {hit.node.ref_doc_id}, {hit.node.metadata['title']}")
        plan = used_index(connection, table, embedding.get_query_embedding(options.question))
        print(f"Index that a query can use: {plan}")
    engine = index.as_query_engine(  # pyright: ignore[reportUnknownMemberType]
        similarity_top_k=1
    )
    print(f"Answer: {engine.query(options.question)}")
    asyncio.run(loading.close())
    asyncio.run(store.close())


if __name__ == "__main__":
    main()
