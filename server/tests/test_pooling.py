import numpy as np
import pytest

from qwen3_triton_gateway.pooling import (
    l2_normalize,
    last_token_pool,
    pool_states,
    truncate_dimensions,
    unusable_rows,
)
from qwen3_triton_gateway.settings import Pooling

# (batch, length, hidden_size) whose value at [b, t, h] is 100 b + 10 t + h
STATES = (
    100 * np.arange(2)[:, None, None] + 10 * np.arange(4)[None, :, None] + np.arange(3)
).astype(np.float32)


@pytest.mark.parametrize(
    ("mask", "last"),
    [
        pytest.param([[1, 1, 0, 0], [1, 1, 1, 1]], [1, 3], id="right"),
        pytest.param([[0, 0, 1, 1], [0, 1, 1, 1]], [3, 3], id="left"),
        pytest.param([[0, 1, 1, 0], [1, 0, 0, 0]], [2, 0], id="mixed"),
    ],
)
def test_the_last_unmasked_token_is_pooled_for_either_padding_side(
    mask: list[list[int]], last: list[int]
) -> None:
    pooled = last_token_pool(STATES, np.array(mask))
    assert pooled.tolist() == [STATES[row, position].tolist() for row, position in enumerate(last)]


def test_pooling_float16_gives_float32() -> None:
    pooled = last_token_pool(STATES.astype(np.float16), np.ones((2, 4), dtype=np.int64))
    assert pooled.dtype == np.float32


def test_truncation_comes_before_normalization() -> None:
    vectors = np.array([[3.0, 4.0, 100.0]], dtype=np.float32)
    shorter = np.atleast_2d(truncate_dimensions(vectors, 2))
    assert l2_normalize(shorter).tolist() == [[0.6000000238418579, 0.800000011920929]]


def test_rows_without_a_direction_are_found() -> None:
    vectors = np.ones((5, 4), dtype=np.float32)
    vectors[1, 2] = np.nan
    vectors[2] = 0.0
    vectors[4, 0] = np.inf
    assert unusable_rows(vectors) == [1, 2, 4]


def test_large_finite_rows_are_usable() -> None:
    assert unusable_rows(np.full((1, 1280), 3e19, dtype=np.float32)) == []


@pytest.mark.parametrize(
    ("pooling", "tokens"),
    [("mean", [[1, 2], [0, 1, 2, 3]]), ("cls", [[1], [0]]), ("last_token", [[2], [3]])],
)
def test_states_are_pooled_as_the_setting_says(pooling: Pooling, tokens: list[list[int]]) -> None:
    mask = np.array([[0, 1, 1, 0], [1, 1, 1, 1]])
    pooled = pool_states(STATES.astype(np.float16), mask, pooling)
    assert pooled.dtype == np.float32
    expected = [STATES[row, places].mean(axis=0).tolist() for row, places in enumerate(tokens)]
    assert pooled.tolist() == expected
