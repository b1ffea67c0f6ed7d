"""How each Python program is pointed at the gateway; imports are local, since some take seconds."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

MODEL = "qwen3-nano"
QUERY_MODEL = f"{MODEL}-query"
KEY = "unused"

Vector = Sequence[float]


@dataclass(frozen=True)
class Embedded:
    """What a client returned for documents, and for a question as it embeds questions."""

    documents: Sequence[Vector]
    query: Vector


Embed = Callable[[str, list[str], str], Embedded]


def openai(url: str, documents: list[str], query: str) -> Embedded:
    from openai import OpenAI

    with OpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
        found = client.embeddings.create(model=MODEL, input=documents).data
        asked = client.embeddings.create(model=QUERY_MODEL, input=query).data[0]
    return Embedded([item.embedding for item in found], asked.embedding)


def _litellm(
    prefix: str, base: str, documents: list[str], query: str, **query_only: Any
) -> Embedded:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it downloads prices
    import litellm

    def embed(texts: list[str], model: str, **more: Any) -> list[Vector]:
        answer = litellm.embedding(
            model=f"{prefix}/{model}", input=texts, api_base=base, api_key=KEY, **more
        )
        return [item["embedding"] for item in answer.data]

    by_name = MODEL if query_only else QUERY_MODEL
    return Embedded(embed(documents, MODEL), embed([query], by_name, **query_only)[0])


def litellm_openai(url: str, documents: list[str], query: str) -> Embedded:
    return _litellm("openai", f"{url}/v1", documents, query)


def litellm_vllm(url: str, documents: list[str], query: str) -> Embedded:
    return _litellm("hosted_vllm", f"{url}/v1", documents, query)


def litellm_ollama(url: str, documents: list[str], query: str) -> Embedded:
    return _litellm("ollama", url, documents, query)


def litellm_cohere(url: str, documents: list[str], query: str) -> Embedded:
    return _litellm("cohere", f"{url}/v2/embed", documents, query, input_type="search_query")


def haystack(url: str, documents: list[str], query: str) -> Embedded:
    from haystack import Document
    from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
    from haystack.utils import Secret

    key, base = Secret.from_token(KEY), f"{url}/v1"
    indexer = OpenAIDocumentEmbedder(
        api_key=key, api_base_url=base, model=MODEL, progress_bar=False
    )
    asker = OpenAITextEmbedder(api_key=key, api_base_url=base, model=QUERY_MODEL)
    found = indexer.run([Document(content=text) for text in documents])["documents"]
    return Embedded([document.embedding for document in found], asker.run(query)["embedding"])


def chromadb_openai(url: str, documents: list[str], query: str) -> Embedded:
    from chromadb.utils.embedding_functions import OpenAIEmbeddingFunction

    embed = OpenAIEmbeddingFunction(api_base=f"{url}/v1", api_key=KEY, model_name=MODEL)
    return Embedded(embed(documents), embed.embed_query([query])[0])


def chromadb_ollama(url: str, documents: list[str], query: str) -> Embedded:
    from chromadb.utils.embedding_functions import OllamaEmbeddingFunction

    embed = OllamaEmbeddingFunction(url=url, model_name=MODEL)
    return Embedded(embed(documents), embed.embed_query([query])[0])


def pydantic_ai(url: str, documents: list[str], query: str) -> Embedded:
    from pydantic_ai import Embedder
    from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{url}/v1", api_key=KEY)
    indexer, asker = (
        Embedder(OpenAIEmbeddingModel(name, provider=provider)) for name in (MODEL, QUERY_MODEL)
    )
    found = indexer.embed_documents_sync(documents).embeddings
    return Embedded(found, asker.embed_query_sync(query).embeddings[0])


def dspy(url: str, documents: list[str], query: str) -> Embedded:
    from dspy import Embedder

    options: dict[str, Any] = {"api_base": f"{url}/v1", "api_key": KEY, "caching": False}
    indexer, asker = (Embedder(f"openai/{name}", **options) for name in (MODEL, QUERY_MODEL))
    return Embedded(indexer(documents), asker([query])[0])


def ollama(url: str, documents: list[str], query: str) -> Embedded:
    from ollama import Client

    client = Client(host=url)
    assert [model.model for model in client.list().models] == [MODEL]
    assert client.show(MODEL).capabilities == ["embedding"]
    found = client.embed(model=MODEL, input=documents).embeddings
    return Embedded(found, client.embed(model=QUERY_MODEL, input=query).embeddings[0])


def cohere(url: str, documents: list[str], query: str) -> Embedded:
    from cohere import ClientV2

    client = ClientV2(api_key=KEY, base_url=url)

    def embed(texts: list[str], input_type: str) -> list[Vector]:
        answer = client.embed(
            model=MODEL, texts=texts, input_type=input_type, embedding_types=["float"]
        )
        assert answer.embeddings.float_ is not None
        return answer.embeddings.float_

    return Embedded(embed(documents, "search_document"), embed([query], "search_query")[0])


def cohere_types(url: str, texts: list[str], types: list[str]) -> Any:
    """Embed texts with Cohere's client in several types, and return its `embeddings`."""
    from cohere import ClientV2

    client = ClientV2(api_key=KEY, base_url=url)
    return client.embed(
        model=MODEL, texts=texts, input_type="search_document", embedding_types=types
    ).embeddings


def voyageai(url: str, documents: list[str], query: str) -> Embedded:
    from voyageai import Client

    client = Client(api_key=KEY, base_url=f"{url}/v1")
    found = client.embed(documents, model=MODEL, input_type="document", output_dimension=1024)
    asked = client.embed([query], model=MODEL, input_type="query")
    return Embedded(found.embeddings, asked.embeddings[0])


def langchain_openai(url: str, documents: list[str], query: str) -> Embedded:
    from langchain_openai import OpenAIEmbeddings

    indexer, asker = (
        OpenAIEmbeddings(
            base_url=f"{url}/v1", api_key=KEY, model=name, check_embedding_ctx_length=False
        )
        for name in (MODEL, QUERY_MODEL)
    )
    return Embedded(indexer.embed_documents(documents), asker.embed_query(query))


def langchain_ollama(url: str, documents: list[str], query: str) -> Embedded:
    from langchain_ollama import OllamaEmbeddings

    indexer = OllamaEmbeddings(base_url=url, model=MODEL, validate_model_on_init=True)
    asker = OllamaEmbeddings(base_url=url, model=QUERY_MODEL)
    return Embedded(indexer.embed_documents(documents), asker.embed_query(query))


def langchain_nvidia(url: str, documents: list[str], query: str) -> Embedded:
    from langchain_nvidia_ai_endpoints import NVIDIAEmbeddings

    embeddings = NVIDIAEmbeddings(base_url=f"{url}/v1", model=MODEL, api_key=KEY)
    return Embedded(embeddings.embed_documents(documents), embeddings.embed_query(query))


def llamaindex_openai_like(url: str, documents: list[str], query: str) -> Embedded:
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    indexer, asker = (
        OpenAILikeEmbedding(api_base=f"{url}/v1", api_key=KEY, model_name=name)
        for name in (MODEL, QUERY_MODEL)
    )
    return Embedded(indexer.get_text_embedding_batch(documents), asker.get_query_embedding(query))


def llamaindex_tei(url: str, documents: list[str], query: str) -> Embedded:
    from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

    model = TextEmbeddingsInference(base_url=url, model_name=MODEL, text_instruction="")
    return Embedded(model.get_text_embedding_batch(documents), model.get_query_embedding(query))


def huggingface_hub(url: str, documents: list[str], query: str) -> Embedded:
    from huggingface_hub import InferenceClient

    client = InferenceClient(base_url=url)
    found = [client.feature_extraction(text)[0] for text in documents]
    return Embedded(found, client.feature_extraction(query, prompt_name="query")[0])
