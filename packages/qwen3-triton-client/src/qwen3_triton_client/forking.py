"""Locks and connections that a forked process must not take over from its parent."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["start_afresh_in_children"]


class StartsAfresh(Protocol):
    """Something that holds what may not be shared between processes."""

    def start_afresh(self) -> None:
        """Forget connections, and locks that another thread held at the moment of the fork."""


_objects: weakref.WeakSet[StartsAfresh] = weakref.WeakSet()


def start_afresh_in_children(thing: StartsAfresh) -> None:
    """Have `start_afresh` called in every process that is forked from here on."""
    _objects.add(thing)


def _start_afresh() -> None:
    for thing in _objects:
        thing.start_afresh()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_start_afresh)
