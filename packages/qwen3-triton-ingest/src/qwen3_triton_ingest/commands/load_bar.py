"""How far a load is, on a terminal; nothing where nobody looks."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..progress import LoadProgress
from ..reembed import ReembedProgress

__all__ = ["LoadBar", "load_bar"]


class LoadBar:
    """Show a load's progress on one line, and notices above it."""

    def __init__(self, console: Console, bar: Progress) -> None:
        self._console = console
        self._bar = bar
        self._task = bar.add_task("Looking at sources", total=None)

    def show_load(self, progress: LoadProgress) -> None:
        """Show how far a load is."""
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
        """Show how far a re-embedding is."""
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
        """Say something that stays on the screen."""
        self._console.print(f"Note: {text}", highlight=False, markup=False)

    def finish(self) -> None:
        """Take the line away."""
        self._bar.stop()


@contextmanager
def load_bar() -> Generator[LoadBar]:
    """Show progress on standard error if it is a terminal."""
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
        yield LoadBar(console, bar)


def _describe(progress: LoadProgress) -> str:
    counts = progress.counts
    rate = counts.chunks_written / progress.seconds if progress.seconds else 0.0
    parts = [
        f"{counts.documents:,} documents",
        f"{counts.unchanged:,} unchanged" if counts.unchanged else "",
        f"{counts.chunks_written:,} chunks ({rate:,.0f}/s)",
        f"{counts.failed:,} set aside" if counts.failed else "",
    ]
    what = "Removing vanished documents" if progress.phase == "vanished" else "Loading"
    return f"{what}: " + ", ".join(filter(None, parts))
