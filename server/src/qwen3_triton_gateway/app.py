"""The FastAPI application, whose lifespan connects, watches and closes a service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from . import __version__
from .errors import INTERNAL_ERROR, EmbeddingServerError, InvalidRequestError, StartupError
from .middleware import Guard, RequestLog
from .responses import dialect_of, error_response
from .routes import native, openai, ops, pages, tei
from .service import EmbeddingService
from .tracing import REQUEST_SPANS

logger = logging.getLogger(__name__)

# nginx's status for a caller that disconnected. No caller reads it; the log line and metrics do.
CLIENT_CLOSED_REQUEST = 499
EXPOSED_HEADERS = [
    "retry-after",
    "server-timing",
    "x-embedding-fingerprint",
    "x-embedding-truncated",
    "x-request-id",
]


def create_app(service: EmbeddingService, *, on_fatal: Callable[[str], None]) -> FastAPI:
    """Build the application.

    The server listens while the model is still unavailable, and reports that on `/health`. A
    mismatch that is found once the model answers does not go away by waiting.

    Args:
        service: What the routes use.
        on_fatal: Called with the reason if the model and the settings do not match; it should end
            the process.
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
        summary="Qwen3-Embedding vectors that match the reference implementation, by HTTP.",
        version=__version__,
        lifespan=lifespan,
        # FastAPI's pages load scripts from the internet; `pages` serves its own.
        docs_url=None,
        redoc_url=None,
        telemetry=REQUEST_SPANS,
        exception_handlers={
            EmbeddingServerError: _render_error,
            HTTPException: _render_http_error,
            ClientDisconnect: _render_disconnect,
            Exception: _render_bug,
        },
    )
    app.state.service = service
    for routes in (native, openai, tei, ops, pages):
        app.include_router(routes.router)
    app.mount(pages.SWAGGER_PATH, pages.swagger_files())
    _add_middleware(app, service)
    app.openapi = partial(_describe_with_key, app)  # FastAPI's documented way to extend it
    return app


def _describe_with_key(app: FastAPI) -> dict[str, Any]:
    """Add the API key to the OpenAPI document: `Guard` checks it before any route does."""
    schema = FastAPI.openapi(app)
    schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    schema["security"] = [{"key": []}]
    return schema


def _add_middleware(app: FastAPI, service: EmbeddingService) -> None:
    """Wrap the application; the middleware that is added last sees a request first."""
    settings = service.settings
    try:
        app.add_middleware(
            Guard, keys=settings.all_api_keys(), max_body_bytes=settings.max_body_bytes
        )
    except ValueError as error:
        raise StartupError(str(error)) from error
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id", "traceparent"],
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_middleware(RequestLog, service=service)


async def _run(service: EmbeddingService, on_fatal: Callable[[str], None]) -> None:
    try:
        await service.connect()
        await service.watch()
    except StartupError as error:
        on_fatal(error.message)
    except Exception as error:
        logger.exception("The gateway cannot continue.")
        on_fatal(repr(error))


async def _render_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EmbeddingServerError)
    return error_response(error, dialect_of(request.scope))


async def _render_http_error(request: Request, error: Exception) -> Response:
    """Render a refusal of the router: an unknown path, or a method that a path does not allow."""
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path
    msg = f"{method} {path}: {error.detail}. See GET /docs."
    refusal = InvalidRequestError(msg, code="not_found")
    response = error_response(refusal, dialect_of(request.scope))
    response.status_code = error.status_code
    return response


async def _render_disconnect(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _render_bug(request: Request, __: Exception) -> Response:
    error = EmbeddingServerError(INTERNAL_ERROR)
    return error_response(error, dialect_of(request.scope))
