"""The retrievers of LangChain and LlamaIndex, run by the frameworks."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever as LangChainBaseRetriever
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_tests.integration_tests import RetrieversIntegrationTests
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers.no_text import NoText
from llama_index.core.schema import NodeRelationship, TextNode
from pydantic import ValidationError

from filled_tables import LAYOUTS, Library
from qwen3_triton_ingest.langchain import PostgresRetriever as LangChainRetriever
from qwen3_triton_ingest.layouts import LayoutName
from qwen3_triton_ingest.llamaindex import PostgresRetriever as LlamaIndexRetriever

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
    assert [node.score for node in nodes] == sorted(
        (node.score or 0 for node in nodes), reverse=True
    )


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
    with pytest.raises(ValueError, match="`k` must be 1 to 10000, not 0"):
        LlamaIndexRetriever(f"postgresql://u:{PASSWORD}@localhost/x", "t", k=0)
