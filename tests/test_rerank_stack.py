"""A reranker and the embedding model on one real Triton, behind one gateway."""

from __future__ import annotations

import signal
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from langchain_core.documents import Document
from langchain_nvidia_ai_endpoints import NVIDIARerank

import qwen3_nano
from gateway_process import TOKENIZER, GatewayProcess, running_gateway, triton_flags
from poisonable_model import FAILING_WORD, NAN_WORD, copy_poisonable, make_poisonable
from polling import wait_for
from qwen3_triton_client import AsyncEmbeddingClient, EmbeddingClient
from qwen3_triton_tools.local_triton import LocalTriton, write_repository
from reranker_exports import random_weights
from reranker_graph import reference_logits, write_reranker
from swapped_weights import allow_reloads, change_repository
from tolerances import FLOAT32_SCORE as TOLERANCE
from traffic import QUERY, TEXTS, Embedding, Reranking, Traffic, traffic_of_both

pytestmark = pytest.mark.stack

RERANKER = "nano_reranker"
DOCUMENTS = [
    "tea",
    "Rivers carry sand towards the sea, grain after grain.",
    "日本語の文 😀",
    "word " * 120,
]


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(RERANKER)
    return make_poisonable(write_reranker(folder, trunk=random_weights()))


@pytest.fixture(name="triton_of_both", scope="module")
def _triton_of_both(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Generator[LocalTriton]:
    root = tmp_path_factory.mktemp("models")
    embedder = copy_poisonable(qwen3_nano.model_dir(), root / "embedder")
    for name, source in ((qwen3_nano.MODEL_ID, embedder), (RERANKER, folder)):
        write_repository(source, root / "repository", model_name=name, max_batch_size=8)
    with pytest.MonkeyPatch.context() as patch:
        allow_reloads(patch)
        with LocalTriton(model_repository=root / "repository") as triton:
            yield triton


@pytest.fixture(name="both_models", scope="module")
def _both_models(triton_of_both: LocalTriton) -> Generator[GatewayProcess]:
    with running_gateway(*flags_of_both(triton_of_both)) as gateway:
        yield gateway


def flags_of_both(triton: LocalTriton) -> tuple[str, ...]:
    return (*triton_flags(triton.grpc_url), "--rerank-triton-model", RERANKER)


def test_scores_through_triton_are_those_of_the_graph(
    both_models: GatewayProcess, folder: Path
) -> None:
    body = {"query": QUERY, "texts": DOCUMENTS, "raw_scores": True}
    ranks: list[dict[str, Any]] = httpx2.post(
        f"{both_models.url}/rerank", json=body, timeout=60
    ).json()
    no, yes = reference_logits(folder, QUERY, DOCUMENTS).T
    assert len(ranks) == len(DOCUMENTS)
    for rank in ranks:
        index = rank["index"]
        assert rank["score"] == pytest.approx(yes[index] - no[index], abs=TOLERANCE)


async def test_the_client_ranks_documents_in_several_requests(
    both_models: GatewayProcess, folder: Path
) -> None:
    no, yes = reference_logits(folder, QUERY, DOCUMENTS).T
    expected = (yes - no).tolist()
    with EmbeddingClient(both_models.url, batch_size=2) as client:
        ranked = client.rerank(QUERY, DOCUMENTS).documents
    found = {document.index: document.raw_score for document in ranked}
    assert [found[index] for index in range(len(DOCUMENTS))] == pytest.approx(
        expected, abs=TOLERANCE
    )
    assert [document.raw_score for document in ranked] == sorted(found.values(), reverse=True)
    async with AsyncEmbeddingClient(both_models.url) as client:
        first = (await client.rerank(QUERY, DOCUMENTS, top_n=1)).documents
    assert [document.score for document in first] == pytest.approx([ranked[0].score], abs=TOLERANCE)


def test_a_thousand_documents_are_answered_in_order_with_the_score_of_each_alone(
    both_models: GatewayProcess, folder: Path
) -> None:
    documents = [f"{'word ' * (7 * index % 41)}number {index}" for index in range(1000)]
    scores = Reranking.rows(Reranking(both_models.url).send(documents))
    assert len(scores) == len(documents)
    no, yes = reference_logits(folder, QUERY, documents[::9]).T
    assert scores[::9, 0] == pytest.approx(yes - no, abs=TOLERANCE)


@pytest.mark.parametrize("word", [NAN_WORD, FAILING_WORD])
@pytest.mark.parametrize("kind", [Embedding, Reranking])
def test_a_poisonous_text_is_named_and_its_neighbors_get_their_results(
    both_models: GatewayProcess, kind: type[Traffic], word: str
) -> None:
    traffic = kind(both_models.url)
    with ThreadPoolExecutor() as pool:
        others = [pool.submit(traffic.ask, count) for count in range(20, 24)]
        refused = traffic.send([*TEXTS[:5], f"a {word}", *TEXTS[5:]])
        assert {other.result() for other in others} == {200}
    assert refused.status_code == 502
    assert kind.param(refused) == "texts[5]"


def test_each_model_is_measured_by_itself(both_models: GatewayProcess) -> None:
    names = ("qwen3_triton_texts_total", "qwen3_triton_rerank_pairs_total")
    ready = ("qwen3_triton_ready", "qwen3_triton_rerank_ready")

    def read() -> list[float]:
        return [both_models.metric(name) for name in (*names, *ready)]

    texts, pairs, *_ = read()
    for count, traffic in enumerate(traffic_of_both(both_models.url), start=1):
        assert traffic.ask(count) == 200
    assert read() == [texts + len(TEXTS) + 1, pairs + len(TEXTS) + 2, 1, 1]


@pytest.mark.parametrize(
    ("kind", "model", "other"),
    [(Embedding, qwen3_nano.MODEL_ID, RERANKER), (Reranking, RERANKER, qwen3_nano.MODEL_ID)],
)
def test_a_model_that_leaves_triton_takes_only_its_own_requests_out_of_service(
    triton_of_both: LocalTriton,
    both_models: GatewayProcess,
    kind: type[Traffic],
    model: str,
    other: str,
) -> None:
    url = both_models.url
    both = traffic_of_both(url)
    change_repository(triton_of_both, model, "unload")
    try:
        wait_for(lambda: not both_models.is_complete(), "one model less")
        expected = {kind: 503}
        assert [each.ask() for each in both] == [expected.get(type(each), 200) for each in both]
        assert both_models.is_ready()
        answers = [
            httpx2.get(f"{url}/health/ready", params={"model": name}, timeout=60)
            for name in (model, other)
        ]
        assert [answer.status_code for answer in answers] == [503, 200]
        assert both_models.metric("qwen3_triton_model_ready", model=model) == 0
        assert both_models.metric("qwen3_triton_model_ready", model=other) == 1
    finally:
        change_repository(triton_of_both, model, "load")
    wait_for(both_models.is_complete, "both models")
    assert [each.ask() for each in both] == [200, 200]


def test_a_model_has_the_fingerprint_that_it_has_alone(
    triton_of_both: LocalTriton, both_models: GatewayProcess
) -> None:
    reranker = ("--rerank-triton-model", RERANKER, "--rerank-tokenizer-path", TOKENIZER[1])
    with (
        running_gateway(*triton_flags(triton_of_both.http_url)) as embedding,
        running_gateway("--triton-url", triton_of_both.http_url, *reranker) as reranking,
    ):
        alone, reranker_alone = embedding.info(), reranking.info()
    both = both_models.info()
    assert both["fingerprint"] == alone["fingerprint"]
    assert both["reranker"]["fingerprint"] == reranker_alone["fingerprint"]
    assert both["fingerprint"] != both["reranker"]["fingerprint"]


@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param([Embedding], id="embed", marks=pytest.mark.campaign),
        pytest.param([Reranking], id="rerank", marks=pytest.mark.campaign),
        pytest.param([Embedding, Reranking], id="both"),
    ],
)
def test_sigterm_finishes_what_is_in_flight_and_ends_with_0(
    triton_of_both: LocalTriton, kinds: list[type[Traffic]]
) -> None:
    # Distinct texts: identical ones are computed once, which would take no time.
    texts = [f"{text} of {round_}" for round_ in range(40) for text in TEXTS]
    with running_gateway(*flags_of_both(triton_of_both)) as gateway:
        traffic = [kind(gateway.url) for kind in kinds]

        def are_busy() -> bool:
            return all(gateway.metric(f"{kind.metrics}_batches_in_flight") for kind in kinds)

        with ThreadPoolExecutor() as pool:
            pending = [pool.submit(each.send, texts) for each in traffic]
            wait_for(
                lambda: any(call.done() for call in pending) or are_busy(), "requests in flight"
            )
            gateway.process.send_signal(signal.SIGTERM)
            answers = [call.result() for call in pending]
        assert gateway.stop() == 0
    rows = [kind.rows(answer) for kind, answer in zip(kinds, answers, strict=True)]
    assert list(map(len, rows)) == [len(texts)] * len(kinds)


def test_langchain_s_client_of_nvidia_nim_reranks(both_models: GatewayProcess) -> None:
    reranker = NVIDIARerank(
        base_url=f"{both_models.url}/v1", model=RERANKER, top_n=2, nvidia_api_key="unused"
    )
    documents = [Document(text) for text in DOCUMENTS]
    found = reranker.compress_documents(documents, QUERY)
    body = {"query": QUERY, "texts": DOCUMENTS}
    ranks: list[dict[str, Any]] = httpx2.post(
        f"{both_models.url}/rerank", json=body, timeout=60
    ).json()
    assert [document.page_content for document in found] == [
        DOCUMENTS[rank["index"]] for rank in ranks[:2]
    ]
