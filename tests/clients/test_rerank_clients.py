"""Programs that people rerank with, unchanged, against a gateway with a reranker.

The run makes a table of them, as `test_clients` does.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import urllib.request
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from documented import check_table
from served_product import COMMAND, running

ROOT = Path(__file__).resolve().parents[2]
MODEL = "nano-reranker"
KEY = "unused"
QUERY = "How do rivers carry sand?"
DOCUMENTS = ["tea", "Rivers carry sand.", "a cake", "mountains"]
HEADER = ("program", "setting", "tried version", "scores")
# Rounding of float32 that was written as decimals.
SAME = 1e-6

# Returns the documents with their scores, the most relevant first. Its last argument is the model.
Ranked: TypeAlias = Sequence[tuple[str, float]]
Rerank: TypeAlias = Callable[[str, str], Ranked]


@pytest.fixture(name="url", scope="module")
def _url(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    folder = tmp_path_factory.mktemp("reranker")
    writer = ROOT / "tests" / "support" / "reranker_graph.py"
    # In the product's own environment, which has what it takes to write a graph.
    subprocess.run([COMMAND.parent / "python", writer, folder], check=True, timeout=120)
    flags = ("--precision", "float32", "--rerank-model-dir", folder, "--rerank-model-id", MODEL)
    with running("serve", *flags, log=tmp_path_factory.mktemp("gateway") / "log") as url:
        yield url


@pytest.fixture(name="native", scope="module")
def _native(url: str) -> dict[bool, list[tuple[str, float]]]:
    """The scores of `POST /rerank`, raw or not."""
    return {raw: _native_scores(url, raw) for raw in (False, True)}


def _native_scores(url: str, raw: bool) -> list[tuple[str, float]]:
    body = json.dumps({"query": QUERY, "texts": DOCUMENTS, "raw_scores": raw}).encode()
    with urllib.request.urlopen(f"{url}/rerank", body, timeout=60) as response:
        return [(DOCUMENTS[rank["index"]], rank["score"]) for rank in json.load(response)]


def cohere(url: str, model: str, *, version: int) -> Ranked:
    import cohere as package

    create: Any = package.ClientV2 if version == 2 else package.Client
    client = create(api_key=KEY, base_url=url)
    answer = client.rerank(model=model, query=QUERY, documents=DOCUMENTS)
    assert answer.meta.billed_units.search_units == 1
    return [(DOCUMENTS[result.index], result.relevance_score) for result in answer.results]


def litellm(
    url: str, model: str, *, provider: str, path: str = "", return_documents: bool = True
) -> Ranked:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it downloads prices
    import litellm as package

    answer: Any = package.rerank(
        model=f"{provider}/{model}",
        query=QUERY,
        documents=DOCUMENTS,
        top_n=len(DOCUMENTS),
        return_documents=return_documents,
        api_base=url + path,
        api_key=KEY,
    )
    for result in answer.results:
        assert result.get("document", {"text": DOCUMENTS[result["index"]]}) == {
            "text": DOCUMENTS[result["index"]]
        }
    return [(DOCUMENTS[result["index"]], result["relevance_score"]) for result in answer.results]


def langchain_cohere(url: str, model: str) -> Ranked:
    from langchain_cohere import CohereRerank

    client = CohereRerank(base_url=url, cohere_api_key=KEY, model=model, top_n=9)
    return _compressed(client)


def langchain_nvidia(url: str, model: str) -> Ranked:
    from langchain_nvidia_ai_endpoints import NVIDIARerank

    return _compressed(NVIDIARerank(base_url=f"{url}/v1", model=model, nvidia_api_key=KEY))


def _compressed(client: Any) -> Ranked:
    from langchain_core.documents import Document

    found = client.compress_documents([Document(text) for text in DOCUMENTS], QUERY)
    return [(document.page_content, document.metadata["relevance_score"]) for document in found]


def llamaindex_cohere(url: str, model: str) -> Ranked:
    from llama_index.postprocessor.cohere_rerank import CohereRerank

    return _postprocessed(
        CohereRerank(base_url=url, api_key=KEY, model=model, top_n=9, max_retries=1)
    )


def llamaindex_jina(url: str, model: str) -> Ranked:
    from llama_index.postprocessor.jinaai_rerank import JinaRerank

    return _postprocessed(JinaRerank(base_url=f"{url}/v1", api_key=KEY, model=model, top_n=9))


def llamaindex_nvidia(url: str, model: str) -> Ranked:
    from llama_index.postprocessor.nvidia_rerank import NVIDIARerank

    return _postprocessed(NVIDIARerank(base_url=f"{url}/v1", api_key=KEY, model=model))


def llamaindex_tei(url: str, model: str) -> Ranked:
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    return _postprocessed(TextEmbeddingInference(base_url=url, model_name=model))


def _postprocessed(postprocessor: Any) -> Ranked:
    from llama_index.core.schema import NodeWithScore, TextNode

    nodes = [NodeWithScore(node=TextNode(text=text)) for text in DOCUMENTS]
    found = postprocessor.postprocess_nodes(nodes, query_str=QUERY)
    return [(node.text, node.score) for node in found]


def haystack(url: str, model: str) -> Ranked:
    from haystack import Document
    from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker

    del model  # it sends none
    ranker = HuggingFaceTEIRanker(url=url, token=None, max_retries=1)
    found = ranker.run(QUERY, [Document(content=text) for text in DOCUMENTS])["documents"]
    return [(document.content, document.score) for document in found]


def voyageai(url: str, model: str) -> Ranked:
    from voyageai import Client as Voyage

    answer = Voyage(api_key=KEY, base_url=f"{url}/v1").rerank(QUERY, DOCUMENTS, model)
    assert answer.total_tokens > 0
    return [(result.document, result.relevance_score) for result in answer.results]


@dataclass(frozen=True)
class Client:
    """A row of the table.

    Attributes:
        program: Its name, linked by readers to its documentation.
        setting: What points it at a gateway on this machine.
        package: Its distribution.
        rerank: How it reranks.
        raw: Whether it returns logits.
        reports: Part of its error for a model that is not served, or None if it sends no model.
    """

    program: str
    setting: str
    package: str
    rerank: Rerank
    raw: bool = False
    reports: str | None = "'nano-reranker'"


BASE, BASE_V1 = 'base_url="http://localhost:8101"', 'base_url="http://localhost:8101/v1"'


def _litellm(provider: str, path: str = "", more: str = "", **options: Any) -> Client:
    setting = f'`api_base="http://localhost:8101{path}"{more}`'
    raw = provider == "nvidia_nim"
    call = partial(litellm, provider=provider, path=path, **options)
    # TEI serves one model, and is sent none.
    reports = None if provider == "huggingface" else Client.reports
    return Client(f"LiteLLM, `{provider}/`", setting, "litellm", call, raw, reports)


CLIENTS = [
    Client("Cohere, version 2", f"`{BASE}`", "cohere", partial(cohere, version=2)),
    Client("Cohere, version 1", f"`{BASE}`", "cohere", partial(cohere, version=1)),
    Client("Voyage", f"`{BASE_V1}`", "voyageai", voyageai),
    _litellm("cohere", "/v2/rerank"),
    _litellm("jina_ai", "/v1/rerank"),
    _litellm("hosted_vllm"),
    _litellm("huggingface"),
    _litellm("nvidia_nim"),
    _litellm("infinity", more=", return_documents=False", return_documents=False),
    Client("LangChain, Cohere", f"`{BASE}`", "langchain-cohere", langchain_cohere),
    Client(
        "LangChain, NVIDIA",
        f"`{BASE_V1}`",
        "langchain-nvidia-ai-endpoints",
        langchain_nvidia,
        raw=True,
    ),
    Client(
        "LlamaIndex, Cohere",
        f"`{BASE}`",
        "llama-index-postprocessor-cohere-rerank",
        llamaindex_cohere,
    ),
    Client(
        "LlamaIndex, Jina",
        f"`{BASE_V1}`",
        "llama-index-postprocessor-jinaai-rerank",
        llamaindex_jina,
    ),
    Client(
        "LlamaIndex, NVIDIA",
        f"`{BASE_V1}`",
        "llama-index-postprocessor-nvidia-rerank",
        llamaindex_nvidia,
        raw=True,
        reports="No locally hosted another was found",
    ),
    Client(
        "LlamaIndex, TEI",
        f"`{BASE}`",
        "llama-index-postprocessor-tei-rerank",
        llamaindex_tei,
        reports=None,
    ),
    Client(
        "Haystack, TEI",
        '`url="http://localhost:8101"`',
        "huggingface-api-haystack",
        haystack,
        reports=None,
    ),
]
ROWS: dict[str, str] = {}


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.program)
def test_a_client_gets_the_native_scores(
    url: str, native: dict[bool, list[tuple[str, float]]], client: Client
) -> None:
    found = client.rerank(url, MODEL)
    expected = native[client.raw]
    assert [document for document, _ in found] == [document for document, _ in expected]
    assert [score for _, score in found] == pytest.approx(
        [score for _, score in expected], abs=SAME
    )
    version = f"{client.package} {importlib.metadata.version(client.package)}"
    scores = "logits" if client.raw else "0 to 1"
    ROWS[client.program] = f"| {client.program} | {client.setting} | {version} | {scores} |"


@pytest.mark.parametrize(
    "client", [client for client in CLIENTS if client.reports], ids=lambda client: client.program
)
def test_a_client_reports_what_the_gateway_says(url: str, client: Client) -> None:
    with pytest.raises(Exception, match=client.reports):
        client.rerank(url, "another")


def test_the_table_of_rerankers_is_what_was_tried() -> None:
    if set(ROWS) != {client.program for client in CLIENTS}:
        pytest.skip("some clients were not selected, or failed")
    check_table("rerankers", HEADER, {client.program: ROWS[client.program] for client in CLIENTS})
