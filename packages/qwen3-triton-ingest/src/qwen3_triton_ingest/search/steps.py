"""A search as a sequence of steps, which a thread or an event loop executes. No I/O here."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import psycopg

from qwen3_triton_client import FingerprintChangedError, Vector

from ..database import explain, is_transient
from ..documents import unstorable
from ..errors import DatabaseError, FingerprintError, IngestError, TableError
from ..rows.binary import BinaryValue, pack_vector
from .options import Hit, SearchOptions, read_hits
from .queries import Statement, search_statement, settings_statement
from .target import Target, space_statement

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


@dataclass(frozen=True, slots=True)
class LookUp:
    """A request for the `Target`.

    Attributes:
        fresh: Whether a cached one is not good enough.
    """

    fresh: bool


@dataclass(frozen=True, slots=True)
class Embed:
    """A request for the vector of the question, as `Embedded`.

    Attributes:
        renew: Whether the gateway may serve another model than before.
    """

    question: str = field(repr=False)
    dimensions: int
    instruction: str | None
    renew: bool


@dataclass(frozen=True, slots=True)
class Embedded:
    """A vector, and the fingerprint of its embedding space."""

    vector: Vector = field(repr=False)
    fingerprint: str


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


Step: TypeAlias = LookUp | Embed | Fetch
Steps: TypeAlias = Generator[Step, Any, list[Hit]]


def search_steps(question: str, options: SearchOptions, *, instruction: str | None = None) -> Steps:
    """Search: yield steps, receive their results or errors, and return the hits.

    Args:
        question: What to search for.
        options: The options of the search.
        instruction: For the question's vector; None takes the table's, else the gateway's.

    Raises:
        FingerprintError: The question's vector is not in the embedding space of the table's.
        TableError: The table cannot be searched with these options.
        DatabaseError: PostgreSQL cannot be reached, or canceled the search.
    """
    renew = False
    for attempt in range(1, _ATTEMPTS + 1):
        target: Target = yield LookUp(fresh=attempt > 1)
        try:
            return (yield from _attempt(question, options, target, instruction, renew=renew))
        except FingerprintChangedError:
            # For a table without a ledger, nothing else identifies the space of its vectors.
            if attempt == _ATTEMPTS or target.space is None:
                raise
            renew = True
        except (FingerprintError, *_STALE):
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def _attempt(
    question: str,
    options: SearchOptions,
    target: Target,
    instruction: str | None,
    *,
    renew: bool,
) -> Steps:
    embedded: Embedded | None = None
    if options.mode != "text":
        applied = instruction or (target.space.instruction if target.space else None)
        answer: Embedded = yield Embed(question, target.table.dimensions, applied, renew)
        embedded = answer
        _check(target, answer, target.space.fingerprint if target.space else None)
    fetched: Fetched = yield _fetch(question, options, target, embedded)
    near = fetched.rows[0][-1] if fetched.rows else 0
    gave_up = near < options.k and target.vectors.method is not None
    if embedded and gave_up and not options.exact:
        # The index gave up before enough rows passed the filter. Reading all rows that pass is
        # correct, and fast as long as they are few.
        options = replace(options, exact=True)
        fetched = yield _fetch(question, options, target, embedded)
    if embedded is not None:
        _check(target, embedded, fetched.fingerprint)
    return read_hits(target.table, fetched.rows)


def _fetch(
    question: str, options: SearchOptions, target: Target, embedded: Embedded | None
) -> Fetch:
    search = search_statement(target.table, options, vectors=target.vectors, texts=target.texts)
    # What the database cannot store is in none of its texts. NUL is in no text of any.
    missing = unstorable(question, target.encoding) if target.encoding else ""
    search.parameters["question"] = question.translate(dict.fromkeys(map(ord, f"\0{missing}"), " "))
    space: Statement | None = None
    if embedded:
        search.parameters["vector"] = BinaryValue(pack_vector(embedded.vector))
        if target.has_ledger:
            space = space_statement(target.table)
    settings = (target.path_statement, settings_statement(options, target.vectors))
    return Fetch([each for each in settings if each], search, space)


def _check(target: Target, embedded: Embedded, stored: str | None) -> None:
    if stored is None or stored == embedded.fingerprint:
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
