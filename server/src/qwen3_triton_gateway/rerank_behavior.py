"""What a reranker returns, judged by its output's width and by how it scores a few pairs.

At start, the examples of the model card run alone, with padding and together. Scores that padding
changes are refused; those that a batch changes are computed one by one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .backends.base import Backend, ModelSpec
from .backends.probe import QUERY_PRIORITY
from .batching import pad_batch
from .canary import canary_pairs
from .errors import BackendError, DeadlineExceededError, StartupError
from .pooling import Float64Vector, logits_of, raw_scores
from .rerank_prompt import ANSWERS
from .tensors import Float32Matrix, TokenizedText
from .tokenization import TextTokenizer

logger: logging.Logger = logging.getLogger(__name__)

# Positions of padding, a few more than a batch would have.
PADDING = 8
TIMEOUT_SECONDS = 60.0
# How far a score may be from that of the pair alone and without padding, of what scores typically
# are: rounding and int8 scales stay far below, a padded position or another pair far above.
MAX_DRIFT = 0.25
# How far two probabilities in float16 may be from 1 together.
PROBABILITY_ROUNDING = 2e-3


def find_answers(spec: ModelSpec, tokenizer: TextTokenizer) -> list[int] | None:
    """Return the tokens whose logits the gateway selects; None if the model has done so.

    Raises:
        StartupError: The output is not that of a reranker.
    """
    width, is_pooled = spec.hidden_size, spec.pooling == "in_graph"
    if width in (1, len(ANSWERS)):
        return None
    if not is_pooled and width >= tokenizer.vocabulary_size:
        ids = [token for answer in ANSWERS if (token := tokenizer.id_of(answer)) is not None]
        if len(ids) < len(ANSWERS):
            msg = (
                f"{tokenizer.path} has no tokens for {' and '.join(map(repr, ANSWERS))}, whose "
                "logits are the score. Set RERANK_TOKENIZER_PATH to the model's own."
            )
            raise StartupError(msg)
        logger.warning(
            "The reranker returns %s logits for each token, of which two for each pair are "
            "used. `qwen3-triton model pool` makes it return those two.",
            f"{width:,}",
        )
        return ids
    msg = (
        f"Model {spec.name!r} returns `{spec.output.name}` of width {width:,}, but a reranker "
        "returns two logits (no and yes), one (of a classifier), or those of its whole "
        f"vocabulary for each token; {tokenizer.path} has {tokenizer.vocabulary_size:,} tokens. "
        "Check RERANK_TRITON_MODEL or RERANK_MODEL_DIR, and RERANK_TOKENIZER_PATH."
    )
    raise StartupError(msg)


async def scores_batches(
    backend: Backend, tokenizer: TextTokenizer, answer_ids: Sequence[int] | None
) -> bool:
    """Return whether a model scores the pairs of a batch as it scores them alone.

    Raises:
        StartupError: Padding changes a score, or the model fails on a single pair.
        BackendUnavailableError: The model does not answer.
    """
    name = backend.spec.name
    probe = _Probe(backend, tokenizer, answer_ids)
    texts = canary_pairs(tokenizer, tokenizer.max_length)
    width = max(text.length for text in texts)
    try:
        rows = [await probe.logits([text], text.length) for text in texts]
        padded = await probe.score(texts[:1], width + PADDING)
        together = await probe.score_together(texts, width)
    except DeadlineExceededError:
        logger.warning("The reranker is too slow to be probed: it is taken on trust.")
        return True
    except BackendError as error:
        raise StartupError(f"The model cannot score a plain pair: {error.message}") from error
    logits: Float32Matrix = np.concatenate(rows)
    alone = raw_scores(logits)
    if not np.isfinite(alone).all():
        raise StartupError(f"Model {name!r} returns logits that are not finite.")
    _check_activation(logits, name)
    allowed = MAX_DRIFT * float(np.sqrt(np.mean(alone**2)))
    if not abs(float(padded[0] - alone[0])) <= allowed:
        msg = (
            f"Model {name!r} scores a pair differently with padding: it takes the logits of a "
            "padded position, or ignores the mask. Serve another export; `qwen3-triton model "
            "pool` selects the last token in one without pooling."
        )
        raise StartupError(msg)
    is_same = together is not None and bool(np.abs(together - alone).max() <= allowed)
    if not is_same:
        logger.warning("Pairs run one by one: in a batch, this model fails or is wrong.")
    if alone[[0, 3]].sum() <= alone[[1, 2]].sum():
        logger.warning(
            "The reranker scores the relevant documents of its model card lower than the others. "
            "Its logits of no and yes may be swapped, or the tokenizer that of another model: "
            "`qwen3-triton model verify --rerank`."
        )
    return is_same


def _check_activation(logits: Float32Matrix, name: str) -> None:
    """Check that a model returns logits and not probabilities, which would be activated again.

    Raises:
        StartupError: The two of each pair sum to 1.
    """
    if not ((logits >= 0) & (logits <= 1)).all():
        return
    if logits.shape[1] == 1:
        logger.warning(
            "The reranker returns numbers from 0 to 1 for its model card's examples, which are "
            "taken for logits. If they are probabilities, export it without the activation."
        )
    elif np.abs(logits.sum(axis=1) - 1).max() < PROBABILITY_ROUNDING:
        msg = (
            f"Model {name!r} returns probabilities of no and yes instead of their logits. Export "
            "it without the softmax."
        )
        raise StartupError(msg)


@dataclass(frozen=True, slots=True)
class _Probe:
    """Pairs that are scored without the queue."""

    backend: Backend
    tokenizer: TextTokenizer
    answer_ids: Sequence[int] | None

    async def score(self, texts: Sequence[TokenizedText], width: int) -> Float64Vector:
        return raw_scores(await self.logits(texts, width))

    async def logits(self, texts: Sequence[TokenizedText], width: int) -> Float32Matrix:
        batch = pad_batch(
            texts,
            pad_token_id=self.tokenizer.end_token_id,
            max_length=self.tokenizer.max_length,
            width=width,
        )
        states = await self.backend.infer(
            batch, timeout_seconds=TIMEOUT_SECONDS, priority=QUERY_PRIORITY
        )
        return logits_of(states, batch.attention_mask, self.answer_ids)

    async def score_together(
        self, texts: Sequence[TokenizedText], width: int
    ) -> Float64Vector | None:
        """Score pairs in as large a batch as possible; None if the model refuses it."""
        size = min(self.backend.spec.max_batch_size, len(texts))
        groups = [texts[start : start + size] for start in range(0, len(texts), size)]
        try:
            return np.concatenate([await self.score(group, width) for group in groups])
        except BackendError:
            return None
