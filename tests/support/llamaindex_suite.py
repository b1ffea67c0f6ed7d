"""What LlamaIndex requires of an integration; `test_packaging.py` runs it on the built wheels."""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import pickle
from pathlib import Path

import pytest
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode

import llama_index
import llama_index.embeddings
from llama_index.embeddings.qwen3_triton import Qwen3TritonEmbedding

TEXTS = ["Basalt is a volcanic rock.", "A violin has four strings.", "x"]


@pytest.fixture
def model() -> Qwen3TritonEmbedding:
    return Qwen3TritonEmbedding(
        base_url=os.environ["GATEWAY_URL"], embed_batch_size=2, instruction="Find rocks"
    )


def test_the_adapter_is_the_installed_one() -> None:
    assert "site-packages" in inspect.getfile(Qwen3TritonEmbedding)


def test_the_packages_above_it_are_namespaces_of_all() -> None:
    for package in (llama_index, llama_index.embeddings):
        assert package.__file__ is None
        assert not any((Path(folder) / "__init__.py").exists() for folder in package.__path__)


def test_it_is_an_embedding_under_its_own_name() -> None:
    assert BaseEmbedding.__name__ in [base.__name__ for base in Qwen3TritonEmbedding.__mro__]
    assert Qwen3TritonEmbedding.class_name() == "Qwen3TritonEmbedding"


def test_asynchronous_methods_are_coroutines() -> None:
    names = ("aget_query_embedding", "aget_text_embedding", "aget_text_embedding_batch")
    assert all(inspect.iscoroutinefunction(getattr(Qwen3TritonEmbedding, name)) for name in names)


def test_a_dump_and_a_pickle_make_it_again(model: Qwen3TritonEmbedding) -> None:
    vector = model.get_query_embedding(TEXTS[0])
    for again in (
        Qwen3TritonEmbedding.from_dict(model.to_dict()),
        pickle.loads(pickle.dumps(model)),
    ):
        assert again.to_dict() == model.to_dict()
        assert again.get_query_embedding(TEXTS[0]) == pytest.approx(vector, abs=1e-6)


def test_texts_become_unit_vectors_in_order_either_way(model: Qwen3TritonEmbedding) -> None:
    vectors = model.get_text_embedding_batch(TEXTS)
    assert [math.hypot(*vector) for vector in vectors] == pytest.approx([1, 1, 1], abs=1e-5)
    again = asyncio.run(model.aget_text_embedding_batch(TEXTS))
    alone = [model.get_text_embedding(text) for text in TEXTS]
    for number in range(3):
        assert vectors[number] == pytest.approx(again[number], abs=1e-5)
        assert vectors[number] == pytest.approx(alone[number], abs=1e-5)


def test_it_is_a_step_of_a_pipeline(model: Qwen3TritonEmbedding) -> None:
    nodes = IngestionPipeline(transformations=[model]).run(nodes=[TextNode(text=t) for t in TEXTS])
    assert [len(node.get_embedding()) for node in nodes] == [1024, 1024, 1024]
