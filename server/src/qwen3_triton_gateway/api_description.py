"""The OpenAPI document: what FastAPI infers, corrected by what it cannot know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from .auth import is_open
from .routes.exchange import ServiceRoute
from .schemas import describe_body
from .service import EmbeddingService
from .settings import MIN_DIMENSIONS

UNAUTHORIZED: dict[str, Any] = {
    "description": "The API key is missing or wrong.",
    "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}},
    },
}
# FastAPI adds this status wherever a path has a parameter; a string is always valid.
NEVER_RETURNED = "422"
UNUSED_SCHEMAS = ("HTTPValidationError", "ValidationError")


def describe(app: FastAPI) -> dict[str, Any]:
    """Describe the API as this gateway serves it, with the key if it requires one."""
    service: EmbeddingService = app.state.service
    settings = service.settings
    if app.openapi_schema is None:
        app.openapi_schema = _infer_schema(app)
    schema = app.openapi_schema
    for name in UNUSED_SCHEMAS:
        schema["components"]["schemas"].pop(name, None)
    if settings.root_path:
        schema["servers"] = [{"url": settings.root_path}]
    needs_key = bool(settings.api_keys or settings.api_keys_file)
    if needs_key:
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"key": []}]
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            operation["responses"].pop(NEVER_RETURNED, None)
            _describe_key(operation, is_required=needs_key and not is_open(method.upper(), path))
            if needs_key and is_open(method.upper(), path):
                operation["security"] = []
            _limit_numbers(operation, service)
    return schema


def _infer_schema(app: FastAPI) -> dict[str, Any]:
    """Build FastAPI's own document, with JSON schemas in place of what `describe_call` left."""
    routes = [
        route.described() if isinstance(route, ServiceRoute) else route for route in app.routes
    ]
    for route in routes:
        extra: dict[str, Any] = getattr(route, "openapi_extra", None) or {}
        for content in extra.get("requestBody", {}).get("content", {}).values():
            if isinstance(content["schema"], tuple):
                bodies = cast("tuple[type[BaseModel], ...]", content["schema"])
                schemas = [describe_body(body) for body in bodies]
                content["schema"] = schemas[0] if len(schemas) == 1 else {"oneOf": schemas}
    return get_openapi(title=app.title, version=app.version, summary=app.summary, routes=routes)


def _describe_key(operation: dict[str, Any], *, is_required: bool) -> None:
    """List the refusal of a call without a key; `Guard` checks it before any route does."""
    if is_required:
        operation["responses"].setdefault("401", UNAUTHORIZED)
    else:
        operation["responses"].pop("401", None)


def _limit_numbers(operation: dict[str, Any], service: EmbeddingService) -> None:
    """State the maxima that settings and, once it is known, the model set."""
    body, settings = operation.get("requestBody"), service.settings
    max_length = settings.max_length
    if "rerank" in operation.get("tags", ()):
        reranker = service.served_reranker
        max_length = reranker.max_length if reranker else settings.rerank_max_length
    limits = {"truncate_prompt_tokens": max_length}
    spec = service.served_embedder.spec if service.served_embedder else None
    if spec is not None:
        limits |= dict.fromkeys(("dimensions", "output_dimension"), spec.hidden_size)
    for name, limit in limits.items():
        for schema in _named(name, body):
            for choice in _choices(schema):
                if choice.get("type") == "integer" and "minimum" in choice:
                    choice["maximum"] = limit
                elif choice.get("type") == "string":
                    choice["pattern"] = f"^({number_pattern(MIN_DIMENSIONS, limit)})$"


def _choices(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Go through the alternatives of a schema, nested ones included."""
    yield schema
    for choice in schema.get("anyOf", ()):
        yield from _choices(choice)


def number_pattern(low: int, high: int) -> str:
    """Build a regular expression for the whole numbers from `low` to `high` without zeros in front.

    Each alternative is a stretch of numbers that differ in their last digits only: 32-39, 40-99,
    100-999, 1000-1009 and so on.
    """
    parts: list[str] = []
    while low <= high:
        free = 0  # how many last digits may be anything
        while low % 10 ** (free + 1) == 0 and low + 10 ** (free + 1) - 1 <= high:
            free += 1
        head, last = divmod(low // 10**free, 10)
        end = min(9, last + (high - low + 1) // 10**free - 1)
        tail = f"[0-9]{{{free}}}" if free else ""
        parts.append(f"{head or ''}[{last}-{end}]{tail}")
        low += (end - last + 1) * 10**free
    return "|".join(parts)


def _named(name: str, node: object) -> Iterator[dict[str, Any]]:
    """Find the schemas of every property of this name."""
    if isinstance(node, list):
        for item in cast("list[object]", node):
            yield from _named(name, item)
    elif isinstance(node, dict):
        fields = cast("dict[str, Any]", node)
        if isinstance(fields.get("properties"), dict) and name in fields["properties"]:
            yield fields["properties"][name]
        for value in fields.values():
            yield from _named(name, value)
