"""Our store writes the same rows as LlamaIndex's own, without duplicates."""

from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import psycopg
import pytest
from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    IndexNode,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters, VectorStoreQuery
from llama_index.core.vector_stores.utils import node_to_metadata_dict
from llama_index.vector_stores.postgres import PGVectorStore
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from qwen3_triton_ingest.errors import TableError
from qwen3_triton_ingest.layouts import NODE_CONTENT, NODE_TYPE
from qwen3_triton_ingest.llamaindex import BulkPGVectorStore
from qwen3_triton_ingest.llamaindex import store as llamaindex_store
from qwen3_triton_ingest.llamaindex.store import CHECKED_RELEASE, PRIVATE_ENGINE

DIMENSIONS = 24
MakeStore = Callable[..., PGVectorStore]
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "jsonb": {"use_jsonb": True},
    "hybrid": {"use_jsonb": True, "hybrid_search": True, "text_search_config": "english"},
    "half precision": {"use_halfvec": True},
    "indexed metadata": {"indexed_metadata_keys": {("lang", "text"), ("tags", "text[]")}},
    "schema": {"schema_name": "My_Docs", "use_jsonb": True},
}


def vector(number: int) -> list[float]:
    return [((number * 37 + place * 11) % 101) / 101 - 0.3 for place in range(DIMENSIONS)]


def nodes() -> list[BaseNode]:
    """Return nodes of every kind, with every kind of content that must survive."""
    source = RelatedNodeInfo(node_id="doc 1", node_type="4", metadata={"a": 1}, hash="h")
    made: list[BaseNode] = [
        TextNode(id_="a", text="running shoes", metadata={"lang": "en", "n": 1}),
        TextNode(
            id_="b",
            text="你好 \U0001f600 \\N\n\t%s :name {}",
            metadata={"lang": "zh", "tags": ["x", "y"], "title": "ünï"},
            relationships={NodeRelationship.SOURCE: source},
            excluded_embed_metadata_keys=["title"],
            start_char_idx=3,
        ),
        TextNode(id_="c", text="", metadata={}),
        IndexNode(id_="d", text="an index", index_id="other"),
        ImageNode(id_="e", text="an image", image_url="http://localhost/a.png"),
        TextNode(id_="f", text="x" * 5000, metadata={"score": 0.1, "deep": {"a": [None]}}),
    ]
    for number, node in enumerate(made):
        node.embedding = vector(number)
    return made


@pytest.fixture(name="make")
def _make(database_url: str) -> Iterator[MakeStore]:
    """Makes stores and closes their engines after the test."""
    made: list[PGVectorStore] = []

    def make(kind: type[PGVectorStore], name: str, **options: Any) -> PGVectorStore:
        store = kind.from_params(
            connection_string=sqlalchemy_url(database_url, "psycopg2"),
            async_connection_string=sqlalchemy_url(database_url, "asyncpg"),
            table_name=name,
            embed_dim=DIMENSIONS,
            **options,
        )
        made.append(store)
        return store

    yield make
    for store in made:
        if store.client is not None:
            store.client.dispose()


def sqlalchemy_url(database_url: str, driver: str) -> str:
    return database_url.replace("postgresql://", f"postgresql+{driver}://")


def rows(database_url: str, store: PGVectorStore) -> list[tuple[Any, ...]]:
    with psycopg.connect(database_url) as connection:
        query = f"""
            SELECT id, text, metadata_::text, node_id, embedding::text
                {", text_search_tsv::text" if store.hybrid_search else ""}
            FROM {store.schema_name}.data_{store.table_name} ORDER BY id"""
        return connection.execute(query.encode()).fetchall()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_rows_equal_those_of_the_original_column_by_column(
    make: MakeStore, database_url: str, options: dict[str, Any]
):
    ours, theirs = (
        make(BulkPGVectorStore, "ours", **options),
        make(PGVectorStore, "theirs", **options),
    )
    assert isinstance(ours, BulkPGVectorStore)
    assert ours.add(nodes()) == theirs.add(nodes()) == ["a", "b", "c", "d", "e", "f"]
    assert len(rows(database_url, ours)) == 6
    assert rows(database_url, ours) == rows(database_url, theirs)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
async def test_rows_written_asynchronously_are_the_same(
    make: MakeStore, database_url: str, options: dict[str, Any]
):
    ours, theirs = (
        make(BulkPGVectorStore, "ours", **options),
        make(PGVectorStore, "theirs", **options),
    )
    assert await ours.async_add(nodes()) == await theirs.async_add(nodes())
    assert len(rows(database_url, ours)) == 6
    assert rows(database_url, ours) == rows(database_url, theirs)
    await ours.close()
    await theirs.close()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_queries_of_the_original_find_what_ours_stored(
    make: MakeStore, options: dict[str, Any]
):
    ours, theirs = (
        make(BulkPGVectorStore, "docs", **options),
        make(PGVectorStore, "docs", **options),
    )
    given = nodes()
    ours.add(given)
    filters = MetadataFilters(filters=[MetadataFilter(key="lang", value="zh")])
    for node in given:
        query = VectorStoreQuery(query_embedding=node.embedding, similarity_top_k=2)
        found = [store.query(query) for store in (ours, theirs)]
        assert found[0].ids == found[1].ids
        assert found[1].nodes is not None
        assert found[1].nodes[0].model_dump(exclude={"embedding"}) == node.model_dump(
            exclude={"embedding"}
        )
    query = VectorStoreQuery(query_embedding=vector(0), similarity_top_k=3, filters=filters)
    assert theirs.query(query).ids == ["b"]


def test_adding_again_replaces_instead_of_duplicating(make: MakeStore, database_url: str):
    store = make(BulkPGVectorStore, "docs")
    store.add(nodes())
    before = rows(database_url, store)
    store.add(nodes())
    assert rows(database_url, store) == before
    changed = TextNode(id_="b", text="new", embedding=vector(50))
    store.add([changed])
    found = rows(database_url, store)
    assert [row[3] for row in found] == ["a", "b", "c", "d", "e", "f"]
    assert found[1][1] == "new"
    assert found[1][0] == before[1][0]
    assert found[1][4] != before[1][4]


def test_the_last_of_several_nodes_with_one_id_wins(make: MakeStore, database_url: str):
    store = make(BulkPGVectorStore, "docs")
    given = [
        TextNode(id_=each, text=text, embedding=vector(1))
        for each, text in [("a", "first"), ("b", "other"), ("a", "last")]
    ]
    assert store.add(given) == ["a", "b", "a"]
    assert [row[1] for row in rows(database_url, store)] == ["last", "other"]


def test_many_nodes_are_stored_in_one_transaction(make: MakeStore, database_url: str):
    store = make(BulkPGVectorStore, "docs")
    many = [TextNode(id_=f"{n}", text=f"t{n}", embedding=vector(n)) for n in range(2500)]
    wrong = TextNode(id_="wrong", text="w", embedding=[1.0] * 8)
    with pytest.raises(DBAPIError, match="expected 24 dimensions, not 8"):
        store.add([*many, wrong])
    assert rows(database_url, store) == []
    store.add(iter(many))  # pyright: ignore[reportArgumentType]
    assert [row[3] for row in rows(database_url, store)] == [f"{n}" for n in range(2500)]


def test_a_node_without_embedding_stores_nothing(make: MakeStore, database_url: str):
    store = make(BulkPGVectorStore, "docs")
    store.add([])
    with pytest.raises(ValueError, match="embedding not set"):
        store.add([*nodes(), TextNode(id_="z", text="z")])
    assert rows(database_url, store) == []


def test_a_table_with_duplicate_nodes_is_refused_with_a_remedy(make: MakeStore, database_url: str):
    theirs = make(PGVectorStore, "docs")
    theirs.add(nodes())
    theirs.add(nodes()[:2])
    ours = make(BulkPGVectorStore, "docs")
    for _ in range(2):
        with pytest.raises(TableError, match=r"Several rows of public\.data_docs") as caught:
            ours.add(nodes())
    with psycopg.connect(database_url) as connection:
        connection.execute(str(caught.value).partition("with: ")[2].encode())
    ours.add(nodes())
    assert sorted(row[3] for row in rows(database_url, ours)) == ["a", "b", "c", "d", "e", "f"]


def test_without_setup_a_table_is_not_changed(make: MakeStore, database_url: str):
    make(PGVectorStore, "docs").add(nodes())
    ours = make(BulkPGVectorStore, "docs", perform_setup=False)
    with pytest.raises(TableError, match="Its owner must run: CREATE UNIQUE INDEX") as caught:
        ours.add(nodes())
    with psycopg.connect(database_url) as connection:
        connection.execute(str(caught.value).partition("must run: ")[2].encode())
    ours.add(nodes())
    assert len(rows(database_url, ours)) == 6


def test_the_private_name_of_llamaindex_exists(make: MakeStore) -> None:
    store = make(BulkPGVectorStore, "docs")
    store.add([])
    package = "llama-index-vector-stores-postgres"
    assert getattr(store, PRIVATE_ENGINE, None) is not None, (
        f"{package} {version(package)} no longer has `PGVectorStore.{PRIVATE_ENGINE}`, which "
        f"llamaindex/store.py uses; {CHECKED_RELEASE} had it. Find what `PGVectorStore.async_add` "
        "uses instead, update `PRIVATE_ENGINE` and `CHECKED_RELEASE` at the top of that file, and "
        "raise the lower bound in pyproject.toml. If nothing replaces it, cap the version there."
    )


def test_the_private_keys_of_llamaindex_exist() -> None:
    written = node_to_metadata_dict(TextNode(text="a text"), remove_text=True)
    assert {NODE_CONTENT, NODE_TYPE} <= written.keys(), (
        f"llama-index-core {version('llama-index-core')} writes {sorted(written)}. Update "
        "`NODE_CONTENT` and `NODE_TYPE` in layouts.py and what rows/binary.py writes to them, and "
        "raise the lower bound in pyproject.toml."
    )


async def test_a_private_name_that_moved_is_an_error_that_says_what_to_install(
    make: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llamaindex_store, "PRIVATE_ENGINE", "_moved")
    with pytest.raises(RuntimeError, match=rf"_moved`.*or install .*{CHECKED_RELEASE}"):
        await make(BulkPGVectorStore, "docs").async_add([])


def test_a_missing_table_is_an_error(make: MakeStore):
    ours = make(BulkPGVectorStore, "docs", perform_setup=False)
    with pytest.raises(TableError, match=r"The table public\.data_docs does not exist"):
        ours.add(nodes())


@pytest.mark.parametrize("isolation_level", ["AUTOCOMMIT", "SERIALIZABLE"])
async def test_psycopg_and_every_isolation_level_work(database_url: str, isolation_level: str):
    url = sqlalchemy_url(database_url, "psycopg")
    engine = create_engine(url, isolation_level=isolation_level)
    async_engine = create_async_engine(url, isolation_level=isolation_level)
    store = BulkPGVectorStore(
        table_name="docs", embed_dim=DIMENSIONS, engine=engine, async_engine=async_engine
    )
    bad = TextNode(id_="wrong", text="w", embedding=[1.0] * 8)
    store.add(nodes()[:3])
    await store.async_add(nodes()[2:])
    with pytest.raises(DBAPIError):
        store.add([TextNode(id_="new", text="n", embedding=vector(1)), bad])
    with pytest.raises(DBAPIError):
        await store.async_add([TextNode(id_="new", text="n", embedding=vector(1)), bad])
    assert [row[3] for row in rows(database_url, store)] == ["a", "b", "c", "d", "e", "f"]
    await store.close()


async def test_psycopg2_and_asyncpg_work_in_autocommit(make: MakeStore, database_url: str):
    store = make(BulkPGVectorStore, "docs", create_engine_kwargs={"isolation_level": "AUTOCOMMIT"})
    bad = TextNode(id_="wrong", text="w", embedding=[1.0] * 8)
    store.add(nodes()[:3])
    await store.async_add(nodes()[2:])
    with pytest.raises(DBAPIError):
        store.add([TextNode(id_="new", text="n", embedding=vector(1)), bad])
    assert len(rows(database_url, store)) == 6
    await store.close()
