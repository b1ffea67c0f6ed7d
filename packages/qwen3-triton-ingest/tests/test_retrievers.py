"""The retrievers of LangChain and LlamaIndex, run by the frameworks."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Generator, Sequence
from typing import Any, TypeVar
from uuid import UUID

import pytest
from langchain_core.documents import Document
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolCall
from langchain_core.retrievers import BaseRetriever as LangChainBaseRetriever
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.tools import create_retriever_tool
from langchain_tests.integration_tests import RetrieversIntegrationTests
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers.no_text import NoText
from llama_index.core.schema import NodeRelationship, NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
from pydantic import ValidationError

from filled_tables import LAYOUTS, Entry, Library, create_database, embed
from qwen3_triton_client import EmbeddingClient, InvalidRequestError
from qwen3_triton_ingest.langchain import PostgresRetriever as LangChainRetriever
from qwen3_triton_ingest.layouts import LayoutName
from qwen3_triton_ingest.llamaindex import PostgresRetriever as LlamaIndexRetriever
from qwen3_triton_ingest.search import SearchMode

T = TypeVar("T")

PASSWORD = "hidden-password"


@pytest.fixture(name="layout", params=LAYOUTS)
def _layout(request: pytest.FixtureRequest) -> LayoutName:
    return request.param


@pytest.fixture(name="langchain")
def _langchain(library: Library, layout: LayoutName) -> Generator[LangChainRetriever]:
    retriever = LangChainRetriever(
        dsn=library.dsn,  # pyright: ignore[reportArgumentType] - pydantic turns it into a secret
        table=library.tables[layout],
        base_url=library.gateway_url,
    )
    yield retriever
    retriever.close()


@pytest.fixture(name="llamaindex")
def _llamaindex(library: Library, layout: LayoutName) -> Generator[LlamaIndexRetriever]:
    retriever = LlamaIndexRetriever(
        library.dsn, library.tables[layout], base_url=library.gateway_url, k=4
    )
    yield retriever
    retriever.close()


class TestLangChainsOwnSuite(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _library(self, library: Library) -> None:
        self._params = {
            "dsn": library.dsn,
            "table": library.tables["langchain"],
            "base_url": library.gateway_url,
        }

    @property
    def retriever_constructor(self) -> type[LangChainBaseRetriever]:
        return LangChainRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return self._params

    @property
    def retriever_query_example(self) -> str:
        return "How do flying mammals find their prey in total darkness?"


def test_langchain_returns_documents_with_their_scores(
    library: Library, langchain: LangChainRetriever
) -> None:
    entry = library.entries[9]
    documents = langchain.invoke(entry.question)
    assert len(documents) == 4
    best = next(document for document in documents if document.id == str(entry.id))
    assert best.page_content == entry.text
    assert entry.metadata.items() <= best.metadata.items()
    assert best.metadata["doc_id"] == entry.doc_id
    assert best.metadata["score"] > 0


def test_options_of_one_call_override_the_fields(langchain: LangChainRetriever) -> None:
    asked = "How do animals see in the dark?"
    langchain.filter = {"subject": "animals"}
    subjects = {document.metadata["subject"] for document in langchain.invoke(asked)}
    assert subjects == {"animals"}
    documents = langchain.invoke(asked, k=2, filter={"subject": "astronomy"}, mode="text")  # type: ignore[call-arg]
    assert [document.metadata["subject"] for document in documents] == ["astronomy"] * 2


def test_langchain_chains_run_in_event_loops(
    library: Library, langchain: LangChainRetriever
) -> None:
    def titles(documents: list[Document]) -> list[str]:
        return [document.metadata["title"] for document in documents]

    chain = {"titles": langchain | RunnableLambda(titles), "asked": RunnablePassthrough()}
    question = library.entries[9].question
    found = asyncio.run((RunnablePassthrough() | chain).ainvoke(question))
    assert found == {"titles": titles(langchain.invoke(question)), "asked": question}


def test_langchain_batches_run_in_threads(library: Library, langchain: LangChainRetriever) -> None:
    questions = [entry.question for entry in library.entries[:12]]
    assert langchain.batch(questions) == [langchain.invoke(question) for question in questions]


class AskingModel(GenericFakeChatModel):
    def bind_tools(self, *_: Any, **__: Any) -> Any:  # as every real chat model has
        return self


def test_an_agent_of_langchain_uses_it_as_a_tool(
    library: Library, langchain: LangChainRetriever
) -> None:
    agents = pytest.importorskip("langchain.agents", exc_type=ImportError)
    entry = library.entries[9]
    call = ToolCall(name="manuals", args={"query": entry.question}, id="1")
    model = AskingModel(messages=iter([AIMessage("", tool_calls=[call]), AIMessage("Done.")]))
    tool = create_retriever_tool(langchain, "manuals", "Searches the manuals.")
    agent = agents.create_agent(model, [tool])
    answer = asyncio.run(agent.ainvoke({"messages": [("human", entry.question)]}))
    assert entry.text in answer["messages"][-2].content


def test_langchain_reads_its_dsn_from_the_environment(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", library.dsn)
    monkeypatch.setenv("QWEN3_TRITON_URL", library.gateway_url)
    retriever = LangChainRetriever(table=library.tables["own"], k=1)
    assert len(retriever.invoke("volcano")) == 1
    retriever.close()


def test_langchain_rejects_options_out_of_range_without_showing_a_secret() -> None:
    dsn = f"postgresql://u:{PASSWORD}@localhost/x"
    for wrong in ({"k": 0}, {"mode": "semantic"}, {"candidates": 1}, {"unknown": 1}):
        with pytest.raises(ValidationError) as caught:
            LangChainRetriever(dsn=dsn, table="t", **wrong)  # type: ignore[arg-type]
        assert PASSWORD not in str(caught.value)
    retriever = LangChainRetriever(dsn=dsn, table="t", api_key="hidden-password-too")  # type: ignore[arg-type]
    assert PASSWORD not in repr(retriever)
    assert PASSWORD not in retriever.model_dump_json()


def test_llamaindex_returns_nodes_with_their_scores(
    library: Library, llamaindex: LlamaIndexRetriever
) -> None:
    entry = library.entries[9]
    nodes = llamaindex.retrieve(entry.question)
    assert len(nodes) == 4
    best = next(node for node in nodes if node.node.node_id == str(entry.id))
    assert isinstance(best.node, TextNode)
    assert best.node.text == entry.text
    assert best.node.metadata == entry.metadata
    assert best.node.ref_doc_id == entry.doc_id
    assert NodeRelationship.SOURCE in best.node.relationships
    assert best.score is not None
    assert best.score > 0
    llamaindex.similarity_top_k = 2
    assert [node.node.node_id for node in llamaindex.retrieve(entry.question)] == [
        node.node.node_id for node in nodes[:2]
    ]


def test_a_similarity_cut_off_keeps_the_same_nodes_in_vector_and_hybrid_search(
    library: Library,
) -> None:
    entry = library.entries[9]
    kept: dict[SearchMode, dict[str, Any]] = {}
    for mode in ("vector", "hybrid"):
        retriever = LlamaIndexRetriever(
            *(library.dsn, library.tables["own"]),
            base_url=library.gateway_url,
            mode=mode,
            similarity_top_k=len(library.entries),
        )
        nodes = retriever.retrieve(entry.question)
        retriever.close()
        assert len(nodes) == len(library.entries)
        left = SimilarityPostprocessor(similarity_cutoff=0.3).postprocess_nodes(nodes)
        kept[mode] = {node.node.node_id: pytest.approx(node.score, abs=1e-5) for node in left}
    assert 0 < len(kept["vector"]) < len(library.entries) / 2
    assert kept["hybrid"] == kept["vector"]


def test_llamaindex_searches_for_what_the_query_bundle_has(
    library: Library, llamaindex: LlamaIndexRetriever
) -> None:
    asked, other = (library.entries[number].question for number in (9, 40))
    with EmbeddingClient(library.gateway_url) as client:
        first, second = client.embed([asked, other], input_type="query").to_lists()
    expected = llamaindex.retrieve(asked)
    bundles = [
        QueryBundle(asked, embedding=first),
        QueryBundle(asked, custom_embedding_strs=[asked]),
        QueryBundle(asked, custom_embedding_strs=[]),
        # Where both are set, LlamaIndex takes the embedding.
        QueryBundle(asked, custom_embedding_strs=[other], embedding=first),
    ]
    for bundle in bundles:
        assert ids(llamaindex.retrieve(bundle)) == ids(expected)
    mean = [(one + two) / 2 for one, two in zip(first, second, strict=True)]
    of_both = QueryBundle("", custom_embedding_strs=[asked, other])
    assert ids(llamaindex.retrieve(of_both)) == ids(
        asyncio.run(llamaindex.aretrieve(QueryBundle("", embedding=mean)))
    )


def ids(nodes: Sequence[NodeWithScore]) -> list[str]:
    return [node.node.node_id for node in nodes]


@pytest.fixture(name="notes", scope="module", params=LAYOUTS)
def _notes(
    request: pytest.FixtureRequest,
    postgres_uri: str,
    library: Library,
    tmp_path_factory: pytest.TempPathFactory,
) -> Generator[tuple[str, LayoutName]]:
    """Notes whose metadata has the names of what the search itself returns, and other traps."""
    entries = [
        Entry(UUID(int=1), "one", "Basalt is a rock.", {**OWN_NAMES, "tags": ["a", "b"]}),
        Entry(UUID(int=2), "two", "Ice is frozen.", {"year": "2021", "a.b": "100%", "tags": "a"}),
        Entry(UUID(int=3), "three", "Lava is hot.", {"year": 2022, "is_new": True, "tags": []}),
        Entry(UUID(int=4), "four", "Snow is white.", {"year": None, "a": {"b": "100%"}}),
    ]
    notes = embed(library.gateway_url, entries, tmp_path_factory.mktemp("notes") / "notes.npz")
    for dsn in create_database(postgres_uri):
        notes.fill(dsn, "notes", request.param)
        yield dsn, request.param


OWN_NAMES = {"score": 99, "distance": "far", "doc_id": "mine", "seq": 7, "year": 2020}


def test_metadata_of_a_document_does_not_replace_what_the_search_returns(
    notes: tuple[str, LayoutName], library: Library
) -> None:
    dsn, layout = notes
    retriever = LangChainRetriever(
        dsn=dsn,  # pyright: ignore[reportArgumentType] - pydantic turns it into a secret
        table="notes",
        base_url=library.gateway_url,
    )
    found = {document.id: document.metadata for document in retriever.invoke("basalt")}
    retriever.close()
    first = found[str(UUID(int=1))]
    assert (first["doc_id"], first["seq"], first["year"]) == ("one", 0, 2020)
    assert 0 < first["score"] < 1
    assert 0 < first["distance"] < 1
    nodes = LlamaIndexRetriever(dsn, "notes", base_url=library.gateway_url)
    best = nodes.retrieve("basalt")[0]
    nodes.close()
    assert best.node.ref_doc_id == "one"  # type: ignore[attr-defined]
    assert best.score == pytest.approx(1 - first["distance"], abs=1e-5)
    if layout != "langchain":  # which has the document's id in the metadata
        assert best.node.metadata["doc_id"] == "mine"


def _is(key: str, operator: str, value: Any = None) -> MetadataFilter:
    return MetadataFilter(key=key, operator=FilterOperator(operator), value=value)


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ([], {1, 2, 3, 4}),
        ([_is("year", "==", 2021)], {2}),  # text and numbers are equal, as in `PGVectorStore`
        ([_is("year", "==", "2022")], {3}),
        ([_is("year", "!=", 2020)], {2, 3, 4}),
        ([_is("year", "in", ["2020", "2022"])], {1, 3}),
        ([_is("year", "nin", [2020, 2021])], {3, 4}),
        ([_is("year", ">", 2020)], {2, 3}),
        ([_is("year", "<", 10000)], {1, 2, 3}),  # numbers, not words
        ([_is("a.b", "<", 10000)], set()),
        ([_is("a.b", ">", "1")], set()),
        ([_is("distance", ">", "f")], {1}),
        ([_is("year", ">=", "2021")], {2, 3}),
        ([_is("year", ">=", 2020), _is("year", "<", 2022.0)], {1, 2}),
        ([_is("is_new", "==", "true")], {3}),
        ([_is("tags", "contains", "b")], {1}),
        ([_is("tags", "any", ["b", "z"])], {1}),
        ([_is("tags", "all", ["a", "b"])], {1}),
        ([_is("tags", "is_empty")], {3, 4}),
        ([_is("year", "is_empty")], {4}),
        ([_is("a.b", "==", "100%")], {2}),  # a key, not a path
        ([_is("a.b", "text_match", "00%")], {2}),
        ([_is("a.b", "text_match", "1%")], set()),  # not a pattern
        ([_is("doc_id", "text_match_insensitive", "MINE")], {1}),
        ([_is("$or", "==", "x")], set()),
    ],
)
def test_filters_of_llamaindex_match_as_in_its_own_store(
    notes: tuple[str, LayoutName],
    library: Library,
    filters: list[MetadataFilter | MetadataFilters],
    found: set[int],
) -> None:
    dsn, layout = notes
    if layout != "own" and any(getattr(each, "key", "") == "doc_id" for each in filters):
        found = set()  # the layout has the document's id there
    assert matching(dsn, library, MetadataFilters(filters=filters)) == found
    if filters and layout == "own":
        nested = MetadataFilters(filters=[MetadataFilters(filters=filters)], condition="not")  # type: ignore[arg-type]
        assert matching(dsn, library, nested) == {1, 2, 3, 4} - found


def matching(dsn: str, library: Library, filters: MetadataFilters) -> set[int]:
    retriever = LlamaIndexRetriever(
        dsn, "notes", base_url=library.gateway_url, mode="vector", filters=filters
    )
    try:
        return {UUID(node.node.node_id).int for node in retriever.retrieve("x")}
    finally:
        retriever.close()


def test_retrievers_can_be_pickled_and_copied(
    library: Library, langchain: LangChainRetriever, llamaindex: LlamaIndexRetriever
) -> None:
    question = library.entries[9].question
    documents, nodes = langchain.invoke(question), llamaindex.retrieve(question)
    for duplicate in (through_pickle, copy.copy, copy.deepcopy):
        again = duplicate(langchain)
        assert again.invoke(question) == documents
        assert asyncio.run(again.ainvoke(question)) == documents
        assert ids(duplicate(llamaindex).retrieve(question)) == ids(nodes)
    assert langchain.invoke(question) == documents
    assert ids(llamaindex.retrieve(question)) == ids(nodes)


def through_pickle(thing: T) -> T:
    return pickle.loads(pickle.dumps(thing))


def test_a_changed_field_of_the_langchain_retriever_is_used(library: Library) -> None:
    retriever = LangChainRetriever(
        dsn=library.dsn,  # pyright: ignore[reportArgumentType] - pydantic turns it into a secret
        table="nowhere",
        base_url=library.gateway_url,
        mode="text",
        k=1,
    )
    copied = retriever.model_copy(update={"table": library.tables["own"]})
    assert len(copied.invoke("volcano")) == 1
    retriever.table = library.tables["langchain"]
    assert len(retriever.invoke("volcano")) == 1
    for each in (copied, retriever):
        each.close()


def test_a_long_question_is_truncated_or_refused(
    library: Library, langchain: LangChainRetriever, llamaindex: LlamaIndexRetriever
) -> None:
    question = library.entries[9].question + " and so on" * 1_000
    assert langchain.invoke(question)
    assert llamaindex.retrieve(question)
    langchain.truncate = False
    refusing = LlamaIndexRetriever(
        library.dsn, library.tables["own"], base_url=library.gateway_url, truncate=False
    )
    for ask in (langchain.invoke, refusing.retrieve):
        with pytest.raises(InvalidRequestError, match="tokens"):
            ask(question)


def test_llamaindex_retrieves_in_event_loops(
    library: Library, llamaindex: LlamaIndexRetriever
) -> None:
    question = library.entries[9].question
    found = asyncio.run(llamaindex.aretrieve(question))
    assert [node.node.node_id for node in found] == [
        node.node.node_id for node in llamaindex.retrieve(question)
    ]


def test_llamaindex_query_engines_accept_it(
    library: Library, llamaindex: LlamaIndexRetriever
) -> None:
    synthesizer = NoText(llm=MockLLM())
    engine = RetrieverQueryEngine(llamaindex, response_synthesizer=synthesizer)
    entry = library.entries[9]
    answer = engine.query(entry.question)
    assert str(entry.id) in [node.node.node_id for node in answer.source_nodes]


def test_llamaindex_rejects_options_out_of_range() -> None:
    with pytest.raises(ValueError, match="Pass `k` or `similarity_top_k`, not both"):
        LlamaIndexRetriever("postgresql://localhost/x", "t", k=1, similarity_top_k=2)
    retriever = LlamaIndexRetriever("postgresql://localhost/x", "t")
    with pytest.raises(ValueError, match="`k` must be 1 to 10000, not -1"):
        retriever.similarity_top_k = -1
    with pytest.raises(ValueError, match="`k` must be 1 to 10000, not 0"):
        LlamaIndexRetriever(f"postgresql://u:{PASSWORD}@localhost/x", "t", k=0)
