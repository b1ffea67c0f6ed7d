"""Wiring: a service to a FastAPI application whose lifespan connects, watches and closes it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ._version import __version__
from .errors import EmbeddingServerError, InvalidRequestError, StartupError
from .middleware import Guard, RequestId
from .responses import error_response
from .routes import native, ops
from .service import EmbeddingService

logger = logging.getLogger(__name__)

# nginx's status for a caller that went away; nobody reads the answer, the log line does.
CLIENT_CLOSED_REQUEST = 499


def create_app(service: EmbeddingService, *, on_fatal: Callable[[str], None]) -> FastAPI:
    """Build the application; `on_fatal` is called where the model turns out not to fit.

    The server listens while the model is still away, and says so on `/health`; a mismatch found
    once it answers cannot be waited out, so it is handed to `on_fatal`, which ends the process.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        running = asyncio.create_task(_run(service, on_fatal))
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await service.close()

    app = FastAPI(
        title="qwen3-triton gateway",
        summary="Right Qwen3-Embedding vectors behind one HTTP call.",
        version=__version__,
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(native.router)
    app.include_router(ops.router)
    app.add_exception_handler(EmbeddingServerError, _render_error)
    app.add_exception_handler(HTTPException, _render_http_error)
    app.add_exception_handler(ClientDisconnect, _render_disconnect)
    app.add_exception_handler(Exception, _render_bug)
    app.add_middleware(Guard, settings=service.settings)
    app.add_middleware(RequestId)
    return app


async def _run(service: EmbeddingService, on_fatal: Callable[[str], None]) -> None:
    try:
        await service.connect()
        await service.watch()
    except StartupError as error:
        on_fatal(error.message)
    except Exception as error:
        logger.exception("The gateway cannot go on.")
        on_fatal(repr(error))


async def _render_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, EmbeddingServerError)
    return error_response(error)


async def _render_http_error(request: Request, error: Exception) -> Response:
    """Render what the router refuses: an unknown path, or a method that a path does not take."""
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path
    msg = f"{method} {path}: {error.detail}. See GET /docs."
    refusal = InvalidRequestError(msg, code="not_found")
    response = error_response(refusal)
    response.status_code = error.status_code
    return response


async def _render_disconnect(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _render_bug(_: Request, __: Exception) -> Response:
    return error_response(EmbeddingServerError("Internal error; see the gateway's log."))
