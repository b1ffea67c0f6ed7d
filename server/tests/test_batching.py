import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_triton_gateway.batching import bucket_length, pad_batch
from qwen3_triton_gateway.tensors import TokenCount, TokenizedText

MAX_PADDING = 1 / 16 + 1e-9  # one step of sixteen in an octave


def text(*ids: int) -> TokenizedText:
    return TokenizedText(np.array(ids, dtype=np.int64), TokenCount(len(ids), len(ids)))


@given(st.integers(1, 4096))
def test_a_bucket_holds_the_text_and_wastes_little(length: int) -> None:
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


def test_texts_are_padded_on_the_right_and_pads_are_masked() -> None:
    batch = pad_batch([text(5, 6, 7, 8, 9), text(5, 9)], pad_token_id=9, max_length=1024)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 9, 9, 9], [5, 9, 9, 9, 9, 9, 9, 9]]
    assert batch.attention_mask.sum(axis=1).tolist() == [5, 2]
    assert batch.attention_mask[1].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert batch.input_ids.dtype == batch.attention_mask.dtype == np.int64
