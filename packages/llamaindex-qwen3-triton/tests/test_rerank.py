"""Nodes in, the most relevant out."""

import copy
import pickle
from typing import Any

import pytest
from fake_gateway import FakeGateway, Fault
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.schema import ImageNode, NodeWithScore, TextNode
from pydantic import SecretStr, ValidationError

from llama_index.embeddings.qwen3_triton import Qwen3TritonRerank
from qwen3_triton_client import InvalidRequestError

QUERY = "What carries sand?"
NODES = [
    NodeWithScore(node=TextNode(text=f"score {score}", id_=str(number)), score=0.25)
    for number, score in enumerate([-3, 2, 0, 5, -1])
]


def ids(nodes: list[NodeWithScore]) -> list[str]:
    return [node.node_id for node in nodes]


def test_the_best_nodes_are_returned_with_their_scores(fake: FakeGateway) -> None:
    rerank = Qwen3TritonRerank(base_url=fake.url, top_n=3, batch_size=2)
    found = rerank.postprocess_nodes(NODES, query_str=QUERY)
    assert ids(found) == ["3", "1", "2"]
    assert found[2].score == 0.5
    assert NODES[2].score == 0.25


async def test_the_best_nodes_are_returned_asynchronously(fake: FakeGateway) -> None:
    rerank = Qwen3TritonRerank(base_url=fake.url, top_n=3, batch_size=2)
    assert ids(await rerank.apostprocess_nodes(NODES, query_str=QUERY)) == ["3", "1", "2"]
    await rerank.aclose()


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_a_call_is_reported_once_whatever_its_batches(
    fake: FakeGateway, events: list[BaseEvent], asynchronous: bool
) -> None:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    manager = CallbackManager([handler])
    rerank = Qwen3TritonRerank(
        base_url=fake.url, top_n=2, batch_size=1, model="m", callback_manager=manager
    )
    if asynchronous:
        found = await rerank.apostprocess_nodes(NODES, query_str=QUERY)
        await rerank.aclose()
    else:
        found = rerank.postprocess_nodes(NODES, query_str=QUERY)
    [start, end] = events
    assert isinstance(start, ReRankStartEvent)
    assert (start.top_n, start.model_name, ids(start.nodes)) == (2, "m", ids(NODES))
    assert str(start.query) == QUERY
    assert isinstance(end, ReRankEndEvent)
    assert end.nodes == found
    [pair] = handler.get_event_pairs(CBEventType.RERANKING)
    assert len(pair) == 2


def test_after_an_error_the_callback_has_ended(fake: FakeGateway, events: list[BaseEvent]) -> None:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    rerank = Qwen3TritonRerank(
        base_url=fake.url, top_n=None, callback_manager=CallbackManager([handler])
    )
    fake.rule = lambda _: Fault(status=400)
    with pytest.raises(InvalidRequestError, match="answered 400"):
        rerank.postprocess_nodes(NODES, query_str=QUERY)
    [start] = events
    assert isinstance(start, ReRankStartEvent)
    assert start.top_n == len(NODES)
    [pair] = handler.get_event_pairs(CBEventType.RERANKING)
    assert len(pair) == 2


def test_all_nodes_are_returned_without_a_limit(fake: FakeGateway) -> None:
    rerank = Qwen3TritonRerank(base_url=fake.url, top_n=None)
    assert len(rerank.postprocess_nodes(NODES * 3, query_str=QUERY)) == 15


def test_the_reranker_reads_the_text_that_is_embedded(fake: FakeGateway) -> None:
    node = TextNode(
        text="sand",
        metadata={"title": "Rivers", "page": 3},
        excluded_embed_metadata_keys=["page"],
    )
    rerank = Qwen3TritonRerank(base_url=fake.url)
    rerank.postprocess_nodes([NodeWithScore(node=node)], query_str=QUERY)
    assert fake.requests[0].texts == ["title: Rivers\n\nsand"]


def test_no_nodes_send_no_request(fake: FakeGateway) -> None:
    assert Qwen3TritonRerank(base_url=fake.url).postprocess_nodes([], query_str=QUERY) == []
    assert fake.requests == []


def test_options_and_the_key_are_sent_and_the_key_is_not_dumped(fake: FakeGateway) -> None:
    options: dict[str, Any] = {"model": "m", "instruction": "Find laws.", "truncate": False}
    rerank = Qwen3TritonRerank(base_url=fake.url, api_key=SecretStr("secret-key"), **options)
    rerank.postprocess_nodes(NODES, query_str=QUERY)
    [request] = fake.requests
    assert options.items() <= request.body.items()
    assert request.headers["authorization"] == "Bearer secret-key"
    assert "secret-key" not in rerank.to_json() + repr(rerank)


def test_a_missing_query_is_refused(fake: FakeGateway) -> None:
    with pytest.raises(ValueError, match="Reranking needs the query"):
        Qwen3TritonRerank(base_url=fake.url).postprocess_nodes(NODES)


def test_nodes_without_text_come_last_with_a_score_of_0(fake: FakeGateway) -> None:
    nodes = [NodeWithScore(node=ImageNode(image_path="a.png", id_="image")), *NODES]
    rerank = Qwen3TritonRerank(base_url=fake.url, top_n=None)
    ranked = rerank.postprocess_nodes(nodes, query_str=QUERY)
    assert ids(ranked)[-1] == "image"
    assert ranked[-1].score == 0.0


def test_it_has_a_json_schema_without_the_clients_of_a_process() -> None:
    names = Qwen3TritonRerank.model_json_schema()["properties"].keys()
    assert {"top_n", "api_key"} <= names
    assert not names & {"http_client", "http_async_client"}


def test_it_can_be_pickled_and_copied(fake: FakeGateway) -> None:
    rerank = Qwen3TritonRerank(base_url=fake.url, top_n=1)
    for twin in (pickle.loads(pickle.dumps(rerank)), copy.deepcopy(rerank)):
        assert ids(twin.postprocess_nodes(NODES, query_str=QUERY)) == ["3"]


@pytest.mark.parametrize("option", [{"top_n": 0}, {"batch_size": 0}, {"unknown": 1}])
def test_invalid_options_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Qwen3TritonRerank(**option)
