"""Errors about one text of a request: which it is, what is wrong with it, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .errors import (
    BackendError,
    BadVectorError,
    EmbeddingServerError,
    InsufficientMemoryError,
    InvalidRequestError,
)
from .tensors import TokenCount


@dataclass(frozen=True, slots=True)
class TextErrors:
    """How errors name the texts of a request, and what the model does with them.

    Attributes:
        noun: What a text is, such as "document".
        done: What the model does with it, such as "scored".
        result: What it returns for one, such as "score".
        field: The field with the texts; errors name none if it is empty.
    """

    noun: str
    done: str
    result: str
    field: str = ""

    def refuse_blank(self, texts: Sequence[str]) -> None:
        """Refuse texts that are empty or blank.

        Raises:
            InvalidRequestError: A text is empty, or has only white space.
        """
        for index, text in enumerate(texts):
            if not text or text.isspace():
                msg = (
                    f"{self._name(index)} is blank, so nothing was {self.done}. Remove it or give "
                    "it content."
                )
                raise InvalidRequestError(
                    msg, index=index, param=self.param_of(index), code="blank_text"
                )

    def refuse_long(
        self,
        counts: Iterable[tuple[int, TokenCount]],
        *,
        limit: int,
        hint: str,
        counted_with: str = "",
    ) -> None:
        """Refuse texts of more tokens than the limit.

        Args:
            counts: The tokens of each text, with its index.
            limit: The limit, for the error.
            hint: How the caller can ask for truncation.
            counted_with: What else the number of tokens includes.

        Raises:
            InvalidRequestError: A text was truncated.
        """
        long = [(index, count) for index, count in counts if count.truncated]
        if not long:
            return
        index, count = long[0]
        total = f"{'' if count.exact else 'more than '}{count.total} tokens{counted_with}"
        msg = f"{self._name(index)} has {total}; the limit is {limit}. Shorten it, or {hint}."
        if long[1:]:
            msg += f" In all, {len(long)} {self.noun}s are too long."
        raise InvalidRequestError(
            msg, index=index, param=self.param_of(index), code="text_too_long"
        )

    def unusable(self, index: int, reason: str) -> BadVectorError:
        """Build the error for a text whose result is not finite, or zero."""
        msg = (
            f"{self._name(index)} has no usable {self.result}, even when {self.done} alone. "
            f"{reason} Float16 models overflow on some texts: serve a float32 or bfloat16 export, "
            "or change the text."
        )
        code = f"bad_{self.result}"
        return BadVectorError(msg, index=index, param=self.param_of(index), code=code)

    def failed(self, index: int, error: EmbeddingServerError) -> EmbeddingServerError:
        """Name the text in an error that ended its batch, if it ran alone."""
        if not isinstance(error, BackendError):
            return error
        msg = f"{self._name(index)} could not be {self.done}, even alone. {error.message}"
        needs_memory = isinstance(error, InsufficientMemoryError)
        kind = InsufficientMemoryError if needs_memory else BackendError
        return kind(msg, index=index, param=self.param_of(index), code=error.code)

    def param_of(self, index: int) -> str | None:
        """Return the field of a text, as errors name it."""
        return f"{self.field}[{index}]" if self.field else None

    def _name(self, index: int) -> str:
        return f"{self.noun.capitalize()} {index}"
