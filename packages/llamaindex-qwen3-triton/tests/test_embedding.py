import asyncio
import copy
import pickle
from typing import Any

import httpx2
import pytest
from fake_gateway import (
    FakeGateway,
    Fault,
    busy,
    expected_vector,
    expected_vectors,
    files_entered,
)
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.instrumentation import (
    get_dispatcher,  # pyright: ignore[reportPrivateImportUsage] - documented, but not in __all__
)
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.embedding import (
    EmbeddingEndEvent,
    EmbeddingStartEvent,
)
from llama_index.core.rate_limiter import (
    BaseRateLimiter,
    SlidingWindowRateLimiter,
    TokenBucketRateLimiter,
)
from llama_index.core.storage.kvstore import SimpleKVStore
from pydantic import SecretStr, ValidationError

from llama_index.embeddings import qwen3_triton
from llama_index.embeddings.qwen3_triton import Qwen3TritonEmbedding
from qwen3_triton_client import EmbeddingError, InvalidRequestError

TEXTS = [f"text {i} " * (i % 7 + 1) for i in range(40)]


def test_public_names_are_complete() -> None:
    names = ["Qwen3TritonEmbedding", "Qwen3TritonRerank", "__version__"]
    assert qwen3_triton.__all__ == names


def test_batches_are_returned_in_order(fake: FakeGateway) -> None:
    model = Qwen3TritonEmbedding(base_url=fake.url, embed_batch_size=3)
    assert model.get_text_embedding_batch(TEXTS) == expected_vectors(TEXTS)
    assert asyncio.run(model.aget_text_embedding_batch(TEXTS)) == expected_vectors(TEXTS)


def test_batches_run_concurrently_up_to_the_limit(fake: FakeGateway) -> None:
    fake.answer_in_reverse(3)
    model = Qwen3TritonEmbedding(base_url=fake.url, embed_batch_size=2, max_concurrency=3)
    assert model.get_text_embedding_batch(TEXTS) == expected_vectors(TEXTS)
    assert fake.most_in_flight == 3


async def test_asynchronous_batches_stay_within_the_limit(fake: FakeGateway) -> None:
    fake.answer_in_reverse(2)
    model = Qwen3TritonEmbedding(base_url=fake.url, embed_batch_size=2, num_workers=2)
    calls = [model.aget_text_embedding_batch(TEXTS) for _ in range(3)]
    assert await asyncio.gather(*calls) == [expected_vectors(TEXTS)] * 3
    assert fake.most_in_flight == 2


async def test_queries_and_documents_are_embedded_differently(fake: FakeGateway) -> None:
    model = Qwen3TritonEmbedding(base_url=fake.url, instruction="Find duplicates")
    query = expected_vector("x", input_type="query", instruction="Find duplicates")
    document = expected_vector("x")
    assert [model.get_query_embedding("x"), await model.aget_query_embedding("x")] == [query] * 2
    assert [model.get_text_embedding("x"), await model.aget_text_embedding("x")] == [document] * 2


def test_texts_are_sent_byte_for_byte(fake: FakeGateway) -> None:
    Qwen3TritonEmbedding(base_url=fake.url).get_text_embedding(" with\nnewlines \t")
    assert fake.requests[0].texts == [" with\nnewlines \t"]


def test_no_texts_send_no_request(fake: FakeGateway) -> None:
    model = Qwen3TritonEmbedding(base_url=fake.url)
    assert model.get_text_embedding_batch([]) == []
    assert asyncio.run(model.aget_text_embedding_batch([])) == []
    assert fake.requests == []


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_queries_and_documents_are_cached_separately(fake: FakeGateway, asynchronous: bool) -> None:
    def get(name: str, *args: Any) -> Any:
        if asynchronous:
            return asyncio.run(getattr(model, "a" + name)(*args))
        return getattr(model, name)(*args)

    model = Qwen3TritonEmbedding(base_url=fake.url, embeddings_cache=SimpleKVStore())
    for _ in range(2):
        assert get("get_text_embedding", "x") == expected_vector("x")
        assert get("get_query_embedding", "x") == expected_vector("x", input_type="query")
    assert [request.texts for request in fake.requests[1:]] == [["x"], ["x"]]  # after the probe
    assert get("get_text_embedding_batch", ["y", "x", "z"]) == expected_vectors(["y", "x", "z"])
    assert fake.requests[3].texts == ["y", "z"]


def test_each_setting_has_its_own_cache_entries(fake: FakeGateway) -> None:
    store = SimpleKVStore()
    for dimensions in (32, 16):
        model = Qwen3TritonEmbedding(
            base_url=fake.url, dimensions=dimensions, embeddings_cache=store
        )
        assert len(model.get_text_embedding("x")) == dimensions


def test_the_cache_ignores_vectors_of_another_model_at_the_same_address(fake: FakeGateway) -> None:
    store = SimpleKVStore()
    for fingerprint in ("one", "another", "one"):
        fake.fingerprint = fingerprint
        Qwen3TritonEmbedding(base_url=fake.url, embeddings_cache=store).get_text_embedding("x")
    assert [r.texts for r in fake.requests].count(["x"]) == 2


def test_the_cache_is_used_when_the_model_has_moved(fake: FakeGateway) -> None:
    store = SimpleKVStore()
    for url in (fake.url, fake.url.replace("127.0.0.1", "localhost")):
        Qwen3TritonEmbedding(base_url=url, embeddings_cache=store).get_text_embedding("x")
    assert [r.texts for r in fake.requests].count(["x"]) == 1


def test_an_error_names_texts_as_the_caller_counts_them(fake: FakeGateway) -> None:
    model = Qwen3TritonEmbedding(
        base_url=fake.url, embed_batch_size=1, max_concurrency=1, embeddings_cache=SimpleKVStore()
    )
    model.get_text_embedding_batch(["known", "also known"])
    fake.rule = lambda request: Fault(status=400) if "bad" in request.texts else None
    with pytest.raises(InvalidRequestError, match="texts: 3") as caught:
        model.get_text_embedding_batch(["known", "new text", "also known", "bad"])
    assert list(caught.value.completed) == [1]


def test_there_are_exactly_max_retries_plus_one_tries(fake: FakeGateway) -> None:
    fake.rule = lambda _: busy()
    model = Qwen3TritonEmbedding(base_url=fake.url, max_retries=2)
    with pytest.raises(EmbeddingError, match="answered 503"):
        model.get_query_embedding("x")
    assert len(fake.requests) == 3


async def test_the_first_error_leaves_nothing_running(fake: FakeGateway) -> None:
    fake.hold(lambda request: "bad" not in request.texts[0])
    fake.rule = lambda request: Fault(status=400) if "bad" in request.texts[0] else None
    model = Qwen3TritonEmbedding(base_url=fake.url, embed_batch_size=1, max_concurrency=4)
    before = asyncio.all_tasks()
    with pytest.raises(InvalidRequestError, match="texts: 0"):
        await model.aget_text_embedding_batch(["bad" * 30, *TEXTS])
    assert asyncio.all_tasks() == before
    assert len(fake.requests) <= 4


class Recorder(BaseEventHandler):
    """A handler that records the events of embeddings."""

    seen: list[BaseEvent] = []  # noqa: RUF012 - pydantic copies it

    def handle(self, event: BaseEvent, **_: Any) -> None:
        if isinstance(event, EmbeddingStartEvent | EmbeddingEndEvent):
            self.seen.append(event)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_every_batch_is_reported_to_events_and_callbacks(
    fake: FakeGateway, asynchronous: bool
) -> None:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    recorder = Recorder()
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(recorder)
    model = Qwen3TritonEmbedding(
        base_url=fake.url, embed_batch_size=10, callback_manager=CallbackManager([handler])
    )
    try:
        if asynchronous:
            asyncio.run(model.aget_text_embedding_batch(TEXTS))
        else:
            model.get_text_embedding_batch(TEXTS)
    finally:
        dispatcher.event_handlers.remove(recorder)
    ends = [event for event in recorder.seen if isinstance(event, EmbeddingEndEvent)]
    assert len(recorder.seen) == 2 * len(ends) == 8
    assert {t for end in ends for t in end.chunks} == set(TEXTS)
    assert all(end.embeddings == expected_vectors(end.chunks) for end in ends)
    assert len(handler.get_event_pairs(CBEventType.EMBEDDING)) == 4


def test_a_progress_bar_is_shown_on_request(
    fake: FakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Qwen3TritonEmbedding(base_url=fake.url, embed_batch_size=10)
    model.get_text_embedding_batch(TEXTS, show_progress=True)
    assert "40/40" in capsys.readouterr().err


class CountingLimiter(BaseRateLimiter):
    def __init__(self) -> None:
        self.count = 0

    def acquire(self, num_tokens: int = 0) -> None:
        self.count += 1

    async def async_acquire(self, num_tokens: int = 0) -> None:
        self.count += 1


def test_every_batch_acquires_the_rate_limiter(fake: FakeGateway) -> None:
    limiter = CountingLimiter()
    model = Qwen3TritonEmbedding(base_url=fake.url, embed_batch_size=10, rate_limiter=limiter)
    model.get_text_embedding_batch(TEXTS)
    asyncio.run(model.aget_text_embedding_batch(TEXTS))
    assert limiter.count == 8


def test_only_settings_that_affect_vectors_are_serialized() -> None:
    model = Qwen3TritonEmbedding(api_key=SecretStr("secret-key"), timeout=7, max_retries=1)
    assert model.to_dict().keys() == {
        "base_url",
        "class_name",
        "dimensions",
        "instruction",
        "model_name",
        "truncate",
    }


def test_an_embedding_is_restored_from_a_dump() -> None:
    model = Qwen3TritonEmbedding(base_url="http://gateway:8101", dimensions=16, instruction="Find")
    assert model.to_dict()["class_name"] == "Qwen3TritonEmbedding"
    assert Qwen3TritonEmbedding.from_dict(model.to_dict()).to_dict() == model.to_dict()
    assert Qwen3TritonEmbedding.from_json(model.to_json()).to_dict() == model.to_dict()


def test_the_key_is_never_shown() -> None:
    model = Qwen3TritonEmbedding(api_key=SecretStr("secret-key"))
    shown = f"{model} {model!r} {model.to_dict()} {model.to_json()} {model.to_payload()}"
    assert "secret-key" not in shown
    with pytest.raises(ValidationError, match="`base_url` must look like") as caught:
        Qwen3TritonEmbedding(base_url="nowhere", api_key=SecretStr("secret-key"))
    assert "secret-key" not in str(caught.value)


def test_settings_come_from_the_environment(
    fake: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN3_TRITON_URL", fake.url)
    monkeypatch.setenv("QWEN3_TRITON_API_KEY", "secret-key")
    Qwen3TritonEmbedding(model_name="m").get_query_embedding("x")
    assert fake.requests[0].headers["authorization"] == "Bearer secret-key"
    assert fake.requests[0].body["model"] == "m"


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Qwen3TritonEmbedding(batch_size=3)  # pyright: ignore[reportCallIssue] - wrong on purpose


def test_a_used_embedding_can_be_pickled_and_copied(fake: FakeGateway) -> None:
    with httpx2.Client() as http:
        model = Qwen3TritonEmbedding(
            base_url=fake.url, api_key=SecretStr("secret-key"), timeout=7, http_client=http
        )
        asyncio.run(model.aget_query_embedding("x"))
        model.get_query_embedding("x")
        for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), copy.copy(model)):
            assert again.get_text_embedding("x") == expected_vector("x")
            assert again.timeout == 7
    assert fake.requests[2].headers["authorization"] == "Bearer secret-key"


class Unpicklable(SimpleKVStore):
    def __reduce__(self) -> str:
        raise TypeError


@pytest.mark.parametrize(
    "limiter",
    [
        TokenBucketRateLimiter(requests_per_minute=600),
        SlidingWindowRateLimiter(requests_per_minute=600, request_burst=2.0),
    ],
)
def test_a_pickle_leaves_the_original_whole(
    fake: FakeGateway,
    limiter: TokenBucketRateLimiter | SlidingWindowRateLimiter,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with httpx2.Client() as http:
        model = Qwen3TritonEmbedding(
            base_url=fake.url,
            http_client=http,
            rate_limiter=limiter,
            embeddings_cache=Unpicklable(),
            callback_manager=CallbackManager([LlamaDebugHandler()]),
        )
        before = dict(vars(model))
        again = pickle.loads(pickle.dumps(model))
        assert "`embeddings_cache` cannot be pickled" in caplog.text
        assert vars(model) == before
        assert model.get_text_embedding("after") == expected_vector("after")
        assert again.get_text_embedding("after") == expected_vector("after")
        assert again.rate_limiter is not limiter
        assert again.rate_limiter.model_dump() == limiter.model_dump()
        assert again.embeddings_cache is None
        copied = copy.deepcopy(model)
        assert copied.rate_limiter is limiter  # the same process, the same limit
        assert copied.embeddings_cache is model.embeddings_cache


def test_a_changed_setting_is_used(fake: FakeGateway) -> None:
    model = Qwen3TritonEmbedding(base_url=fake.url)
    model.get_query_embedding("x")
    model.embed_batch_size = 4
    model.get_text_embedding_batch(TEXTS)
    assert len(fake.requests) == 11


def test_a_call_enters_at_most_ten_files(fake: FakeGateway) -> None:
    model = Qwen3TritonEmbedding(base_url=fake.url)
    model.get_text_embedding_batch(TEXTS)  # opens the connection
    assert 0 < len(files_entered(lambda: model.get_text_embedding_batch(TEXTS))) <= 10
