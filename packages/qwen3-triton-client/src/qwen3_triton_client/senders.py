"""The one place that touches the network: a request goes in, a response or our error comes out."""

from __future__ import annotations

import asyncio
import functools
import ssl
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

from .errors import EmbeddingConnectionError, EmbeddingTimeoutError
from .forking import start_afresh_in_children
from .retries import Tries
from .settings import ClientSettings
from .wire import WireRequest, WireResponse

__all__ = ["AsyncSender", "SyncSender"]

# A gateway that is there accepts at once; one that is away need not be waited for as for a model.
CONNECT_SECONDS = 10.0


class SyncSender:
    """Send requests from any thread through one pool of connections, so many at a time."""

    def __init__(self, settings: ClientSettings, http_client: httpx2.Client | None) -> None:
        _check_client(http_client, httpx2.Client)
        self._settings = settings
        self._given = http_client
        self._finalizer: weakref.finalize[[], SyncSender] | None = None
        self.start_afresh()
        start_afresh_in_children(self)

    def start_afresh(self) -> None:
        """Forget connections and locks, which a forked process must not share with its parent."""
        if self._finalizer is not None:
            self._finalizer.detach()  # to close them here would end the parent's TLS sessions
        self._finalizer = None
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(self._settings.max_concurrency)
        self._http: httpx2.Client | None = None

    def send(self, request: WireRequest, tries: Tries) -> WireResponse:
        """Send when fewer than `max_concurrency` requests are in flight.

        Raises:
            EmbeddingConnectionError: No whole answer came back in time.
        """
        with self._slots, _mapped_errors(self._settings.base_url), tries.one() as seconds:
            end = time.monotonic() + seconds
            with self._client().stream(
                "POST",
                request.url,
                content=request.content,
                headers=request.headers,
                timeout=_timeout(seconds),
            ) as response:
                chunks: list[bytes] = []
                for chunk in response.iter_bytes():
                    chunks.append(chunk)
                    # The library's own limit is on the wait for each chunk.
                    if time.monotonic() > end:
                        raise httpx2.ReadTimeout(f"the answer took more than {seconds:g} s")
        return _wire_response(response, b"".join(chunks))

    def close(self) -> None:
        """Close the connections; a later `send` opens new ones. The user's own client stays."""
        with self._lock:
            if self._finalizer is not None:
                self._finalizer()
            self._http = self._finalizer = None

    def _client(self) -> httpx2.Client:
        if self._given is not None:
            return self._given
        with self._lock:
            if self._http is None:
                self._http = httpx2.Client(limits=_limits(self._settings), verify=_tls())
                self._finalizer = weakref.finalize(self, self._http.close)
            return self._http


@dataclass(slots=True)
class _LoopState:
    http: httpx2.AsyncClient
    slots: asyncio.Semaphore
    closer: AsyncGenerator[None]
    finalizer: weakref.finalize[..., Any]


class AsyncSender:
    """Send requests from any event loop, each with a pool of connections of its own."""

    def __init__(self, settings: ClientSettings, http_client: httpx2.AsyncClient | None) -> None:
        _check_client(http_client, httpx2.AsyncClient)
        self._settings = settings
        self._given = http_client
        self._states: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopState]
        self._states = weakref.WeakKeyDictionary()
        self.start_afresh()
        start_afresh_in_children(self)

    def start_afresh(self) -> None:
        """Forget a lock that another thread held when this process was forked.

        The connections belong to the parent's event loops, which do not run here.
        """
        for state in self._states.values():
            state.finalizer.detach()
        self._lock = threading.Lock()

    async def send(self, request: WireRequest, tries: Tries) -> WireResponse:
        """Send when fewer than `max_concurrency` requests of this event loop are in flight.

        Raises:
            EmbeddingConnectionError: No whole answer came back in time.
        """
        state = await self._state()
        async with state.slots:
            with _mapped_errors(self._settings.base_url), tries.one() as seconds:
                async with asyncio.timeout(seconds):
                    response = await state.http.post(
                        request.url,
                        content=request.content,
                        headers=request.headers,
                        timeout=_timeout(seconds),
                    )
        return _wire_response(response, response.content)

    async def aclose(self) -> None:
        """Close the connections of the running event loop; a later `send` opens new ones."""
        with self._lock:
            state = self._states.pop(asyncio.get_running_loop(), None)
        if state is not None:
            state.finalizer.detach()
            await state.closer.aclose()

    async def _state(self) -> _LoopState:
        loop = asyncio.get_running_loop()
        with self._lock:
            state = self._states.get(loop)
            if state is not None and not state.http.is_closed:
                return state
            for dead in [other for other in self._states if other.is_closed()]:
                self._states.pop(dead).finalizer.detach()
            http = self._given or httpx2.AsyncClient(limits=_limits(self._settings), verify=_tls())
            slots = asyncio.Semaphore(self._settings.max_concurrency)
            closer = _closed_with_loop(http, keep_open=self._given is not None)
            finalizer = weakref.finalize(self, _close_in, loop, closer)
            finalizer.atexit = False
            state = self._states[loop] = _LoopState(http, slots, closer, finalizer)
        # Runs up to the `yield` without a pause, and makes the loop take note of the generator.
        await anext(closer)
        return state


async def _closed_with_loop(http: httpx2.AsyncClient, *, keep_open: bool) -> AsyncGenerator[None]:
    """Close `http` when the event loop shuts down its asynchronous generators.

    A client that is never closed by hand, as a framework adapter's, so leaves no connection
    behind at the end of `asyncio.run`; see `_close_in` for one that is collected before.
    """
    try:
        yield
    finally:
        if not keep_open:
            await http.aclose()


def _close_in(loop: asyncio.AbstractEventLoop, closer: AsyncGenerator[None]) -> None:
    """Close connections whose sender was garbage-collected, perhaps by another thread."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(lambda: loop.create_task(_aclose(closer)))


async def _aclose(closer: AsyncGenerator[None]) -> None:
    await closer.aclose()


def _limits(settings: ClientSettings) -> httpx2.Limits:
    return httpx2.Limits(
        max_connections=settings.max_concurrency,
        max_keepalive_connections=settings.max_concurrency,
    )


def _check_client(given: object, kind: type[httpx2.Client | httpx2.AsyncClient]) -> None:
    """Refuse a client of httpx, whose errors and time limits are other classes."""
    if given is not None and not isinstance(given, kind):
        there = f"{type(given).__module__.partition('.')[0]}.{type(given).__qualname__}"
        msg = f"`http_client` must be an httpx2.{kind.__name__}, not {there}"
        raise TypeError(msg)


def _timeout(seconds: float) -> httpx2.Timeout:
    return httpx2.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS))


@functools.cache
def _tls() -> ssl.SSLContext:
    """Read the machine's certificates, once: that takes longer than a query."""
    return httpx2.create_ssl_context()


def _wire_response(response: httpx2.Response, content: bytes) -> WireResponse:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return WireResponse(response.status_code, headers, content)


@contextmanager
def _mapped_errors(base_url: str) -> Generator[None]:
    try:
        yield
    except (httpx2.TimeoutException, TimeoutError) as error:
        if isinstance(error, EmbeddingTimeoutError):
            raise
        msg = f"no answer from the gateway at {base_url} in time ({type(error).__name__})"
        raise EmbeddingTimeoutError(msg, retryable=True) from error
    except (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError) as error:
        msg = f"the request to the gateway at {base_url} cannot be sent: {error}"
        raise EmbeddingConnectionError(msg) from error
    except httpx2.ConnectError as error:
        msg = (
            f"cannot reach the gateway at {base_url}: {error}. Is it running, and `base_url` right?"
        )
        raise EmbeddingConnectionError(msg, retryable=True) from error
    except httpx2.RequestError as error:
        msg = f"the gateway at {base_url} broke off: {error or type(error).__name__}"
        raise EmbeddingConnectionError(msg, retryable=True) from error
