"""A search as a sequence of steps, which a thread or an event loop executes. No I/O here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import psycopg

from qwen3_triton_client import (
    EmbeddingResult,
    FingerprintChangedError,
    Vector,
    vector_defect,
)

from ..database import explain, is_transient
from ..documents import unstorable
from ..errors import DatabaseError, FingerprintError, IngestError, TableError
from ..layouts import Table
from ..rows.binary import BinaryValue, as_float32, pack_vector
from .options import Hit, SearchOptions, read_hits
from .queries import Statement, search_statement, settings_statement
from .reranking import Rerank, rerank
from .target import Target, space_statement

_log = logging.getLogger(__name__)

# Errors of a table that was replaced, or whose index was, after the look-up.
_STALE = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedObject,
    psycopg.errors.DataException,  # such as vectors of other dimensions
)
# Errors of a text search whose extension is not installed.
_MISSING = (psycopg.errors.UndefinedFunction, psycopg.errors.InvalidSchemaName)
_ATTEMPTS = 3
MAX_QUESTION_CHARACTERS = 20_000  # a text that matches is ranked by each of the question's words


@dataclass(frozen=True, slots=True)
class Question:
    """What to search for.

    Attributes:
        text: Its words are searched for, and its vector, unless one of the others is set.
        embed_texts: The mean of the vectors of these texts is searched for.
        vector: This vector is searched for, whatever the gateway serves.
    """

    text: str = field(repr=False)
    embed_texts: Sequence[str] | None = field(default=None, repr=False)
    vector: Sequence[float] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class LookUp:
    """A request for the `Target`.

    Attributes:
        fresh: Whether a cached one is not good enough.
    """

    fresh: bool


@dataclass(frozen=True, slots=True)
class Embed:
    """A request for the vectors of texts as questions, as `EmbeddingResult`.

    Attributes:
        truncate: Whether texts that are too long are truncated; else they are refused.
        renew: Whether the gateway may serve another model than before.
    """

    texts: Sequence[str] = field(repr=False)
    dimensions: int
    instruction: str | None
    truncate: bool
    renew: bool


@dataclass(frozen=True, slots=True)
class Embedded:
    """A vector, and the fingerprint of its embedding space if that is known."""

    vector: Vector = field(repr=False)
    fingerprint: str | None


@dataclass(frozen=True, slots=True)
class Fetch:
    """A request for the rows of a search, as `Fetched`: all statements in one transaction.

    The fingerprint is read after the search. The search locks the table, so no other table can take
    its name before the transaction ends: rows and fingerprint belong to the same vectors.
    """

    settings: Sequence[Statement]
    search: Statement
    space: Statement | None


@dataclass(frozen=True, slots=True)
class Fetched:
    """The rows of a search, and the fingerprint of the table's vectors if the ledger has it."""

    rows: Sequence[Sequence[Any]] = field(repr=False)
    fingerprint: str | None


Step: TypeAlias = LookUp | Embed | Fetch | Rerank
Steps: TypeAlias = Generator[Step, Any, list[Hit]]


def search_steps(
    question: Question, options: SearchOptions, *, instruction: str | None = None
) -> Steps:
    """Search: yield steps, receive their results or errors, and return the hits.

    Args:
        question: What to search for.
        options: The options of the search.
        instruction: For the question's vector; None takes the table's, else the gateway's.

    Raises:
        FingerprintError: The question's vector is not in the embedding space of the table's.
        TableError: The table cannot be searched with these options.
        DatabaseError: PostgreSQL cannot be reached, or canceled the search.
        ValueError: There is nothing to rerank for.
    """
    if options.rerank and not question.text.strip():
        msg = "`rerank` needs the question as text, whatever vector is searched for."
        raise ValueError(msg)
    renew = False
    for attempt in range(1, _ATTEMPTS + 1):
        target: Target = yield LookUp(fresh=attempt > 1)
        try:
            hits = yield from _attempt(question, options, target, instruction, renew=renew)
        except FingerprintChangedError:
            # For a table without a ledger, nothing else identifies the space of its vectors.
            if attempt == _ATTEMPTS or target.space is None:
                raise
            renew = True
        except (FingerprintError, *_STALE):
            if attempt == _ATTEMPTS:
                raise
        else:
            if options.rerank:
                hits = yield from rerank(question.text, hits, options, target.context)
            return hits
    raise AssertionError("unreachable")


def _attempt(
    question: Question,
    options: SearchOptions,
    target: Target,
    instruction: str | None,
    *,
    renew: bool,
) -> Steps:
    embedded: Embedded | None = None
    if options.mode != "text":
        applied = instruction or (target.space.instruction if target.space else None)
        embedded = yield from _embed(question, options, target.table, applied, renew=renew)
        _check(target, embedded, target.space.fingerprint if target.space else None)
    fetched: Fetched = yield _fetch(question, options, target, embedded)
    near = fetched.rows[0][-1] if fetched.rows else 0
    gave_up = near < options.rows and target.vectors.method is not None
    if embedded and gave_up and not options.exact:
        # The index gave up before enough rows passed the filter. Reading all rows that pass is
        # correct, and fast as long as they are few.
        options = replace(options, exact=True)
        fetched = yield _fetch(question, options, target, embedded)
    if embedded is not None:
        _check(target, embedded, fetched.fingerprint)
    return read_hits(target.table, fetched.rows)


def _embed(
    question: Question,
    options: SearchOptions,
    table: Table,
    instruction: str | None,
    *,
    renew: bool,
) -> Generator[Step, Any, Embedded]:
    """Return the vector to search for.

    Raises:
        ValueError: There is nothing to search for, or it is not a vector of the table's length.
    """
    if question.vector is not None:
        vector = as_float32(question.vector)
        if defect := vector_defect(vector, table.dimensions):
            msg = f"The vector to search for in {table} {defect}."
            raise ValueError(msg)
        return Embedded(vector, None)
    texts = [question.text] if question.embed_texts is None else list(question.embed_texts)
    if not texts:
        msg = "`embed_texts` is empty. Pass at least one text, or None to embed the question."
        raise ValueError(msg)
    result: EmbeddingResult = yield Embed(
        texts, table.dimensions, instruction, options.truncate, renew
    )
    if result.truncated:
        _log.warning("A question was truncated to the longest text that the model reads.")
    first, *others = result.vectors
    mean = [sum(values) / len(texts) for values in zip(first, *others, strict=True)]
    return Embedded(as_float32(mean) if others else first, result.fingerprint)


def _fetch(
    question: Question, options: SearchOptions, target: Target, embedded: Embedded | None
) -> Fetch:
    search = search_statement(target.table, options, vectors=target.vectors, texts=target.texts)
    search.parameters["question"] = words_of(question.text, options, target.encoding)
    space: Statement | None = None
    if embedded:
        search.parameters["vector"] = BinaryValue(pack_vector(embedded.vector))
        if target.has_ledger:
            space = space_statement(target.table)
    settings = (target.path_statement, settings_statement(options, target.vectors))
    return Fetch([each for each in settings if each], search, space)


def words_of(question: str, options: SearchOptions, encoding: str | None) -> str:
    """Return the text whose words are searched for.

    Raises:
        ValueError: It is too long, and not to be truncated.
    """
    # What the database cannot store is in none of its texts. NUL and half of a character are in no
    # text of any.
    missing = unstorable(question, encoding) if encoding else ""
    text = question.translate(dict.fromkeys(map(ord, f"\0{missing}"), " "))
    text = text.encode("utf-8", "replace").decode()
    if len(text) > MAX_QUESTION_CHARACTERS and not options.truncate:
        msg = (
            f"The question has {len(text):,} characters. The text search takes "
            f"{MAX_QUESTION_CHARACTERS:,}: shorten it, or set `truncate`."
        )
        raise ValueError(msg)
    return text[:MAX_QUESTION_CHARACTERS]


def _check(target: Target, embedded: Embedded, stored: str | None) -> None:
    if None in (stored, embedded.fingerprint) or stored == embedded.fingerprint:
        return
    msg = (
        f"The vectors of {target.table} are in the embedding space `{stored}`, but the gateway "
        f"serves `{embedded.fingerprint}`, so they cannot be compared. Search with a gateway that "
        "serves the old model, or move the table to the new one: "
        f"qwen3-triton-ingest load --reembed --table {target.table}. A search with `mode` text "
        "needs no vectors."
    )
    raise FingerprintError(msg)


def advance(resume: Callable[[], Step]) -> Step | list[Hit]:
    """Resume a search, to its next step or its end.

    Raises:
        IngestError: PostgreSQL reported an error; see `translated`.
    """
    try:
        return resume()
    except StopIteration as end:
        return end.value
    except psycopg.Error as error:
        raise translated(error) from error


def translated(error: psycopg.Error) -> IngestError:
    """Return what an error of PostgreSQL means for a search."""
    reason = explain(error)
    if is_transient(error):
        return DatabaseError(f"PostgreSQL cannot be reached: {reason}.")
    if isinstance(error, _MISSING):
        return TableError(
            f"The search needs an extension that this database does not have ({reason}). The text "
            "backend paradedb needs pg_search."
        )
    if isinstance(error, psycopg.errors.QueryCanceled):
        return DatabaseError(
            f"The search took too long ({reason}). Build the vector index, narrow the filter, or "
            "raise statement_timeout."
        )
    return TableError(f"The search failed: {reason}")
