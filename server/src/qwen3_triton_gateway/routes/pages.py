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

router: APIRouter = APIRouter(tags=["pages"], default_response_class=HTMLResponse)

SWAGGER_PATH = "/swagger"
PLAYGROUND = files("qwen3_triton_gateway").joinpath("static/playground.html").read_text("utf-8")


_SWAGGER = get_swagger_ui_html(
    openapi_url="openapi.json",
    title="qwen3-triton gateway",
    swagger_js_url=f"{SWAGGER_PATH[1:]}/swagger-ui-bundle.js",
    swagger_css_url=f"{SWAGGER_PATH[1:]}/swagger-ui.css",
    swagger_favicon_url=f"{SWAGGER_PATH[1:]}/favicon-32x32.png",
    swagger_ui_parameters={"tryItOutEnabled": True, "displayRequestDuration": True},
)


def _headers(page: str, *, scripts: str, styles: str) -> dict[str, str]:
    """Build the headers of a page that runs its own inline script and no other.

    Args:
        page: The page's HTML.
        scripts: Further sources of scripts.
        styles: Sources of styles.
    """
    sources = f"{_hash_of('script', page)} {scripts}".strip()
    return {
        "Content-Security-Policy": (
            f"default-src 'none'; script-src {sources}; style-src {styles}; "
            "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        ),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def _hash_of(tag: str, page: str) -> str:
    """Digest the page's only inline script or style, so that the browser runs no other."""
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


PLAYGROUND_HEADERS = _headers(PLAYGROUND, scripts="", styles=_hash_of("style", PLAYGROUND))
REFERENCE_PAGE = bytes(_SWAGGER.body).decode()
# Swagger UI sets inline styles while it runs, so those cannot be limited to a hash.
REFERENCE_HEADERS = _headers(REFERENCE_PAGE, scripts="'self'", styles="'self' 'unsafe-inline'")


@router.get("/")
async def playground() -> HTMLResponse:
    """Serve a page that embeds, ranks and compares texts."""
    return HTMLResponse(PLAYGROUND, headers=PLAYGROUND_HEADERS)


@router.get("/docs")
async def docs() -> HTMLResponse:
    """Serve Swagger UI, from files that are installed with the gateway."""
    return HTMLResponse(REFERENCE_PAGE, headers=REFERENCE_HEADERS)


def swagger_files() -> StaticFiles:
    """Serve the files of Swagger UI."""
    return StaticFiles(packages=[("fastapi_swagger", "resources")])
