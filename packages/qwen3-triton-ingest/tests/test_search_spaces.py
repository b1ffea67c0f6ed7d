"""The vector of a question is only compared with vectors of its own embedding space."""

from __future__ import annotations

import threading
from collections.abc import Generator

import psycopg
import pytest

from filled_tables import Corpus
from qwen3_triton_client import EmbeddingClient, EmbeddingResult
from qwen3_triton_ingest.config import GatewayOptions
from qwen3_triton_ingest.errors import FingerprintError, TableError
from qwen3_triton_ingest.search import Searcher

SHORT = 256  # dimensions; fewer dimensions of the same model are another embedding space


@pytest.fixture(name="short", scope="module")
def _short(corpus: Corpus) -> EmbeddingResult:
    """The vectors of the corpus in another space."""
    with EmbeddingClient(corpus.gateway_url, dimensions=SHORT) as client:
        return client.embed([entry.text for entry in corpus.entries])


@pytest.fixture(name="url")
def _url(database_url: str, corpus: Corpus, short: EmbeddingResult) -> str:
    """A table `manuals`, and another one of the same texts with vectors of another space."""
    corpus.fill(database_url, "manuals")
    with psycopg.connect(database_url) as connection:
        connection.execute(
            f"CREATE TABLE beside (LIKE manuals INCLUDING ALL);"
            f"ALTER TABLE beside ALTER embedding TYPE vector({SHORT}) USING NULL".encode()
        )
        connection.cursor().executemany(
            "INSERT INTO beside (id, doc_id, seq, content, metadata, embedding) "
            "VALUES (%s, %s, 0, %s, '{}', %s)",
            [
                (entry.id, entry.doc_id, entry.text, str(vector.tolist()))
                for entry, vector in zip(corpus.entries, short.vectors, strict=True)
            ],
        )
        connection.execute("CREATE TABLE spaces (fingerprint text, dimensions int)")
        connection.execute("INSERT INTO spaces VALUES (%s, %s)", (short.fingerprint, SHORT))
    return database_url


@pytest.fixture(name="searcher")
def _searcher(url: str, corpus: Corpus) -> Generator[Searcher]:
    with Searcher(url, "manuals", gateway=GatewayOptions(url=corpus.gateway_url)) as searcher:
        yield searcher


def _say(url: str, fingerprint: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE qwen3_ingest.tables SET fingerprint = %s", (fingerprint,))


def _swap(connection: psycopg.Connection) -> None:
    """Swap both tables and their ledger entries, as `--reembed` does."""
    with connection.transaction():
        connection.execute(
            "LOCK TABLE manuals, beside IN ACCESS EXCLUSIVE MODE;"
            "ALTER TABLE manuals RENAME TO aside; ALTER TABLE beside RENAME TO manuals;"
            "ALTER TABLE aside RENAME TO beside;"
            "WITH former AS (SELECT fingerprint, dimensions FROM qwen3_ingest.tables), "
            "moved AS (UPDATE qwen3_ingest.tables t SET fingerprint = s.fingerprint, "
            "dimensions = s.dimensions FROM spaces s) "
            "UPDATE spaces SET fingerprint = f.fingerprint, dimensions = f.dimensions "
            "FROM former f"
        )


@pytest.mark.parametrize("mode", ["vector", "hybrid"])
def test_a_question_for_another_model_is_rejected(
    searcher: Searcher, url: str, corpus: Corpus, mode: str
) -> None:
    question = corpus.entries[0].question
    _say(url, "of-another-model")
    for _ in range(2):
        with pytest.raises(
            FingerprintError, match=r"`of-another-model`.*--reembed --table public\.manuals"
        ):
            searcher.search(question, mode=mode)  # type: ignore[arg-type]
    _say(url, corpus.space.fingerprint)
    assert searcher.search(question, mode=mode)  # type: ignore[arg-type]


def test_cached_facts_about_the_table_are_checked(
    searcher: Searcher, url: str, corpus: Corpus
) -> None:
    assert searcher.search(corpus.entries[0].question)
    _say(url, "of-another-model")
    with pytest.raises(FingerprintError):
        searcher.search(corpus.entries[0].question)


async def test_a_question_for_another_model_is_rejected_in_event_loops_too(
    searcher: Searcher, url: str, corpus: Corpus
) -> None:
    try:
        assert await searcher.asearch(corpus.entries[0].question)
        _say(url, "of-another-model")
        with pytest.raises(FingerprintError):
            await searcher.asearch(corpus.entries[0].question)
    finally:
        await searcher.aclose()


def test_text_search_works_with_any_model(searcher: Searcher, url: str) -> None:
    _say(url, "of-another-model")
    assert searcher.search("lava", mode="text")


def test_a_table_without_a_ledger_can_be_searched(database_url: str, corpus: Corpus) -> None:
    corpus.fill(database_url, "theirs", ledger=False)
    gateway = GatewayOptions(url=corpus.gateway_url)
    with Searcher(database_url, "theirs", gateway=gateway) as searcher:
        assert searcher.search(corpus.entries[0].question)


def test_a_swap_is_followed_to_the_new_dimensions(
    searcher: Searcher, url: str, corpus: Corpus
) -> None:
    entry = corpus.entries[20]
    assert searcher.search(entry.question, mode="vector")
    with psycopg.connect(url, autocommit=True) as connection:
        _swap(connection)
    hits = searcher.search(entry.question, mode="vector")
    assert searcher.table.dimensions == SHORT
    assert entry.doc_id in [hit.doc_id for hit in hits]


def test_searches_during_swaps_compare_vectors_of_one_space(
    searcher: Searcher, url: str, corpus: Corpus
) -> None:
    """Each result is entirely of one space or of the other, down to the last distance."""
    question = corpus.entries[30].question

    def answer() -> list[tuple[str, float | None]]:
        return [(hit.id, hit.distance) for hit in searcher.search(question, mode="vector", k=5)]

    ended = threading.Event()
    begun = threading.Semaphore(0)

    def keep_swapping() -> None:
        """Swap once while each search runs: more often, none would end on a busy machine."""
        with psycopg.connect(url, autocommit=True) as connection:
            while begun.acquire() and not ended.is_set():
                _swap(connection)

    first = answer()
    with psycopg.connect(url, autocommit=True) as connection:
        _swap(connection)
    second = answer()
    assert first != second
    swapper = threading.Thread(target=keep_swapping)
    swapper.start()
    answers: list[list[tuple[str, float | None]]] = []
    refused = 0
    try:
        while len(answers) < 60:
            begun.release()
            try:
                answers.append(answer())
            except TableError:  # a swap came first every time
                refused += 1
    finally:
        ended.set()
        begun.release()
        swapper.join()
    assert all(found in (first, second) for found in answers)
    assert first in answers
    assert second in answers
    assert refused < 60


def test_texts_embedded_as_queries_are_searched_with_their_instruction(
    database_url: str, corpus: Corpus
) -> None:
    """For symmetric tasks, such as duplicate detection."""
    instruction = "Find texts on the same subject"
    corpus.fill(database_url, "twins")
    text = corpus.entries[11].text
    with EmbeddingClient(corpus.gateway_url) as client:
        alike = client.embed([text], input_type="query", instruction=instruction)
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE qwen3_ingest.tables SET instruction = %s", (instruction,))
        connection.execute(
            "UPDATE twins SET embedding = %s WHERE id = %s",
            (str(alike.to_lists()[0]), corpus.entries[11].id),
        )
    gateway = GatewayOptions(url=corpus.gateway_url)
    with Searcher(database_url, "twins", gateway=gateway) as searcher:
        hit = searcher.search(text, mode="vector", k=1)[0]
    assert hit.id == str(corpus.entries[11].id)
    assert hit.distance == pytest.approx(0, abs=1e-5)
