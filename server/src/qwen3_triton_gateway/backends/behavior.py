"""What a model's output is, judged by how it behaves and not by its name.

At start, a few short texts run through the model in pairs that differ in one thing. In a causal
model, which is what the family is, a token's state depends on that token and on those before it. So
what a vector depends on shows where it comes from:

* texts that share their first token only have one vector: the first token is pooled;
* other padding changes it: a padded position is pooled, or the mask is ignored;
* the end token does not matter: the text's last token is pooled instead;
* the last token matters no more than one in the middle, and less the longer the text: an average.

Vectors alone do not tell a mean from a weighted mean, the last layer from another one, or whether a
projection follows. Every other pooling that depends on the end token counts as the last token's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from ..errors import BackendError, DeadlineExceededError, StartupError
from ..pooling import vectors_of
from ..settings import Pooling
from ..tensors import HiddenStates, PooledStates, TokenBatch
from ..tokenization import TextTokenizer
from .base import AnyArray, Backend, ModelSpec
from .probe import QUERY_PRIORITY

# What the vectors of a graph were found to be; `unknown` where the probe did not run.
Found: TypeAlias = Literal[
    "last_token", "mean", "cls", "text_end", "padding", "constant", "unknown"
]
Row: TypeAlias = "tuple[list[int], int]"  # token IDs, and how many of them the mask covers

TIMEOUT_SECONDS = 60.0
# The tokens of a short text, and of a long one in which an average hides a single token.
SHORT, LONG = 8, 32
# Relative distances of vectors. Equal ones differ by 1e-3 in float16 within a batch; another token
# moves a vector by a tenth at least.
SAME = 0.02
# A text in a batch and alone: rounding and int8 scales of the batch stay far below, another text's
# vector is far above.
OTHER = 0.45
# For an average, the last token counts as much as one in the middle, and its share falls with the
# length. A weighted one is bounded by these too.
MAX_LAST_TO_MIDDLE, MIN_SHORT_TO_LONG = 3.0, 1.8
NORM_ERROR = 1e-3
# Exports pad the vocabulary to a multiple of 64 or more: 151,936 rows for 151,669 tokens.
VOCABULARY_PADDING, VOCABULARY_STEP, MIN_VOCABULARY = 0.05, 256, 1000
# The family's hidden sizes, which are not the size of a vocabulary.
FAMILY_WIDTHS = (1024, 2560, 4096)
# Hidden sizes of small models; the smallest vocabularies are larger.
MAX_PLAIN_WIDTH = 2048
# Scores for a vocabulary are a product of narrower states: in enough tokens, their rank shows. The
# singular value beyond it falls to rounding, at once.
MAX_RANK_TOKENS, RANK_ROW_TOKENS, MIN_RANK_GAP = 2048, 64, 10.0
MIN_RANK, ROUNDING = 4, 1e-9
# Ids of plain text are below this in every tokenizer of the family; special tokens are above.
PLAIN_TOKENS = 20_000
# More tokens than `2 * LONG`, and no two alike where they are compared.
TEXT = (
    "Rivers carried sand and clay towards warm seas for many thousand years, grain after grain. "
    "Later, mountains rose where water had been; wind, frost and ice wore them down again. Today "
    "shells of ancient snails are found between layers of grey limestone, high above green valleys "
    "in which farmers grow apples, plums, wheat or barley, keep bees, and sell honey at markets."
)

_WHY = {
    "mean": "averages over the tokens of a text",
    "cls": "pools the first token: the rest of a text does not change its vector",
    "text_end": "does not pool the end token, but one before it",
}
_NEVER = {
    "padding": "pools a padded position, or ignores the mask: padding changes its vectors",
    "constant": "returns the same vector for every text",
}


@dataclass(frozen=True, slots=True)
class Behavior:
    """What the probe found.

    Attributes:
        pooling: Where the vectors of a text come from; for hidden states, `padding` or
            `last_token`, which the gateway pools itself.
        normalized: Whether the vectors have norm 1 already.
        shares_batches: Whether a text has the same vector in a batch as alone. If not, texts run
            one by one.
        batch_drift: How far a vector in a batch is from the one alone, relative to its norm.
    """

    pooling: Found
    normalized: bool = False
    shares_batches: bool = True
    batch_drift: float = 0.0


def check_width(spec: ModelSpec, vocabulary_size: int) -> None:
    """Check that an output is not as wide as the vocabulary.

    Raises:
        StartupError: It is, so it holds scores for the next token.
    """
    limit = int(vocabulary_size * (1 + VOCABULARY_PADDING)) + VOCABULARY_STEP
    if vocabulary_size < MIN_VOCABULARY:  # of a test; hidden sizes are as small
        return
    if vocabulary_size <= spec.hidden_size <= limit and spec.hidden_size not in FAMILY_WIDTHS:
        raise _scores(spec, f"the vocabulary has {vocabulary_size:,} tokens")


async def probe_behavior(backend: Backend, tokenizer: TextTokenizer) -> Behavior:
    """Run short texts, and find out what the model returns for them.

    Raises:
        StartupError: The output holds scores for a vocabulary, or the model fails on a single text.
        BackendUnavailableError: The model does not answer.
    """
    check_width(backend.spec, tokenizer.vocabulary_size)
    [token_ids] = tokenizer.token_ids([TEXT])
    probe = _Probe(backend, token_ids.tolist(), tokenizer.end_token_id)
    try:
        width = backend.spec.hidden_size
        if width > MAX_PLAIN_WIDTH and width not in FAMILY_WIDTHS:
            await probe.check_rank(tokenizer.vocabulary_size)
        return await probe.run()
    except DeadlineExceededError:
        return Behavior("unknown")
    except BackendError as error:
        raise StartupError(f"The model cannot embed a plain text: {error.message}") from error


def accept_pooling(spec: ModelSpec, found: Behavior, wanted: Pooling) -> str:
    """Return the pooling that the vectors have, which is part of the fingerprint.

    Args:
        spec: The model.
        found: How it behaves.
        wanted: The setting EMBED_POOLING.

    Raises:
        StartupError: The model does not behave as wanted.
    """
    if found.pooling in _NEVER:
        msg = (
            f"Model {spec.name!r} {_NEVER[found.pooling]}. Serve another export; "
            "`qwen3-triton model pool` adds pooling of the last token to one without pooling."
        )
        raise StartupError(msg)
    if spec.pooling == "last_token":  # hidden states, pooled by the gateway
        if wanted != "graph":
            return wanted
        msg = (
            f"EMBED_POOLING is 'graph', but model {spec.name!r} returns hidden states, which the "
            "gateway pools. Set it to last_token, mean or cls."
        )
        raise StartupError(msg)
    if wanted == "graph" or found.pooling in (wanted, "unknown"):
        return found.pooling if found.pooling != "unknown" else wanted
    if wanted != "last_token":
        msg = (
            f"EMBED_POOLING is {wanted!r}, but model {spec.name!r} behaves like "
            f"{found.pooling!r}. Set EMBED_POOLING to that, or to 'graph' to accept any pooling."
        )
        raise StartupError(msg)
    setting = found.pooling if found.pooling in ("mean", "cls") else "graph"
    msg = (
        f"Model {spec.name!r} {_WHY[found.pooling]}. Qwen3-Embedding pools the last token, so "
        "these are other vectors than the reference implementation's. Serve an export with that "
        "pooling (`qwen3-triton model pool` adds it to one without), or set "
        f"EMBED_POOLING={setting} if the model was trained like this."
    )
    raise StartupError(msg)


class _Probe:
    """The texts of a probe, and their vectors."""

    def __init__(self, backend: Backend, words: list[int], end_token_id: int) -> None:
        self._backend = backend
        self._words = words
        self._end = end_token_id
        self._shares_batches = True

    async def run(self) -> Behavior:
        found = await self._examine()
        if found.pooling == "padding" and self._shares_batches:
            # It may be the company: texts of their own tell.
            self._shares_batches = False
            found = await self._examine()
        return found

    async def _examine(self) -> Behavior:
        rows = self._padded_rows()
        text, *others = await self._embed(rows)
        last_pad, all_pads, other, same_start, other_end, without_end = others
        [alone] = await self._embed([(rows[0][0][:SHORT], SHORT)])
        normalized = bool(np.abs(np.linalg.norm([text, other], axis=1) - 1).max() < NORM_ERROR)
        drift = _distance(text, alone)
        if not np.isfinite([_distance(text, vector) for vector in (*others, alone)]).all():
            return Behavior("unknown")
        is_padded = max(_distance(text, last_pad), _distance(text, all_pads)) > SAME
        is_padded = is_padded or drift > OTHER
        found: Found = "last_token"
        if is_padded:
            found = "padding"
        elif _distance(text, other) <= SAME and _distance(text, same_start) <= SAME:
            # A vector of the end token alone would be the same for every text, too.
            found = "last_token" if _distance(text, other_end) > SAME else "constant"
        elif self._backend.spec.pooling == "last_token":
            pass  # the gateway pools
        elif _distance(text, same_start) <= SAME:
            found = "cls"
        elif min(_distance(text, other_end), _distance(text, without_end)) <= SAME:
            found = "text_end"
        elif await self._is_average():
            found = "mean"
        return Behavior(found, normalized, self._shares_batches, drift)

    def _padded_rows(self) -> list[Row]:
        """Build a text with padding, and variants of it, in one batch.

        In one batch, whatever depends on the batch (a scale of int8 activations) is the same.
        """
        w, end = self._words, self._end
        body, pads = w[: SHORT - 1], [end] * SHORT
        other = w[LONG : LONG + SHORT]
        return [
            ([*body, end, *pads], SHORT),
            ([*body, end, *pads[1:], w[SHORT]], SHORT),
            ([*body, end, *other], SHORT),
            ([*other[:-1], end, *pads], SHORT),
            ([*body[:1], *other[1:-1], end, *pads], SHORT),
            ([*body, w[SHORT], *pads], SHORT),
            ([*body, end, *pads], SHORT - 1),
        ]

    async def _is_average(self) -> bool:
        """Return whether the last token counts as much as others, and less in longer texts."""
        w, end = self._words, self._end
        body = w[: LONG - 1]
        middle = [
            [*body[:place], w[LONG + place], *body[place + 1 :], end]
            for place in (LONG // 4, LONG // 2)
        ]
        texts = [[*body, end], [*body, w[LONG]], [*body, w[LONG + 1]], *middle]
        long = await self._embed([(ids, LONG) for ids in texts])
        ends = (end, w[LONG], w[LONG + 1])
        short = await self._embed([([w[0], last], 2) for last in ends])
        last_share = max(_distance(long[0], vector) for vector in long[1:3])
        middle_share = max(_distance(long[0], vector) for vector in long[3:])
        short_share = max(_distance(short[0], vector) for vector in short[1:])
        return (
            last_share <= MAX_LAST_TO_MIDDLE * middle_share
            and short_share >= MIN_SHORT_TO_LONG * last_share
        )

    async def check_rank(self, vocabulary_size: int) -> None:
        """Check that hidden states are not a product of narrower ones.

        Raises:
            StartupError: They are: in many tokens, their rank is far below the width.
        """
        spec = self._backend.spec
        # Equal tokens may have equal states, so each is used once.
        ids = np.arange(min(vocabulary_size, PLAIN_TOKENS))
        ids = np.random.default_rng(0).permutation(ids[ids != self._end])
        ids = ids[: min(MAX_RANK_TOKENS, spec.hidden_size // 2)]
        states: list[AnyArray] = []
        for start in range(0, len(ids), RANK_ROW_TOKENS):
            row = ids[start : start + RANK_ROW_TOKENS].tolist()
            answer = await self._infer([(row, len(row))])
            if not isinstance(answer, HiddenStates):
                return
            states.append(answer.values[0])
        rank = await asyncio.to_thread(_rank_before_gap, np.concatenate(states))
        if rank:
            raise _scores(spec, f"they are computed from states of about {rank:,} dimensions")

    async def _embed(self, rows: Sequence[Row]) -> list[AnyArray]:
        """Return the vector of each row, all of one length, in one batch if the model takes it."""
        size = self._backend.spec.max_batch_size if self._shares_batches else 1
        if len(rows) > size:
            groups = [rows[start : start + size] for start in range(0, len(rows), size)]
            return [vector for group in groups for vector in await self._embed(group)]
        try:
            answer = await self._infer(rows)
        except BackendError:
            if len(rows) == 1:
                raise
            self._shares_batches = False
            return await self._embed(rows)
        return list(vectors_of(answer, _batch(rows).attention_mask))

    async def _infer(self, rows: Sequence[Row]) -> HiddenStates | PooledStates:
        return await self._backend.infer(
            _batch(rows), timeout_seconds=TIMEOUT_SECONDS, priority=QUERY_PRIORITY
        )


def _batch(rows: Sequence[Row]) -> TokenBatch:
    ids = np.array([ids for ids, _ in rows], dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, (_, count) in enumerate(rows):
        mask[row, :count] = 1
    return TokenBatch(ids, mask)


def _distance(left: AnyArray, right: AnyArray) -> float:
    """Compute the distance of two vectors, relative to the longer one."""
    scale = max(float(np.linalg.norm(left)), float(np.linalg.norm(right)))
    return float(np.linalg.norm(left - right)) / scale if scale else 0.0


def _rank_before_gap(states: AnyArray) -> int:
    """Return the number of directions after which states end abruptly, 0 if they do not."""
    matrix = states.astype(np.float64)
    if not np.isfinite(matrix).all():
        return 0
    # The square roots of the eigenvalues of the Gram matrix are the singular values.
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(matrix @ matrix.T)[::-1], 0))
    gaps = values[MIN_RANK:-1] / np.maximum(values[MIN_RANK + 1 :], values[0] * ROUNDING)
    if not gaps.size or gaps.max() <= MIN_RANK_GAP:
        return 0
    return MIN_RANK + 1 + int(np.argmax(gaps))


def _scores(spec: ModelSpec, reason: str) -> StartupError:
    msg = (
        f"Model {spec.name!r} returns `{spec.output.name}` of width {spec.hidden_size:,}, which "
        f"are scores for a vocabulary and not states: {reason}. It is an export for text "
        "generation. Export it with the task feature-extraction."
    )
    return StartupError(msg)
