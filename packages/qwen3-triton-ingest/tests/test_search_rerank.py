"""Reranked searches, compared to the scores that the reranker's graph gives pair by pair."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from llama_index.core.schema import MetadataMode

import qwen3_nano
from filled_tables import LAYOUTS, Library, create_database
from gateway_process import GatewayProcess, running_gateway
from qwen3_triton_client import (
    BadAnswerError,
    EmbeddingClient,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
)
from qwen3_triton_gateway.rerank_prompt import DEFAULT_INSTRUCTION
from qwen3_triton_ingest.commands.search import search as search_command
from qwen3_triton_ingest.config import GatewayOptions, LoadOptions
from qwen3_triton_ingest.langchain import PostgresRetriever as LangChainRetriever
from qwen3_triton_ingest.layouts import LayoutName
from qwen3_triton_ingest.llamaindex import PostgresRetriever as LlamaIndexRetriever
from qwen3_triton_ingest.load import load
from qwen3_triton_ingest.search import Hit, Searcher, SearchMode, SearchOptions
from qwen3_triton_ingest.search.reranking import rerank
from reranker_graph import reference_logits, write_reranker

QUESTION = "How do animals see in the dark?"
MAX_LENGTH = 512
# Rounding of float32 in batches of other shapes.
TOLERANCE = 1e-4


@pytest.fixture(name="reranker", scope="module")
def _reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reranker(tmp_path_factory.mktemp("reranker"))


@pytest.fixture(name="both_models", scope="module")
def _both_models(reranker: Path) -> Generator[GatewayProcess]:
    """A gateway with the library's embedding model, and a reranker."""
    nano = str(qwen3_nano.model_dir())
    with running_gateway(
        *("--model-dir", nano, "--tokenizer-path", nano, "--model-id", qwen3_nano.MODEL_ID),
        *("--rerank-model-dir", str(reranker), "--rerank-max-length", str(MAX_LENGTH)),
    ) as gateway:
        yield gateway


@pytest.fixture(name="searcher")
def _searcher(library: Library, both_models: GatewayProcess) -> Generator[Searcher]:
    gateway = GatewayOptions(url=both_models.url)
    with Searcher(library.dsn, library.tables["own"], gateway=gateway) as searcher:
        yield searcher


def _reference(folder: Path, question: str, texts: Sequence[str]) -> list[float]:
    """Compute the scores pair by pair, outside of the gateway."""
    no, yes = reference_logits(folder, question, texts).T
    return [1 / (1 + math.exp(-each)) for each in (yes - no).tolist()]


def _without_scores(hit: Hit) -> Hit:
    return replace(hit, rerank_score=None, search_rank=None)


@pytest.mark.parametrize(
    ("mode", "fetch_k", "fetched"), [("vector", 12, 12), ("text", 12, 12), ("hybrid", None, 50)]
)
def test_the_best_of_what_is_fetched_are_returned_with_both_scores(
    searcher: Searcher, reranker: Path, mode: SearchMode, fetch_k: int | None, fetched: int
) -> None:
    found = searcher.search(QUESTION, mode=mode, k=fetched)
    assert len(found) == fetched
    scores = dict(enumerate(_reference(reranker, QUESTION, [hit.text for hit in found]), 1))
    hits = searcher.search(QUESTION, mode=mode, k=5, rerank=True, fetch_k=fetch_k)
    assert len(hits) == 5
    for hit in hits:
        assert hit.search_rank is not None
        assert _without_scores(hit) == found[hit.search_rank - 1]
        assert hit.rerank_score == pytest.approx(scores.pop(hit.search_rank), abs=TOLERANCE)
    returned = [hit.rerank_score or 0 for hit in hits]
    assert returned == sorted(returned, reverse=True)
    assert returned[-1] >= max(scores.values()) - TOLERANCE  # of those that were not returned


async def test_event_loops_find_the_same(searcher: Searcher) -> None:
    hits = await searcher.asearch(QUESTION, k=4, rerank=True, fetch_k=8)
    await searcher.aclose()
    assert len(hits) == 4
    again = searcher.search(QUESTION, k=4, rerank=True, fetch_k=8)
    assert [hit.id for hit in hits] == [hit.id for hit in again]
    assert [hit.rerank_score for hit in hits] == pytest.approx(
        [hit.rerank_score for hit in again], abs=TOLERANCE
    )


def test_as_many_hits_are_reranked_as_asked_for(searcher: Searcher) -> None:
    found = searcher.search(QUESTION, k=7)
    hits = searcher.search(QUESTION, k=7, rerank=True, fetch_k=7)
    assert sorted(hit.id for hit in hits) == sorted(hit.id for hit in found)
    assert {hit.search_rank for hit in hits} == set(range(1, 8))


def test_fewer_hits_than_asked_for_are_all_reranked(searcher: Searcher) -> None:
    few = searcher.search(QUESTION, k=5, rerank=True, filter={"number": {"$lt": 3}})
    assert {hit.search_rank for hit in few} == {1, 2, 3}
    assert searcher.search("qwxz", mode="text", rerank=True) == []


def test_an_instruction_says_what_is_relevant(searcher: Searcher) -> None:
    def scores(instruction: str | None) -> dict[str, float | None]:
        hits = searcher.search(
            QUESTION, k=6, rerank=True, fetch_k=6, rerank_instruction=instruction
        )
        return {hit.id: hit.rerank_score for hit in hits}

    by_default = scores(None)
    assert scores(DEFAULT_INSTRUCTION) == pytest.approx(by_default, abs=TOLERANCE)
    assert scores("Find what contradicts it") != pytest.approx(by_default, abs=TOLERANCE)


def test_chunks_are_reranked_by_the_question_whatever_vector_is_searched_for(
    searcher: Searcher, library: Library, reranker: Path
) -> None:
    vector = library.corpus.chunks[40].vector
    hits = searcher.search(QUESTION, vector=vector, mode="vector", k=5, rerank=True, fetch_k=5)
    scores = _reference(reranker, QUESTION, [hit.text for hit in hits])
    assert [hit.rerank_score for hit in hits] == pytest.approx(scores, abs=TOLERANCE)
    with pytest.raises(ValueError, match="`rerank` needs the question as text"):
        searcher.search(" ", vector=vector, mode="vector", rerank=True)


@pytest.fixture(name="odd_texts", scope="module")
def _odd_texts(library: Library, postgres_uri: str) -> Generator[str]:
    """A table of eight rows: two are blank, and one is longer than the reranker reads."""
    for dsn in create_database(postgres_uri):
        library.corpus.fill(dsn, "odd")
        with psycopg.connect(dsn) as connection:
            connection.execute("DELETE FROM odd WHERE (metadata->>'number')::int >= 8")
            for number, text in ((2, ""), (3, " \n\t"), (5, "bats in the dark " * MAX_LENGTH)):
                connection.execute(
                    "UPDATE odd SET content = %s WHERE (metadata->>'number')::int = %s",
                    (text, number),
                )
        yield dsn


def test_a_blank_text_comes_last_with_a_score_of_0(
    odd_texts: str, both_models: GatewayProcess
) -> None:
    with Searcher(odd_texts, "odd", gateway=GatewayOptions(url=both_models.url)) as searcher:
        hits = searcher.search(QUESTION, mode="vector", rerank=True)
        assert len(hits) == 8
        assert [hit.metadata["number"] in (2, 3) for hit in hits] == [False] * 6 + [True] * 2
        assert [hit.rerank_score == 0 for hit in hits] == [False] * 6 + [True] * 2
        blank = searcher.search(
            QUESTION, mode="vector", rerank=True, filter={"number": {"$in": [2, 3]}}
        )
    assert [hit.search_rank for hit in blank] == [1, 2]


def test_a_text_that_is_longer_than_the_reranker_reads_is_reported(
    odd_texts: str, both_models: GatewayProcess, caplog: pytest.LogCaptureFixture
) -> None:
    # Such a client refuses what is too long, and so does the loader's own.
    with (
        EmbeddingClient(both_models.url, truncate=False) as client,
        Searcher(odd_texts, "odd", client=client) as searcher,
    ):
        hits = searcher.search(QUESTION, mode="vector", rerank=True)
    assert [hit.metadata["number"] for hit in hits if hit.rerank_truncated] == [5]
    assert "only the beginning of 1 of 6 chunks" in caplog.text
    arguments = ("--mode", "vector", "--rerank")
    result = _run(odd_texts, both_models.url, QUESTION, "--table", "odd", *arguments)
    assert result.exit_code == 0, result.output
    assert result.output.count(", text truncated)") == 1
    assert result.output.count("rerank 0.0000, no text (was #") == 2


def test_a_question_that_is_too_long_to_rerank_is_refused(searcher: Searcher) -> None:
    question = QUESTION + " and so on" * MAX_LENGTH
    assert searcher.search(question, k=1)
    with pytest.raises(InvalidRequestError, match="queries are never cut"):
        searcher.search(question, k=1, rerank=True)


def test_a_chunk_is_reranked_with_its_headings_as_it_was_embedded(
    database_url: str, both_models: GatewayProcess, reranker: Path, tmp_path: Path
) -> None:
    gateway = GatewayOptions(url=both_models.url)
    (tmp_path / "pump.md").write_text("# Pump\n\n## Reset\n\nHold the button for ten seconds.\n")
    load([tmp_path], dsn=database_url, table="manuals", options=LoadOptions(gateway=gateway))

    def scores() -> list[tuple[str, float | None]]:
        with Searcher(database_url, "manuals", gateway=gateway) as searcher:
            hits = searcher.search("How is it reset?", mode="vector", rerank=True)
        return [(hit.text, hit.rerank_score) for hit in hits]

    [(text, score)] = scores()
    alone, with_headings = _reference(
        reranker, "How is it reset?", [text, f"Pump > Reset\n\n{text}"]
    )
    assert abs(alone - with_headings) > 10 * TOLERANCE
    assert score == pytest.approx(with_headings, abs=TOLERANCE)
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE qwen3_ingest.tables SET context = 'none'")
    assert scores() == [(text, pytest.approx(alone, abs=TOLERANCE))]


async def test_without_a_reranker_the_error_says_how_to_serve_one(library: Library) -> None:
    message = "No reranker is served here. Start the gateway with RERANK_TRITON_MODEL"
    gateway = GatewayOptions(url=library.gateway_url)
    async with Searcher(library.dsn, library.tables["own"], gateway=gateway) as searcher:
        with pytest.raises(ModelNotFoundError, match=message):
            searcher.search(QUESTION, rerank=True)
        with pytest.raises(ModelNotFoundError, match=message):
            await searcher.asearch(QUESTION, rerank=True)
    result = _run(library.dsn, library.gateway_url, QUESTION, "--table", "manuals_own", "--rerank")
    assert result.exit_code == 1
    assert result.output.startswith("Error: The gateway at ")
    assert message in result.output
    assert "A search without `rerank` needs no reranker." in result.output
    assert len(result.output.splitlines()) == 1


def _run(dsn: str, gateway_url: str, *arguments: str) -> Result:
    variables = {"DATABASE_URL": dsn, "QWEN3_TRITON_URL": gateway_url}
    return CliRunner().invoke(search_command, [*arguments], env=variables)


def test_the_command_prints_both_scores(library: Library, both_models: GatewayProcess) -> None:
    arguments = (QUESTION, "--table", "manuals_own", "--rerank", "--fetch-k", "6", "-k", "3")
    result = _run(library.dsn, both_models.url, *arguments)
    assert result.exit_code == 0, result.output
    line = r"(?m)^[1-3]\. \S+  chunk 0  rerank [01]\.\d{4} \(was #\d+\), score 0\.\d{4}"
    assert len(re.findall(line, result.output)) == 3
    hits = json.loads(_run(library.dsn, both_models.url, *arguments, "--json").stdout)["hits"]
    assert [hit["rerank_score"] for hit in hits] == sorted(
        (hit["rerank_score"] for hit in hits), reverse=True
    )
    assert all(0 < hit["score"] < hit["rerank_score"] + 1 for hit in hits)
    assert all(1 <= hit["search_rank"] <= 6 and not hit["rerank_truncated"] for hit in hits)


def test_an_option_of_reranking_alone_is_refused() -> None:
    result = _run("postgresql://", "http://unused", QUESTION, "--table", "t", "--fetch-k", "6")
    assert result.exit_code == 2
    assert "--fetch-k is for reranking. Pass --rerank, too." in result.output


def test_langchain_documents_have_both_scores_in_their_metadata(
    library: Library, both_models: GatewayProcess, searcher: Searcher
) -> None:
    expected = searcher.search(QUESTION, k=4, rerank=True, fetch_k=8)
    retriever = LangChainRetriever(
        dsn=library.dsn,  # pyright: ignore[reportArgumentType] - pydantic turns it into a secret
        table=library.tables["own"],
        base_url=both_models.url,
        rerank=True,
        fetch_k=8,
    )
    documents = retriever.invoke(QUESTION)
    assert [document.id for document in documents] == [hit.id for hit in expected]
    for document, hit in zip(documents, expected, strict=True):
        assert document.metadata["relevance_score"] == pytest.approx(
            hit.rerank_score, abs=TOLERANCE
        )
        assert document.metadata["score"] == hit.score
        assert document.metadata["rerank_truncated"] is False
    again = asyncio.run(retriever.ainvoke(QUESTION, k=2))
    assert [document.id for document in again] == [hit.id for hit in expected[:2]]
    plain: dict[str, Any] = retriever.invoke(QUESTION, rerank=False)[0].metadata  # type: ignore[call-arg]
    assert "relevance_score" not in plain
    retriever.close()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_llamaindex_nodes_have_the_reranker_s_score_and_keep_the_other_one(
    library: Library, both_models: GatewayProcess, searcher: Searcher, layout: LayoutName
) -> None:
    expected = searcher.search(QUESTION, k=3, rerank=True, fetch_k=6)
    retriever = LlamaIndexRetriever(
        *(library.dsn, library.tables[layout]),
        base_url=both_models.url,
        similarity_top_k=3,
        rerank=True,
        fetch_k=6,
    )
    nodes = retriever.retrieve(QUESTION)
    later = asyncio.run(retriever.aretrieve(QUESTION))
    retriever.close()
    assert [node.node.node_id for node in nodes] == [hit.id for hit in expected]
    assert [node.node.node_id for node in later] == [hit.id for hit in expected]
    for node, hit in zip(nodes, expected, strict=True):
        assert node.score == pytest.approx(hit.rerank_score, abs=TOLERANCE)
        assert node.node.metadata["retrieval_score"] == pytest.approx(hit.similarity, abs=1e-5)
        for mode in (MetadataMode.LLM, MetadataMode.EMBED):
            assert "retrieval_score" not in node.node.get_content(mode)
            assert "rerank_truncated" not in node.node.get_content(mode)


def test_an_error_about_one_text_names_its_chunk() -> None:
    hits = [_hit(number) for number in range(4)]
    steps = rerank(QUESTION, [replace(hits[0], text=""), *hits[1:]], SearchOptions(), "none")
    assert list(next(steps).texts) == ["text 1", "text 2", "text 3"]
    error = BadAnswerError("Document 1 has no usable score.", positions=(1,))
    error.failed_indices, error.argument = (1,), "documents"
    with pytest.raises(BadAnswerError, match="chunk id-2 of the document 'document-2'"):
        steps.throw(error)


def test_an_error_about_all_texts_names_no_chunk() -> None:
    steps = rerank(QUESTION, [_hit(1)], SearchOptions(), "none")
    next(steps)
    error = OverloadedError("The queue is full.")
    error.failed_indices, error.argument = (0,), "documents"
    with pytest.raises(OverloadedError) as caught:
        steps.throw(error)
    assert "chunk" not in str(caught.value)


def _hit(number: int) -> Hit:
    place = (f"id-{number}", f"document-{number}", 0, f"text {number}", {})
    return Hit(*place, 0.5, 0.5, number + 1, None, None, None, stored_metadata={})


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        (SearchOptions(k=5, rerank=True), 50),
        (SearchOptions(k=5), 5),
        (SearchOptions(k=5, fetch_k=30), 5),
        (SearchOptions(k=5, fetch_k=3), 5),
        (SearchOptions(k=20, rerank=True), 80),
        (SearchOptions(k=5, rerank=True, fetch_k=5), 5),
        (SearchOptions(k=5, rerank=True, candidates=30), 30),
        (SearchOptions(k=10_000, rerank=True), 10_000),
    ],
)
def test_50_hits_or_four_times_as_many_as_asked_for_are_reranked(
    options: SearchOptions, rows: int
) -> None:
    assert options.rows == rows
    assert options.arm_rows >= rows


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fetch_k": 4}, "`fetch_k` must be 5 to 10000, not 4"),
        ({"fetch_k": 10_001}, "`fetch_k` must be 5 to 10000, not 10001"),
        ({"fetch_k": 60, "candidates": 50}, "`candidates` must be 60 to 100000, not 50"),
    ],
)
def test_fewer_hits_cannot_be_reranked_than_returned(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchOptions(k=5, rerank=True, **wrong)
