"""The playground and the API reference, which load nothing from the internet."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from starlette.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

SWAGGER_PATH = "/swagger"
PLAYGROUND = files("qwen3_triton_gateway").joinpath("static/playground.html").read_text("utf-8")


def _hash_of(tag: str) -> str:
    """Digest the page's only inline script or style, so that the browser runs no other."""
    match = re.search(f"<{tag}>(.*?)</{tag}>", PLAYGROUND, re.DOTALL)
    assert match is not None, f"The playground has no <{tag}>."
    digest = hashlib.sha256(match[1].encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


PLAYGROUND_HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_hash_of('script')}; style-src {_hash_of('style')}; "
        "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@router.get("/")
async def playground() -> HTMLResponse:
    """Serve a page that embeds, ranks and compares texts."""
    return HTMLResponse(PLAYGROUND, headers=PLAYGROUND_HEADERS)


@router.get("/docs")
async def docs() -> HTMLResponse:
    """Serve Swagger UI, from files that are installed with the gateway."""
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title="qwen3-triton gateway",
        swagger_js_url=f"{SWAGGER_PATH[1:]}/swagger-ui-bundle.js",
        swagger_css_url=f"{SWAGGER_PATH[1:]}/swagger-ui.css",
        swagger_favicon_url=f"{SWAGGER_PATH[1:]}/favicon-32x32.png",
        swagger_ui_parameters={"tryItOutEnabled": True, "displayRequestDuration": True},
    )


def swagger_files() -> StaticFiles:
    """Serve the files of Swagger UI."""
    return StaticFiles(packages=[("fastapi_swagger", "resources")])
