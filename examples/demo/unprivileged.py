"""Run a program that refuses to be root, such as PostgreSQL, although we may be root."""

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_NOBODY = 65534
_MAPPED_USER = 1000  # any user id but 0 will do


@dataclass(frozen=True, slots=True)
class Identity:
    """How to run a program as somebody other than root: a command prefix or a user id."""

    prefix: tuple[str, ...] = ()
    uid: int | None = None

    def own(self, path: Path) -> None:
        """Give `path` to the user under whom the program will run."""
        if self.uid is not None:
            os.chown(path, self.uid, self.uid)

    def obstacle(self, paths: Iterable[Path]) -> str | None:
        """Return why the program could not run from `paths`, in plain words, or `None`."""
        if self.uid is None:
            return None
        try:
            unreadable = next((path for path in paths if not self._may_enter(path)), None)
        except PermissionError:
            return (
                "here root may neither create a user namespace nor change to another user. Run "
                "this as an ordinary user."
            )
        if unreadable is None:
            return None
        return (
            "user namespaces are not available here, and the user `nobody`, under whom it would "
            f"run instead, cannot read `{unreadable}`. Put the virtual environment and TMPDIR "
            "where everybody may read, or run this as an ordinary user."
        )

    def _may_enter(self, path: Path) -> bool:
        command = ["test", "-x", str(path)]
        probe = subprocess.run(command, check=False, user=self.uid, group=self.uid, extra_groups=[])
        return probe.returncode == 0


def unprivileged() -> Identity:
    """Return how to run a program as this user, or as another one where this user is root."""
    if os.geteuid() != 0:
        return Identity()
    # A user namespace keeps our access rights, so it also works where only root may read.
    unshare = ("unshare", "--user", f"--map-user={_MAPPED_USER}", f"--map-group={_MAPPED_USER}")
    try:
        if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode == 0:
            return Identity(prefix=unshare)
    except FileNotFoundError:
        pass
    return Identity(uid=_NOBODY)
