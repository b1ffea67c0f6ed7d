"""What a load and a look at a table say to people."""

from __future__ import annotations

import click

from ..load import LoadReport
from ..reembed import ReembedReport
from ..status import TableStatus

__all__ = ["print_load_report", "print_reembed_report", "print_status"]

_MIB = 1024 * 1024


def print_load_report(report: LoadReport) -> None:
    """Print what a load did, and what a person should look at."""
    counts = report.counts
    click.echo(
        f"{report.table}: {counts.documents:,} documents written, {counts.unchanged:,} unchanged, "
        f"{report.removed:,} removed; {counts.chunks_written:,} chunks written, "
        f"{counts.chunks_kept:,} kept, {counts.chunks_removed:,} replaced; {report.seconds:.1f} s"
    )
    click.echo(f"Vector index: {report.index}. Embedding space: {report.fingerprint}")
    if report.resumed:
        click.echo("An interrupted run was resumed; the numbers are of all of it.")
    if counts.duplicates:
        click.echo(f"{counts.duplicates:,} records had an id that came before in this run.")
    for vanished in report.vanished_kept:
        click.echo(_vanished(vanished.source, vanished.vanished, vanished.known, vanished.nameless))
    if report.skipped_files:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in sorted(report.skipped_files.items()))
        click.echo(f"Files of other kinds, not loaded: {kinds}")
    if counts.failed:
        click.echo(
            f"{counts.failed:,} documents were set aside. Why: qwen3-triton-ingest status "
            f"--table {report.table}"
        )


def _vanished(source: str, vanished: int, known: int, nameless: int) -> str:
    why = (
        f"{nameless:,} records had no readable id, so nobody can tell"
        if nameless
        else "that may be a mistake. --max-vanished 1 removes them, --vanished keep never does"
    )
    return f"{vanished:,} of {known:,} documents of {source} have vanished, and were kept: {why}."


def print_reembed_report(report: ReembedReport) -> None:
    """Print what a re-embedding did."""
    if not report.swapped:
        click.echo(f"{report.table} is of the embedding space {report.fingerprint} already.")
        return
    click.echo(
        f"{report.table}: {report.rows:,} rows moved from the embedding space "
        f"{report.former_fingerprint} to {report.fingerprint} (model {report.model}, "
        f"{report.dimensions} dimensions); {report.embedded:,} embedded; {report.seconds:.1f} s"
    )


def print_status(status: TableStatus) -> None:
    """Print how a table stands."""
    click.echo(
        f"{status.table} ({status.layout} layout): {status.rows:,} chunks of {status.dimensions} "
        f"dimensions, {status.size_bytes / _MIB:,.0f} MiB with indexes"
    )
    if status.space is None:
        click.echo("The ledger knows nothing of it: it was not loaded by this command.")
    else:
        click.echo(f"Embedding space: {status.space.fingerprint} (model {status.space.model})")
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
        click.echo(f"Index under way: {status.index_progress.phase}{done}")
    if not status.indexes and status.index_progress is None:
        click.echo("No vector index: searches are exact")
    _print_dead_letters(status)


def _print_run(status: TableStatus) -> None:
    run, counts = status.run, status.counts
    assert run is not None
    when = f"since {run.started_at:%Y-%m-%d %H:%M}"
    if run.finished_at:
        when = f"{run.started_at:%Y-%m-%d %H:%M} to {run.finished_at:%H:%M}"
    click.echo(
        f"Latest run: {run.state}, {when}; {counts.documents:,} documents written, "
        f"{counts.unchanged:,} unchanged, {run.removed:,} removed, {counts.failed:,} set aside; "
        f"{counts.chunks_written:,} chunks written; shards done: {status.shards_done:,}"
    )


def _print_dead_letters(status: TableStatus) -> None:
    if not status.dead_letters:
        return
    click.echo(f"{status.dead_letters:,} documents set aside:")
    for letter in status.latest_dead_letters:
        name = f" ({letter.doc_id})" if letter.doc_id else ""
        click.echo(f"  {letter.origin}{name}: {letter.stage}: {letter.reason}")
    more = status.dead_letters - len(status.latest_dead_letters)
    if more:
        click.echo(f"  and {more:,} more in qwen3_ingest.dead_letters")
