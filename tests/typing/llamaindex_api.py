"""Types that callers of the LlamaIndex adapter see. Checked by `make lint`; never executed."""

from typing import assert_type

from llama_index.core.base.embeddings.base import BaseEmbedding

from llama_index.embeddings.qwen3_triton import Qwen3TritonEmbedding
from qwen3_triton_client import AsyncEmbeddingClient, ClientStats, EmbeddingClient


def it_is_llamaindexs_interface() -> None:
    embed_model: BaseEmbedding = Qwen3TritonEmbedding(base_url="http://localhost:8101")
    assert_type(embed_model.get_text_embedding("text"), list[float])


async def it_returns_lists_of_floats(embed_model: Qwen3TritonEmbedding) -> None:
    assert_type(embed_model.get_text_embedding("text"), list[float])
    assert_type(embed_model.get_query_embedding("text"), list[float])
    assert_type(embed_model.get_text_embedding_batch(["text"]), list[list[float]])
    assert_type(await embed_model.aget_text_embedding("text"), list[float])
    assert_type(await embed_model.aget_query_embedding("text"), list[float])
    assert_type(await embed_model.aget_text_embedding_batch(["text"]), list[list[float]])


async def it_gives_access_to_the_client(embed_model: Qwen3TritonEmbedding) -> None:
    assert_type(embed_model.clients(), tuple[EmbeddingClient, AsyncEmbeddingClient])
    assert_type(embed_model.fingerprint(), str)
    assert_type(await embed_model.afingerprint(), str)
    assert_type(embed_model.stats, ClientStats)
    assert_type(embed_model.close(), None)
    assert_type(await embed_model.aclose(), None)


def options_are_checked() -> None:
    Qwen3TritonEmbedding(embed_batch_size="many")  # pyright: ignore[reportArgumentType]
    Qwen3TritonEmbedding(url="http://localhost:8101")  # pyright: ignore[reportCallIssue]
