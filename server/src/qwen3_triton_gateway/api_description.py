"""The OpenAPI document: what FastAPI infers, corrected by what it cannot know."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from .auth import is_open

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
    return schema
