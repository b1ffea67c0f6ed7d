from dataclasses import replace

import numpy as np
import pytest

from qwen3_triton_gateway.backends.base import ModelSpec, TensorSpec
from qwen3_triton_gateway.backends.interface import build_feed, describe_model, wrap_output
from qwen3_triton_gateway.errors import BackendError, StartupError
from qwen3_triton_gateway.settings import Precision
from qwen3_triton_gateway.tensors import PooledStates, TokenBatch

INT64, FLOAT32, FLOAT16 = np.dtype(np.int64), np.dtype(np.float32), np.dtype(np.float16)
IDS = TensorSpec("input_ids", INT64, (-1, -1))
MASK = TensorSpec("attention_mask", INT64, (-1, -1))
POSITIONS = TensorSpec("position_ids", INT64, (-1, -1))
KEY = TensorSpec("past_key_values.0.key", FLOAT32, (-1, 8, -1, 128))
HIDDEN = TensorSpec("last_hidden_state", FLOAT32, (-1, -1, 1280))
POOLED = TensorSpec("sentence_embedding", FLOAT32, (-1, 1280))
BATCH = TokenBatch(
    np.array([[5, 6, 7], [8, 9, 9]]), attention_mask=np.array([[1, 1, 1], [1, 0, 0]])
)


def describe(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> ModelSpec:
    return describe_model(
        name="m",
        inputs=inputs,
        outputs=outputs,
        max_batch_size=8,
        instance_count=1,
        weights_digest="w",
    )


def test_positions_count_from_zero_and_the_past_is_empty() -> None:
    feed = build_feed(describe([IDS, MASK, POSITIONS, KEY], [HIDDEN]), BATCH)
    assert feed["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]
    assert feed[KEY.name].shape == (2, 8, 0, 128)
    assert feed[KEY.name].dtype == FLOAT32


def test_a_model_without_positions_gets_none() -> None:
    assert set(build_feed(describe([IDS, MASK], [HIDDEN]), BATCH)) == {
        "input_ids",
        "attention_mask",
    }


@pytest.mark.parametrize(
    ("outputs", "name", "pooling"),
    [
        pytest.param([HIDDEN], "last_hidden_state", "last_token", id="hidden"),
        pytest.param([HIDDEN, POOLED], "sentence_embedding", "in_graph", id="pooled-preferred"),
        pytest.param(
            [TensorSpec("hidden_states", FLOAT16, (-1, -1, 1280))],
            "hidden_states",
            "last_token",
            id="only-output-by-another-name",
        ),
    ],
)
def test_the_output_is_chosen_by_name_and_rank(
    outputs: list[TensorSpec], name: str, pooling: str
) -> None:
    spec = describe([IDS, MASK], outputs)
    assert (spec.output.name, spec.pooling, spec.hidden_size) == (name, pooling, 1280)


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        pytest.param([IDS], [HIDDEN], "no input `attention_mask`", id="no-mask"),
        pytest.param(
            [IDS, MASK, TensorSpec("cache_position", INT64, (-1, -1))],
            [HIDDEN],
            "`cache_position`, which the gateway does not support",
            id="unknown-input",
        ),
        pytest.param(
            [TensorSpec("input_ids", INT64, (4, -1)), MASK],
            [HIDDEN],
            "a batch fixed to 4, but the gateway sends batches of any batch",
            id="batch",
        ),
        pytest.param(
            [IDS, TensorSpec("attention_mask", INT64, (-1, 512))],
            [HIDDEN],
            "a length fixed to 512",
            id="length",
        ),
        pytest.param(
            [TensorSpec("input_ids", np.dtype(np.int32), (-1, -1)), MASK],
            [HIDDEN],
            "`input_ids` as int32 .* sends int64",
            id="int32",
        ),
        pytest.param(
            [TensorSpec("input_ids", INT64, (-1,)), MASK], [HIDDEN], "shape", id="input-rank"
        ),
        pytest.param(
            [IDS, MASK, TensorSpec(KEY.name, FLOAT32, (-1, -1, -1, 128))],
            [HIDDEN],
            "with fixed heads and head size",
            id="free-heads",
        ),
        pytest.param(
            [IDS, MASK],
            [TensorSpec("logits", FLOAT32, (-1, -1, 9)), TensorSpec("x", FLOAT32, (-1, 3))],
            "no output `last_hidden_state`",
            id="no-output",
        ),
        pytest.param(
            [IDS, MASK],
            [TensorSpec("last_hidden_state", np.dtype(np.object_), (-1, -1, 1280))],
            "config.pbtxt",
            id="output-dtype",
        ),
        pytest.param(
            [IDS, MASK],
            [TensorSpec("last_hidden_state", FLOAT32, (-1, -1, -1))],
            "with a fixed hidden size",
            id="free-hidden-size",
        ),
    ],
)
def test_a_model_that_cannot_be_served_is_refused(
    inputs: list[TensorSpec], outputs: list[TensorSpec], words: str
) -> None:
    with pytest.raises(StartupError, match=words):
        describe(inputs, outputs)


def test_a_batch_fixed_to_one_bounds_the_batch() -> None:
    assert describe([IDS, MASK], [HIDDEN]).max_batch_size == 8
    alone = TensorSpec("input_ids", INT64, (1, -1))
    assert describe([alone, MASK], [HIDDEN]).max_batch_size == 1


def test_states_are_found_among_outputs_that_an_exporter_named() -> None:
    keys = [TensorSpec(f"cat_{index}", FLOAT32, (-1, 8, -1, 128)) for index in range(4)]
    states = TensorSpec("mul_56", FLOAT32, (-1, -1, 1280))
    assert describe([IDS, MASK], [*keys, states]).output == states
    with pytest.raises(StartupError, match="no output `last_hidden_state`"):
        describe([IDS, MASK], [*keys, states, TensorSpec("mul_57", FLOAT32, (-1, -1, 1280))])


def test_token_types_are_zeros() -> None:
    types = TensorSpec("token_type_ids", INT64, (-1, -1))
    feed = build_feed(describe([IDS, MASK, types], [HIDDEN]), BATCH)
    assert feed["token_type_ids"].tolist() == [[0, 0, 0], [0, 0, 0]]


def test_a_hidden_size_that_pooling_lost_is_taken_from_another_output() -> None:
    lost = TensorSpec("sentence_embedding", FLOAT32, (-1, -1))
    spec = describe([IDS, MASK], [TensorSpec("token_embeddings", FLOAT32, (-1, -1, 640)), lost])
    assert (spec.output.name, spec.hidden_size, spec.pooling) == (lost.name, 640, "in_graph")
    with pytest.raises(StartupError, match="with a fixed hidden size"):
        describe([IDS, MASK], [lost])


def test_a_pooled_answer_is_wrapped_as_pooled() -> None:
    states = wrap_output(describe([IDS, MASK], [POOLED]), BATCH, np.zeros((2, 1280)))
    assert isinstance(states, PooledStates)


@pytest.mark.parametrize("shape", [(1, 3, 1280), (2, 2, 1280), (2, 3, 1024), (2, 1280)])
def test_an_answer_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BackendError, match="instead of \\(2, 3, 1280\\)"):
        wrap_output(describe([IDS, MASK], [HIDDEN]), BATCH, np.zeros(shape))


@pytest.mark.parametrize(
    ("left", "right", "is_same"),
    [
        ("graph", "float32", True),
        ("bfloat16", "bfloat16", True),
        ("graph", "bfloat16", False),
        ("int8", "float32", False),
    ],
)
def test_places_in_another_precision_serve_another_model(
    left: Precision, right: Precision, is_same: bool
) -> None:
    spec = replace(describe([IDS, MASK], [HIDDEN]), precision=left)
    other = replace(spec, precision=right, instance_count=3)
    assert spec.is_same_model(other) == other.is_same_model(spec) == is_same
    assert not spec.is_same_model(replace(other, weights_digest="other"))
