import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_triton_gateway.batching import (
    BATCH_SECONDS,
    OLD_AGE,
    QUERY_MEMORY_SECONDS,
    BatchLimits,
    Lane,
    bucket_length,
    choose_lane,
    document_window,
    pad_batch,
    similar_lengths,
    token_budget,
)
from qwen3_triton_gateway.tensors import TokenCount, TokenizedText

LIMITS = BatchLimits(max_batch_size=8, max_batch_tokens=4096, max_length=1024)
MAX_PADDING = 1 / 16 + 1e-9  # one step of sixteen in an octave


def text(*ids: int) -> TokenizedText:
    return TokenizedText(np.array(ids, dtype=np.int64), TokenCount(len(ids), len(ids)))


@given(st.integers(1, 4096))
def test_a_bucket_fits_the_text_with_little_padding(length: int) -> None:
    bucket = bucket_length(length, max_length=8192)
    assert length <= bucket
    assert bucket - length <= max(3, length * MAX_PADDING)


@pytest.mark.parametrize(
    ("length", "max_length", "bucket"),
    [(1000, 1001, 1001), (1001, 1001, 1001), (1024, 1024, 1024), (1, 1024, 4)],
)
def test_a_bucket_stays_within_the_longest_text_allowed(
    length: int, max_length: int, bucket: int
) -> None:
    assert bucket_length(length, max_length) == bucket


def test_texts_are_padded_on_the_right_and_padding_is_masked() -> None:
    batch = pad_batch([text(5, 6, 7, 8, 9), text(5, 9)], pad_token_id=9, max_length=1024)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 9, 9, 9], [5, 9, 9, 9, 9, 9, 9, 9]]
    assert batch.attention_mask.sum(axis=1).tolist() == [5, 2]
    assert batch.attention_mask[1].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert batch.input_ids.dtype == batch.attention_mask.dtype == np.int64


@given(
    st.lists(st.integers(1, 1024), min_size=1, max_size=60),
    st.data(),
)
def test_a_batch_contains_its_anchor_and_respects_every_limit(
    lengths: list[int], data: st.DataObject
) -> None:
    lengths.sort()
    anchor = data.draw(st.integers(0, len(lengths) - 1))
    window = similar_lengths(lengths, anchor, LIMITS)
    width = bucket_length(lengths[window.stop - 1], LIMITS.max_length)
    assert anchor in window
    assert len(window) <= LIMITS.max_batch_size
    assert len(window) == 1 or len(window) * width <= LIMITS.max_batch_tokens


def test_texts_of_similar_length_share_a_batch_and_others_do_not() -> None:
    lengths = [10, 11, 12, 500, 505, 510]
    assert similar_lengths(lengths, 0, LIMITS) == range(3)
    assert similar_lengths(lengths, 5, LIMITS) == range(3, 6)


def test_a_text_longer_than_the_token_budget_runs_alone() -> None:
    limits = BatchLimits(max_batch_size=8, max_batch_tokens=100, max_length=1024)
    assert similar_lengths([500, 500, 500], 1, limits) == range(1, 2)


@pytest.mark.parametrize(
    ("queries", "documents", "age", "lane"),
    [
        pytest.param(1, 100, 0, Lane.QUERY, id="queries-first"),
        pytest.param(0, 100, 0, Lane.DOCUMENT, id="only-documents"),
        pytest.param(9, 0, 99, Lane.QUERY, id="only-queries"),
        pytest.param(9, 1, OLD_AGE, Lane.DOCUMENT, id="documents-do-not-starve"),
    ],
)
def test_the_lane_of_the_next_batch(queries: int, documents: int, age: int, lane: Lane) -> None:
    assert choose_lane(queries, documents, age) is lane


@pytest.mark.parametrize(
    ("speed", "budget"),
    [
        pytest.param(0, 8192, id="not-known-yet"),
        pytest.param(1_000_000, 8192, id="a-fast-model-meets-the-setting"),
        pytest.param(10_000, round(10_000 * BATCH_SECONDS), id="a-slow-one-gets-short-batches"),
        pytest.param(0.1, 1, id="never-nothing"),
    ],
)
def test_a_batch_is_bounded_by_the_setting_and_by_the_models_speed(
    speed: float, budget: int
) -> None:
    assert token_budget(8192, speed) == budget


@pytest.mark.parametrize(
    ("window", "seconds", "documents"),
    [
        pytest.param(3, 0.0, 2, id="one-slot-is-kept-for-the-next-query"),
        pytest.param(1, 0.0, 1, id="documents-always-have-a-slot"),
        pytest.param(3, QUERY_MEMORY_SECONDS + 1, 3, id="no-recent-query"),
    ],
)
def test_the_slots_for_documents(window: int, seconds: float, documents: int) -> None:
    assert document_window(window, seconds) == documents
