"""One call: its batches, what came back for them, and how the call ends. No I/O."""

from __future__ import annotations

import re
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Generic, Literal, TypeVar, cast

from .errors import (
    AuthenticationError,
    EmbeddingConnectionError,
    EmbeddingError,
    FingerprintChangedError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    RequestTooLargeError,
)
from .exchange import Exchange
from .reporting import ProgressReport
from .results import ClientStats, EmbeddingResult, Vector
from .settings import ClientSettings
from .wire import BatchAnswer, EmbedOptions, embed_request, parse_embeddings

Item = TypeVar("Item")

OnError = Literal["raise", "isolate"]

OnVectors = Callable[[Sequence[Vector]], None]
"""Called with the vectors of a batch, one per text."""

SPACE_CHANGED = (
    "The gateway's embedding space changed from {!r} to {!r} while this client was in use: it now "
    "serves another model, tokenizer or precision. Vectors of the two cannot be compared. Serve "
    "the former model again, or re-embed everything with a new client."
)
_BLANK = "is blank, so a model can do nothing with it"
# Errors that are not about a single text, so that splitting the batch would not help.
_NOT_ABOUT_A_TEXT = (
    AuthenticationError,
    EmbeddingConnectionError,
    FingerprintChangedError,
    ModelNotFoundError,
    OverloadedError,
)


class Job(ABC, Generic[Item]):
    """The batches of one call and the answers to them; safe to share between threads.

    Args:
        guard: Compares the fingerprints of the answers.
        first: If the texts are a window of a stream, the index of its first text there.
        argument: What the caller calls the texts, for errors.
        shared_bytes: Bytes that the model reads again with each text.

    Attributes:
        shared_fields: What every request of the call has, and an error may name instead of a text.

    Raises:
        TypeError: `texts` is not a sequence of strings.
        InvalidRequestError: A text is blank or not valid Unicode, and `on_error` is "raise".
    """

    shared_fields: ClassVar[Set[str]] = frozenset()

    def __init__(
        self,
        texts: Sequence[str],
        *,
        settings: ClientSettings,
        guard: FingerprintGuard,
        report: ProgressReport,
        on_error: OnError = "raise",
        first: int = 0,
        argument: str = "texts",
        shared_bytes: int = 0,
    ) -> None:
        texts = _listed(texts, argument)
        self.settings = settings
        self.stopped: threading.Event = threading.Event()
        self._count = len(texts)
        self._first = first
        self._isolate = on_error == "isolate"
        self._argument = argument
        self._guard = guard
        self._report = report
        self._stats = ClientStats()
        self._lock = threading.Lock()
        self._error: EmbeddingError | None = None
        self._completed: dict[int, Item] = {}
        self._failed: dict[int, EmbeddingError] = {}
        self._truncated: list[int] = []
        self._prompt_tokens = 0
        self._last: BatchAnswer[Item] | None = None
        self._queue = deque(self._plan(texts, shared_bytes))

    @abstractmethod
    def exchange(self, batch: Batch) -> Exchange[BatchAnswer[Item]]:
        """Return the request for a batch, not yet sent."""

    def unsent(self, texts: Sequence[str]) -> dict[int, Item]:
        """Return the results of texts for which no request is needed, by their indices."""
        return {}

    @property
    def pending(self) -> int:
        """Number of batches that no worker has taken yet."""
        return len(self._queue)

    def next_batch(self) -> Batch | None:
        """Take a batch to send; None when none is left or the call has failed."""
        with self._lock:
            return self._queue.popleft() if self._queue and not self.stopped.is_set() else None

    def accept(self, batch: Batch, answer: BatchAnswer[Item]) -> None:
        """Store the vectors or scores of a batch.

        Raises:
            FingerprintChangedError: Another model computed them than the ones before.
        """
        self._guard.check(answer.dimensions, answer.fingerprint)
        with self._lock:
            self._completed.update(zip(batch.indices, answer.items, strict=True))
            self._truncated.extend(batch.indices[position] for position in answer.truncated)
            self._prompt_tokens += answer.prompt_tokens
            self._last = answer
        self._report.advance(len(batch.indices))

    def reject(self, batch: Batch, error: EmbeddingError) -> None:
        """Handle a batch that failed: split it, record its text as failed, or fail the call."""
        with self._lock:
            if self._can_split(batch, error):
                self._queue.extendleft(reversed(split_batch(batch, error.positions)))
                return
            indices = [batch.indices[position] for position in error.positions]
            if not indices and error.param not in self.shared_fields:
                indices = batch.indices
            error.failed_indices, error.argument = tuple(sorted(indices)), self._argument
            if len(error.positions) == 1:
                error.message = renumber(
                    error.message, error.positions[0], self._first + indices[0]
                )
            isolated = self._isolate and not isinstance(error, _NOT_ABOUT_A_TEXT)
            if isolated:
                self._failed[batch.indices[0]] = error
            elif self._error is None:
                self._error = error
        if isolated:
            self._report.advance(1)
        else:
            self.stop()

    def count(self, stats: ClientStats) -> None:
        """Add what the requests for a batch did."""
        with self._lock:
            self._stats += stats

    def stop(self) -> None:
        """Hand out no more batches, and wake threads that wait before a retry."""
        self.stopped.set()

    def _plan(self, texts: Sequence[str], shared_bytes: int) -> list[Batch]:
        sizes, refused = check_texts(texts, first=self._first, argument=self._argument)
        self._completed = self.unsent(texts)
        refused = {i: error for i, error in refused.items() if i not in self._completed}
        if refused and not self._isolate:
            error = next(iter(refused.values()))
            error.failed_indices = tuple(refused)
            raise error
        self._failed.update(refused)
        self._report.advance(len(refused))
        return plan_batches(
            texts,
            [size + shared_bytes for size in sizes] if shared_bytes else sizes,
            [i for i in range(len(texts)) if i not in refused and i not in self._completed],
            max_texts=self.settings.batch_size,
            max_bytes=self.settings.max_batch_bytes,
        )

    def _can_split(self, batch: Batch, error: EmbeddingError) -> bool:
        if len(batch.indices) == 1 or self.stopped.is_set():
            return False
        if isinstance(error, RequestTooLargeError):
            return True
        return self._isolate and not isinstance(error, _NOT_ABOUT_A_TEXT)


class EmbedJob(Job[Vector]):
    """The texts of one call to embed, or of a window of a stream; see `Job`."""

    def __init__(
        self,
        texts: Sequence[str],
        *,
        settings: ClientSettings,
        options: EmbedOptions,
        guard: FingerprintGuard,
        report: ProgressReport,
        on_error: OnError = "raise",
        first: int = 0,
    ) -> None:
        self._options = options
        super().__init__(
            texts, settings=settings, guard=guard, report=report, on_error=on_error, first=first
        )

    def exchange(self, batch: Batch) -> Exchange[BatchAnswer[Vector]]:
        """Return the request for a batch, not yet sent."""
        texts = len(batch.texts)
        return Exchange(
            self.settings,
            embed_request(self.settings, self._options, batch.texts),
            partial(parse_embeddings, texts=texts, dimensions=self._options.dimensions),
            texts=texts,
        )

    def result(self) -> EmbeddingResult:
        """Return the result of the call, once none of its requests is running.

        Raises:
            EmbeddingError: The call failed; `completed` holds the vectors that did arrive.
        """
        if self._error is not None:
            self._error.completed = self._completed
            raise self._error
        last = self._last
        return EmbeddingResult(
            count=self._count,
            completed=self._completed,
            failed=dict(sorted(self._failed.items())),
            dimensions=last.dimensions if last else 0,
            model=last.model if last else "",
            fingerprint=last.fingerprint if last else "",
            prompt_tokens=self._prompt_tokens,
            truncated=tuple(sorted(self._truncated)),
            stats=self._stats,
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """The texts of one request, and their places in the call.

    Attributes:
        indices: `indices[i]` is the index of `texts[i]` among the texts of the call.
    """

    indices: tuple[int, ...]
    texts: tuple[str, ...]


def check_texts(
    texts: Sequence[str], *, first: int = 0, argument: str = "texts"
) -> tuple[list[int], dict[int, InvalidRequestError]]:
    """Return the size of each text in bytes of UTF-8, and an error for each invalid text.

    Messages number the texts from `first` and call them `argument`.

    Raises:
        TypeError: One of them is not a string.
    """
    sizes: list[int] = []
    refused: dict[int, InvalidRequestError] = {}
    for index, text in enumerate(texts):
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance] - untyped callers
            msg = f"`{argument}[{first + index}]` must be a string, not {type(text).__name__}."
            raise TypeError(msg)
        if text.isascii() and not text.isspace() and text:  # nearly all of them
            sizes.append(len(text))
            continue
        size, problem = measure_text(text)
        sizes.append(size)
        if problem:
            remedy = "; leave it out" if problem == _BLANK else ""
            error = InvalidRequestError(f"`{argument}[{first + index}]` {problem}{remedy}.")
            error.failed_indices, error.argument = (index,), argument
            refused[index] = error
    return sizes, refused


def _listed(texts: object, argument: str) -> Sequence[str]:
    """Return texts that are numbered by their order, and not by labels as a pandas Series is.

    Raises:
        TypeError: `texts` is a string, a dict, a generator or the like.
    """
    name = type(texts).__name__
    if isinstance(texts, list | tuple):
        return cast("Sequence[str]", texts)
    if isinstance(texts, str | bytes):
        kind = "a string" if isinstance(texts, str) else "bytes"
        msg = f"`{argument}` must be a list of strings, not {kind}. For one text, pass [text]."
        raise TypeError(msg)
    is_iterable = isinstance(texts, Iterable)
    has_order = hasattr(texts, "__len__") and hasattr(texts, "__getitem__")
    if is_iterable and has_order and not isinstance(texts, Mapping):
        return list(cast("Iterable[str]", texts))
    msg = f"`{argument}` must be a list of strings, not {name}."
    if is_iterable:
        msg += f" Pass list({argument})."
    raise TypeError(msg)


def renumber(message: str, position: int, index: int) -> str:
    """Number a text in a message of the gateway by the call, no longer by its request."""
    return re.sub(rf"\b(Text|Document) {position}\b", rf"\g<1> {index}", message, count=1)


def is_blank(text: str) -> bool:
    """Return whether a text has nothing in it to read."""
    return not text or text.isspace()


def measure_text(text: str) -> tuple[int, str | None]:
    """Return the size in bytes, and what is wrong with the text."""
    if is_blank(text):
        return 0, _BLANK
    try:
        return len(text.encode()), None
    except UnicodeEncodeError:
        return (
            0,
            "contains an unpaired surrogate, so it is not valid Unicode; fix how it is decoded",
        )


def plan_batches(
    texts: Sequence[str],
    sizes: Sequence[int],
    indices: Sequence[int],
    *,
    max_texts: int,
    max_bytes: int,
) -> list[Batch]:
    """Cut `indices` into batches within both limits, longest texts first.

    Texts of similar length share a batch, so that little of it is padding; starting with the
    longest keeps the last request short. A single batch keeps the given order.
    """
    if len(indices) <= max_texts and sum(sizes[i] for i in indices) <= max_bytes:
        return [_batch(texts, indices)] if indices else []
    batches: list[Batch] = []
    current: list[int] = []
    current_bytes = 0
    for index in sorted(indices, key=sizes.__getitem__, reverse=True):
        if current and (len(current) == max_texts or current_bytes + sizes[index] > max_bytes):
            batches.append(_batch(texts, current))
            current, current_bytes = [], 0
        current.append(index)
        current_bytes += sizes[index]
    batches.append(_batch(texts, current))
    return batches


def _batch(texts: Sequence[str], indices: Sequence[int]) -> Batch:
    return Batch(tuple(indices), tuple(texts[i] for i in indices))


def split_batch(batch: Batch, suspects: Sequence[int] = ()) -> list[Batch]:
    """Split a batch of at least two texts into the suspects and the others, or else in halves.

    `suspects` are positions in the batch; if there are none, or all are suspects, it is halved.
    """
    everything = range(len(batch.indices))
    apart = set(suspects) if len(suspects) < len(everything) else set[int]()
    first = apart or set(everything[: len(everything) // 2])
    parts = ([i for i in everything if i in first], [i for i in everything if i not in first])
    return [
        Batch(tuple(batch.indices[i] for i in part), tuple(batch.texts[i] for i in part))
        for part in parts
    ]


class FingerprintGuard:
    """A check that answers come from one model, such as all vectors of a client; thread-safe.

    The number of dimensions is part of what a fingerprint names, so there is one for each.
    """

    def __init__(self, message: str = SPACE_CHANGED) -> None:
        self._message = message
        self._fingerprints: dict[int, str] = {}

    def check(self, dimensions: int, fingerprint: str) -> None:
        """Compare a fingerprint with the first one of as many dimensions.

        Raises:
            FingerprintChangedError: They differ.
        """
        if not fingerprint:
            return
        expected = self._fingerprints.setdefault(dimensions, fingerprint)  # atomic, so no lock
        if expected != fingerprint:
            raise FingerprintChangedError(self._message.format(expected, fingerprint))
