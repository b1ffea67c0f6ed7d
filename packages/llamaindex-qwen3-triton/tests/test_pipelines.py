"""LlamaIndex's own consumers of an embedding."""

from collections.abc import Sequence

import pytest
from fake_gateway import FakeGateway, expected_vector
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import BaseNode, MetadataMode, TextNode

from llama_index.embeddings.qwen3_triton import Qwen3TritonEmbedding

COUNT = 30


def make_nodes() -> list[TextNode]:
    """New documents for each run, because a run writes the vectors into them."""
    return [TextNode(id_=str(i), text=f"text {i} " * (i % 7 + 1)) for i in range(COUNT)]


def assert_every_node_has_its_vector(nodes: Sequence[BaseNode]) -> None:
    assert [node.node_id for node in nodes] == [str(i) for i in range(COUNT)]
    for node in nodes:
        assert node.embedding == expected_vector(node.get_content(MetadataMode.EMBED))


@pytest.fixture
def model(fake: FakeGateway) -> Qwen3TritonEmbedding:
    return Qwen3TritonEmbedding(base_url=fake.url, embed_batch_size=4, api_key=None)


def test_a_pipeline_gives_every_node_its_vector(model: Qwen3TritonEmbedding) -> None:
    nodes = IngestionPipeline(transformations=[model]).run(nodes=make_nodes())
    assert_every_node_has_its_vector(nodes)


async def test_an_asynchronous_pipeline_gives_every_node_its_vector(
    model: Qwen3TritonEmbedding,
) -> None:
    nodes = await IngestionPipeline(transformations=[model]).arun(nodes=make_nodes())
    assert_every_node_has_its_vector(nodes)


@pytest.mark.slow
def test_a_pipeline_in_two_processes_gives_every_node_its_vector(
    model: Qwen3TritonEmbedding,
) -> None:
    model.get_query_embedding("used before it is sent to the workers")
    nodes = IngestionPipeline(transformations=[model]).run(nodes=make_nodes(), num_workers=2)
    assert_every_node_has_its_vector(nodes)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # LlamaIndex's
async def test_an_asynchronous_pipeline_in_two_processes_gives_every_node_its_vector(
    model: Qwen3TritonEmbedding,
) -> None:
    await model.aget_query_embedding("used before it is sent to the workers")
    nodes = await IngestionPipeline(transformations=[model]).arun(nodes=make_nodes(), num_workers=2)
    assert_every_node_has_its_vector(nodes)


def test_a_pipeline_uses_its_cache_when_only_the_timeout_differs(
    model: Qwen3TritonEmbedding, fake: FakeGateway
) -> None:
    pipeline = IngestionPipeline(transformations=[model])
    pipeline.run(nodes=make_nodes())
    count = len(fake.requests)
    model.timeout = 7
    pipeline.run(nodes=make_nodes())
    assert len(fake.requests) == count


def test_an_index_stores_documents_and_searches_with_a_query(
    model: Qwen3TritonEmbedding, fake: FakeGateway
) -> None:
    index = VectorStoreIndex(make_nodes(), embed_model=model)
    assert len(index.as_retriever(similarity_top_k=3).retrieve("anything")) == 3
    assert fake.requests[-1].body["input_type"] == "query"


async def test_an_index_is_searched_asynchronously(
    model: Qwen3TritonEmbedding, fake: FakeGateway
) -> None:
    index = VectorStoreIndex(make_nodes(), embed_model=model)
    assert len(await index.as_retriever(similarity_top_k=3).aretrieve("anything")) == 3
    assert fake.requests[-1].body["input_type"] == "query"


def test_the_embedding_can_be_the_global_default(
    model: Qwen3TritonEmbedding, fake: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Settings, "_embed_model", model)
    VectorStoreIndex.from_documents([Document(text="Basalt is a volcanic rock.")])
    assert fake.requests[0].texts == ["Basalt is a volcanic rock."]
