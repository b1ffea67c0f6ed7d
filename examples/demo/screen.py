"""Show progress: moving bars on a terminal, plain lines anywhere else."""

import re
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

_WIDTH_OF_A_FILE = 120


class Stage:
    """A running step of the demo."""

    def __init__(self, progress: Progress, title: str, total: int | None) -> None:
        self.result = ""
        self._progress = progress
        self._task = progress.add_task(title, total=total, note="")
        self._note = ""

    def note(self, text: str) -> None:
        """Show what the step waits for."""
        if text == self._note:
            return
        self._note = text
        self._progress.update(self._task, note=text)
        if self._progress.disable:
            self._progress.console.print(Text(f"     {text}"))

    def advance(self, steps: int) -> None:
        """Advance the progress bar."""
        self._progress.advance(self._task, steps)


class Screen:
    """The demo's output. `console` prints everything except progress."""

    def __init__(self, *, record: bool) -> None:
        width = None if sys.stdout.isatty() else _WIDTH_OF_A_FILE
        self.console = Console(highlight=False, width=width, record=record)

    def save_picture(self, path: Path) -> None:
        """Write the output as an SVG. The screen must have been created with `record`."""
        picture = self.console.export_svg(title="make demo")
        # Without the web fonts: any monospaced font will do.
        path.write_text(re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL), "utf-8")

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Generator[Stage]:
        """Show a step and its duration, with a bar if `total` is known, else a spinner."""
        began = time.monotonic()
        moving = self.console.is_interactive
        if not moving:
            self.console.print(Text(f"...  {title}"))
        progress = _progress(self.console, disable=not moving, with_bar=total is not None)
        outcome = Text("fail", style="red")
        stage = Stage(progress, title, total)
        try:
            with progress:
                yield stage
            outcome = Text("done", style="green")
        except KeyboardInterrupt:
            outcome = Text("stop", style="yellow")
            raise
        finally:
            seconds = f"{time.monotonic() - began:6.1f} s"
            detail = f"   {stage.result}" if stage.result else ""
            self.console.print(Text.assemble(outcome, f"{seconds}  {title}{detail}"))


def _progress(console: Console, *, disable: bool, with_bar: bool) -> Progress:
    bar = [BarColumn(), TextColumn("{task.completed:.0f} of {task.total:.0f}")] if with_bar else []
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        *bar,
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
        console=console,
        transient=True,
        disable=disable,
    )
