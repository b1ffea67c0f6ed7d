"""Run a program that refuses to run as root, such as PostgreSQL, even if we are root."""

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_NOBODY = 65534
_MAPPED_USER = 1000  # any user id except 0


@dataclass(frozen=True, slots=True)
class Identity:
    """A way to run a program as a user other than root: a command prefix or a user id."""

    prefix: tuple[str, ...] = ()
    uid: int | None = None

    def own(self, path: Path) -> None:
        """Make the program's user the owner of `path`."""
        if self.uid is not None:
            os.chown(path, self.uid, self.uid)

    def obstacle(self, paths: Iterable[Path]) -> str | None:
        """Return why the program could not run from `paths`, or `None`."""
        if self.uid is None:
            return None
        try:
            unreadable = next((path for path in paths if not self._may_enter(path)), None)
        except PermissionError:
            return (
                "root can neither create a user namespace nor change to another user here. Run "
                "this as an ordinary user."
            )
        if unreadable is None:
            return None
        return (
            "user namespaces are not available here, and the user `nobody`, which it would run as "
            f"instead, cannot read `{unreadable}`. Put the virtual environment and TMPDIR where "
            "everyone can read them, or run this as an ordinary user."
        )

    def _may_enter(self, path: Path) -> bool:
        command = ["test", "-x", str(path)]
        probe = subprocess.run(command, check=False, user=self.uid, group=self.uid, extra_groups=[])
        return probe.returncode == 0


def unprivileged() -> Identity:
    """Return how to run a program as this user, or as another one if this user is root."""
    if os.geteuid() != 0:
        return Identity()
    # A user namespace keeps our access rights, so it works even where only root may read.
    unshare = ("unshare", "--user", f"--map-user={_MAPPED_USER}", f"--map-group={_MAPPED_USER}")
    try:
        if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode == 0:
            return Identity(prefix=unshare)
    except FileNotFoundError:
        pass
    return Identity(uid=_NOBODY)
