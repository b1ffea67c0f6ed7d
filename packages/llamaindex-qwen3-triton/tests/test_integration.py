"""Tests against a running gateway that serves the nano model."""

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode

from llama_index.embeddings.qwen3_triton import Qwen3TritonEmbedding

TEXTS = [
    "A dog is a domesticated animal that barks and guards the house.",
    "Income tax is a levy on the earnings of persons and companies.",
    "A violin is a musical instrument with four strings played with a bow.",
]


@pytest.fixture
def model(gateway_url: str) -> Qwen3TritonEmbedding:
    return Qwen3TritonEmbedding(base_url=gateway_url, embed_batch_size=2, dimensions=1024)


async def test_a_question_finds_its_answer_in_an_index(model: Qwen3TritonEmbedding) -> None:
    index = VectorStoreIndex([TextNode(text=text) for text in TEXTS], embed_model=model)
    retriever = index.as_retriever(similarity_top_k=1)
    assert retriever.retrieve("What animal barks?")[0].text == TEXTS[0]
    assert (await retriever.aretrieve("Which instrument has strings?"))[0].text == TEXTS[2]


async def test_pipelines_return_the_same_vectors(model: Qwen3TritonEmbedding) -> None:
    pipeline = IngestionPipeline(transformations=[model], disable_cache=True)
    nodes = [TextNode(text=text) for text in TEXTS]
    ran = pipeline.run(nodes=nodes)
    ran_async = await pipeline.arun(nodes=nodes)
    for node, node_async in zip(ran, ran_async, strict=True):
        assert node.embedding is not None
        assert len(node.embedding) == 1024
        assert node.embedding == pytest.approx(node_async.embedding, abs=1e-5)
