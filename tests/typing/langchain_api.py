"""Types that callers of the LangChain adapter see. Checked by `make lint`; never executed."""

from typing import assert_type

from langchain_core.embeddings import Embeddings

from langchain_qwen3_triton import Qwen3TritonEmbeddings
from qwen3_triton_client import AsyncEmbeddingClient, ClientStats, EmbeddingClient


def it_is_langchains_interface() -> None:
    embeddings: Embeddings = Qwen3TritonEmbeddings(base_url="http://localhost:8101", dimensions=256)
    assert_type(embeddings.embed_documents(["text"]), list[list[float]])


async def it_returns_lists_of_floats(embeddings: Qwen3TritonEmbeddings) -> None:
    assert_type(embeddings.embed_documents(["text"]), list[list[float]])
    assert_type(embeddings.embed_query("text"), list[float])
    assert_type(await embeddings.aembed_documents(["text"]), list[list[float]])
    assert_type(await embeddings.aembed_query("text"), list[float])


async def it_gives_access_to_the_client(embeddings: Qwen3TritonEmbeddings) -> None:
    assert_type(embeddings.clients(), tuple[EmbeddingClient, AsyncEmbeddingClient])
    assert_type(embeddings.fingerprint(), str)
    assert_type(await embeddings.afingerprint(), str)
    assert_type(embeddings.stats, ClientStats)
    assert_type(embeddings.close(), None)
    assert_type(await embeddings.aclose(), None)


def options_are_checked() -> None:
    Qwen3TritonEmbeddings(batch_size="many")  # pyright: ignore[reportArgumentType]
    Qwen3TritonEmbeddings(url="http://localhost:8101")  # pyright: ignore[reportCallIssue]
