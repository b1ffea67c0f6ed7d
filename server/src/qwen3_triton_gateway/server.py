"""Run the gateway's application on uvicorn, in the foreground."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager

import orjson
import uvicorn

from .app import create_app
from .backends import choose_backend
from .bundled import with_bundled_model
from .errors import StartupError
from .service import EmbeddingService
from .settings import Settings

logger = logging.getLogger(__name__)

# Time for the answers under way after SIGTERM.
GRACE_SECONDS = 30


class GatewayServer(uvicorn.Server):
    """A uvicorn server that ends with 0 after a drain and says where it listens."""

    failure: str | None = None

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Drain on SIGINT and SIGTERM; uvicorn's own version dies of the signal afterwards."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
                # Nothing is left to drain: a second signal must not turn the clean end into 143.
                signal.signal(number, signal.SIG_IGN)

    def fail(self, message: str) -> None:
        """Stop serving because of `message`; `run_gateway` raises it."""
        self.failure = message
        self.should_exit = True


def run_gateway(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        StartupError: the settings, the tokenizer or the model do not fit together, or the port
            is taken.
    """
    configure_logging(settings)
    asyncio.run(serve(settings))


async def serve(settings: Settings) -> None:
    """Serve on the running event loop; see `run_gateway`."""
    settings = with_bundled_model(settings)
    service = EmbeddingService(settings, choose_backend(settings))
    server: GatewayServer

    def stop(message: str) -> None:
        server.fail(message)

    app = create_app(service, on_fatal=stop)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        server_header=False,
    )
    server = GatewayServer(config)
    try:
        await server.serve()
    except SystemExit:  # uvicorn logs why it cannot bind, and exits
        msg = f"Cannot listen on {settings.host}:{settings.port}; choose another port with --port."
        raise StartupError(msg) from None
    if server.failure:
        raise StartupError(server.failure)


def configure_logging(settings: Settings) -> None:
    """Log to standard error, a line for each event."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(settings))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)


def _formatter(settings: Settings) -> logging.Formatter:
    if settings.log_format == "json":
        return JsonFormatter()
    return logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(fields).decode()
