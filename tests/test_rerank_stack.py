"""A reranker and the embedding model on one real Triton, behind one gateway."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from langchain_core.documents import Document
from langchain_nvidia_ai_endpoints import NVIDIARerank

import qwen3_nano
from gateway_process import GatewayProcess, running_gateway, triton_flags
from qwen3_triton_client import AsyncEmbeddingClient, EmbeddingClient
from qwen3_triton_tools.local_triton import LocalTriton, write_repository
from reranker_graph import reference_logits, write_reranker

pytestmark = pytest.mark.stack

RERANKER = "nano_reranker"
QUERY = "How do rivers carry sand?"
DOCUMENTS = [
    "tea",
    "Rivers carry sand towards the sea, grain after grain.",
    "日本語の文 😀",
    "word " * 120,
]
# Of float32 in batches of other shapes.
TOLERANCE = 1e-4


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reranker(tmp_path_factory.mktemp(RERANKER))


@pytest.fixture(name="both_models", scope="module")
def _both_models(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Generator[GatewayProcess]:
    repository = tmp_path_factory.mktemp("repository")
    for name, source in ((qwen3_nano.MODEL_ID, qwen3_nano.model_dir()), (RERANKER, folder)):
        write_repository(source, repository, model_name=name, max_batch_size=8)
    with LocalTriton(model_repository=repository) as triton:
        flags = ("--rerank-triton-model", RERANKER)
        with running_gateway(*triton_flags(triton.grpc_url), *flags) as gateway:
            yield gateway


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


def test_both_models_answer_and_are_measured(both_models: GatewayProcess) -> None:
    url = both_models.url
    assert httpx2.post(f"{url}/embed", json={"texts": ["tea"]}, timeout=60).status_code == 200
    assert (
        httpx2.post(f"{url}/rerank", json={"query": "a", "texts": ["b"]}, timeout=60).status_code
        == 200
    )
    ready = httpx2.get(f"{url}/health/ready", timeout=60).json()
    assert ready["models"][RERANKER]["ready"]
    assert both_models.metric("qwen3_triton_ready") == 1
    assert both_models.metric("qwen3_triton_rerank_ready") == 1
    assert both_models.metric("qwen3_triton_rerank_pairs_total") > 0


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
