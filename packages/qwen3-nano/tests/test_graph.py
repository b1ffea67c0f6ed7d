"""Every variant of the graph computes what the plain graph computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from qwen3_nano import model_dir
from qwen3_nano.graph import build_graph

# float16 keeps 11 bits of each number, which costs a cosine several times less than 1e-3.
MIN_FLOAT16_PARITY = 0.999
# The same operators in another graph, which the runtime may fuse differently.
TOLERANCE = 1e-4
# For the rotary embedding: the last bits of a power differ between processors.
FREQUENCIES = "constant_1"
MIXED = ["a", "The cat sat on the mat.", "Vaccines train immunity. " * 12, "🙂 здравствуйте 世界"]


def last(hidden: NDArray[Any], mask: NDArray[np.int64]) -> NDArray[np.float32]:
    index = (mask * np.arange(mask.shape[1])).max(axis=1)
    return hidden[np.arange(len(mask)), index].astype(np.float32)


def cache_of(nano: Any, batch: int, length: int = 0) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(0)
    shape = (batch, nano.weights.kv_heads, length, nano.weights.head_dim)
    return {
        f"past_key_values.{i}.{kind}": random.normal(size=shape).astype(np.float32)
        for i in range(len(nano.weights.layers))
        for kind in ("key", "value")
    }


def test_rebuilding_the_graph_from_its_own_weights_gives_the_shipped_file(nano: Any) -> None:
    shipped, rebuilt = onnx.load(model_dir() / "model.onnx"), build_graph(nano.weights)
    expected, computed = (
        next(tensor for tensor in model.graph.initializer if tensor.name == FREQUENCIES)
        for model in (shipped, rebuilt)
    )
    arrays = numpy_helper.to_array(expected), numpy_helper.to_array(computed)
    np.testing.assert_array_max_ulp(*arrays, maxulp=2)
    computed.CopyFrom(expected)
    assert rebuilt.SerializeToString() == (model_dir() / "model.onnx").read_bytes()


def test_inputs_and_outputs_have_the_names_and_types_of_the_family(nano: Any) -> None:
    inputs = [(i.name, i.type, len(i.shape)) for i in nano.plain.get_inputs()]
    names = ("input_ids", "attention_mask", "position_ids")
    assert inputs == [(name, "tensor(int64)", 2) for name in names]
    (output,) = nano.plain.get_outputs()
    assert (output.name, output.type) == ("last_hidden_state", "tensor(float)")


def test_fully_masked_rows_stay_finite(nano: Any) -> None:
    inputs = nano.feeds(MIXED, left=True)
    assert np.isfinite(nano.plain.run(None, inputs)[0]).all()
    inputs["attention_mask"][:] = 0
    assert np.isfinite(nano.plain.run(None, inputs)[0]).all()


@pytest.mark.parametrize("length", [1, 2048])
def test_texts_of_any_length_run(nano: Any, length: int) -> None:
    ids = np.full((1, length), 100, dtype=np.int64)
    positions = np.arange(length, dtype=np.int64)[None]
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": positions}
    assert np.isfinite(nano.plain.run(None, inputs)[0]).all()


def test_a_token_does_not_see_what_follows_it(nano: Any) -> None:
    inputs = nano.feeds(["The cat sat on the mat."])
    (hidden,) = nano.plain.run(None, inputs)
    inputs["input_ids"][0, -1] = 5
    (changed,) = nano.plain.run(None, inputs)
    np.testing.assert_allclose(changed[:, :-1], hidden[:, :-1], atol=TOLERANCE)
    assert not np.allclose(changed[:, -1], hidden[:, -1], atol=TOLERANCE)


def test_float16_output_equals_float32_within_half_precision(nano: Any) -> None:
    inputs = nano.feeds(MIXED)
    (half,) = nano.variant(float16_output=True).run(None, inputs)
    (full,) = nano.plain.run(None, inputs)
    a, b = (last(hidden, inputs["attention_mask"]) for hidden in (half, full))
    cosines = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert half.dtype == np.float16
    assert cosines.min() >= MIN_FLOAT16_PARITY


@pytest.mark.parametrize("left", [False, True])
def test_pooled_graph_returns_the_last_real_token_of_either_padding_side(
    nano: Any, left: bool
) -> None:
    inputs = nano.feeds(MIXED, left=left)
    (pooled,) = nano.variant(output="sentence_embedding").run(["sentence_embedding"], inputs)
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(pooled, nano.embed(MIXED, left=left), atol=TOLERANCE)


@pytest.mark.parametrize("left", [False, True])
def test_graph_without_position_ids_counts_them_from_the_mask(nano: Any, left: bool) -> None:
    inputs = nano.feeds(MIXED, left=left)
    (expected,) = nano.plain.run(None, inputs)
    del inputs["position_ids"]
    (hidden,) = nano.variant(position_ids=False).run(None, inputs)
    mask = inputs["attention_mask"]
    np.testing.assert_allclose(last(hidden, mask), last(expected, mask), atol=TOLERANCE)


@pytest.mark.parametrize("position_ids", [False, True])
def test_graph_with_an_empty_cache_equals_the_plain_one(nano: Any, position_ids: bool) -> None:
    inputs = nano.feeds(MIXED)
    (expected,) = nano.plain.run(None, inputs)
    if not position_ids:
        del inputs["position_ids"]
    session = nano.variant(past_key_values=True, position_ids=position_ids)
    (hidden,) = session.run(None, inputs | cache_of(nano, len(MIXED)))
    mask = inputs["attention_mask"]
    np.testing.assert_allclose(last(hidden, mask), last(expected, mask), atol=TOLERANCE)


@pytest.mark.parametrize("visible", [0, 1])
def test_a_cache_is_prepended_and_its_mask_respected(nano: Any, visible: int) -> None:
    inputs = nano.feeds(["The cat sat on the mat."])
    (expected,) = nano.plain.run(None, inputs)
    mask = np.concatenate([np.full((1, 3), visible), inputs["attention_mask"]], axis=1)
    session = nano.variant(past_key_values=True)
    (hidden,) = session.run(None, inputs | cache_of(nano, 1, length=3) | {"attention_mask": mask})
    same = np.allclose(hidden, expected, atol=TOLERANCE)
    assert same == (visible == 0)
