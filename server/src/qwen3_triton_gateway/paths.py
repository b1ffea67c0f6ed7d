"""Paths as clients send them: close misses are answered, and a 404 names the right path."""

from __future__ import annotations

import re
from difflib import get_close_matches

from starlette.types import ASGIApp, Receive, Scope, Send

EMBEDDINGS = "/v1/embeddings"
# What a base URL with or without its last part makes of a path that an SDK appends.
ALIASES = {
    "/embeddings": EMBEDDINGS,
    "/models": "/v1/models",
    "/v1/embeddings/embeddings": EMBEDDINGS,
    "/v1/embeddings/v1/embeddings": EMBEDDINGS,
    "/v1/embeddings/models": "/v1/models",
    "/v1/embeddings/v1/models": "/v1/models",
    "/api/v1/embeddings": EMBEDDINGS,
    "/openai/v1/embeddings": EMBEDDINGS,
    "/embed/embed": "/embed",
    "/embed/info": "/info",
    "/v1/health": "/v1/health/ready",
    "/v1/api/embed": "/api/embed",
    "/v1/api/tags": "/api/tags",
    "/api/api/embed": "/api/embed",
    "/v1/v2/embed": "/v2/embed",
    "/v2/v2/embed": "/v2/embed",
    "/v1/v2/rerank": "/v2/rerank",
    "/v2/v2/rerank": "/v2/rerank",
    "/api/v1/rerank": "/v1/rerank",
    # As llama.cpp's server has them.
    "/reranking": "/rerank",
    "/v1/reranking": "/v1/rerank",
    "/ranking": "/v1/ranking",
    # As Qwen's hosted reranker has it.
    "/reranks": "/v1/rerank",
    "/v1/reranks": "/v1/rerank",
    "/compatible-api/v1/reranks": "/v1/rerank",
}
SERVED = (
    "Embeddings: POST /embed, /v1/embeddings, /api/embed or /v2/embed. Reranking: POST /rerank, "
    "/v1/rerank, /v2/rerank, /v1/ranking or /score. All paths: GET /docs."
)
AZURE = (
    "Azure's paths are not served. Use the plain OpenAI client with a `base_url` that ends in "
    "/v1, which calls POST /v1/embeddings."
)
# Paths of other servers, with what to do instead.
ELSEWHERE: tuple[tuple[str, str], ...] = (
    (r"/openai/(deployments|v1)/.*", AZURE),
    (
        r"/(v1/)?(chat/completions|completions|responses|messages|generate)|/api/(chat|generate)",
        f"The gateway embeds and reranks; it generates no text. {SERVED}",
    ),
    (
        r"/v2/(models|repository)(/.*)?|/v2(/health/.*)?",
        f"This is the gateway; Triton's own API is at the address in TRITON_URL. {SERVED}",
    ),
    (
        r"/api/(pull|push|create|delete|copy|blobs/.*)",
        "The gateway serves the model that it was started with. GET /api/tags names it.",
    ),
)
# NVIDIA's hosted rerankers have a path for each model.
HOSTED_RERANKER = re.compile(r"^/v1/retrieval/.+/reranking$")
# A base URL that already names the call to which an SDK appends it, with or without its version.
REPEATED_CALL = re.compile(r"^((?:/v[12])?/(rerank|ranking|score))((?:/v[12])?)/\2$")
REPEATED_VERSION = re.compile(r"^(/v1){2,}(?=/)")

# Links of `/docs/` with its slash, where the page's relative links lead below it.
PAGE_FILE = re.compile(r"^/docs/(?=openapi\.json$|swagger/)")


class ForgivingPaths:
    """Middleware that rewrites a path whose meaning is plain, before anything else reads it.

    It removes the prefix that a proxy leaves in front, repeated and trailing slashes, and a `/v1`
    that both the base URL and the client added. There are no redirects: clients do not repeat the
    body of a POST.
    """

    def __init__(self, app: ASGIApp, *, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["path"] = canonical_path(scope["path"], self._root_path)
        await self._app(scope, receive, send)


def canonical_path(path: str, root_path: str = "") -> str:
    """Return the path that a caller means.

    Args:
        path: The path of the request.
        root_path: The gateway's own prefix, which a proxy may have left in front.
    """
    path = re.sub("/{2,}", "/", path)
    if root_path and f"{path}/".startswith(f"{root_path}/"):
        path = path.removeprefix(root_path)
    path = PAGE_FILE.sub("/", REPEATED_VERSION.sub("/v1", path.rstrip("/") or "/"))
    if repeated := REPEATED_CALL.match(path):
        call, name, version = repeated.groups()
        path = f"{version}/{name}" if version else call
    return "/v1/ranking" if HOSTED_RERANKER.match(path) else ALIASES.get(path, path)


def suggest(path: str, served: list[str]) -> str:
    """Write what to do instead of calling a path that does not exist.

    Args:
        path: What was called.
        served: The paths that exist, with their methods: `POST /embed`.
    """
    for pattern, advice in ELSEWHERE:
        if re.fullmatch(pattern, path):
            return advice
    names = {name.partition(" ")[2]: name for name in served}
    close = get_close_matches(path[:100], names, n=1, cutoff=0.7)
    return f"Did you mean {names[close[0]]}? {SERVED}" if close else SERVED
