"""Run other programs: the one place that does, with a limit on time."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

PROGRAM_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program printed, and its exit code."""

    code: int
    output: str
    errors: str

    @property
    def text(self) -> str:
        """All that it said."""
        return f"{self.output}\n{self.errors}".strip()


def run_program(name: str, *arguments: str) -> Answer | None:
    """Run a program of the search path; None where it is not installed.

    A program that hangs is killed and answers with code 124, as `timeout` does.
    """
    path = shutil.which(name)
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=PROGRAM_SECONDS,
            # What is parsed below is English.
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        return Answer(124, "", f"{name} gave no answer within {PROGRAM_SECONDS:g} s")
    except OSError as error:
        return Answer(126, "", f"{name} does not start: {error.strerror or error}")
    return Answer(done.returncode, done.stdout, done.stderr)
