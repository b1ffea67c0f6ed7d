"""Tables of the documentation that are made by the tests of what they list."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "switching.md"


def check_table(name: str, header: Sequence[str], rows: Mapping[str, str]) -> None:
    """Compare a table with what was found, or with `make clients WRITE=1` write it.

    Args:
        name: What its markers in the page are called.
        header: Its columns.
        rows: Its rows, by program.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    table = "\n".join([f"| {' | '.join(header)} |", "|---" * len(header) + "|", *rows.values()])
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(begin)
    written, after = rest.split(end)
    if os.environ.get("WRITE"):
        PAGE.write_text(f"{before}{begin}\n\n{table}\n\n{end}{after}", encoding="utf-8")
        return
    assert written.strip() == table, "If the change is intended, run `make clients WRITE=1`."
