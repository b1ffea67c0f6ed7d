"""The memory budget: what is charged, when it is refused, and when it is released."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from starlette.testclient import TestClient

import qwen3_nano
from fake_backend import FakeBackend
from qwen3_triton_gateway import container, memory, run_memory
from qwen3_triton_gateway.errors import InvalidRequestError, QueueFullError
from qwen3_triton_gateway.memory import MemoryBudget
from qwen3_triton_gateway.metrics import Metrics
from qwen3_triton_gateway.responses import VECTORS, PartsResponse, answer_parts
from qwen3_triton_gateway.schemas import parse_json
from qwen3_triton_gateway.service import EmbeddingService
from qwen3_triton_gateway.tensors import Embeddings

StartGateway = Callable[..., TestClient]
MIB = 1 << 20
# Room for one request of 500 texts, and not for two.
SMALL = {"EMBED_MAX_MEMORY_BYTES": 8 * MIB}
LARGE = {"texts": [f"text {i}" for i in range(500)]}


def service_of(client: TestClient) -> EmbeddingService:
    app: Any = client.app
    return app.state.service


def test_a_request_beyond_the_budget_is_told_when_to_retry() -> None:
    budget = MemoryBudget(MIB, Metrics())
    first = budget.reserve(0)
    first.resize(MIB - 100)
    with pytest.raises(QueueFullError, match="EMBED_MAX_MEMORY_BYTES") as error:
        budget.reserve(0)
    assert error.value.retry_after_seconds is not None
    with first:
        assert budget.used_bytes == MIB - 100
    assert budget.used_bytes == 0
    assert budget.reserve(0).size_bytes > 0


def test_the_peak_is_that_since_it_was_asked_for_last() -> None:
    budget = MemoryBudget(MIB, Metrics())
    with budget.reserve(0) as request:
        request.resize(1000)
        request.resize(10)
    assert budget.take_peak_bytes() >= 1000
    assert budget.take_peak_bytes() == 0


def test_a_request_that_is_alone_always_fits() -> None:
    budget = MemoryBudget(MIB, Metrics())
    with budget.reserve(3 * MIB) as alone:
        alone.resize(9 * MIB)
        with pytest.raises(QueueFullError), budget.reserve(0):
            pass
        alone.resize(0)
        with budget.reserve(0) as other:
            other.resize(MIB)
            with pytest.raises(QueueFullError):
                alone.resize(MIB)


def test_retry_after_follows_the_rate_at_which_memory_is_released() -> None:
    budget = MemoryBudget(100 * MIB, Metrics())
    held = budget.reserve(0)
    held.resize(50 * MIB)
    for _ in range(10):
        with budget.reserve(0) as short:
            short.resize(40 * MIB)
    held.resize(100 * MIB)
    with pytest.raises(QueueFullError) as soon:
        budget.reserve(MIB)
    with pytest.raises(QueueFullError) as late:
        budget.reserve(2000 * MIB)
    assert soon.value.retry_after_seconds == 1
    assert late.value.retry_after_seconds is not None
    assert late.value.retry_after_seconds > 10


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        pytest.param("0::/a/b", {"a/memory.max": 400 * MIB}, 100 * MIB, id="v2-parent"),
        pytest.param("0::/a", {"a/memory.max": "max"}, 128 * MIB, id="v2-none"),
        pytest.param("0::/gone", {"memory.max": 80 * MIB}, 20 * MIB, id="v2-container"),
        pytest.param(
            "9:pids:/\n4:cpu,memory:/x\n0::/",
            {"memory/x/memory.limit_in_bytes": 40 * MIB},
            10 * MIB,
            id="v1",
        ),
        pytest.param(
            "4:memory:/", {"memory/memory.limit_in_bytes": 2**63 - 4096}, 128 * MIB, id="v1-none"
        ),
    ],
)
def test_the_default_follows_the_limit_of_the_container(
    lines: str,
    files: dict[str, int | str],
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")
    (tmp_path / "own").write_text(lines)
    monkeypatch.setattr(run_memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(run_memory, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(container, "machine_bytes", lambda: 16 << 30)
    assert memory.default_max_bytes() == expected


def test_a_request_holds_its_memory_until_its_answer_is_sent(
    start_gateway: StartGateway,
) -> None:
    client = start_gateway(**SMALL)
    budget = service_of(client).memory
    assert client.post("/embed", json=LARGE).status_code == 200
    assert budget.used_bytes == 0
    with budget.reserve(0) as other:
        other.resize(4 * MIB)
        refused = client.post("/embed", json=LARGE)
        small = client.post("/embed", json={"texts": ["a"]})
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert "EMBED_MAX_MEMORY_BYTES" in refused.json()["error"]["message"]
    assert small.status_code == 200
    assert budget.used_bytes == 0
    rejected = 'qwen3_triton_rejected_requests_total{limit="memory"} 1.0'
    assert rejected in client.get("/metrics").text


def test_a_body_that_does_not_fit_is_refused_before_it_is_read(
    start_gateway: StartGateway,
) -> None:
    client = start_gateway(**SMALL)

    def body() -> Any:
        raise AssertionError("The body was read.")
        yield b""

    with service_of(client).memory.reserve(0) as other:
        other.resize(7 * MIB)
        headers = {"content-length": str(MIB), "content-type": "application/json"}
        refused = client.post("/embed", content=body(), headers=headers)
    assert refused.status_code == 429


@pytest.mark.parametrize("error", [{"texts": []}, {"texts": [""]}, {"texts": ["a"], "x": 1}])
def test_an_error_releases_what_was_charged(
    start_gateway: StartGateway, error: dict[str, Any]
) -> None:
    client = start_gateway()
    assert client.post("/embed", json=error).status_code == 400
    assert service_of(client).memory.used_bytes == 0


def test_equal_texts_are_embedded_once_and_each_gets_its_vector(
    start_gateway: StartGateway, backend: FakeBackend
) -> None:
    client = start_gateway()
    texts = ["b", "a", "b", "c", "a", "b"] * 50
    response = client.post("/embed", json={"texts": texts})
    answer = response.json()
    assert sum(rows for rows, _ in backend.calls) == 3
    alone = {t: client.post("/embed", json={"texts": [t]}).json()["embeddings"][0] for t in "abc"}
    assert answer["embeddings"] == [alone[text] for text in texts]
    assert answer["usage"]["prompt_tokens"] == 2 * len(texts)


def test_the_error_of_a_repeated_text_names_its_first_place(start_gateway: StartGateway) -> None:
    client = start_gateway(EMBED_MAX_LENGTH=4)
    body = {"texts": ["a", "a", "much too long", "a"], "truncate": False}
    error = client.post("/embed", json=body).json()["error"]
    assert error["param"] == "texts[2]"


@pytest.mark.parametrize(
    "element", ["[]", "{}", "1", '"a"', "[[]]", "null", '{"a":1}', '"\\\\"', '"\\""']
)
def test_a_body_of_too_many_values_is_refused_before_it_is_parsed(element: str) -> None:
    body = '{"texts": [' + ",".join([element] * 200_000) + "]}"
    with pytest.raises(InvalidRequestError, match="more than 100000 JSON values"):
        parse_json(body.encode())


def test_a_text_may_contain_any_number_of_commas_and_brackets() -> None:
    text = '[{"a",\\' * 100_000
    assert parse_json(orjson.dumps({"texts": [text]})) == {"texts": [text]}


def embeddings(distinct: int, texts: int, dimensions: int = 64) -> Embeddings:
    rng = np.random.default_rng(texts)
    vectors = rng.normal(size=(distinct, dimensions)).astype(np.float32)
    return Embeddings(vectors, rng.integers(0, distinct, texts), 0, ())


@pytest.mark.parametrize("texts", [1, 255, 256, 257, 1000])
@pytest.mark.parametrize("distinct", [1, 300])
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_the_parts_of_an_answer_are_the_answer(texts: int, distinct: int, is_wrapped: bool) -> None:
    result = embeddings(distinct, texts)
    wrap = (lambda index, vector: {"index": index, "x": vector}) if is_wrapped else None
    content = {"model": "m", "here": VECTORS, "there": VECTORS, "end": [1]}
    parts = list(answer_parts(content, result, ["float", "base64"], wrap))
    answer = orjson.loads(b"".join(parts))
    assert len(parts) == 2 * -(-texts // 256)
    floats = [item["x"] for item in answer["here"]] if is_wrapped else answer["here"]
    assert np.array_equal(np.array(floats, dtype=np.float32), result.vectors)
    assert len(answer["there"]) == texts
    assert answer["end"] == [1]


async def sent_by(
    response: PartsResponse, version: str = "1.1", *, gone: bool = False
) -> list[Any]:
    """Return the messages that a response sends, to a caller who may be gone from the start."""
    messages: list[Any] = []
    forever = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not gone:
            await forever.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        messages.append(message)
        await asyncio.sleep(0)

    await response({"type": "http", "http_version": version}, receive, send)
    return messages


def parts_of(*parts: bytes) -> Callable[[], AsyncIterator[bytes]]:
    async def generate() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    return generate


async def test_a_small_answer_is_one_write_with_its_length() -> None:
    head, body = await sent_by(PartsResponse(parts_of(b"abc")))
    assert (b"content-length", b"3") in head["headers"]
    assert body == {"type": "http.response.body", "body": b"abc"}


async def test_an_answer_in_parts_ends_when_its_last_part_is_read() -> None:
    head, *body = await sent_by(PartsResponse(parts_of(b"a", b"b", b"c")))
    assert not [name for name, _ in head["headers"] if name == b"content-length"]
    assert [message.get("body", b"") for message in body] == [b"a", b"b", b"c", b""]
    assert [message.get("more_body", False) for message in body] == [True, True, True, False]


async def test_http_1_0_has_no_chunks_so_the_length_is_counted_first() -> None:
    head, *_ = await sent_by(PartsResponse(parts_of(b"a", b"bc", b"def")), "1.0")
    assert (b"content-length", b"6") in head["headers"]


async def test_nothing_more_is_encoded_for_a_caller_who_is_gone() -> None:
    messages = await sent_by(PartsResponse(parts_of(*[b"part"] * 100)), gone=True)
    assert len(messages) < 5


def test_a_long_answer_is_chunked_and_carries_the_usual_headers(client: TestClient) -> None:
    response = client.post("/embed", json={"texts": [f"text {i}" for i in range(100)]})
    assert len(response.json()["embeddings"]) == 100
    assert "content-length" not in response.headers
    assert "encode;dur=" in response.headers["server-timing"]
    assert response.headers["x-embedding-fingerprint"]


def test_tokenize_is_bounded(start_gateway: StartGateway) -> None:
    client = start_gateway(TOKENIZER_PATH=qwen3_nano.model_dir())
    refused = client.post("/tokenize", json={"inputs": ["a " * 400_000, "b " * 400_000]})
    assert refused.status_code == 400
    assert "1048576 bytes" in refused.json()["error"]
    word = client.post("/tokenize", json={"inputs": ["a", "b" * 100_000]})
    assert (word.status_code, word.json()["error"][:6]) == (400, "Text 1")
    listed = client.post("/tokenize", json={"inputs": ["a, " * 10_000, "", "b"]})
    assert [len(tokens) for tokens in listed.json()] == [20_002, 1, 2]
