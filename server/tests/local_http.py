"""An HTTP server in the event loop of a test."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from ssl import SSLContext

from aiohttp import web


@asynccontextmanager
async def serving(
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]], ssl: SSLContext | None = None
) -> AsyncGenerator[str]:
    """Serve whatever is requested with a function, and yield the server's host and port."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl).start()
    yield f"127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()
