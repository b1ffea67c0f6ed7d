"""`qwen3-triton-ingest status`: show the state of a table."""

from __future__ import annotations

from dataclasses import asdict

import click

from ..status import TableStatus
from ..status import status as table_status
from .options import database_options, json_option
from .output import plain_errors, print_json

_MIB = 1024 * 1024


@click.command()
@database_options
@click.option(
    "--errors",
    "max_dead_letters",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Skipped documents to show.",
)
@json_option
def status(*, dsn: str, table: str, max_dead_letters: int, as_json: bool) -> None:
    """Show the state of a table: the latest run, its indexes, the documents that were skipped.

    Works from any machine, also during a load, whichever engine runs it.

    \b
    Examples:
      qwen3-triton-ingest status --table manuals
      qwen3-triton-ingest status --table manuals --errors 500
      watch -n 5 qwen3-triton-ingest status --table manuals
    """
    with plain_errors():
        found = table_status(dsn, table, max_dead_letters=max_dead_letters)
        if as_json:
            print_json(asdict(found))
        else:
            _print(found)


def _print(status: TableStatus) -> None:
    click.echo(
        f"{status.table} ({status.layout} layout): {status.rows:,} chunks of {status.dimensions} "
        f"dimensions, {status.size_bytes / _MIB:,.0f} MiB with indexes"
    )
    if status.space is None:
        click.echo("Not in the ledger: this command did not load it.")
    else:
        click.echo(f"Embedding space: {status.space.fingerprint} (model {status.space.model})")
        click.echo(f"Context of chunks when they are embedded: {status.context}")
        click.echo(f"{status.documents:,} documents in the ledger")
    if status.run is not None:
        _print_run(status)
    for index in status.indexes:
        state = "" if index.valid else ", NOT VALID: left by an interrupted build"
        size = index.size_bytes / _MIB
        click.echo(
            f"Index {index.name}: {index.method} on {index.expression}, {size:,.0f} MiB{state}"
        )
    if status.index_progress is not None:
        fraction = status.index_progress.fraction
        done = f", {fraction:.0%}" if fraction is not None else ""
        click.echo(f"Index build in progress: {status.index_progress.phase}{done}")
    if not status.indexes and status.index_progress is None:
        click.echo("No vector index: searches compare every row")
    _print_dead_letters(status)


def _print_run(status: TableStatus) -> None:
    run, counts = status.run, status.counts
    assert run is not None
    when = f"since {run.started_at:%Y-%m-%d %H:%M}"
    if run.finished_at:
        when = f"{run.started_at:%Y-%m-%d %H:%M} to {run.finished_at:%H:%M}"
    click.echo(
        f"Latest run: {run.state}, {when}; {counts.documents:,} documents written, "
        f"{counts.unchanged:,} unchanged, {run.removed:,} removed, {counts.failed:,} skipped; "
        f"{counts.chunks_written:,} chunks written; shards done: {status.shards_done:,}"
    )


def _print_dead_letters(status: TableStatus) -> None:
    if not status.dead_letters:
        return
    click.echo(f"{status.dead_letters:,} documents skipped:")
    for letter in status.latest_dead_letters:
        name = f" ({letter.doc_id})" if letter.doc_id else ""
        click.echo(f"  {letter.origin}{name}: {letter.stage}: {letter.reason}")
    more = status.dead_letters - len(status.latest_dead_letters)
    if more:
        click.echo(f"  and {more:,} more in qwen3_ingest.dead_letters")
