"""`qwen3-triton-ingest load`: load documents into a table."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ..config import LoadOptions
from ..errors import NothingLoadedError
from ..ledger.documents import VanishedCount
from ..load import LoadProgress, LoadReport
from ..reembed import ReembedProgress, ReembedReport
from .options import database_options, json_option, option_flags, read_options
from .output import plain_errors, print_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


@click.command()
@click.argument("sources", nargs=-1, metavar="SOURCE...")
@database_options
@option_flags(LoadOptions)
@click.option(
    "--reembed",
    is_flag=True,
    help="First re-embed the table with the model that the gateway serves now.",
)
@click.option(
    "--abandon-reembed",
    is_flag=True,
    help="First give up a --reembed that was interrupted, and drop what it has filled.",
)
@json_option
def load(
    *,
    sources: tuple[str, ...],
    dsn: str,
    table: str,
    reembed: bool,
    abandon_reembed: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Load documents into a table of pgvector or ParadeDB.

    SOURCE is a file, a folder or a glob: JSONL, CSV, Parquet, text, Markdown, HTML, PDF, Office; or
    the URI of a database, with --query. Run the same command again at any time: unchanged documents
    are left alone, changed ones are replaced, and an interrupted load resumes where it stopped.

    \b
    Examples:
      qwen3-triton-ingest load docs/ --table manuals
      qwen3-triton-ingest load 'articles/*.jsonl' --text-column body --table articles
      qwen3-triton-ingest load postgresql://shop-db/shop --table products \\
          --query 'SELECT id, description AS text, brand FROM products'
      qwen3-triton-ingest load docs/ --table manuals --layout langchain
      qwen3-triton-ingest load corpus/ --table corpus --engine ray --workers 16
      qwen3-triton-ingest load --table manuals --reembed
    """
    if reembed and abandon_reembed:
        raise click.UsageError("Give either --reembed or --abandon-reembed, not both.")
    if not (sources or reembed or abandon_reembed):
        raise click.UsageError("Give at least one SOURCE, or --reembed, or --abandon-reembed.")
    options = read_options(LoadOptions, flags)
    with _usage_errors(), plain_errors(), _load_bar() as bar:
        if abandon_reembed:
            _abandon_reembed(dsn, table, options, as_json=as_json)
        if reembed:
            _reembed(dsn, table, options, bar, as_json=as_json)
        if not sources:
            return
        from ..load import load as load_sources

        failure: NothingLoadedError | None = None
        try:
            report: LoadReport = load_sources(
                sources,
                dsn=dsn,
                table=table,
                options=options,
                on_progress=bar.show_load,
                on_notice=bar.notice,
            )
        except NothingLoadedError as error:
            failure, report = error, error.report
        bar.finish()
        if as_json:
            print_json(asdict(report))
        else:
            _print_load_report(report)
        if failure:
            raise failure


@contextmanager
def _usage_errors() -> Generator[None]:
    """Exit with code 2 if an option is out of range."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _reembed(dsn: str, table: str, options: LoadOptions, bar: _LoadBar, *, as_json: bool) -> None:
    from ..reembed import reembed

    report = reembed(dsn, table, options, on_progress=bar.show_reembed, on_notice=bar.notice)
    bar.finish()
    if as_json:
        print_json(asdict(report))
    else:
        _print_reembed_report(report)


def _abandon_reembed(dsn: str, table: str, options: LoadOptions, *, as_json: bool) -> None:
    from ..reembed import abandon_reembed

    abandoned = abandon_reembed(
        dsn, table, layout=options.layout, retry_seconds=options.retry_seconds
    )
    if as_json:
        print_json({"table": table, "abandoned": abandoned})
    elif abandoned:
        click.echo(f"{table}: the re-embedding was given up. The table is as it was.")
    else:
        click.echo(f"{table}: there is no re-embedding to give up.")


class _LoadBar:
    """One line with the progress of a load, and notices above it."""

    def __init__(self, console: Console, bar: Progress) -> None:
        self._console = console
        self._bar = bar
        self._task = bar.add_task("Looking for sources", total=None)

    def show_load(self, progress: LoadProgress) -> None:
        if progress.waiting_for:
            self._bar.update(self._task, description=f"Waiting for {progress.waiting_for}")
        elif progress.phase == "index":
            index = progress.index
            self._bar.update(
                self._task,
                description=f"Index: {index.phase}" if index else "Index",
                total=1.0,
                completed=(index.fraction or 0.0) if index else 0.0,
            )
        else:
            self._bar.update(
                self._task,
                description=_describe(progress),
                total=progress.shards_planned,
                completed=progress.shards_done,
            )

    def show_reembed(self, progress: ReembedProgress) -> None:
        if progress.index is not None and progress.phase == "index":
            description = f"Index: {progress.index.phase}"
        else:
            description = f"Re-embedding: {progress.rows_done:,} rows"
        self._bar.update(
            self._task,
            description=description,
            total=progress.rows_total or None,
            completed=progress.rows_done,
        )

    def notice(self, text: str) -> None:
        """Print a text that stays on the screen."""
        self._console.print(f"Note: {text}", highlight=False, markup=False)

    def finish(self) -> None:
        """Remove the line."""
        self._bar.stop()


@contextmanager
def _load_bar() -> Generator[_LoadBar]:
    """Show progress on standard error if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        yield _LoadBar(console, bar)


def _describe(progress: LoadProgress) -> str:
    counts = progress.counts
    rate = counts.chunks_written / progress.seconds if progress.seconds else 0.0
    parts = [
        f"{counts.documents:,} documents",
        f"{counts.unchanged:,} unchanged" if counts.unchanged else "",
        f"{counts.chunks_written:,} chunks ({rate:,.0f}/s)",
        f"{counts.failed:,} skipped" if counts.failed else "",
    ]
    what = "Removing vanished documents" if progress.phase == "vanished" else "Loading"
    return f"{what}: " + ", ".join(filter(None, parts))


def _print_load_report(report: LoadReport) -> None:
    counts = report.counts
    click.echo(
        f"{report.table}: {counts.documents:,} documents written, {counts.unchanged:,} unchanged, "
        f"{report.removed:,} removed; {counts.chunks_written:,} chunks written, "
        f"{counts.chunks_kept:,} kept, {counts.chunks_removed:,} replaced; {report.seconds:.1f} s"
    )
    click.echo(f"Vector index: {report.index}. Embedding space: {report.fingerprint}")
    if report.resumed:
        click.echo("An interrupted run was resumed; the numbers include its first part.")
    if counts.duplicates:
        click.echo(f"{counts.duplicates:,} records had an id that this run had already loaded.")
    for vanished in report.vanished_kept:
        click.echo(_vanished(vanished))
    if report.skipped_files:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in sorted(report.skipped_files.items()))
        click.echo(f"Files of other formats, not loaded: {kinds}. --converter converts them.")
    if report.encodings:
        kinds = ", ".join(f"{n:,} as {name}" for name, n in sorted(report.encodings.items()))
        click.echo(f"Files that are not UTF-8, read {kinds}. --encoding sets another encoding.")
    if counts.failed:
        click.echo(
            f"{counts.failed:,} documents were skipped. For the reasons, run: "
            f"qwen3-triton-ingest status --table {report.table}"
        )


def _vanished(vanished: VanishedCount) -> str:
    kept = "and were kept, because so many may be a mistake"
    if vanished.doubtful:
        kept = (
            f"and {vanished.doubtful:,} were kept, because they may be records of their files "
            "whose ids could not be read"
        )
    return (
        f"{vanished.vanished:,} of {vanished.known:,} documents of {vanished.source} have "
        f"vanished, {kept}. --max-vanished 1 removes them, --vanished keep never does."
    )


def _print_reembed_report(report: ReembedReport) -> None:
    if not report.swapped:
        click.echo(f"{report.table} is already in the embedding space {report.fingerprint}.")
        return
    click.echo(
        f"{report.table}: {report.rows:,} rows moved from the embedding space "
        f"{report.former_fingerprint} to {report.fingerprint} (model {report.model}, "
        f"{report.dimensions} dimensions); {report.embedded:,} embedded; {report.seconds:.1f} s"
    )
