"""Clients that people already use, unchanged, get the same vectors as the native call."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Generator
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from langchain_nvidia_ai_endpoints import NVIDIAEmbeddings
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

from embed_call import cosines, embed
from gateway_process import GatewayProcess, running_gateway
from tolerances import FLOAT32_COSINE

MODEL = "qwen3-nano"
KEY = "a-secret-key"
TEXTS = ["Whales are mammals.", "Bread rises because of yeast, which is a fungus.", "x"]
QUERY = "Why does dough grow?"
LONG = "word " * 3000


# LangChain's and LlamaIndex's wrappers leave their async connections to the garbage collector.
pytestmark = [
    pytest.mark.stack,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _collect_what_clients_leave() -> Generator[None]:
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(name="keyed_gateway", scope="module")
def _keyed_gateway() -> Generator[GatewayProcess]:
    with running_gateway("--api-keys", f"{KEY},another") as gateway:
        yield gateway


@pytest.fixture(name="client")
def _client(gateway_url: str) -> Generator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway_url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def same(vectors: Any, expected: np.ndarray) -> bool:
    """Compare with the native vectors, in which other texts may have shared the batch."""
    return cosines(np.atleast_2d(np.array(vectors)), expected).min() >= FLOAT32_COSINE


# openai


def test_openai_requests_base64_and_gets_the_native_vectors(gateway_url: str) -> None:
    sent: list[bytes] = []
    hooks = {"request": [lambda request: sent.append(request.read())]}
    with openai.OpenAI(
        base_url=f"{gateway_url}/v1",
        api_key="unused",
        http_client=httpx2.Client(event_hooks=hooks, timeout=60),
    ) as client:
        answer = client.embeddings.create(model=MODEL, input=TEXTS)
    assert b'"encoding_format":"base64"' in sent[0].replace(b": ", b":")
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert same([item.embedding for item in answer.data], embed(gateway_url, TEXTS))
    assert answer.usage.prompt_tokens > len(TEXTS)


async def test_openai_async_gets_many_texts_in_order(gateway_url: str) -> None:
    texts = [f"{'filler ' * (index % 7)}text {index}" for index in range(100)]
    async with openai.AsyncOpenAI(base_url=f"{gateway_url}/v1", api_key="unused") as client:
        answer = await client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    assert same([item.embedding for item in answer.data], embed(gateway_url, texts))


def test_openai_can_request_dimensions_and_a_query(client: openai.OpenAI, gateway_url: str) -> None:
    answer = client.embeddings.create(
        model=MODEL,
        input=QUERY,
        dimensions=256,
        extra_body={"input_type": "query", "instruction": "Find recipes"},
    )
    expected = embed(
        gateway_url, [QUERY], dimensions=256, input_type="query", instruction="Find recipes"
    )
    assert same(answer.data[0].embedding, expected)


def test_openai_lists_and_finds_the_model(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"


def test_openai_sees_the_headers(client: openai.OpenAI, gateway_url: str) -> None:
    raw = client.embeddings.with_raw_response.create(model=MODEL, input="a")
    assert (
        raw.headers["x-embedding-fingerprint"]
        == httpx2.get(f"{gateway_url}/info", timeout=60).json()["fingerprint"]
    )
    assert raw.headers["server-timing"].startswith("tokenize;dur=")
    assert raw.headers["x-request-id"]


@pytest.mark.parametrize(
    ("arguments", "kind", "code", "param"),
    [
        pytest.param(
            {"model": "gpt-4"}, openai.NotFoundError, "model_not_found", "model", id="model"
        ),
        pytest.param(
            {"input": ["a", " "]}, openai.BadRequestError, "blank_text", "input[1]", id="blank"
        ),
        pytest.param(
            {"input": [[1, 2]]}, openai.BadRequestError, "token_ids", "input", id="token-ids"
        ),
        pytest.param(
            {"input": LONG}, openai.BadRequestError, "text_too_long", "input[0]", id="long"
        ),
        pytest.param({"input": []}, openai.BadRequestError, "invalid_request", "input", id="empty"),
        pytest.param(
            {"dimensions": 1}, openai.BadRequestError, "invalid_request", "dimensions", id="1-dim"
        ),
    ],
)
def test_openai_raises_its_own_errors_with_code_and_param(
    client: openai.OpenAI,
    arguments: dict[str, Any],
    kind: type[openai.APIStatusError],
    code: str,
    param: str,
) -> None:
    call: dict[str, Any] = {"model": MODEL, "input": "a", **arguments}
    with pytest.raises(kind) as caught:
        client.embeddings.create(**call)
    assert (caught.value.code, caught.value.param) == (code, param)


def test_openai_can_have_a_long_text_truncated_and_learns_of_it(
    client: openai.OpenAI, gateway_url: str
) -> None:
    answer = client.embeddings.create(model=MODEL, input=["a", LONG], extra_body={"truncate": True})
    assert answer.model_extra is not None
    assert answer.model_extra["truncated"] == [1]
    assert same(answer.data[1].embedding, embed(gateway_url, [LONG]))


@pytest.mark.parametrize(("suffix", "input_type"), [("-query", "query"), ("-passage", "document")])
def test_the_suffix_of_a_nim_model_sets_the_input_type(
    client: openai.OpenAI, gateway_url: str, suffix: str, input_type: str
) -> None:
    answer = client.embeddings.create(model=MODEL + suffix, input=QUERY)
    assert same(answer.data[0].embedding, embed(gateway_url, [QUERY], input_type=input_type))


def test_openai_raises_authentication_error_without_a_key(keyed_gateway: GatewayProcess) -> None:
    base_url = f"{keyed_gateway.url}/v1"
    with (
        openai.OpenAI(base_url=base_url, api_key="wrong") as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.embeddings.create(model=MODEL, input="a")
    with openai.OpenAI(base_url=base_url, api_key=KEY) as client:
        assert len(client.embeddings.create(model=MODEL, input="a").data[0].embedding) == 1024


# huggingface_hub


def test_huggingface_hub_embeds_at_the_root_url(gateway_url: str) -> None:
    vector = InferenceClient().feature_extraction(TEXTS[0], model=gateway_url)
    assert same(vector, embed(gateway_url, TEXTS[:1]))


async def test_huggingface_hub_async_embeds_at_the_root_url(gateway_url: str) -> None:
    async with AsyncInferenceClient() as client:
        vectors = await asyncio.gather(
            *(client.feature_extraction(text, model=gateway_url) for text in TEXTS)
        )
    assert same(np.concatenate(vectors), embed(gateway_url, TEXTS))


def test_huggingface_hub_prompt_name_and_normalize_are_respected(gateway_url: str) -> None:
    client = InferenceClient()
    query = client.feature_extraction(QUERY, model=gateway_url, prompt_name="query")
    assert same(query, embed(gateway_url, [QUERY], input_type="query"))
    raw = client.feature_extraction(QUERY, model=gateway_url, normalize=False)
    assert same(raw, embed(gateway_url, [QUERY]))
    assert abs(np.linalg.norm(raw) - 1) > 0.5


def test_huggingface_hub_without_truncation_gets_a_400_for_a_long_text(gateway_url: str) -> None:
    with pytest.raises(HfHubHTTPError) as caught:
        InferenceClient().feature_extraction(LONG, model=gateway_url, truncate=False)
    assert caught.value.response.status_code == 400
    assert caught.value.response.json()["error_type"] == "validation"


# LangChain


async def test_langchain_openai_embeds_with_its_context_check_off(gateway_url: str) -> None:
    embeddings = OpenAIEmbeddings(
        base_url=f"{gateway_url}/v1",
        api_key="unused",  # pyright: ignore[reportArgumentType]
        model=MODEL,
        check_embedding_ctx_length=False,
    )
    expected = embed(gateway_url, TEXTS)
    assert same(embeddings.embed_documents(TEXTS), expected)
    assert same(await embeddings.aembed_documents(TEXTS), expected)
    assert same(embeddings.embed_query(TEXTS[0]), expected[:1])


def test_langchain_openai_learns_what_to_set_when_it_sends_token_ids(gateway_url: str) -> None:
    """Its default needs tiktoken's file, which may not be available: this sends what it would."""
    embeddings = OpenAIEmbeddings(
        base_url=f"{gateway_url}/v1",
        api_key="unused",  # pyright: ignore[reportArgumentType]
        model=MODEL,
        max_retries=0,
    )
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        embeddings.client.create(input=[[15339, 1917]], **embeddings._invocation_params)


def test_langchain_nvidia_distinguishes_passages_from_queries(gateway_url: str) -> None:
    embeddings = NVIDIAEmbeddings(base_url=f"{gateway_url}/v1", model=MODEL, api_key="unused")
    assert same(embeddings.embed_documents(TEXTS), embed(gateway_url, TEXTS))
    assert same(embeddings.embed_query(QUERY), embed(gateway_url, [QUERY], input_type="query"))


def test_langchain_nvidia_can_have_a_long_text_truncated(gateway_url: str) -> None:
    embeddings = NVIDIAEmbeddings(
        base_url=f"{gateway_url}/v1", model=MODEL, api_key="unused", truncate="END"
    )
    assert same(embeddings.embed_documents([LONG]), embed(gateway_url, [LONG]))


# LlamaIndex


async def test_llama_index_tei_embeds(gateway_url: str) -> None:
    model = TextEmbeddingsInference(
        base_url=gateway_url, model_name=MODEL, text_instruction="", query_instruction=""
    )
    expected = embed(gateway_url, TEXTS)
    assert same(model.get_text_embedding_batch(TEXTS), expected)
    assert same(await model.aget_text_embedding_batch(TEXTS), expected)
    assert same(model.get_query_embedding(TEXTS[0]), expected[:1])


def test_llama_index_tei_sends_its_key_without_bearer(keyed_gateway: GatewayProcess) -> None:
    model = TextEmbeddingsInference(
        base_url=keyed_gateway.url, model_name=MODEL, auth_token=KEY, text_instruction=""
    )
    assert len(model.get_text_embedding("a")) == 1024
    assert KEY not in keyed_gateway.log


async def test_llama_index_openai_like_embeds(gateway_url: str) -> None:
    model = OpenAILikeEmbedding(
        model_name=MODEL, api_base=f"{gateway_url}/v1", api_key="unused", max_retries=0
    )
    expected = embed(gateway_url, TEXTS)
    assert same(model.get_text_embedding_batch(TEXTS), expected)
    assert same(await model.aget_text_embedding_batch(TEXTS), expected)
    assert same(model.get_query_embedding(TEXTS[0]), expected[:1])
