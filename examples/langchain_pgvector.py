"""Index documents in pgvector with LangChain, keep the index up to date, and answer from it.

Run it twice: the second run embeds nothing. `docs/langchain.md` explains each step.
"""

import argparse
import asyncio
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import psycopg
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_classic.indexes import SQLRecordManager, index
from langchain_classic.storage import LocalFileStore
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_postgres import Column, PGEngine, PGVectorStore
from langchain_postgres.v2.indexes import HNSWIndex, HNSWQueryOptions
from langchain_text_splitters import RecursiveCharacterTextSplitter
from psycopg import sql

from langchain_qwen3_triton import Qwen3TritonEmbeddings

DOCUMENTS = Path(__file__).parent / "demo" / "documents.jsonl"
DIMENSIONS = 1024
QUESTION = "How do flying mammals find their prey in total darkness?"
EXAMPLES = """examples:
  python examples/langchain_pgvector.py
  python examples/langchain_pgvector.py --halfvec --cache ./embedding_cache
  python examples/langchain_pgvector.py --question "What keeps the planets in orbit?"
"""
PROMPT = ChatPromptTemplate.from_messages(
    [("system", "Answer from these passages only:\n\n{context}"), ("human", "{question}")]
)


class HalfvecIndex(HNSWIndex):
    """An HNSW index over a `halfvec` column, which has its own operators."""

    def get_index_function(self) -> str:
        return "halfvec_cosine_ops"


def load(path: Path) -> Iterator[Document]:
    """Read one document per line. Any LangChain loader works in its place."""
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        metadata = {"source": entry["id"], "title": entry["title"]}
        yield Document(page_content=entry["text"], metadata=metadata)


def create_table(engine: PGEngine, table: str, records: SQLRecordManager, *, halfvec: bool) -> None:
    """Create an empty table for the store, and forget the records of an earlier one."""
    records.delete_keys(records.list_keys())
    engine.init_vectorstore_table(
        table,
        DIMENSIONS,
        id_column=Column("id", "TEXT", nullable=False),  # `index` creates ids that are not UUIDs
        metadata_columns=[Column("source", "TEXT"), Column("title", "TEXT")],
    )
    if halfvec:
        with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
            change = sql.SQL("ALTER TABLE {} ALTER COLUMN embedding TYPE halfvec({})")
            connection.execute(change.format(sql.Identifier(table), DIMENSIONS))


def used_index(table: str, vector: Sequence[float]) -> str:
    """Return the index that PostgreSQL uses for the store's query, from its plan."""
    query = sql.SQL('EXPLAIN SELECT * FROM {} ORDER BY "embedding" <=> {} LIMIT 4')
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        # Reading a few hundred rows is faster than any index; we only ask whether it could be used.
        connection.execute("SET LOCAL enable_seqscan = off")
        rows = connection.execute(query.format(sql.Identifier(table), str(list(vector)))).fetchall()
    scans = [str(line) for (line,) in rows if " using " in line]
    return scans[0].split(" using ")[1].split()[0] if scans else "none"


def quote_first_passage(prompt: PromptValue) -> AIMessage:
    """Answer with the best passage. Replace it with your chat model, such as `ChatOpenAI(...)`."""
    return AIMessage(str(prompt.to_messages()[0].content).split("\n\n")[1])


def join(documents: Iterable[Document]) -> str:
    return "\n\n".join(document.page_content for document in documents)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=Path, default=DOCUMENTS, help="JSON lines to index")
    parser.add_argument("--halfvec", action="store_true", help="store 16-bit vectors")
    parser.add_argument("--cache", type=Path, help="folder that caches vectors between runs")
    parser.add_argument("--question", default=QUESTION)
    options = parser.parse_args()

    model = Qwen3TritonEmbeddings()  # reads QWEN3_TRITON_URL
    space = model.fingerprint()
    embeddings: Embeddings = model
    if options.cache:
        embeddings = CacheBackedEmbeddings.from_bytes_store(
            model, LocalFileStore(options.cache), namespace=space, key_encoder="blake2b"
        )
    # Another model has another fingerprint, and so another table: spaces never mix.
    table = f"langchain_{'half_' if options.halfvec else ''}{space}"
    url = os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://", 1)
    engine = PGEngine.from_connection_string(url)
    records = SQLRecordManager(table, db_url=url)
    records.create_schema()
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        found = connection.execute("SELECT to_regclass(%s)", (table,)).fetchone()
    if found == (None,):
        create_table(engine, table, records, halfvec=options.halfvec)
    store = PGVectorStore.create_sync(
        engine,
        embeddings,
        table,
        id_column="id",
        metadata_columns=["source", "title"],
        index_query_options=HNSWQueryOptions(ef_search=100),
    )

    splitter = RecursiveCharacterTextSplitter(chunk_size=400, chunk_overlap=40)
    chunks = splitter.split_documents(load(options.documents))
    before = model.stats.texts
    # "full" deletes what the loader no longer returns, so it must return everything.
    changes = index(chunks, records, store, cleanup="full", batch_size=1000, key_encoder="blake2b")
    print(f"Index {table}: {len(chunks)} chunks, {changes}")
    print(f"Texts embedded: {model.stats.texts - before}")

    if not store.is_valid_index():
        store.apply_vector_index(HalfvecIndex() if options.halfvec else HNSWIndex())
    print(f"Index that a query can use: {used_index(table, model.embed_query(options.question))}")

    retriever = store.as_retriever(search_kwargs={"k": 3})
    chain = (
        {"context": retriever | join, "question": RunnablePassthrough()}
        | PROMPT
        | RunnableLambda(quote_first_passage)
        | StrOutputParser()
    )
    for hit in retriever.invoke(options.question):
        print(f"Hit: {hit.metadata['source']}, {hit.metadata['title']}")
    print(f"Answer: {chain.invoke(options.question)}")
    records.engine.dispose()
    asyncio.run(engine.close())


if __name__ == "__main__":
    main()
