"""What is found out about a model's output, on a causal model of arithmetic with every pooling."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fake_backend import FakeBackend
from qwen3_triton_gateway.backends.base import AnyArray
from qwen3_triton_gateway.backends.behavior import (
    Behavior,
    accept_pooling,
    check_width,
    probe_behavior,
)
from qwen3_triton_gateway.errors import BackendError, StartupError
from qwen3_triton_gateway.pooling import last_token_pool, pool_states
from qwen3_triton_gateway.settings import Pooling
from qwen3_triton_gateway.tensors import TokenBatch
from qwen3_triton_gateway.tokenization import TextTokenizer

Pool = Callable[[AnyArray, AnyArray, AnyArray], AnyArray]
Corrupt = Callable[[TokenBatch, AnyArray], AnyArray]


class CausalModel(FakeBackend):
    """The fake with states that a token dominates, as in a trained model, and its own pooling."""

    pool: Pool | None = None

    def hidden_states(self, batch: TokenBatch) -> AnyArray:
        rows = self._table[batch.input_ids % len(self._table)]
        context = np.cumsum(rows * batch.attention_mask[..., None], axis=1)
        counts = np.maximum(np.cumsum(batch.attention_mask, axis=1), 1)
        return (rows + context / counts[..., None]).astype(np.float32)

    def pooled(self, pool: Pool) -> CausalModel:
        self.corrupt = lambda batch, _: pool(
            self.hidden_states(batch), batch.attention_mask, batch.input_ids
        )
        return self


def weighted(mask: AnyArray, weights: AnyArray) -> AnyArray:
    products = (mask * weights)[..., None]
    return products / products.sum(axis=1, keepdims=True)


def positions(mask: AnyArray) -> AnyArray:
    return 1 + np.arange(mask.shape[1])[None]


def at(index: Callable[[AnyArray, AnyArray], AnyArray]) -> Pool:
    """Pool the state at an index that is computed from mask and tokens."""
    return lambda states, mask, ids: states[np.arange(len(mask)), index(mask, ids)]


POOLINGS: dict[str, tuple[Pool, str]] = {
    "last": (lambda s, m, _: last_token_pool(s, m), "last_token"),
    "mean": (lambda s, m, _: pool_states(s, m, "mean"), "mean"),
    "sum": (lambda s, m, _: (s * m[..., None]).sum(axis=1), "mean"),
    "weighted-mean": (lambda s, m, _: (s * weighted(m, positions(m))).sum(axis=1), "mean"),
    "max": (lambda s, m, _: np.where(m[..., None] > 0, s, -np.inf).max(axis=1), "mean"),
    "cls": (lambda s, _, __: s[:, 0], "cls"),
    "last-position": (lambda s, _, __: s[:, -1], "padding"),
    "second-last-position": (lambda s, _, __: s[:, -2], "padding"),
    "mean-of-all": (lambda s, _, __: s.mean(axis=1), "padding"),
    "before-the-end": (at(lambda m, _: m.sum(axis=1) - 2), "text_end"),
    "before-the-first-pad": (at(lambda _, ids: (ids == ids[0, 7]).argmax(axis=1) - 1), "text_end"),
    "constant": (lambda s, _, __: np.ones_like(s[:, 0]), "constant"),
}


@pytest.fixture(name="tokenizer", scope="module")
def _tokenizer(tokenizer_dir: Path) -> TextTokenizer:
    return TextTokenizer(tokenizer_dir, max_length=64)


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("scale", [1.0, None], ids=["plain", "normalized"])
async def test_the_pooling_of_a_graph_is_found(
    tokenizer: TextTokenizer, name: str, scale: float | None
) -> None:
    pool, expected = POOLINGS[name]

    def finish(*arrays: AnyArray) -> AnyArray:
        vectors = pool(*arrays)
        return vectors * (scale or 1 / np.linalg.norm(vectors, axis=1, keepdims=True))

    found = await probe_behavior(CausalModel(pooled=True).pooled(finish), tokenizer)
    assert found.pooling == expected
    assert found.normalized is (scale is None)


@pytest.mark.parametrize("max_batch_size", [1, 2, 32])
@pytest.mark.parametrize("pooled", [True, False])
async def test_a_correct_model_is_found_correct(
    tokenizer: TextTokenizer, max_batch_size: int, pooled: bool
) -> None:
    model = CausalModel(pooled=pooled, max_batch_size=max_batch_size)
    assert await probe_behavior(model, tokenizer) == Behavior("last_token")
    assert max(rows for rows, _ in model.calls) <= max_batch_size


async def test_states_that_padding_changes_are_refused(tokenizer: TextTokenizer) -> None:
    model = CausalModel()
    model.corrupt = lambda batch, values: values + values.mean(axis=1, keepdims=True)
    found = await probe_behavior(model, tokenizer)
    assert found.pooling == "padding"
    with pytest.raises(StartupError, match="padding changes its vectors"):
        accept_pooling(model.spec, found, "last_token")


def fail_in_batches(batch: TokenBatch, values: AnyArray) -> AnyArray:
    if len(batch.input_ids) > 1:
        raise BackendError("Reshape: the input has 4 rows instead of 1.")
    return values


def mix_in_batches(_: TokenBatch, values: AnyArray) -> AnyArray:
    return values if len(values) == 1 else values + 9 * np.roll(values, 1, axis=0)


@pytest.mark.parametrize("corrupt", [fail_in_batches, mix_in_batches])
@pytest.mark.parametrize("pooled", [True, False])
async def test_a_model_that_is_right_for_single_texts_gets_them_one_by_one(
    tokenizer: TextTokenizer, corrupt: Corrupt, pooled: bool
) -> None:
    model = CausalModel(pooled=pooled)
    model.corrupt = corrupt
    found = await probe_behavior(model, tokenizer)
    assert (found.pooling, found.shares_batches) == ("last_token", False)


async def test_vectors_that_drift_in_a_batch_are_served_in_batches(
    tokenizer: TextTokenizer,
) -> None:
    """As int8 activations do, whose scale is that of the batch."""
    model = CausalModel(pooled=True)
    model.corrupt = lambda batch, values: values + values.mean(axis=0) * (len(values) > 1) * 0.3
    found = await probe_behavior(model, tokenizer)
    assert (found.pooling, found.shares_batches) == ("last_token", True)
    assert 0.01 < found.batch_drift < 0.4


async def test_vectors_that_are_not_finite_tell_nothing(tokenizer: TextTokenizer) -> None:
    model = CausalModel(pooled=True)
    model.corrupt = lambda _, values: np.full_like(values, np.nan)
    assert (await probe_behavior(model, tokenizer)).pooling == "unknown"


@pytest.mark.parametrize(
    ("width", "vocabulary", "is_refused"),
    [
        (151_669, 151_669, True),
        (151_936, 151_669, True),
        (24_000, 24_000, True),
        (1024, 1000, False),  # a hidden size of the family
        (1280, 257, False),
        (2560, 151_669, False),
        (300_000, 151_669, False),
    ],
)
def test_a_width_like_the_vocabulary_s_is_refused(
    width: int, vocabulary: int, is_refused: bool
) -> None:
    spec = FakeBackend(width=width).spec
    if not is_refused:
        check_width(spec, vocabulary)
        return
    with pytest.raises(StartupError, match="scores for a vocabulary and not states"):
        check_width(spec, vocabulary)


async def test_scores_of_any_width_have_the_rank_of_the_states(tokenizer: TextTokenizer) -> None:
    model = FakeBackend(width=2100)
    head = np.random.default_rng(2).normal(size=(100, 2100))
    model.corrupt = lambda _, values: (values[..., :100] @ head).astype(np.float32)
    with pytest.raises(StartupError, match="computed from states of about 100 dimensions"):
        await probe_behavior(model, tokenizer)
    model.corrupt = lambda _, values: values
    assert (await probe_behavior(model, tokenizer)).pooling == "last_token"


@pytest.mark.parametrize(
    ("found", "wanted", "words"),
    [
        ("mean", "last_token", "averages over .* or set EMBED_POOLING=mean if"),
        ("cls", "last_token", "pools the first token.* or set EMBED_POOLING=cls if"),
        ("text_end", "last_token", "does not pool the end token.* set EMBED_POOLING=graph if"),
        ("last_token", "mean", "EMBED_POOLING is 'mean', but .* behaves like 'last_token'"),
        ("cls", "mean", "behaves like 'cls'"),
        ("padding", "graph", "padding changes its vectors"),
        ("constant", "graph", "the same vector for every text"),
    ],
)
def test_another_pooling_than_the_setting_s_is_refused(
    found: str, wanted: Pooling, words: str
) -> None:
    with pytest.raises(StartupError, match=words):
        accept_pooling(FakeBackend(pooled=True).spec, Behavior(found), wanted)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("found", "wanted", "pooling"),
    [
        ("last_token", "last_token", "last_token"),
        ("mean", "mean", "mean"),
        ("cls", "cls", "cls"),
        ("text_end", "graph", "text_end"),
        ("unknown", "last_token", "last_token"),
        ("unknown", "graph", "graph"),
    ],
)
def test_the_pooling_of_the_setting_is_accepted(found: str, wanted: Pooling, pooling: str) -> None:
    spec = FakeBackend(pooled=True).spec
    assert accept_pooling(spec, Behavior(found), wanted) == pooling  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("wanted", ["last_token", "mean", "cls"])
def test_the_gateway_pools_hidden_states_as_the_setting_says(wanted: Pooling) -> None:
    assert accept_pooling(FakeBackend().spec, Behavior("last_token"), wanted) == wanted
    with pytest.raises(StartupError, match="returns hidden states, which the gateway pools"):
        accept_pooling(FakeBackend().spec, Behavior("last_token"), "graph")
