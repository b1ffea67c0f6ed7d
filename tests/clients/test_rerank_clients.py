"""Programs that people rerank with, unchanged, against a gateway with a reranker."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from served_product import COMMAND, running

ROOT = Path(__file__).resolve().parents[2]
MODEL = "nano-reranker"
KEY = "unused"
QUERY = "How do rivers carry sand?"
DOCUMENTS = ["tea", "Rivers carry sand.", "a cake", "mountains"]
# Returns the indices of the documents, the most relevant first.
Rerank: TypeAlias = Callable[[str], list[int]]


@pytest.fixture(name="url", scope="module")
def _url(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    folder = tmp_path_factory.mktemp("reranker")
    writer = ROOT / "tests" / "support" / "reranker_graph.py"
    # In the product's own environment, which has what it takes to write a graph.
    subprocess.run([COMMAND.parent / "python", writer, folder], check=True, timeout=120)
    flags = ("--precision", "float32", "--rerank-model-dir", folder, "--rerank-model-id", MODEL)
    with running("serve", *flags, log=tmp_path_factory.mktemp("gateway") / "log") as url:
        yield url


def native(url: str) -> list[int]:
    body = json.dumps({"query": QUERY, "texts": DOCUMENTS}).encode()
    with urllib.request.urlopen(f"{url}/rerank", body, timeout=60) as response:
        return [rank["index"] for rank in json.load(response)]


def cohere(url: str, *, version: int) -> list[int]:
    import cohere as package

    create: Any = package.ClientV2 if version == 2 else package.Client
    client = create(api_key=KEY, base_url=url)
    answer = client.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS)
    return [result.index for result in answer.results]


def litellm(url: str, *, provider: str, path: str = "") -> list[int]:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it downloads prices
    import litellm as package

    answer: Any = package.rerank(
        model=f"{provider}/{MODEL}",
        query=QUERY,
        documents=DOCUMENTS,
        top_n=len(DOCUMENTS),
        api_base=url + path,
        api_key=KEY,
    )
    return [result["index"] for result in answer.results]


def langchain_nvidia(url: str) -> list[int]:
    from langchain_core.documents import Document
    from langchain_nvidia_ai_endpoints import NVIDIARerank

    client = NVIDIARerank(base_url=f"{url}/v1", model=MODEL, nvidia_api_key=KEY)
    found = client.compress_documents([Document(text) for text in DOCUMENTS], QUERY)
    return [DOCUMENTS.index(document.page_content) for document in found]


CLIENTS: dict[str, Rerank] = {
    "cohere, v1": partial(cohere, version=1),
    "cohere, v2": partial(cohere, version=2),
    "litellm, cohere": partial(litellm, provider="cohere", path="/v2/rerank"),
    "litellm, jina_ai": partial(litellm, provider="jina_ai", path="/v1/rerank"),
    "litellm, hosted_vllm": partial(litellm, provider="hosted_vllm"),
    "litellm, huggingface": partial(litellm, provider="huggingface"),
    "litellm, nvidia_nim": partial(litellm, provider="nvidia_nim"),
    "langchain-nvidia-ai-endpoints": langchain_nvidia,
}


@pytest.mark.parametrize("rerank", CLIENTS.values(), ids=CLIENTS)
def test_a_client_gets_the_native_order(url: str, rerank: Rerank) -> None:
    assert rerank(url) == native(url)
