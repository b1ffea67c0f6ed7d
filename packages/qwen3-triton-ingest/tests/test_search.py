"""Searches of real vectors of real text, in each layout, compared to Python."""

from __future__ import annotations

import asyncio
import copy
import math
import pickle
import re
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from ray import cloudpickle

from filled_tables import LAYOUTS, Library
from gateway_process import GatewayProcess
from polling import wait_until_alone
from qwen3_triton_client import EmbeddingClient, EmbeddingError
from qwen3_triton_ingest.config import GatewayOptions
from qwen3_triton_ingest.errors import DatabaseError, FilterError, TableError
from qwen3_triton_ingest.layouts import LayoutName
from qwen3_triton_ingest.search import Hit, Searcher, SearchMode, search

NOWHERE = GatewayOptions(url="http://127.0.0.1:9")
MODES: tuple[SearchMode, ...] = ("vector", "text", "hybrid")


@pytest.fixture(name="searcher", params=LAYOUTS)
def _searcher(request: pytest.FixtureRequest, library: Library) -> Generator[Searcher]:
    layout: LayoutName = request.param
    gateway = GatewayOptions(url=library.gateway_url)
    with Searcher(library.dsn, library.tables[layout], gateway=gateway) as searcher:
        yield searcher


@pytest.fixture(name="own")
def _own(library: Library) -> Generator[Searcher]:
    gateway = GatewayOptions(url=library.gateway_url)
    with Searcher(library.dsn, library.tables["own"], gateway=gateway) as searcher:
        yield searcher


def _nearest(library: Library, question: str, k: int) -> list[tuple[str, float]]:
    with EmbeddingClient(library.gateway_url) as client:
        asked = client.embed([question], input_type="query").vectors[0]
    distances = {
        each.chunk.doc_id: 1 - sum(map(float.__mul__, asked, each.vector))
        for each in library.corpus.chunks
    }
    return sorted(distances.items(), key=lambda item: item[1])[:k]


def test_the_nearest_chunks_are_those_that_python_computes(
    library: Library, searcher: Searcher
) -> None:
    for entry in library.entries[::60]:
        hits = searcher.search(entry.question, mode="vector", k=7)
        expected = _nearest(library, entry.question, 7)
        assert [hit.doc_id for hit in hits] == [doc_id for doc_id, _ in expected]
        for hit, (_, distance) in zip(hits, expected, strict=True):
            assert hit.distance == pytest.approx(distance, abs=1e-5)
            assert hit.score == pytest.approx(1 - distance, abs=1e-5)
        assert [hit.vector_rank for hit in hits] == list(range(1, 8))
        assert {hit.text_rank for hit in hits} == {None}


def test_a_hit_has_the_row_as_it_was_loaded(library: Library, searcher: Searcher) -> None:
    entry = library.entries[40]
    hit = searcher.search(entry.question, mode="vector", k=1)[0]
    assert (hit.id, hit.doc_id, hit.seq, hit.text) == (str(entry.id), entry.doc_id, 0, entry.text)
    assert hit.metadata == entry.metadata  # without the keys that the layout adds
    assert entry.text not in repr(hit)
    assert str(entry.metadata["title"]) not in repr(hit)


def test_text_search_finds_texts_with_any_of_the_words(
    library: Library, searcher: Searcher
) -> None:
    hits = searcher.search("qwxz lava zzyzx", mode="text", k=20)
    having = {e.doc_id for e in library.entries if "lava" in re.findall(r"\w+", e.text.lower())}
    assert having
    assert {hit.doc_id for hit in hits} == having
    assert [hit.text_rank for hit in hits] == list(range(1, len(hits) + 1))
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert {hit.distance for hit in hits} == {None}


def test_hybrid_search_finds_titles_better_than_either_search_alone(library: Library) -> None:
    with Searcher(
        library.dsn,
        library.tables["own"],
        gateway=GatewayOptions(url=library.gateway_url),
        text_config="english",
    ) as searcher:
        ranks: dict[SearchMode, float] = {}
        for mode in MODES:
            found = 0.0
            for entry in library.entries[::6]:
                title = str(entry.metadata["title"])
                ids = [hit.doc_id for hit in searcher.search(title, mode=mode)]
                found += 1 / (ids.index(entry.doc_id) + 1) if entry.doc_id in ids else 0
            ranks[mode] = found / len(library.entries[::6])
    assert ranks["hybrid"] > max(ranks["vector"], ranks["text"])


def test_fusion_is_the_sum_of_reciprocal_ranks(own: Searcher, library: Library) -> None:
    question = library.entries[10].question
    by_vector = own.search(question, mode="vector", k=100)
    by_words = own.search(question, mode="text", k=100)
    hits = own.search(question, k=20, candidates=100, weights=(0.7, 2.0))
    places = {hit.id: hit.vector_rank for hit in by_vector}
    words = {hit.id: hit.text_rank for hit in by_words}
    coverage = {hit.id: hit.text_coverage or 0 for hit in by_words}

    def score(key: str) -> float:
        vector, text = places.get(key), words.get(key)
        by_words = 2.0 * coverage[key] ** 2 / (60 + text) if text else 0
        return (0.7 / (60 + vector) if vector else 0) + by_words

    expected = sorted({*places, *words}, key=lambda key: (-score(key), key))[:20]
    assert [hit.id for hit in hits] == expected
    for hit in hits:
        assert hit.score == pytest.approx(score(hit.id))
        assert (hit.vector_rank, hit.text_rank) == (places.get(hit.id), words.get(hit.id))
    distances = dict(_nearest(library, question, len(library.entries)))
    for hit in hits:  # also of those that only the words find
        assert hit.distance == pytest.approx(distances[hit.doc_id or ""], abs=1e-5)
        assert hit.similarity == pytest.approx(1 - distances[hit.doc_id or ""], abs=1e-5)
    assert any(hit.vector_rank is None for hit in by_words_alone(own, question))


def test_a_text_counts_by_the_part_of_the_question_that_it_has(
    searcher: Searcher, library: Library
) -> None:
    whole = searcher.search("the lava", mode="text", k=50)
    assert {hit.text_coverage for hit in whole} == {1.0}  # of "lava"; "the" is not searched for
    common, rare = (len(searcher.search(word, mode="text", k=500)) for word in ("animal", "lava"))
    assert common > 2 * rare
    both = searcher.search("animal lava", mode="text", k=500)
    parts = {hit.text_coverage or 0: "lava" in hit.text.lower() for hit in both}
    assert parts.pop(max(parts))  # rare words count more
    assert all(0 < part < 0.5 for part, has_lava in parts.items() if not has_lava)
    missing = searcher.search("lava qwxzzy", mode="text", k=1)[0]
    assert 0 < (missing.text_coverage or 0) < 0.5  # a word that no text has


def by_words_alone(searcher: Searcher, question: str) -> list[Hit]:
    """Return hits of which the vector search finds only the first ten."""
    return searcher.search(question, k=10, candidates=10, weights=(0, 1.0))


def test_a_vector_or_other_texts_are_searched_for_instead_of_the_question(
    searcher: Searcher, library: Library
) -> None:
    first, second = (library.entries[number].question for number in (9, 40))
    with EmbeddingClient(library.gateway_url) as client:
        vectors = client.embed([first, second], input_type="query").vectors
    mean = [(one + other) / 2 for one, other in zip(*vectors, strict=True)]
    for mode in MODES:
        expected = searcher.search(first, mode=mode, k=5)
        assert searcher.search(first, mode=mode, k=5, vector=vectors[0]) == expected
        assert searcher.search(first, mode=mode, k=5, vector=vectors[0].tolist()) == expected
        assert searcher.search(first, mode=mode, k=5, embed_texts=[first]) == expected
    of_both = searcher.search("", mode="vector", k=5, embed_texts=[first, second])
    by_mean = searcher.search("", mode="vector", k=5, vector=mean)
    assert [hit.id for hit in of_both] == [hit.id for hit in by_mean]


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ([1.0] * 3, "has 3 dimensions instead of 1,024"),
        ([math.nan] * 1024, "holds NaN or infinity"),
        ([0.0] * 1024, "is all zeros"),
    ],
)
async def test_a_vector_that_cannot_be_searched_for_is_an_error(
    own: Searcher, vector: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        own.search("x", vector=vector)
    with pytest.raises(ValueError, match=message):
        await own.asearch("x", mode="vector", vector=vector)
    with pytest.raises(ValueError, match="`embed_texts` is empty"):
        await own.asearch("x", embed_texts=[])
    await own.aclose()


@pytest.mark.parametrize("mode", MODES)
def test_a_question_that_is_too_long_is_truncated_or_refused(
    own: Searcher, library: Library, mode: SearchMode, caplog: pytest.LogCaptureFixture
) -> None:
    question = library.entries[3].question + " and so on" * 4_000
    assert own.search(question, mode=mode, k=3)
    assert ("was truncated" in caplog.text) == (mode != "text")
    with pytest.raises(ValueError, match=r"has [a-z ]*[\d,]+ (tokens|characters)"):
        own.search(question, mode=mode, k=3, truncate=False)


@pytest.mark.parametrize("library_", [pickle, cloudpickle], ids=["pickle", "cloudpickle"])
def test_a_used_searcher_can_be_pickled_and_copied(
    own: Searcher, library: Library, library_: Any
) -> None:
    question = library.entries[3].question
    expected = own.search(question, k=3)
    asyncio.run(own.asearch(question, k=3))
    through_pickle = library_.loads(library_.dumps(own))
    for again in (through_pickle, copy.copy(own), copy.deepcopy(own)):
        with again:
            assert again.search(question, k=3) == expected
            assert asyncio.run(again.asearch(question, k=3)) == expected
    assert own.search(question, k=3) == expected


def test_a_searcher_with_an_open_connection_cannot_be_pickled(library: Library) -> None:
    with psycopg.connect(library.dsn) as connection:
        searcher = Searcher(connection, library.tables["own"], gateway=NOWHERE)
        for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="create it with a DSN"):
                duplicate(searcher)


@pytest.mark.parametrize("mode", MODES)
def test_a_filter_applies_in_every_mode(searcher: Searcher, mode: SearchMode) -> None:
    given = {"subject": {"$in": ["animals", "astronomy"]}, "number": {"$gte": 10}}
    hits = searcher.search("How do animals see in the dark?", mode=mode, k=12, filter=given)
    assert hits
    assert all(hit.metadata["subject"] in ("animals", "astronomy") for hit in hits)
    assert all(hit.metadata["number"] >= 10 for hit in hits)


@pytest.mark.parametrize("mode", MODES)
def test_a_filter_that_nothing_passes_finds_nothing(searcher: Searcher, mode: SearchMode) -> None:
    assert searcher.search("Why?", mode=mode, filter={"subject": "alchemy"}) == []


def test_asking_for_more_rows_than_exist_returns_all(own: Searcher, library: Library) -> None:
    hits = own.search("water", mode="vector", k=1000)
    assert {hit.id for hit in hits} == {str(entry.id) for entry in library.entries}


@pytest.mark.parametrize(
    "question", ["", "the of", "' \\ & | ! : () <-> \"", "a\0b", "%s %(k)s {}"]
)
@pytest.mark.parametrize("mode", MODES)
def test_any_question_is_safe(own: Searcher, question: str, mode: SearchMode) -> None:
    try:
        hits = own.search(question, mode=mode, k=3)
    except EmbeddingError:
        assert mode != "text"  # the gateway rejects a blank text
        return
    assert len(hits) == (3 if mode == "vector" else len(hits))


def test_text_search_needs_no_gateway(library: Library) -> None:
    table = library.tables["own"]
    assert search(library.dsn, table, "lava", mode="text", gateway=NOWHERE)
    with EmbeddingClient(NOWHERE.url, max_retries=0) as client, pytest.raises(EmbeddingError):
        search(library.dsn, table, "lava", client=client)


async def test_event_loops_find_the_same(searcher: Searcher, library: Library) -> None:
    questions = [entry.question for entry in library.entries[:12]]
    try:
        found: Sequence[list[Hit]] = await asyncio.gather(
            *(searcher.asearch(question, k=5) for question in questions)
        )
    finally:
        await searcher.aclose()
    assert found == [searcher.search(question, k=5) for question in questions]


def test_a_searcher_outlives_its_event_loops(own: Searcher, library: Library) -> None:
    question = library.entries[3].question
    first = asyncio.run(own.asearch(question))
    assert asyncio.run(own.asearch(question)) == first == own.search(question)
    own.close()
    wait_until_alone(library.dsn)


def test_threads_share_a_searcher(own: Searcher, library: Library) -> None:
    questions = [entry.question for entry in library.entries[:24]]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda question: own.search(question, k=5), questions))
    assert found == [own.search(question, k=5) for question in questions]


def test_a_lost_connection_is_replaced(own: Searcher, library: Library) -> None:
    before = own.search("volcano", mode="text")
    with psycopg.connect(library.dsn, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert own.search("volcano", mode="text") == before


def test_a_connection_of_the_caller_is_left_unchanged(library: Library) -> None:
    with psycopg.connect(library.dsn) as connection:
        connection.execute("CREATE TEMP TABLE mine (x int)")
        hits = search(
            connection,
            library.tables["own"],
            library.entries[0].question,
            gateway=GatewayOptions(url=library.gateway_url),
        )
        assert hits
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        connection.execute("SELECT * FROM mine")


async def test_a_connection_of_the_caller_works_in_threads_only(library: Library) -> None:
    with psycopg.connect(library.dsn) as connection:
        searcher = Searcher(connection, library.tables["own"], gateway=NOWHERE)
        with pytest.raises(TypeError, match="`asearch` needs a searcher with a DSN"):
            await searcher.asearch("volcano", mode="text")


@pytest.mark.parametrize("mode", MODES)
def test_the_sql_can_be_read_and_run_by_hand(
    own: Searcher, library: Library, mode: SearchMode
) -> None:
    shown = own.sql(mode=mode, filter={"subject": "animals"})
    assert "%(filter_1)s" in shown
    assert "animals" not in shown
    entry = library.entries[0]
    with EmbeddingClient(library.gateway_url) as client:
        vector = client.embed([entry.question], input_type="query").to_lists()[0]
    values = {
        **{"question": entry.question, "vector": str(vector), "candidates": 100, "k": 3},
        **{"filter_1": '{"subject": "animals"}', "vector_weight": 1, "text_weight": 1},
    }
    with psycopg.connect(library.dsn) as connection:
        rows = connection.execute(shown.replace("%(vector)b", "%(vector)s").encode(), values)
        ids = [row[0] for row in rows.fetchall()]
    options = {"mode": mode, "k": 3, "filter": {"subject": "animals"}, "candidates": 100}
    assert ids == [hit.id for hit in own.search(entry.question, **options)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "semantic"}, "`mode` must be one of vector, text, hybrid, not 'semantic'"),
        ({"k": 0}, "`k` must be 1 to 10000, not 0"),
        ({"k": 5, "candidates": 4}, "`candidates` must be 5 to 100000, not 4"),
        ({"ef_search": 1001}, "`ef_search` must be 1 to 1000, not 1001"),
        ({"weights": (0, 0)}, "`weights` must be"),
        ({"weights": (1, -1)}, "`weights` must be"),
        ({"weights": (math.nan, 1)}, "`weights` must be"),
    ],
)
def test_options_out_of_range_are_errors(
    own: Searcher, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        own.search("x", **options)  # type: ignore[arg-type]


def test_mistakes_have_plain_errors(library: Library) -> None:
    with pytest.raises(TableError, match=r"There is no table public\.nowhere"):
        search(library.dsn, "nowhere", "x", mode="text", gateway=NOWHERE)
    with pytest.raises(FilterError, match="Use one of"):
        search(library.dsn, "manuals_own", "x", filter={"a": {"$x": 1}}, mode="text")
    with pytest.raises(DatabaseError, match="cannot be reached"):
        search("postgresql://user:hidden@127.0.0.1:9/x", "t", "x", mode="text", gateway=NOWHERE)
    with pytest.raises(ValueError, match="must be one of auto, tsvector, paradedb, not 'bm25'"):
        search(library.dsn, "manuals_own", "x", mode="text", text_backend="bm25")  # type: ignore[arg-type]
    with pytest.raises(TableError, match="needs an extension that this database does not have"):
        search(library.dsn, "manuals_own", "x", mode="text", text_backend="paradedb")


def test_a_search_that_takes_too_long_is_an_error_with_remedies(library: Library) -> None:
    slow = f"{library.dsn}?options=-c%20statement_timeout%3D1"
    question = " ".join(entry.text for entry in library.entries)
    with pytest.raises(DatabaseError, match="too long"):
        search(slow, "manuals_own", question, mode="text", k=100)


def test_a_role_without_access_to_the_ledger_gets_the_grants_to_run(library: Library) -> None:
    table = library.tables["own"]
    with psycopg.connect(library.dsn, autocommit=True) as connection:
        connection.execute("CREATE ROLE reader LOGIN PASSWORD 'reader'")
        try:
            connection.execute(f'GRANT SELECT ON "{table}" TO reader'.encode())
            host = library.dsn.partition("@")[2]
            dsn = f"postgresql://reader:reader@{host}"
            with pytest.raises(TableError, match="GRANT USAGE ON SCHEMA qwen3_ingest TO reader"):
                search(dsn, table, "volcano", mode="text", gateway=NOWHERE)
            connection.execute(
                "GRANT USAGE ON SCHEMA qwen3_ingest TO reader;"
                "GRANT SELECT ON qwen3_ingest.tables TO reader"
            )
            assert search(dsn, table, "volcano", mode="text", gateway=NOWHERE)
        finally:
            connection.execute("DROP OWNED BY reader; DROP ROLE reader")


def test_types_in_a_schema_off_the_search_path_are_found(
    database_url: str, library: Library, in_process_gateway: GatewayProcess
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA extensions; CREATE EXTENSION vector SCHEMA extensions")
    library.corpus.fill(database_url, "off_path", ledger=False)
    hits = search(
        database_url,
        "off_path",
        library.entries[5].question,
        gateway=GatewayOptions(url=in_process_gateway.url),
        mode="vector",
        k=3,
    )
    assert [hit.doc_id for hit in hits] == [
        doc_id for doc_id, _ in _nearest(library, library.entries[5].question, 3)
    ]
