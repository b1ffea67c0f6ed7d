"""A search as steps that a thread or an event loop carries out. No I/O here."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import psycopg

from qwen3_triton_client import FingerprintChangedError, Vector

from ..database import explain, is_transient
from ..errors import DatabaseError, FingerprintError, IngestError, TableError
from ..rows.binary import Packed, pack_vector
from .hits import Hit, read_hits
from .options import SearchOptions
from .queries import Statement, search_statement, settings_statement
from .target import Target, space_statement

__all__ = [
    "Embed",
    "Embedded",
    "Fetch",
    "Fetched",
    "LookUp",
    "Step",
    "Steps",
    "advance",
    "search_steps",
    "translated",
]

# What a table shows that was replaced, or whose index was, after it was looked up.
_STALE = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedObject,
    psycopg.errors.DataException,  # such as vectors of other dimensions
)
# What a text back-end's statement meets where its extension is not.
_MISSING = (psycopg.errors.UndefinedFunction, psycopg.errors.InvalidSchemaName)
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class LookUp:
    """Ask for the `Target`; `fresh` for what is true now and not some seconds ago."""

    fresh: bool


@dataclass(frozen=True, slots=True)
class Embed:
    """Ask for the vector of the question, as `Embedded`."""

    question: str = field(repr=False)
    dimensions: int
    instruction: str | None
    renew: bool
    """Whether the gateway may serve another model than it did before."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """Hold a vector and the name of its embedding space."""

    vector: Vector = field(repr=False)
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """Ask for the rows of a search, as `Fetched`: all statements in one transaction.

    The fingerprint is read after the search. The search locks the table, so that no other can take
    its place and its name before the transaction ends: both speak of the same vectors.
    """

    settings: Sequence[Statement]
    search: Statement
    space: Statement | None


@dataclass(frozen=True, slots=True)
class Fetched:
    """Hold the rows, and the fingerprint of the table's vectors if the ledger knows it."""

    rows: Sequence[Sequence[Any]] = field(repr=False)
    fingerprint: str | None


Step: TypeAlias = LookUp | Embed | Fetch
Steps: TypeAlias = Generator[Step, Any, list[Hit]]


def search_steps(question: str, options: SearchOptions, *, instruction: str | None = None) -> Steps:
    """Search; yields steps, takes their results or errors, and returns the hits.

    Args:
        question: What to look for.
        options: How.
        instruction: Of the question's vector; None takes the table's, else the gateway's.

    Raises:
        FingerprintError: The question's vector is of another embedding space than the table's.
        TableError: The table cannot be searched so.
        DatabaseError: PostgreSQL cannot be reached, or gave up.
    """
    renew = False
    for attempt in range(1, _ATTEMPTS + 1):
        target: Target = yield LookUp(fresh=attempt > 1)
        try:
            return (yield from _attempt(question, options, target, instruction, renew=renew))
        except FingerprintChangedError:
            # A table without a ledger has nothing else that tells its vectors' space.
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
        given = instruction or (target.space.instruction if target.space else None)
        answer: Embedded = yield Embed(question, target.table.dimensions, given, renew)
        embedded = answer
        _check(target, answer, target.space.fingerprint if target.space else None)
    fetched: Fetched = yield _fetch(question, options, target, embedded)
    near = fetched.rows[0][-1] if fetched.rows else 0
    gave_up = near < options.k and target.vectors.method is not None
    if embedded and gave_up and not options.exact:
        # The index gave up before enough rows passed the filter: then reading all that pass is
        # right, and quick as long as they are few.
        options = replace(options, exact=True)
        fetched = yield _fetch(question, options, target, embedded)
    if embedded is not None:
        _check(target, embedded, fetched.fingerprint)
    return read_hits(target.table, fetched.rows)


def _fetch(
    question: str, options: SearchOptions, target: Target, embedded: Embedded | None
) -> Fetch:
    search = search_statement(target.table, options, vectors=target.vectors, texts=target.texts)
    # PostgreSQL's text holds no NUL, and no word of a question has one.
    search.parameters["question"] = question.replace("\0", " ")
    space: Statement | None = None
    if embedded:
        search.parameters["vector"] = Packed(pack_vector(embedded.vector))
        if target.has_ledger:
            space = space_statement(target.table)
    settings = (target.path_statement, settings_statement(options, target.vectors))
    return Fetch([each for each in settings if each], search, space)


def _check(target: Target, embedded: Embedded, stored: str | None) -> None:
    if stored is None or stored == embedded.fingerprint:
        return
    msg = (
        f"the vectors of {target.table} are of the embedding space `{stored}` and the gateway now "
        f"serves `{embedded.fingerprint}`, so they cannot be compared. Point the search at a "
        "gateway that serves the former model, or move the table to the new one: "
        f"qwen3-triton-ingest load --reembed --table {target.table}. A search with `mode` text "
        "needs no vectors"
    )
    raise FingerprintError(msg)


def advance(resume: Callable[[], Step]) -> Step | list[Hit]:
    """Go on with a search, to its next step or its end.

    Raises:
        IngestError: What an error of PostgreSQL means for it.
    """
    try:
        return resume()
    except StopIteration as end:
        return end.value
    except psycopg.Error as error:
        raise translated(error) from error


def translated(error: psycopg.Error) -> IngestError:
    """Return what an error of PostgreSQL means for a search."""
    said = explain(error)
    if is_transient(error):
        return DatabaseError(f"PostgreSQL cannot be reached: {said}")
    if isinstance(error, _MISSING):
        return TableError(
            f"the search needs an extension that this database lacks ({said}): pg_search for the "
            "text back-end paradedb, pg_textsearch for pg_textsearch"
        )
    if isinstance(error, psycopg.errors.QueryCanceled):
        return DatabaseError(
            f"the search took too long ({said}). Build the vector index, narrow the filter, or "
            "raise statement_timeout"
        )
    return TableError(f"the search failed: {said}")
