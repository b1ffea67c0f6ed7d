"""A PostgreSQL that can be killed and restarted on the same data, like a real server."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg

from demo.embedded_postgres import find_binaries
from demo.supervised import Supervised, start_supervised
from demo.unprivileged import unprivileged
from polling import wait_for
from qwen3_triton_tools.local_triton.process import free_ports

START_SECONDS = 120.0
# As in production; the temporary servers of other tests switch these off.
DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}


class RestartablePostgres:
    """A durable server on a fixed port; its data outlives the process, not this object."""

    def __init__(self) -> None:
        self._identity = unprivileged()
        self._binaries = find_binaries()
        self._home = Path(tempfile.mkdtemp(prefix="qwen3-restartable-"))
        self._data = self._home / "data"
        self._identity.own(self._home)
        self._port = free_ports(1)[0]
        password = secrets.token_urlsafe(16)
        (self._home / "password").write_text(password, encoding="utf-8")
        self._identity.own(self._home / "password")
        self.uri = f"postgresql://postgres:{password}@127.0.0.1:{self._port}/postgres"
        self.starts = 0
        try:
            self._server = self._launch(setup=self._initdb())
            self._wait()
        except BaseException:
            self.close()
            raise

    @property
    def postmaster(self) -> int:
        """The process id of the server."""
        return int((self._data / "postmaster.pid").read_text().split()[0])

    def kill(self) -> None:
        """Kill the server process alone; its backends end at their next check for it."""
        os.kill(self.postmaster, signal.SIGKILL)
        self._server.supervisor.wait()
        self._server.stop()

    def cut_power(self) -> None:
        """Kill the server and its backends at once.

        A backend that builds an index checks for the server only when it is done, and until then
        no new server can start on the same data.
        """
        server = psutil.Process(self.postmaster)
        server.suspend()  # or it may start a parallel worker after this look
        wait_for(lambda: server.status() == psutil.STATUS_STOPPED, "the server is suspended")
        backends = server.children(recursive=True)
        self.kill()
        for backend in backends:
            with suppress(psutil.NoSuchProcess):
                backend.kill()

    def start(self) -> None:
        """Start the server on its data; it recovers from its log."""
        self._server = self._launch()
        self._wait()

    def kill_backend(self, pid: int) -> bool:
        """Kill a backend if it exists; the server then ends all others and recovers."""
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def wait(self) -> None:
        """Wait until the server accepts connections, for instance after a recovery."""
        self._wait()

    def close(self) -> None:
        """Stop the server and remove its data."""
        server = getattr(self, "_server", None)
        if server is not None:
            server.stop()
        shutil.rmtree(self._home, ignore_errors=True)

    def _launch(self, *, setup: list[str] | None = None) -> Supervised:
        # A directory for the log of each start: the supervisor removes its own.
        self.starts += 1
        run = Path(tempfile.mkdtemp(prefix=f"start-{self.starts}-", dir=self._home))
        self._identity.own(run)
        return start_supervised(
            [*self._identity.prefix, *self._postgres()],
            directory=run,
            setup=[*self._identity.prefix, *setup] if setup else [],
            environment={**os.environ, "LC_ALL": "C"},
            uid=self._identity.uid,
            stop_signals=(signal.SIGINT, signal.SIGQUIT),
        )

    def _initdb(self) -> list[str]:
        return [
            *(str(self._binaries / "initdb"), "-D", str(self._data), "-U", "postgres"),
            *("-E", "UTF8", "--auth=scram-sha-256", f"--pwfile={self._home / 'password'}"),
            *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
        ]

    def _postgres(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self._port),
            "unix_socket_directories": "",
            **DURABLE,
        }
        words = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        return [str(self._binaries / "postgres"), "-D", str(self._data), *words]

    def _wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            assert time.monotonic() < end, f"PostgreSQL did not start:\n{self._server.log_tail()}"
            if self._server.has_ended():
                # Backends of the killed server have not ended yet.
                log = self._server.log_tail()
                self._server.stop()
                assert "still in use" in log or "is running" in log, log
                time.sleep(0.1)
                self._server = self._launch()
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.uri, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def restartable_postgres() -> Generator[RestartablePostgres]:
    """Run a server for the length of a `with` block."""
    server = RestartablePostgres()
    try:
        yield server
    finally:
        server.close()
