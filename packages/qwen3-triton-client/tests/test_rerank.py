"""A query and documents in, scores out."""

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest
from fake_gateway import FakeGateway, Fault, busy, expected_raw_score

from qwen3_triton_client import (
    AsyncEmbeddingClient,
    AuthenticationError,
    BadAnswerError,
    EmbeddingClient,
    EmbeddingError,
    FingerprintChangedError,
    InvalidRequestError,
    ModelNotFoundError,
    RequestTooLargeError,
    RerankResult,
)

Rerank = Callable[..., RerankResult]
QUERY = "What carries sand?"
DOCUMENTS = [f"{'word ' * (7 * i % 23)}{i}" for i in range(50)]
RAW_SCORES = [expected_raw_score(QUERY, document) for document in DOCUMENTS]
RANKED = sorted(range(50), key=lambda index: -RAW_SCORES[index])


@pytest.fixture(name="rerank", params=["sync", "async"])
def _rerank(request: pytest.FixtureRequest, fake: FakeGateway) -> Rerank:
    kind: Literal["sync", "async"] = request.param

    def run(
        documents: Sequence[str],
        call: dict[str, Any] | None = None,
        query: str = QUERY,
        **options: Any,
    ) -> RerankResult:
        if kind == "sync":
            with EmbeddingClient(fake.url, **options) as client:
                return client.rerank(query, documents, **(call or {}))

        async def run_async() -> RerankResult:
            async with AsyncEmbeddingClient(fake.url, **options) as client:
                return await client.rerank(query, documents, **(call or {}))

        return asyncio.run(run_async())

    return run


def indices(result: RerankResult) -> list[int]:
    return [document.index for document in result.documents]


@pytest.mark.parametrize("batch_size", [128, 4, 1])
def test_documents_are_ranked_across_batches(rerank: Rerank, batch_size: int) -> None:
    result = rerank(DOCUMENTS, batch_size=batch_size)
    assert indices(result) == RANKED
    assert [document.raw_score for document in result.documents] == [RAW_SCORES[i] for i in RANKED]


def test_answers_in_reverse_change_nothing(rerank: Rerank, fake: FakeGateway) -> None:
    fake.answer_in_reverse(5)
    result = rerank(DOCUMENTS, {"top_n": 7}, batch_size=10, max_concurrency=5)
    assert indices(result) == RANKED[:7]


def test_a_score_is_the_sigmoid_of_the_raw_score(rerank: Rerank) -> None:
    result = rerank(["score -2", "score 0", "score 800", "score -800"])
    assert [document.score for document in result.documents] == pytest.approx(
        [1.0, 0.5, 1 / (1 + math.exp(2)), 0.0]
    )


def test_saturated_scores_are_ordered_by_raw_score_and_equal_ones_by_index(rerank: Rerank) -> None:
    documents = ["score 50", "score 60", "score 50", "score 70"]
    assert indices(rerank(documents, batch_size=1)) == [3, 1, 0, 2]


def test_options_that_are_not_set_are_not_sent(rerank: Rerank, fake: FakeGateway) -> None:
    rerank(["a"], model="an-embedding-model", instruction="For embeddings.", dimensions=8)
    [request] = fake.requests
    assert request.path == "/rerank"
    assert request.body == {"query": QUERY, "texts": ["a"], "raw_scores": True}


def test_options_are_sent(rerank: Rerank, fake: FakeGateway) -> None:
    call = {"instruction": "Find laws.", "model": "m"}
    result = rerank(["a"], call, truncate=False)
    body = fake.requests[0].body
    assert (body["instruction"], body["model"], body["truncate"]) == ("Find laws.", "m", False)
    assert result.documents[0].raw_score == expected_raw_score(QUERY, "a", "Find laws.")


def test_the_query_counts_for_each_document(rerank: Rerank, fake: FakeGateway) -> None:
    rerank(["d" * 40] * 10, query="q" * 60, max_batch_bytes=200)
    assert [len(request.texts) for request in fake.requests] == [2] * 5


def test_requests_in_flight_never_exceed_the_limit(rerank: Rerank, fake: FakeGateway) -> None:
    fake.answer_in_reverse(3)
    rerank(DOCUMENTS, batch_size=2, max_concurrency=3)
    assert fake.most_in_flight == 3


def test_every_truncated_document_is_reported(rerank: Rerank, fake: FakeGateway) -> None:
    documents = ["short", *["long"] * 250, "short"]
    assert rerank(documents).truncated == tuple(range(1, 251))
    assert max(len(request.texts) for request in fake.requests) == 100


def test_the_result_has_fingerprint_and_statistics(rerank: Rerank) -> None:
    result = rerank(DOCUMENTS, {"top_n": 1}, batch_size=10)
    assert result.fingerprint == "fake-0001"
    assert (result.stats.requests, result.stats.texts) == (5, 50)
    words = sum(len(document.split()) for document in DOCUMENTS)
    assert result.prompt_tokens == result.stats.prompt_tokens == words


def test_no_documents_send_no_request(rerank: Rerank, fake: FakeGateway) -> None:
    assert rerank([]).documents == ()
    assert fake.requests == []


@pytest.mark.parametrize("fault", [busy(), busy(429), Fault("cut_body"), Fault("not_json")])
def test_a_transient_failure_is_retried(rerank: Rerank, fake: FakeGateway, fault: Fault) -> None:
    fake.then(fault)
    result = rerank(DOCUMENTS, backoff_seconds=0)
    assert indices(result) == RANKED
    assert result.stats.retries == 1


def test_a_batch_that_is_too_large_is_split(rerank: Rerank, fake: FakeGateway) -> None:
    fake.max_texts = 8
    assert indices(rerank(DOCUMENTS)) == RANKED


def test_a_document_that_is_too_large_is_named(rerank: Rerank, fake: FakeGateway) -> None:
    fake.rule = lambda request: Fault(status=413) if "17" in request.texts else None
    with pytest.raises(RequestTooLargeError, match=r"\(documents: 17; ") as caught:
        rerank([str(number) for number in range(50)])
    assert caught.value.failed_indices == (17,)


@pytest.mark.parametrize("status", [400, 502])
def test_a_refused_document_is_named_over_the_whole_call(
    rerank: Rerank, fake: FakeGateway, status: int
) -> None:
    def refuse(request: Any) -> Fault | None:
        if "bad" not in request.texts:
            return None
        return Fault(status=status, param=f"texts[{request.texts.index('bad')}]")

    fake.rule = refuse
    with pytest.raises(EmbeddingError, match=r"\(documents: 31; request ID") as caught:
        rerank([*DOCUMENTS[:31], "bad", *DOCUMENTS[31:]], batch_size=7, max_retries=0)
    assert caught.value.failed_indices == (31,)
    assert caught.value.status == status


def test_an_error_about_the_query_names_no_document(rerank: Rerank, fake: FakeGateway) -> None:
    fake.then(Fault(status=400, param="query", message="The query has 9 tokens"))
    with pytest.raises(InvalidRequestError, match="The query has 9 tokens") as caught:
        rerank(["a", "b"])
    assert caught.value.failed_indices == ()
    assert "documents" not in str(caught.value)


def test_a_refused_batch_is_named(rerank: Rerank, fake: FakeGateway) -> None:
    fake.then(Fault(status=401))
    with pytest.raises(AuthenticationError) as caught:
        rerank(["a", "b"])
    assert (caught.value.failed_indices, caught.value.argument) == ((0, 1), "documents")


def test_a_message_numbers_its_document_over_the_whole_call(
    rerank: Rerank, fake: FakeGateway
) -> None:
    message = "Document 0 has 9000 tokens; the limit is 8192."
    fake.rule = lambda request: (
        Fault(status=400, param="texts[0]", message=message) if request.texts[0] == "bad" else None
    )
    with pytest.raises(InvalidRequestError, match="Document 31 has 9000 tokens") as caught:
        rerank([*DOCUMENTS[:31], "bad", *DOCUMENTS[31:]], batch_size=1)
    assert caught.value.server_message == message


def test_a_gateway_without_a_reranker_says_all_that_there_is_to_say(
    rerank: Rerank, fake: FakeGateway
) -> None:
    fake.then(Fault(status=404, code="model_not_found", message="Set RERANK_MODEL_DIR."))
    with pytest.raises(ModelNotFoundError, match=r"Set RERANK_MODEL_DIR\. \(documents"):
        rerank(["a"])


def test_an_address_that_is_not_a_gateway_s_has_a_hint(rerank: Rerank, fake: FakeGateway) -> None:
    fake.then(Fault(status=404, message="Not Found"))
    with pytest.raises(ModelNotFoundError, match=r"Not Found\. Check `model`, and that `base_url`"):
        rerank(["a"])


def test_a_missing_score_is_refused(rerank: Rerank, fake: FakeGateway) -> None:
    fake.then(Fault("drop_vector"))
    with pytest.raises(BadAnswerError, match="3 documents were sent, and the 2 scores"):
        rerank(["a", "b", "c"])


def test_a_score_that_is_not_finite_is_refused_by_index(rerank: Rerank, fake: FakeGateway) -> None:
    fake.then(Fault("nan"))
    with pytest.raises(BadAnswerError, match="NaN") as caught:
        rerank(["score 1", "score 3", "score 2"])
    assert caught.value.failed_indices == (1,)


def test_another_reranker_within_a_call_is_refused(rerank: Rerank, fake: FakeGateway) -> None:
    def change(request: Any) -> None:
        fake.fingerprint = f"fake-of-{request.texts[0]}"

    fake.rule = change
    with pytest.raises(FingerprintChangedError, match="reranker changed"):
        rerank(["a", "b"], batch_size=1, max_concurrency=1)


def test_another_reranker_in_the_next_call_is_accepted(fake: FakeGateway) -> None:
    with EmbeddingClient(fake.url) as client:
        assert client.rerank(QUERY, ["a"]).fingerprint == "fake-0001"
        fake.fingerprint = "fake-0002"
        assert client.rerank(QUERY, ["a"]).fingerprint == "fake-0002"


@pytest.mark.parametrize("document", ["", " \n", "\ud800"])
def test_a_document_that_cannot_be_scored_is_named(
    rerank: Rerank, fake: FakeGateway, document: str
) -> None:
    with pytest.raises(InvalidRequestError, match=r"^`documents\[1\]` .* \(documents: 1, 3\)$"):
        rerank(["a", document, "b", document])
    assert fake.requests == []


def test_blank_documents_may_come_last_instead(rerank: Rerank, fake: FakeGateway) -> None:
    result = rerank([" ", "a", "", "b"], {"on_blank": "last"})
    assert [ranked.index for ranked in result.documents][2:] == [0, 2]
    assert [ranked.score for ranked in result.documents][2:] == [0.0, 0.0]
    assert fake.requests[0].body["texts"] == ["a", "b"]
    with pytest.raises(InvalidRequestError, match=r"\(documents: 1\)$"):
        rerank([" ", "\ud800"], {"on_blank": "last"})


@pytest.mark.parametrize("query", ["", " \n", "\ud800"])
def test_a_query_that_cannot_be_scored_is_refused(
    rerank: Rerank, fake: FakeGateway, query: str
) -> None:
    with pytest.raises(InvalidRequestError, match=r"^`query` "):
        rerank(["a"], query=query)
    assert fake.requests == []


def test_a_blank_query_cannot_be_left_out(rerank: Rerank) -> None:
    with pytest.raises(
        InvalidRequestError, match=r"`query` is blank, .* can do nothing with it\.$"
    ):
        rerank(["a"], query=" ")


def test_arguments_of_other_types_are_refused(rerank: Rerank) -> None:
    with pytest.raises(TypeError, match="`documents` must be a list of strings, not a string"):
        rerank("a")
    with pytest.raises(TypeError, match=r"not generator\. Pass list\(documents\)"):
        rerank(text for text in ["a"])  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="`query` must be a string, not NoneType"):
        rerank(["a"], query=None)
    with pytest.raises(TypeError, match="`top_n` must be an integer or None, not float"):
        rerank(["a"], {"top_n": 2.5})
    with pytest.raises(ValueError, match="`top_n` must be at least 1, not 0"):
        rerank(["a"], {"top_n": 0})
