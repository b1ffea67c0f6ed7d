"""Connections to the gateway: the only file that touches the network."""

from __future__ import annotations

import asyncio
import functools
import os
import ssl
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import httpx2

from .errors import EmbeddingConnectionError, EmbeddingTimeoutError
from .exchange import Tries
from .settings import ClientSettings
from .wire import WireRequest, WireResponse, proxy_hint

# A gateway that is running accepts a connection at once, however busy its model is.
CONNECT_SECONDS = 10.0

Resource = TypeVar("Resource")


class SyncSender:
    """A pool of connections for any number of threads, with a bound on requests in flight."""

    def __init__(self, settings: ClientSettings, http_client: httpx2.Client | None) -> None:
        _check_client(http_client, httpx2.Client)
        self._settings = settings
        self._user_client = http_client
        self._finalizer: weakref.finalize[[], SyncSender] | None = None
        self.reset_after_fork()
        _reset_in_forked_children(self)

    def reset_after_fork(self) -> None:
        """Drop the connections and locks, which a forked child must not share with its parent."""
        if self._finalizer is not None:
            self._finalizer.detach()  # closing them here would end the parent's TLS sessions
        self._finalizer = None
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(self._settings.max_concurrency)
        self._http: httpx2.Client | None = None

    def send(self, request: WireRequest, tries: Tries) -> WireResponse:
        """Send a request once fewer than `max_concurrency` requests are in flight.

        Raises:
            EmbeddingConnectionError: No complete response arrived in time.
        """
        with self._slots, _mapped_errors(self._settings.base_url), tries.one() as seconds:
            end = time.monotonic() + seconds
            with self._client().stream(
                request.method,
                request.url,
                content=request.content,
                headers=request.headers,
                timeout=_timeout(seconds),
            ) as response:
                chunks: list[bytes] = []
                for chunk in response.iter_bytes():
                    chunks.append(chunk)
                    # httpx2's own read timeout limits the wait for each chunk, not for all of them.
                    if time.monotonic() > end:
                        raise httpx2.ReadTimeout(f"the response took more than {seconds:g} s")
        return _wire_response(response, b"".join(chunks))

    def close(self) -> None:
        """Close the connections; a later `send` opens new ones. A user's own client stays open."""
        with self._lock:
            if self._finalizer is not None:
                self._finalizer()
            self._http = self._finalizer = None

    def _client(self) -> httpx2.Client:
        if self._user_client is not None:
            return self._user_client
        with self._lock:
            if self._http is None:
                with _mapped_set_up():
                    self._http = httpx2.Client(limits=_limits(self._settings), verify=_tls())
                self._finalizer = weakref.finalize(self, self._http.close)
            return self._http


class AsyncSender:
    """A pool of connections for each event loop, with a bound on requests in flight in each."""

    def __init__(self, settings: ClientSettings, http_client: httpx2.AsyncClient | None) -> None:
        _check_client(http_client, httpx2.AsyncClient)
        self._settings = settings

        def create_pool() -> _AsyncPool:
            with _mapped_set_up():
                http = http_client or httpx2.AsyncClient(limits=_limits(settings), verify=_tls())
            return _AsyncPool(http, asyncio.Semaphore(settings.max_concurrency))

        async def close_pool(pool: _AsyncPool) -> None:
            if http_client is None:
                await pool.http.aclose()

        self._pools = PerEventLoop(create_pool, close_pool)

    async def send(self, request: WireRequest, tries: Tries) -> WireResponse:
        """Send a request once fewer than `max_concurrency` of this event loop are in flight.

        Raises:
            EmbeddingConnectionError: No complete response arrived in time.
        """
        pool = await self._pools.get()
        async with pool.slots:
            with _mapped_errors(self._settings.base_url), tries.one() as seconds:
                async with asyncio.timeout(seconds):
                    response = await pool.http.request(
                        request.method,
                        request.url,
                        content=request.content,
                        headers=request.headers,
                        timeout=_timeout(seconds),
                    )
        return _wire_response(response, response.content)

    async def aclose(self) -> None:
        """Close the connections of the running event loop; a later `send` opens new ones."""
        await self._pools.aclose()


@dataclass(frozen=True, slots=True)
class _AsyncPool:
    http: httpx2.AsyncClient
    slots: asyncio.Semaphore


class PerEventLoop(Generic[Resource]):
    """A resource that cannot be shared between event loops, such as a pool of connections.

    Each event loop opens its own on first use. It is closed by `aclose()`, when the loop shuts down
    its asynchronous generators (as `asyncio.run` does before it returns), or when this object is
    garbage-collected, whichever comes first. So an owner that is never closed, such as a
    framework's retriever, leaves nothing open. It is safe to use from several threads and after a
    fork.

    Examples:
        >>> pools = PerEventLoop(create_pool, close_pool)
        >>> pool = await pools.get()
    """

    def __init__(
        self, create: Callable[[], Resource], close: Callable[[Resource], Awaitable[None]]
    ) -> None:
        """Store how to create and close the resource. Nothing is created before the first `get`.

        Args:
            create: Called in the event loop that needs the resource.
            close: Awaited in the same event loop. It must not refer to the object that owns this
                one, which could then never be collected.
        """
        self._create = create
        self._close = close
        self._states: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopState[Resource]]
        self._states = weakref.WeakKeyDictionary()
        self.reset_after_fork()
        _reset_in_forked_children(self)

    async def get(self) -> Resource:
        """Return the resource of the running event loop; open it if it is not open."""
        loop = asyncio.get_running_loop()
        with self._lock:
            state = self._states.get(loop)
            if state is not None and state.is_open:
                return state.resource
            for ended in [other for other in self._states if other.is_closed()]:
                self._states.pop(ended).finalizer.detach()
            state = self._states[loop] = self._open_in(loop)
        # Runs up to the `yield` without suspending, and registers the generator with the loop.
        await anext(state.closer)
        return state.resource

    def is_current(self, resource: Resource) -> bool:
        """Return whether the resource is the running event loop's, and still open."""
        state = self._states.get(asyncio.get_running_loop())
        return state is not None and state.is_open and state.resource is resource

    async def aclose(self) -> None:
        """Close the resource of the running event loop; a later `get` opens another."""
        with self._lock:
            state = self._states.pop(asyncio.get_running_loop(), None)
        if state is not None:
            state.finalizer.detach()
            await state.closer.aclose()

    def reset_after_fork(self) -> None:
        """Replace a lock that another thread may have held at the moment of the fork.

        The resources belong to the parent's event loops, which do not run in the child.
        """
        for state in self._states.values():
            state.finalizer.detach()
        self._lock = threading.Lock()

    def _open_in(self, loop: asyncio.AbstractEventLoop) -> _LoopState[Resource]:
        resource = self._create()
        closing = _Closing(resource, self._close)
        closer = _closed_with_loop(closing)
        finalizer = weakref.finalize(self, _close_in, loop, closer, closing)
        finalizer.atexit = False
        return _LoopState(resource, closing, closer, finalizer)


class _Closing(Generic[Resource]):
    """The closing of a resource, which happens once, whoever asks for it.

    Both the end of the event loop and the garbage collector may ask, at the same time. The second
    waits for the first: the loop must not be closed while connections are still being closed.
    """

    def __init__(self, resource: Resource, close: Callable[[Resource], Awaitable[None]]) -> None:
        self._resource = resource
        self._close = close
        self._closed: asyncio.Future[None] | None = None

    @property
    def has_begun(self) -> bool:
        return self._closed is not None

    async def run(self) -> None:
        if self._closed is not None:
            await self._closed
            return
        self._closed = asyncio.get_running_loop().create_future()
        try:
            await self._close(self._resource)
        finally:
            self._closed.set_result(None)


@dataclass(frozen=True, slots=True)
class _LoopState(Generic[Resource]):
    resource: Resource
    closing: _Closing[Resource]
    closer: AsyncGenerator[None]
    finalizer: weakref.finalize[..., Any]

    @property
    def is_open(self) -> bool:
        return not self.closing.has_begun


async def _closed_with_loop(closing: _Closing[Any]) -> AsyncGenerator[None]:
    """Close a resource when the event loop shuts down its asynchronous generators."""
    try:
        yield
    finally:
        await closing.run()


def _close_in(
    loop: asyncio.AbstractEventLoop, closer: AsyncGenerator[None], closing: _Closing[Any]
) -> None:
    """Close a resource whose owner was garbage-collected, perhaps by another thread."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(_close_uncollected, closer, closing)


def _close_uncollected(closer: AsyncGenerator[None], closing: _Closing[Any]) -> None:
    def finish(_: asyncio.Task[None]) -> None:
        # Runs to its end without suspending, since the resource is closed. RuntimeError: the loop
        # is shutting down and is finishing the generator already.
        with suppress(StopIteration, RuntimeError):
            closer.aclose().send(None)

    task = _UncancelableTask(closing.run(), loop=asyncio.get_running_loop())
    # The callback keeps a reference to `closer`: a loop that shuts down waits for the generators
    # that are still alive, and through this one for the task.
    task.add_done_callback(finish)


class _UncancelableTask(asyncio.Task[None]):
    """A task that outlasts the end of the main task.

    `asyncio.run` then cancels all tasks and waits for them. Canceled halfway, an httpx2 client is
    marked as closed, but some of its connections are not.
    """

    def cancel(self, msg: Any | None = None) -> bool:
        return False


class _ForkAware(Protocol):
    def reset_after_fork(self) -> None: ...


_fork_aware: weakref.WeakSet[_ForkAware] = weakref.WeakSet()


def _reset_in_forked_children(thing: _ForkAware) -> None:
    """Have `reset_after_fork` called in every process that is forked from now on."""
    _fork_aware.add(thing)


def _reset_all() -> None:
    for thing in _fork_aware:
        thing.reset_after_fork()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_reset_all)


def _limits(settings: ClientSettings) -> httpx2.Limits:
    return httpx2.Limits(
        max_connections=settings.max_concurrency,
        max_keepalive_connections=settings.max_concurrency,
    )


def _check_client(client: object, kind: type[httpx2.Client | httpx2.AsyncClient]) -> None:
    """Refuse a client of httpx, whose errors and timeouts are other classes."""
    if client is not None and not isinstance(client, kind):
        name = f"{type(client).__module__.partition('.')[0]}.{type(client).__qualname__}"
        msg = f"`http_client` must be an httpx2.{kind.__name__}, not {name}."
        raise TypeError(msg)


def _timeout(seconds: float) -> httpx2.Timeout:
    return httpx2.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS))


@functools.cache
def _tls() -> ssl.SSLContext:
    """Load the machine's certificates once: that takes longer than a query."""
    return httpx2.create_ssl_context()


def _wire_response(response: httpx2.Response, content: bytes) -> WireResponse:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return WireResponse(response.status_code, headers, content)


@contextmanager
def _mapped_set_up() -> Generator[None]:
    """Explain what httpx2 cannot use of the environment, whatever the address is."""
    try:
        yield
    except (ImportError, OSError, ValueError) as error:
        raise _cannot_be_opened(str(error).removesuffix(".")) from error
    except httpx2.InvalidURL:
        # Its message may contain a part of the password.
        raise _cannot_be_opened("a proxy's address is not a URL") from None


def _cannot_be_opened(reason: str) -> EmbeddingConnectionError:
    msg = (
        f"No connection can be opened: {reason}. Check the proxies and certificates in the "
        "environment: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE and SSL_CERT_DIR."
    )
    return EmbeddingConnectionError(msg)


@contextmanager
def _mapped_errors(base_url: str) -> Generator[None]:
    try:
        yield
    except (httpx2.TimeoutException, TimeoutError) as error:
        if isinstance(error, EmbeddingTimeoutError):
            raise
        msg = f"The gateway at {base_url} did not answer in time ({type(error).__name__})."
        msg += proxy_hint(base_url)
        raise EmbeddingTimeoutError(msg, retryable=True) from error
    except (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError) as error:
        msg = f"The request to the gateway at {base_url} cannot be sent: {error}."
        raise EmbeddingConnectionError(msg) from error
    except httpx2.ConnectError as error:
        msg = (
            f"Cannot reach the gateway at {base_url}: {error}. "
            f"Check that it is running and that `base_url` is correct.{proxy_hint(base_url)}"
        )
        raise EmbeddingConnectionError(msg, retryable=True) from error
    except httpx2.RequestError as error:
        reason = error if str(error) else type(error).__name__
        msg = f"The connection to the gateway at {base_url} was interrupted: {reason}."
        msg += proxy_hint(base_url)
        raise EmbeddingConnectionError(msg, retryable=True) from error
