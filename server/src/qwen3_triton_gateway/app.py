"""The FastAPI application, whose lifespan connects, watches and closes a service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route

from . import __version__
from .api_description import describe
from .auth import ApiKeys, read_api_keys, warn_about_keys
from .compression import Decompression
from .dialects import dialect_of, error_response
from .door import Door
from .errors import INTERNAL_ERROR, EmbeddingServerError, InvalidRequestError, StartupError, shorten
from .middleware import Guard, HeadRequests, RequestLog
from .paths import ForgivingPaths, suggest
from .routes import cohere, native, ollama, openai, ops, pages, rerank, tei
from .service import EmbeddingService
from .tracing import REQUEST_SPANS

logger: logging.Logger = logging.getLogger(__name__)

# nginx's status for a caller that disconnected. No caller reads it; the log line and metrics do.
CLIENT_CLOSED_REQUEST = 499
HTTP_ERROR_CODES = {404: "not_found", 405: "method_not_allowed"}
DIALECTS = (native, openai, tei, ollama, cohere, rerank, ops, pages)
EXPOSED_HEADERS = [
    "retry-after",
    "server-timing",
    "x-compute-tokens",
    "x-embedding-fingerprint",
    "x-embedding-truncated",
    "x-request-id",
    "x-rerank-fingerprint",
    "x-rerank-truncated",
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
    async def lifespan(_: FastAPI) -> AsyncGenerator[dict[str, Any]]:
        running = asyncio.create_task(_run(service, on_fatal))
        try:
            yield {"door": door}  # for the protocol, which refuses before the application
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
        redirect_slashes=False,  # its redirects are absolute, and name the address behind a proxy
        telemetry=REQUEST_SPANS,
        exception_handlers={
            EmbeddingServerError: _render_error,
            HTTPException: _render_http_error,
            ClientDisconnect: _render_disconnect,
            Exception: _render_bug,
        },
    )
    app.state.service = service
    for module in DIALECTS:
        # `include_router` adds a level of routing, which looks for each request's route twice.
        app.router.routes.extend(module.router.routes)
    app.mount(pages.SWAGGER_PATH, pages.swagger_files())
    door = _add_middleware(app, service)
    app.openapi = partial(describe, app)  # FastAPI's documented way to extend it
    return app


def _add_middleware(app: FastAPI, service: EmbeddingService) -> Door:
    """Wrap the application; the middleware that is added last sees a request first.

    Returns:
        What refuses requests before any of it.

    Raises:
        StartupError: The API keys cannot be read, or cannot match.
    """
    settings = service.settings
    keys = read_api_keys(settings)
    warn_about_keys(settings, keys)
    accepted = app.state.api_keys = ApiKeys(keys)
    door = Door(service, accepted)
    app.add_middleware(Decompression, max_body_bytes=settings.max_body_bytes)
    app.add_middleware(
        Guard,
        keys=accepted,
        max_body_bytes=settings.max_body_bytes,
        read_timeout_seconds=min(settings.read_timeout_seconds, settings.timeout_seconds),
        memory=service.memory,
    )
    app.add_middleware(HeadRequests)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            # Every SDK sends headers of its own, and no header gives a page more than its origin.
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_middleware(RequestLog, service=service, routes=app.routes, refusals=door.log)
    app.add_middleware(ForgivingPaths, root_path=settings.root_path)
    return door


async def _run(service: EmbeddingService, on_fatal: Callable[[str], None]) -> None:
    try:
        await service.run()
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
    advice = "See GET /docs."
    if error.status_code == HTTPStatus.NOT_FOUND:
        advice = suggest(request.scope["path"], _served(request.app))
    msg = f"{request.method} {shorten(quote(request.scope['path']))}: {error.detail}. {advice}"
    code = HTTP_ERROR_CODES.get(error.status_code, "invalid_request")
    response = error_response(InvalidRequestError(msg, code=code), dialect_of(request.scope))
    response.status_code = error.status_code
    response.headers.update(error.headers or {})
    methods = _methods_of(request)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and methods:
        response.headers["Allow"] = ", ".join(methods)
    return response


def _served(app: FastAPI) -> list[str]:
    """List what can be called: `POST /embed`."""
    routes = [route for route in app.routes if isinstance(route, Route)]
    return [f"{method} {route.path}" for route in routes for method in route.methods or ()]


def _methods_of(request: Request) -> list[str]:
    """List the methods of a path; the router's own exception has only those of one route."""
    matching = [r for r in request.app.routes if r.matches(request.scope)[0] is not Match.NONE]
    methods = {method for route in matching for method in getattr(route, "methods", ())}
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))


async def _render_disconnect(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _render_bug(request: Request, __: Exception) -> Response:
    error = EmbeddingServerError(INTERNAL_ERROR)
    return error_response(error, dialect_of(request.scope))
