"""Reranking: the job of one call, its requests, and its result. No I/O."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal, cast

from .errors import BadAnswerError, InvalidRequestError
from .exchange import Exchange
from .job import Batch, FingerprintGuard, Job, is_blank, measure_text
from .reporting import ProgressReport
from .results import ClientStats
from .settings import ClientSettings
from .wire import BatchAnswer, WireResponse, json_content, post_request

_RERANKER_CHANGED = (
    "The gateway's reranker changed from {!r} to {!r} during this call, so the scores cannot be "
    "compared. Rerank again."
)
OnBlank = Literal["raise", "last"]
# The gateway names this many truncated documents of a request, and only counts the others.
_MAX_DOCUMENTS_PER_REQUEST = 100


@dataclass(frozen=True, slots=True)
class RerankedDocument:
    """A document of a call to rerank.

    Attributes:
        index: Its index among the documents of the call.
        score: How relevant it is, from 0 to 1: the model's probability of "yes".
        raw_score: The logit of "yes" minus that of "no", whose sigmoid is `score`. It also orders
            documents whose scores are rounded to 0 or 1. Negative infinity for a blank document.
    """

    index: int
    score: float
    raw_score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankResult:
    """The scores of one call to rerank.

    Attributes:
        documents: The `top_n` documents, the most relevant first; equal ones in their order.
        fingerprint: Digest that names the reranker; empty if no document was sent.
        prompt_tokens: Tokens that the model read, over all pairs, prompts included.
        truncated: Indices of documents that were cut to the model's maximum length, ascending.
        stats: What the requests of this call did.
    """

    documents: tuple[RerankedDocument, ...] = field(repr=False)
    fingerprint: str
    prompt_tokens: int
    truncated: tuple[int, ...]
    stats: ClientStats


class RerankJob(Job[float]):
    """The documents of one call to rerank; see `Job`. Its items are raw scores.

    Raises:
        TypeError: `query` is not a string, `documents` not a sequence of strings, or `top_n` not an
            integer.
        ValueError: `top_n` is below 1.
        InvalidRequestError: The query is blank or not valid Unicode; or a document is, unless it is
            blank and `on_blank` is "last".
    """

    shared_fields: ClassVar[Set[str]] = frozenset({"query", "instruction"})

    def __init__(
        self,
        query: str,
        documents: Sequence[str],
        *,
        settings: ClientSettings,
        top_n: int | None,
        instruction: str | None,
        model: str | None,
        truncate: bool | None,
        on_blank: OnBlank,
    ) -> None:
        self._on_blank = on_blank
        self._top_n: int | None = None if top_n is None else _checked_count(top_n)
        options = {
            "model": model,
            "instruction": instruction,
            "truncate": settings.truncate if truncate is None else truncate,
        }
        self._body: dict[str, Any] = {"query": query, "raw_scores": True} | {
            name: value for name, value in options.items() if value is not None
        }
        super().__init__(
            documents,
            settings=replace(
                settings, batch_size=min(settings.batch_size, _MAX_DOCUMENTS_PER_REQUEST)
            ),
            guard=FingerprintGuard(_RERANKER_CHANGED),
            report=ProgressReport(False, documents),
            argument="documents",
            shared_bytes=_checked_size(query),
        )

    def exchange(self, batch: Batch) -> Exchange[BatchAnswer[float]]:
        """Return the request for a batch, not yet sent."""
        documents = len(batch.texts)
        return Exchange(
            self.settings,
            post_request(self.settings, "/rerank", self._body | {"texts": batch.texts}),
            partial(parse_scores, documents=documents),
            texts=documents,
        )

    def unsent(self, texts: Sequence[str]) -> dict[int, float]:
        """Return the scores of blank documents, if the call has them last."""
        if self._on_blank != "last":
            return {}
        return {index: -math.inf for index, text in enumerate(texts) if is_blank(text)}

    def result(self) -> RerankResult:
        """Return the result of the call, once none of its requests is running.

        Raises:
            EmbeddingError: The call failed.
        """
        if self._error is not None:
            raise self._error
        scores = self._completed
        ranked = sorted(scores, key=lambda index: (-scores[index], index))
        return RerankResult(
            documents=tuple(
                RerankedDocument(index, _sigmoid(scores[index]), scores[index])
                for index in ranked[: self._top_n]
            ),
            fingerprint=self._last.fingerprint if self._last else "",
            prompt_tokens=self._prompt_tokens,
            truncated=tuple(sorted(self._truncated)),
            stats=self._stats,
        )


def parse_scores(response: WireResponse, *, documents: int) -> BatchAnswer[float]:
    """Parse the answer to a request of `documents` documents.

    Raises:
        EmbeddingConnectionError: The body is not a complete JSON document; a retry may help.
        BadAnswerError: It is one, but does not hold one finite score for each document.
    """
    ranks = json_content(response, list[Any])
    scores = dict(map(_rank, ranks))
    if len(ranks) != documents or scores.keys() != set(range(documents)):
        msg = (
            f"{documents} documents were sent, and the {len(ranks)} scores that came back are not "
            "one of each."
        )
        raise BadAnswerError(msg)
    unusable = tuple(sorted(index for index, score in scores.items() if not math.isfinite(score)))
    if unusable:
        msg = "A score in the answer is NaN or infinite."
        raise BadAnswerError(msg, positions=unusable)
    truncated = response.headers.get("x-rerank-truncated", "").split(",")
    tokens = response.headers.get("x-compute-tokens", "")
    return BatchAnswer(
        items=[scores[index] for index in range(documents)],
        fingerprint=response.headers.get("x-rerank-fingerprint", ""),
        prompt_tokens=int(tokens) if tokens.isdecimal() else 0,
        truncated=tuple(
            int(index) for index in truncated if index.isdecimal() and int(index) < documents
        ),
    )


def _rank(rank: object) -> tuple[int, float]:
    fields = cast("dict[str, object]", rank) if isinstance(rank, dict) else {}
    index, score = fields.get("index"), fields.get("score")
    if not isinstance(index, int) or not isinstance(score, int | float):
        msg = "A rank in the answer has no `index` and `score`. Check that `base_url` is right."
        raise BadAnswerError(msg)
    return index, float(score)


def _checked_count(top_n: int) -> int:
    """Return the number of documents to return; integers of numpy are accepted."""
    try:
        count = operator.index(top_n)
    except TypeError:
        msg = f"`top_n` must be an integer or None, not {type(top_n).__name__}."
        raise TypeError(msg) from None
    if count < 1:
        msg = f"`top_n` must be at least 1, not {count}."
        raise ValueError(msg)
    return count


def _checked_size(query: str) -> int:
    """Return the size of the query in bytes, if it can be scored against."""
    if not isinstance(query, str):  # pyright: ignore[reportUnnecessaryIsInstance] - untyped callers
        msg = f"`query` must be a string, not {type(query).__name__}."
        raise TypeError(msg)
    size, problem = measure_text(query)
    if problem:
        msg = f"`query` {problem}."
        raise InvalidRequestError(msg)
    return size


def _sigmoid(value: float) -> float:
    """Compute the sigmoid without overflow."""
    small = math.exp(-abs(value))
    return (1.0 if value >= 0 else small) / (1.0 + small)
