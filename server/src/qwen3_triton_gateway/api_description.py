"""The OpenAPI document: what FastAPI infers, corrected by what it cannot know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from fastapi import FastAPI

from .auth import is_open
from .service import EmbeddingService

UNAUTHORIZED = {
    "description": "The API key is missing or wrong.",
    "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}},
    },
}
# FastAPI adds this status wherever a path has a parameter; a string is always valid.
NEVER_RETURNED = "422"
UNUSED_SCHEMAS = ("HTTPValidationError", "ValidationError")


def describe(app: FastAPI) -> dict[str, Any]:
    """Describe the API, including the key, which `Guard` checks before any route does."""
    schema = FastAPI.openapi(app)
    components = schema["components"]
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for name in UNUSED_SCHEMAS:
        components["schemas"].pop(name, None)
    schema["security"] = [{"key": []}]
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            operation["responses"].pop(NEVER_RETURNED, None)
            if is_open(method.upper(), path):
                operation["security"] = []
            else:
                operation["responses"].setdefault("401", UNAUTHORIZED)
            _limit_dimensions(operation.get("requestBody"), app.state.service)
    return schema


def _limit_dimensions(body: object, service: EmbeddingService) -> None:
    """State the model's hidden size as the maximum, once the model is known."""
    if service.spec is None:
        return
    for schema in _named("dimensions", body):
        for choice in schema["anyOf"]:
            if choice["type"] == "integer":
                choice["maximum"] = service.spec.hidden_size


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
