"""Which text travels in which request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import InvalidRequestError

__all__ = ["Batch", "checked_sizes", "plan_batches", "split_batch"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Hold the texts of one request and where in the call they stand."""

    indices: tuple[int, ...]
    """`indices[i]` is the place of `texts[i]` among the texts of the call."""
    texts: tuple[str, ...]


def checked_sizes(
    texts: Sequence[str], *, first: int = 0
) -> tuple[list[int], dict[int, InvalidRequestError]]:
    """Return the size of each text in bytes of UTF-8, and an error for each that has none.

    Messages count the texts from `first`.

    Raises:
        TypeError: `texts` is a string, or one of them is not.
    """
    if isinstance(texts, str):
        msg = "`texts` must be a list of strings, not a string; for one text pass [text]"
        raise TypeError(msg)
    sizes: list[int] = []
    refused: dict[int, InvalidRequestError] = {}
    for index, text in enumerate(texts):
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance] - unchecked callers
            msg = f"`texts[{first + index}]` must be a string, not {type(text).__name__}"
            raise TypeError(msg)
        if text.isascii() and not text.isspace() and text:  # nearly all of them
            sizes.append(len(text))
            continue
        size, problem = _measure(text)
        sizes.append(size)
        if problem:
            refused[index] = error = InvalidRequestError(f"`texts[{first + index}]` {problem}")
            error.failed_indices = (index,)
    return sizes, refused


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
    longest keeps the last request short. One batch keeps the given order.
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


def split_batch(batch: Batch, suspects: Sequence[int] = ()) -> list[Batch]:
    """Cut a batch of at least two texts in two: the suspects and the others, or else halves.

    `suspects` are positions in the batch; none, or all, say nothing.
    """
    everything = range(len(batch.indices))
    apart = set(suspects) if len(suspects) < len(everything) else set[int]()
    first = apart or set(everything[: len(everything) // 2])
    parts = ([i for i in everything if i in first], [i for i in everything if i not in first])
    return [
        Batch(tuple(batch.indices[i] for i in part), tuple(batch.texts[i] for i in part))
        for part in parts
    ]


def _batch(texts: Sequence[str], indices: Sequence[int]) -> Batch:
    return Batch(tuple(indices), tuple(texts[i] for i in indices))


def _measure(text: str) -> tuple[int, str | None]:
    """Return the size in bytes, and what is wrong with the text."""
    if not text or text.isspace():
        return 0, "is blank: it has no embedding, leave it out"
    try:
        return len(text.encode()), None
    except UnicodeEncodeError:
        return 0, "holds half of a surrogate pair, which is not text; decode its source anew"
