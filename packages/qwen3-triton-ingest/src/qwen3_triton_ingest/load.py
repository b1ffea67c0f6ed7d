"""A load, from the check of the table to the index."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from typing import Literal, TypeAlias

import psycopg

from .config import IndexPolicy, LoadOptions
from .database import Connection, Session, explain, narrow_encoding
from .documents import text_digest, unstorable
from .embedding import check_chunk_tokens, open_client, served_space
from .engines import map_shards, open_engine
from .errors import IngestError, NothingLoadedError, SourceError, TableError
from .finishing import (
    IndexOutcome,
    build_indexes,
    check_indexes,
    remove_vanished_documents,
)
from .index.build import OnNotice
from .index.catalog import IndexProgress, drop_vector_indexes, find_vector_indexes
from .index.plan import decide
from .layouts import Table
from .ledger.documents import Ownership, VanishedCount
from .ledger.runs import (
    Counts,
    FailedSource,
    Run,
    failed_sources,
    finish_run,
    has_open_shards,
    open_run,
    rename_dead_letters,
    run_counts,
    run_encodings,
)
from .ledger.schema import prepare_ledger
from .ledger.tables import Space, TableHold, TableRecord, claim_table, find_record
from .rows.chunks import count_chunks
from .shard import ShardTask, ingest_shard, splitter_for
from .sources import (
    TARGET_DATABASE,
    Shard,
    former_names,
    is_sql,
    plan_shards,
    plan_sql,
    source_name,
)
from .tables.preparation import check_ledger_rights, prepare_table, version_warning

# Shards that are planned ahead, so that the progress has a total.
_PLANNED_AHEAD = 10_000

_CONTEXT_CHANGED = (
    "The context of {} was {!r} and is {!r} from now on: documents with headings are embedded "
    "again as they are loaded. Load all sources of the table, so that its vectors are alike."
)
_INDEX_DROPPED = (
    "The vector index was dropped, because this many rows load faster without it. It is rebuilt "
    "after the load; until then searches are exact and slow."
)

Phase: TypeAlias = Literal["load", "vanished", "index"]


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """The progress of a load, across all workers.

    Attributes:
        shards_planned: None while sources are still being listed.
        seconds: Since this process started the load.
        waiting_for: Why the load is waiting; None if it is not.
    """

    phase: Phase
    counts: Counts = field(default_factory=Counts)
    shards_done: int = 0
    shards_planned: int | None = None
    seconds: float = 0.0
    index: IndexProgress | None = None
    waiting_for: str | None = None


OnProgress: TypeAlias = Callable[[LoadProgress], None]
"""Called a few times per second."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """The result of a load.

    Attributes:
        counts: Of the whole run, including its part before an interruption.
        removed: Documents that had vanished from their source.
        vanished_kept: Sources whose vanished documents were kept although the policy is to delete
            them, and how many there are.
        resumed: Whether this load continued an interrupted run.
        skipped_files: Files without a known format, by extension, and links that lead out.
        encodings: Files that are not UTF-8, by the encoding that they were found to have.
        failed_sources: Sources of which nothing could be loaded, in a `NothingLoadedError`.
    """

    table: str
    fingerprint: str
    counts: Counts
    removed: int
    vanished_kept: tuple[VanishedCount, ...]
    resumed: bool
    index: IndexOutcome
    seconds: float
    skipped_files: dict[str, int]
    failed_sources: tuple[FailedSource, ...] = ()
    encodings: dict[str, int] = field(default_factory=dict[str, int])


def load(
    sources: Sequence[str | os.PathLike[str]],
    *,
    dsn: str,
    table: str,
    options: LoadOptions | None = None,
    on_progress: OnProgress | None = None,
    on_notice: OnNotice | None = None,
) -> LoadReport:
    """Load sources into a table of PostgreSQL: read, split, embed, write, index.

    Run it again at any time: unchanged documents are left alone, changed ones are replaced, and an
    interrupted load resumes where it stopped.

    Args:
        sources: Files, folders, globs; or, with `options.read.query`, URIs of databases.
        dsn: libpq URI or keywords of the database.
        table: `name` or `schema.name`; created if it does not exist.
        options: Everything else.
        on_progress: Called a few times per second with the progress across all workers.
        on_notice: Called with messages that are worth knowing but are not errors.

    Raises:
        IngestError: The load cannot continue; the message says what to do. A document that cannot
            be loaded raises nothing: it is in the ledger's dead letters. But a source of which
            nothing can be loaded is a `NothingLoadedError`, once all the rest is done.
        EmbeddingError: The gateway cannot be reached or rejects everything.
        ValueError: An option is out of range.
    """
    with ExitStack() as stack:
        places = [os.fspath(source) for source in sources]
        options = options or LoadOptions()
        return _Load(places, dsn, table, options, stack, on_progress, on_notice).run()


class _Load:
    """A load in progress."""

    def __init__(  # noqa: PLR0917 - called once, in `load`
        self,
        sources: Sequence[str],
        dsn: str,
        table_name: str,
        options: LoadOptions,
        stack: ExitStack,
        on_progress: OnProgress | None,
        on_notice: OnNotice | None,
    ) -> None:
        self._places = sources
        names = {place: source_name(place, options.read) for place in sources}
        self._sources = list(names.values())
        self._former = {
            former: name
            for place, name in names.items()
            for former in sorted(former_names(place, options.read))
        }
        self._dsn = dsn
        self._table_name = table_name
        self._options = options
        self._on_progress = on_progress or _ignore
        self._on_notice = on_notice or _ignore
        self._stack = stack
        self._began = time.monotonic()
        self._progress = LoadProgress("load")
        self._skipped: dict[str, int] = {}
        self._split = options.split
        self._index_policy: IndexPolicy = options.index.policy
        self._session = stack.enter_context(
            Session(dsn, retry_seconds=options.retry_seconds, on_pause=self._wait_for_postgres)
        )

    def run(self) -> LoadReport:
        space = self._space()
        table, record = self._session.run(lambda connection: self._prepare(connection, space))
        hold = self._stack.enter_context(
            TableHold(self._dsn, record, table, retry_seconds=self._options.retry_seconds)
        )
        self._split = replace(self._options.split, context=record.context)
        splitter_version = self._splitter_version()
        run = self._open_run(table, record, splitter_version)
        task = self._task(table, record, run, splitter_version)
        self._ingest(task, run, hold)
        kept = remove_vanished_documents(
            self._session,
            table,
            table_id=record.id,
            owner=task.owner,
            options=self._options,
            on_removal=lambda: self._show(phase="vanished"),
            on_notice=self._on_notice,
        )
        counts, _ = self._session.run(lambda connection: run_counts(connection, run.id))
        failed = self._session.run(lambda connection: failed_sources(connection, run.id))
        index = self._build_indexes(table) if counts.documents or not failed else "none"
        finished = self._session.run(lambda connection: finish_run(connection, run.id))
        report = LoadReport(
            table=str(table),
            fingerprint=space.fingerprint,
            counts=counts,
            removed=finished.removed,
            vanished_kept=kept,
            resumed=run.resumed,
            index=index,
            seconds=time.monotonic() - self._began,
            skipped_files=self._skipped,
            failed_sources=tuple(failed),
            encodings=self._session.run(lambda connection: run_encodings(connection, run.id)),
        )
        if failed:
            raise NothingLoadedError(_nothing_loaded(failed), report)
        return report

    def _build_indexes(self, table: Table) -> IndexOutcome:
        return build_indexes(
            self._session,
            self._dsn,
            table,
            self._options,
            on_progress=lambda progress: self._show(phase="index", index=progress),
            on_notice=self._on_notice,
            on_pause=self._wait_for_postgres,
        )

    def _space(self) -> Space:
        """Return the space that the gateway serves, or that of the precomputed vectors."""
        options = self._options
        if options.read.vector_column is None:
            with open_client(options.gateway) as client:
                check_chunk_tokens(client, options.gateway, options.split.chunk_tokens)
                return served_space(client, options.gateway)
        if not options.fingerprint or not options.gateway.dimensions:
            raise IngestError(
                "Precomputed vectors need `--fingerprint` and `--dimensions`: their embedding "
                "space, as in the gateway's /info."
            )
        return Space(options.fingerprint, "", options.gateway.dimensions)

    def _prepare(self, connection: Connection, space: Space) -> tuple[Table, TableRecord]:
        try:
            table = prepare_table(
                connection, self._table_name, self._options.layout, space.dimensions
            )
            if warning := version_warning(connection):
                self._on_notice(warning)
            self._check_names(connection)
            self._index_policy = check_indexes(connection, table, self._options.index)
            check_ledger_rights(connection)
            prepare_ledger(connection)
            context = self._options.split.context
            before = find_record(connection, table)
            record = claim_table(
                connection, table, space, adopt=self._options.adopt, context=context
            )
            if before is not None and before.context != record.context:
                self._on_notice(_CONTEXT_CHANGED.format(table, before.context, record.context))
        except psycopg.errors.InsufficientPrivilege as error:
            raise TableError(f"PostgreSQL denied access: {explain(error)}.") from None
        except psycopg.errors.ReadOnlySqlTransaction as error:
            msg = (
                f"PostgreSQL allows no changes ({explain(error)}). Connect to the primary server, "
                "not to a standby, and as a role without `default_transaction_read_only`."
            )
            raise TableError(msg) from None
        return table, record

    def _check_names(self, connection: Connection) -> None:
        """Check that the database can store the names of the sources."""
        encoding = narrow_encoding(connection)
        if encoding is None:
            return
        for name in self._sources:
            if missing := unstorable(name, encoding):
                msg = (
                    f"The source {name!r} contains {missing[0]!r}, which a database of the "
                    f"encoding {encoding} cannot store. Give it another name with `--source-name`."
                )
                raise SourceError(msg)
        # What the database cannot store is not in the ledger.
        self._former = {
            former: name
            for former, name in self._former.items()
            if not unstorable(former, encoding)
        }

    def _splitter_version(self) -> str:
        if self._options.read.vector_column is not None:
            return "vectors computed before"  # stored in content hashes: do not change
        return splitter_for(self._split, self._options.gateway).version

    def _open_run(self, table: Table, record: TableRecord, splitter_version: str) -> Run:
        options = self._options
        recipe = text_digest(
            record.space.fingerprint,
            splitter_version,
            repr((self._sources, options.read, sorted(options.labels.items()))),
            options.on_conflict,
        )

        def work(connection: Connection) -> Run:
            rename_dead_letters(connection, record.id, self._former)
            return open_run(
                connection,
                record.id,
                sources=self._sources,
                recipe=recipe,
                rows_before=count_chunks(connection, table),
            )

        return self._session.run(work)

    def _task(
        self, table: Table, record: TableRecord, run: Run, splitter_version: str
    ) -> ShardTask:
        options = self._options
        # Threads share one client and its limit; each process gets its part of the limit.
        parts = 1 if options.engine == "threads" else self._workers
        gateway = replace(options.gateway, max_concurrency=options.gateway.max_concurrency // parts)
        return ShardTask(
            dsn=self._dsn,
            source_dsns={
                plan_sql(place, options.read).key: self._dsn if place == TARGET_DATABASE else place
                for place in self._places
                if is_sql(place)
            },
            table=table,
            table_id=record.id,
            owner=Ownership(run.id, frozenset(self._sources), self._former),
            fingerprint=record.space.fingerprint,
            read=options.read,
            split=self._split,
            splitter_version=splitter_version,
            gateway=gateway,
            labels=options.labels,
            retry_seconds=options.retry_seconds,
            on_conflict=options.on_conflict,
            encoding=self._session.run(narrow_encoding),
        )

    @property
    def _workers(self) -> int:
        """How many shards run at once; each process needs at least one request."""
        options = self._options
        if options.engine == "threads":
            return options.workers
        return min(options.workers, options.gateway.max_concurrency)

    def _ingest(self, task: ShardTask, run: Run, hold: TableHold) -> None:
        self._work_on_shards(task, run, hold)
        if self._session.run(lambda connection: has_open_shards(connection, run.id)):
            # Documents whose ids were in other files the last time: by now all files were read.
            self._work_on_shards(replace(task, all_read=True), run, hold)

    def _work_on_shards(self, task: ShardTask, run: Run, hold: TableHold) -> None:
        options = self._options
        work = partial(ingest_shard, task)
        with open_engine(
            options.engine, work, workers=self._workers, address=options.engine_address
        ) as engine:
            for _ in map_shards(engine, self._shards(), workers=self._workers):
                hold.renew(self._wait_for_postgres)
                self._check_progress(task.table, run)

    def _shards(self) -> Iterator[Shard]:
        self._skipped.clear()
        shards = plan_shards(self._places, self._options.read, on_skip=self._note_skipped)
        ahead = list(islice(shards, _PLANNED_AHEAD))
        if len(ahead) < _PLANNED_AHEAD:
            self._progress = replace(self._progress, shards_planned=len(ahead))
        return chain(ahead, shards)

    def _check_progress(self, table: Table, run: Run) -> None:
        """Show the progress, and drop the index once maintaining it costs more than a rebuild."""
        (counts, done), indexes = self._session.run(
            lambda connection: (
                run_counts(connection, run.id),
                find_vector_indexes(connection, table),
            )
        )
        self._show(counts=counts, shards_done=done, waiting_for=None)
        plan = decide(
            self._index_policy,
            rows_before=run.rows_before,
            rows_added=counts.chunks_written,
            index_exists=bool(indexes),
        )
        if plan == "drop and rebuild":
            self._session.run(lambda connection: drop_vector_indexes(connection, table))
            self._on_notice(_INDEX_DROPPED)

    def _note_skipped(self, extension: str) -> None:
        self._skipped[extension] = self._skipped.get(extension, 0) + 1

    def _wait_for_postgres(self, reason: str) -> None:
        self._show(waiting_for=f"PostgreSQL: {reason}")

    def _show(self, **changes: object) -> None:
        seconds = time.monotonic() - self._began
        self._progress = replace(self._progress, seconds=seconds, **changes)  # pyright: ignore[reportArgumentType]
        self._on_progress(self._progress)


def _nothing_loaded(failed: Sequence[FailedSource]) -> str:
    reasons = (
        f"{each.source}: {each.failed:,} failed, such as {each.origin}: {each.reason}"
        for each in failed
    )
    return f"Nothing was loaded from {' Nothing was loaded from '.join(reasons)}"


def _ignore(_: object) -> None:
    pass
