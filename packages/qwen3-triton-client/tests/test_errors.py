"""Every failure is one typed error that names its texts and keeps the completed vectors."""

import pickle
from collections.abc import Callable

import httpx2
import pytest
from fake_gateway import FakeGateway, Fault, Recorded, busy, expected_vector

from qwen3_triton_client import (
    AuthenticationError,
    BadAnswerError,
    EmbeddingClient,
    EmbeddingConnectionError,
    EmbeddingError,
    EmbeddingResult,
    EmbeddingTimeoutError,
    FingerprintChangedError,
    GatewayError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    RequestTooLargeError,
)

Embed = Callable[..., EmbeddingResult]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequestError),
        (401, AuthenticationError),
        (403, AuthenticationError),
        (404, ModelNotFoundError),
        (413, RequestTooLargeError),
        (418, GatewayError),
        (422, InvalidRequestError),
        (429, OverloadedError),
        (500, GatewayError),
        (502, GatewayError),
        (503, OverloadedError),
        (504, EmbeddingTimeoutError),
    ],
)
def test_a_status_becomes_its_error(
    embed: Embed, fake: FakeGateway, status: int, kind: type[EmbeddingError]
) -> None:
    fake.then(Fault(status=status, message="because"))
    with pytest.raises(kind, match=f"answered {status}: because") as caught:
        embed(["x"], max_retries=0)
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.server_message, error.request_id) == (
        status,
        "because",
        "request-7",
    )
    assert (error.failed_indices, error.tries) == ((0,), 1)


def test_a_redirect_is_an_error(embed: Embed, fake: FakeGateway) -> None:
    fake.then(Fault(status=307, headers={"Location": "http://127.0.0.1:1/embed"}))
    with pytest.raises(GatewayError, match="answered 307"):
        embed(["x"], max_retries=0)


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("drop_vector", "3 texts were sent and 2 vectors came back"),
        ("wrong_length", "vector in the answer has 31 dimensions instead of 32"),
        ("nan", "holds NaN or infinity"),
        ("zero", "all zeros"),
    ],
)
def test_an_unusable_answer_is_refused_at_once(
    embed: Embed, fake: FakeGateway, kind: str, match: str
) -> None:
    fake.then(Fault(kind=kind))  # pyright: ignore[reportArgumentType] - parametrized
    with pytest.raises(BadAnswerError, match=match) as caught:
        embed(["a", "b", "c"])
    assert (caught.value.request_id, len(fake.requests)) == ("request-7", 1)
    assert caught.value.failed_indices == ((0, 1, 2) if kind == "drop_vector" else (2,))


def test_unexpected_dimensions_are_refused(embed: Embed, fake: FakeGateway) -> None:
    fake.then(Fault(kind="wrong_length"))
    with pytest.raises(BadAnswerError, match="15 dimensions instead of 16"):
        embed(["x"], dimensions=16)


def test_the_text_that_the_gateway_names_is_the_one_that_failed(
    embed: Embed, fake: FakeGateway
) -> None:
    def rule(request: Recorded) -> Fault | None:
        texts = request.texts
        return Fault(status=400, param=f"texts[{texts.index('bad')}]") if "bad" in texts else None

    fake.rule = rule
    texts = [f"text {i}" for i in range(9)]
    texts.insert(4, "bad")
    with pytest.raises(InvalidRequestError, match="texts: 4") as caught:
        embed(texts, batch_size=2)
    assert caught.value.failed_indices == (4,)


def test_completed_holds_the_vectors_from_before_the_error(embed: Embed, fake: FakeGateway) -> None:
    texts = ["a" * 30, "b" * 20, "c" * 10, "bad"]
    fake.rule = lambda r: Fault(status=400) if "bad" in r.texts else None
    with pytest.raises(InvalidRequestError, match="texts: 3") as caught:
        embed(texts, batch_size=1, max_concurrency=1)
    completed = {i: vector.tolist() for i, vector in caught.value.completed.items()}
    assert completed == {i: expected_vector(texts[i]) for i in range(3)}


def test_a_batch_that_is_too_large_is_split(embed: Embed, fake: FakeGateway) -> None:
    fake.max_texts = 3
    texts = [f"text {i}" for i in range(20)]
    assert embed(texts).to_lists() == [expected_vector(text) for text in texts]
    assert len(fake.requests[0].texts) == 20


def test_a_single_text_that_is_too_large_is_named(embed: Embed, fake: FakeGateway) -> None:
    fake.rule = lambda r: Fault(status=413) if "big" in r.texts else None
    with pytest.raises(RequestTooLargeError, match="texts: 2") as caught:
        embed(["a", "b", "big", "c"])
    assert caught.value.failed_indices == (2,)


def test_isolate_embeds_all_texts_but_the_bad_ones(embed: Embed, fake: FakeGateway) -> None:
    fake.rule = lambda r: busy(502) if "poison" in r.texts else None
    texts = [f"text {i}" for i in range(20)]
    texts[7] = "poison"
    texts[11] = ""
    result = embed(texts, {"on_error": "isolate"}, batch_size=8, max_retries=1)
    assert list(result.failed) == [7, 11]
    assert isinstance(result.failed[7], GatewayError)
    good = {i: expected_vector(text) for i, text in enumerate(texts) if i not in {7, 11}}
    assert {i: vector.tolist() for i, vector in result.completed.items()} == good
    with pytest.raises(GatewayError, match="texts: 7"):
        result.to_lists()


def test_isolate_does_not_split_when_the_gateway_is_down(embed: Embed, fake: FakeGateway) -> None:
    fake.rule = lambda _: busy(503)
    with pytest.raises(OverloadedError, match="texts: 0-7"):
        embed([f"text {i}" for i in range(8)], {"on_error": "isolate"}, max_retries=1)
    assert len(fake.requests) == 2


def test_a_fingerprint_that_changes_between_calls_is_refused(
    embed: Embed, fake: FakeGateway
) -> None:
    def rule(request: Recorded) -> None:
        fake.fingerprint = f"space of {request.texts[0]}"

    fake.rule = rule
    with pytest.raises(FingerprintChangedError, match="with a new client") as caught:
        embed(["aa", "b"], batch_size=1, max_concurrency=1)
    assert (caught.value.failed_indices, list(caught.value.completed)) == ((1,), [0])


def test_each_number_of_dimensions_has_its_own_fingerprint(fake: FakeGateway) -> None:
    with EmbeddingClient(fake.url) as client:
        assert client.embed(["x"]).fingerprint == fake.fingerprint
        assert client.embed(["x"], dimensions=16).fingerprint == fake.fingerprint_of(16)


def test_an_address_where_no_one_listens_is_named() -> None:
    with (
        EmbeddingClient("http://127.0.0.1:1", max_retries=0) as client,
        pytest.raises(EmbeddingConnectionError, match=r"Cannot reach the gateway at http://127"),
    ):
        client.embed_query("x")


@pytest.mark.parametrize(
    ("proxy", "words"),
    [
        ("http://127.0.0.1:1", "to the proxy in `ALL_PROXY`; .*, add '127.0.0.1' to `NO_PROXY`"),
        ("ftp://127.0.0.1", "No connection can be opened: .* Check the proxies"),
        (
            "http://user:pass/word@127.0.0.1",
            "No connection can be opened: a proxy's address is not",
        ),
    ],
)
def test_a_proxy_that_does_not_work_is_named(
    embed: Embed, fake: FakeGateway, monkeypatch: pytest.MonkeyPatch, proxy: str, words: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(EmbeddingConnectionError, match=words) as caught:
        embed(["x"], max_retries=0)
    assert "pass" not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_a_slow_gateway_is_a_timeout(embed: Embed, fake: FakeGateway) -> None:
    fake.hold(lambda _: True)
    with pytest.raises(EmbeddingTimeoutError, match=r"did not answer in time"):
        embed(["x"], timeout=0.05, max_retries=0)


def test_errors_are_also_standard_library_errors() -> None:
    assert issubclass(InvalidRequestError, ValueError)
    assert issubclass(EmbeddingConnectionError, ConnectionError)
    assert issubclass(EmbeddingTimeoutError, TimeoutError)


ERRORS = [EmbeddingError, *EmbeddingError.__subclasses__(), EmbeddingTimeoutError]
ERRORS += InvalidRequestError.__subclasses__()


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_survives_pickling(kind: type[EmbeddingError]) -> None:
    error = kind("why", status=503, request_id="r")
    error.failed_indices = (3,)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.status) == (type(error), str(error), 503)


def test_every_transport_error_of_the_http_library_is_mapped(fake: FakeGateway) -> None:
    """Fails when the library adds an error that is not mapped."""

    def kinds(kind: type[httpx2.RequestError]) -> set[type[httpx2.RequestError]]:
        return {kind}.union(*(kinds(sub) for sub in kind.__subclasses__()))

    for kind in kinds(httpx2.RequestError):

        def fail(
            request: httpx2.Request, kind: type[httpx2.RequestError] = kind
        ) -> httpx2.Response:
            raise kind("broken", request=request)

        with httpx2.Client(transport=httpx2.MockTransport(fail)) as http:
            client = EmbeddingClient(fake.url, http_client=http, max_retries=0)
            with pytest.raises(EmbeddingConnectionError, match="gateway at"):
                client.embed_query("x")


@pytest.mark.parametrize("status", [401, 500])
def test_the_key_is_not_in_an_error(
    embed: Embed, fake: FakeGateway, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    fake.rule = lambda r: Fault(
        status=status, message=r.headers["authorization"], headers={"Retry-After": "0"}
    )
    with pytest.raises(EmbeddingError, match=r"Bearer \[api_key\]") as caught:
        embed(["x"], api_key="secret-key", max_retries=1)
    assert "secret-key" not in str(caught.value.__dict__) + caplog.text


def test_an_error_page_of_a_proxy_is_abbreviated(
    fake: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    page = httpx2.MockTransport(lambda _: httpx2.Response(502, text="<h1>Bad</h1>\n" * 99))
    with httpx2.Client(transport=page) as http:
        client = EmbeddingClient(fake.url, http_client=http, max_retries=0)
        with pytest.raises(GatewayError, match=r"<h1>Bad</h1> <h1>.* `HTTP_PROXY`") as caught:
            client.embed_query("x")
    assert len(str(caught.value)) < 550
