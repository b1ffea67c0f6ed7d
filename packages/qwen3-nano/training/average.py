"""Average the weights of two students of one shape, which often retrieves better than either.

    python average.py WORK BEFORE AFTER

BEFORE and AFTER are files in WORK, for example student-first.pt before and after another run of
`more`. Writes WORK/student.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch


def main() -> None:
    """Read both, and write the mean of each array."""
    work = Path(sys.argv[1])
    before, after = (torch.load(work / name, weights_only=True) for name in sys.argv[2:4])
    state = {name: (before["state"][name] + after["state"][name]) / 2 for name in after["state"]}
    torch.save({**after, "state": state}, work / "student.pt")


if __name__ == "__main__":
    main()
