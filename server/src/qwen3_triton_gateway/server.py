"""The gateway's process: uvicorn in the foreground, logging, memory, and a clean end."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import math
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from pythonjsonlogger.orjson import OrjsonFormatter

from .app import create_app
from .auth import ApiKeys, read_api_keys, warn_about_keys
from .backends import choose_backend, with_bundled_model, with_stated_lengths
from .connections import (
    Connections,
    Listener,
    connection_limit,
    open_listeners,
    raise_descriptor_limit,
)
from .errors import StartupError
from .memory import MemoryBudget, in_worker, trim_heap
from .service import EmbeddingService
from .settings import Settings
from .tracing import configure_tracing

logger: logging.Logger = logging.getLogger(__name__)

# Time to write a response, in addition to the request's deadline.
GRACE_SECONDS = 5
MAX_HEADER_SECONDS = 10.0
# malloc.h of glibc.
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
# Larger than the hidden states of a batch, whose pages would otherwise be faulted in every time, at
# a tenth of a small model's throughput. Smaller than a long response as JSON.
LARGE_BLOCK_BYTES = 16 << 20
ARENAS = 2
TRIM_SECONDS = 15.0
# Objects, of which a request has some dozens.
GARBAGE_THRESHOLD = 5000


class GatewayServer(uvicorn.Server):
    """A uvicorn server that drains before it exits, and exits with 0.

    SIGTERM comes from an orchestrator that may still send requests: readiness turns false at once,
    and the gateway stops listening a moment later. SIGINT comes from a person who wants it to end,
    and a second one without the requests in progress. SIGHUP means that files have changed; from a
    terminal that is closed, that the person is gone.

    Attributes:
        failure: Why the gateway cannot serve; None if it can.
    """

    def __init__(
        self, config: uvicorn.Config, service: EmbeddingService, reload: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._service = service
        self._reload = reload
        self.failure: str | None = None

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Drain on SIGINT and SIGTERM; uvicorn's own version raises the signal again at the end."""
        loop = asyncio.get_running_loop()
        hang_up = self._stop_soon if sys.stderr.isatty() else self._reload
        loop.add_signal_handler(signal.SIGINT, self.handle_exit, signal.SIGINT, None)
        loop.add_signal_handler(signal.SIGTERM, self._stop_soon)
        loop.add_signal_handler(signal.SIGHUP, hang_up)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.remove_signal_handler(number)
                # Everything is drained: a second signal must not turn exit code 0 into 143.
                signal.signal(number, signal.SIG_IGN)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain, or disconnect every caller if a person is tired of waiting for that.

        uvicorn would leave out the application's shutdown, and on Python 3.12 wait anyway.
        """
        if self.should_exit and sig == signal.SIGINT:
            for connection in list(self.server_state.connections):
                connection.transport.abort()
            return
        super().handle_exit(sig, frame)

    def _stop_soon(self) -> None:
        if self._service.stopping:
            self.handle_exit(signal.SIGTERM, None)
            return
        self._service.stopping = True
        delay = self._service.settings.shutdown_delay_seconds
        logger.info("No longer ready; listening for another %g s.", delay)
        asyncio.get_running_loop().call_later(delay, self.handle_exit, signal.SIGTERM, None)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        rest_garbage_collector()
        scheme = "https" if self.config.is_ssl else "http"
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            logger.info("Gateway running on %s://%s:%d (Press CTRL+C to quit)", scheme, shown, port)

    def fail(self, message: str) -> None:
        """Stop serving; `run_gateway` raises the message."""
        self.failure = message
        self.should_exit = True


def run_gateway(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        StartupError: The settings, the tokenizer and the model do not match, or the port is in
            use.
    """
    asyncio.run(serve(settings))


async def serve(settings: Settings) -> None:
    """Serve on the running event loop; see `run_gateway`."""
    keep_memory_flat()
    if settings.serves_embeddings:
        settings = with_bundled_model(settings)
    settings = with_stated_lengths(settings)
    send_last_spans = configure_tracing(settings)
    service = EmbeddingService(
        settings,
        choose_backend(settings) if settings.serves_embeddings else None,
        choose_backend(settings, "rerank") if settings.serves_reranker else None,
    )
    server: GatewayServer

    def stop(message: str) -> None:
        server.fail(message)

    app = create_app(service, on_fatal=stop)
    descriptors = raise_descriptor_limit()
    connections = Connections(connection_limit(settings.max_connections, descriptors))
    reload = partial(reload_api_keys, settings, app.state.api_keys)
    server = GatewayServer(_uvicorn_config(app, settings, connections), service, reload)
    listeners = _listen(settings, connections)
    trimming = asyncio.create_task(return_memory(service.memory))
    try:
        await server.serve(sockets=[*listeners])
    except ssl.SSLError as error:
        msg = (
            f"EMBED_TLS_CERTIFICATE '{settings.tls_certificate}' and EMBED_TLS_KEY "
            f"'{settings.tls_key}' are not a PEM certificate and its key: {error.reason}."
        )
        raise StartupError(msg) from None
    finally:
        trimming.cancel()
        send_last_spans()
    if server.failure:
        raise StartupError(server.failure)


def _uvicorn_config(app: FastAPI, settings: Settings, connections: Connections) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_http_protocol(settings, connections),
        ws="none",
        log_config=None,
        access_log=False,
        timeout_keep_alive=math.ceil(settings.keep_alive_seconds),
        timeout_graceful_shutdown=math.ceil(settings.timeout_seconds) + GRACE_SECONDS,
        server_header=False,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )


def _listen(settings: Settings, connections: Connections) -> Sequence[Listener]:
    """Bind to the address of the settings.

    Raises:
        StartupError: It cannot be bound.
    """
    try:
        return open_listeners(settings.host, settings.port, connections)
    except OSError as error:
        msg = (
            f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}. Choose another "
            "port with --port."
        )
        raise StartupError(msg) from None


def reload_api_keys(settings: Settings, keys: ApiKeys) -> None:
    """Read `EMBED_API_KEYS_FILE` again, or keep the keys as they are if it is invalid."""
    if settings.api_keys_file is None:
        logger.info("SIGHUP: there is no EMBED_API_KEYS_FILE to read again.")
        return
    try:
        found = read_api_keys(settings)
    except StartupError as error:
        logger.error("SIGHUP: the API keys stay as they were. %s", error.message)
        return
    keys.replace(found)
    warn_about_keys(settings, found)
    logger.info("SIGHUP: %d API keys are accepted from now on.", len(found))


def _http_protocol(settings: Settings, connections: Connections) -> Any:
    """Build what uvicorn calls for each connection; its type asks for a class."""
    if find_spec("httptools") is None:  # on Windows, uvicorn's other parser serves
        return "auto"
    from .http_protocol import GatewayProtocol, HttpBounds

    read_seconds = min(settings.read_timeout_seconds, settings.timeout_seconds)
    bounds = HttpBounds(
        body_bytes=settings.max_body_bytes,
        header_seconds=min(MAX_HEADER_SECONDS, read_seconds),
        body_seconds=read_seconds,
    )
    return partial(GatewayProtocol, bounds=bounds, connections=connections)


def keep_memory_flat() -> None:
    """Make glibc return large blocks to the system as soon as they are freed.

    Long responses are blocks of tens of megabytes. Once the first of them is freed, glibc's default
    takes blocks of up to 32 MiB from the heap, and holes in the heaps of its threads add up
    (measured in `bench/README.md`). Other C libraries and settings in `MALLOC_` variables are left
    alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
    if "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_M_ARENA_MAX, ARENAS)


def rest_garbage_collector() -> None:
    """Exempt what lives as long as the process from garbage collection, and collect less often.

    Modules, routes and schemas are most of the objects that a full collection examines. With the
    more frequent ones, it took a sixth of the main thread's time under load. Nearly everything that
    requests leave behind is freed without it, when the last reference is gone.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD, *gc.get_threshold()[1:])


async def return_memory(memory: MemoryBudget) -> None:
    """Return what requests have freed to the system, a while after they took much."""
    while True:
        await asyncio.sleep(TRIM_SECONDS)
        if memory.take_peak_bytes() >= LARGE_BLOCK_BYTES:
            await in_worker(trim_heap)


def configure_logging(settings: Settings) -> None:
    """Log to standard error, one line per event."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(settings))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # No line shows them, nor the place in the code, and each would be looked up for every request
    # (Python's Logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # pyright: ignore[reportPrivateUsage]


def _formatter(settings: Settings) -> logging.Formatter:
    if settings.log_format == "json":
        names = {"asctime": "time", "levelname": "level", "name": "logger"}
        return OrjsonFormatter(
            "{asctime}{levelname}{name}{message}", style="{", rename_fields=names
        )
    return logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
