"""A running gateway: is it ours, is it well, and are its vectors right?"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, cast

from ..plain_http import Reply, UnreachableError, ask
from .checks import Check, absent, failed, ok, skipped, warning
from .known_problems import explain

OK, UNAUTHORIZED, UNAVAILABLE = 200, 401, 503
RUNBOOK_FIELDS = {"status", "triton_status", "triton_model", "tokenizer_path", "embed_output_dim"}
RUNBOOK_TITLE = "Qwen3 Embedding Gateway"
# float32 in every step between Triton and JSON.
NORM_TOLERANCE = 1e-4
# The runbook's gateway gives 0.15 here, a float16 model on a GPU 0.9999.
LEAST_COSINE = 0.995
SAME_COSINE = 0.99999
SHORT, LONG = "tea", "a far longer text about something else entirely " * 12
START = (
    "start it: `qwen3-triton up`, `qwen3-triton serve`, or its container; one that keeps "
    "restarting tells why in `docker logs -n 200 embed-gateway`"
)
RUNBOOK_REMEDY = (
    "replace it by this gateway (docs/switching.md) and build the index anew: in a batch with "
    "longer texts, short ones get vectors of something else"
)
KEY_REMEDY = "give a key of its EMBED_API_KEYS by --api-key, QWEN3_TRITON_API_KEY or EMBED_API_KEYS"

Vector = list[float]


@dataclass(frozen=True, slots=True)
class GatewayFindings:
    """Checks, and what other checks may build on."""

    checks: list[Check]
    dimensions: int | None = None
    triton_urls: tuple[str, ...] = field(default=())
    triton_model: str | None = None


def check_gateway(
    url: str, *, named: bool, api_key: str | None, timeout_seconds: float
) -> GatewayFindings:
    """Ask a gateway for its health and for vectors."""
    try:
        reply = ask(f"{url}/health", timeout_seconds=timeout_seconds)
        if not reply.document.keys() >= RUNBOOK_FIELDS:
            return GatewayFindings([_stranger(url, reply, timeout_seconds)])
        return _look(url, reply, api_key, timeout_seconds)
    except UnreachableError as error:
        return GatewayFindings([absent("gateway", str(error), START, named=named)])


def _stranger(url: str, reply: Reply, timeout_seconds: float) -> Check:
    if ask(f"{url}/v2", timeout_seconds=timeout_seconds).document.get("name") == "triton":
        seen = f"{url} is Triton, not the gateway in front of it"
        return failed("gateway", seen, "the gateway's port is 8101; Triton's 8200 is for it alone")
    api = ask(f"{url}/openapi.json", timeout_seconds=timeout_seconds).document
    if cast("dict[str, Any]", api.get("info") or {}).get("title") == RUNBOOK_TITLE:
        seen = "the runbook's app.py, whose /health fails: its Triton does not answer"
        return failed("gateway", seen, f"bring Triton back (below); and {RUNBOOK_REMEDY}")
    seen = f"something else answers at {url} (status {reply.status}: {reply.excerpt})"
    return failed("gateway", seen, "stop it or choose another --url; the gateway's port is 8101")


def _look(url: str, reply: Reply, api_key: str | None, timeout_seconds: float) -> GatewayFindings:
    health = reply.document
    checks = [check_health(url, reply)]
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    caller = _Caller(url, headers, timeout_seconds)
    dimensions: int | None = None
    if "backend" in health:
        models = caller.get("/v1/models")
        checks.append(check_models(models, has_key=bool(api_key)))
        if models.status == UNAUTHORIZED:
            return _findings(checks, health, None)
    if checks[0].outcome == "ok":
        found, dimensions = check_vectors(caller)
        checks += found
    return _findings(checks, health, dimensions)


def _findings(
    checks: list[Check], health: dict[str, Any], dimensions: int | None
) -> GatewayFindings:
    backends = cast("dict[str, bool]", health.get("backends") or {})
    urls = tuple(name for name in backends if "://" in name)
    return GatewayFindings(checks, dimensions, urls, health.get("triton_model"))


def check_health(url: str, reply: Reply) -> Check:
    """Read `GET /health` of this gateway or of the runbook's."""
    health = reply.document
    reason = str(health.get("reason", ""))
    if health.get("status") == "ok":
        seen = f"well at {url}: {health.get('model') or health.get('triton_model')}"
        hidden, cut = health.get("model_hidden_dim"), health.get("embed_output_dim")
        return ok("gateway", f"{seen}, {cut} of {hidden} dimensions")
    seen = f"degraded: {reason or 'Triton answers ' + str(health.get('triton_status'))}"
    known = explain(reason)
    if "away" in reason or "waiting" in reason or not reason:
        remedy = "bring Triton and its model back (below); the gateway resumes by itself"
    elif "another" in reason or "vector" in reason or "canary" in reason:
        remedy = "the model changed under the gateway: restart it, and index anew"
    else:
        remedy = known[1].remedy if known else "its log says more; `GET /health` has all fields"
    return failed("gateway", seen, remedy)


def check_models(reply: Reply, *, has_key: bool) -> Check:
    """Read `GET /v1/models`, the first call that needs a key where keys are set."""
    if reply.status == UNAUTHORIZED:
        seen = "401: the API key is not one of its keys" if has_key else "401: it wants an API key"
        return failed("API key", seen, KEY_REMEDY)
    entries = cast("list[dict[str, Any]]", reply.document.get("data") or [])
    if reply.status != OK or not entries:
        return failed("models", f"GET /v1/models answers {reply.status}: {reply.excerpt}")
    return ok("models", ", ".join(str(entry.get("id")) for entry in entries))


@dataclass(frozen=True, slots=True)
class _Caller:
    url: str
    headers: dict[str, str]
    timeout_seconds: float

    def get(self, path: str) -> Reply:
        return ask(self.url + path, headers=self.headers, timeout_seconds=self.timeout_seconds)

    def embed(self, *texts: str, **more: str) -> Reply:
        return ask(
            f"{self.url}/embed",
            body={"texts": list(texts), **more},
            headers=self.headers,
            timeout_seconds=self.timeout_seconds,
        )


def check_vectors(caller: _Caller) -> tuple[list[Check], int | None]:
    """Embed a text alone, with a longer one, and as a query, and look at the numbers."""
    alone = caller.embed(SHORT)
    vectors = _vectors(alone)
    if not vectors:
        seen = f"POST /embed answers {alone.status}: {alone.excerpt}"
        known = explain(seen)
        remedy = known[1].remedy if known else "its log and Triton's say why"
        return [failed("embedding", seen, remedy)], None
    vector = vectors[0]
    checks = [check_vector(vector)]
    if "fingerprint" not in alone.document:
        seen = "its answers carry no fingerprint: this is the runbook's app.py"
        checks.append(failed("gateway's kind", seen, RUNBOOK_REMEDY))
    mixed = _vectors(caller.embed(SHORT, LONG))
    checks.append(_batch_check(vector, mixed))
    query = _vectors(caller.embed(SHORT, input_type="query"))
    checks.append(_query_check(vector, query))
    return checks, len(vector)


def check_vector(vector: Vector) -> Check:
    """Say whether a vector is one."""
    norm = math.hypot(*vector)
    seen = f"{len(vector)} dimensions, norm {norm:.6f}"
    if not math.isfinite(norm) or abs(norm - 1) > NORM_TOLERANCE:
        remedy = "the model overflows in float16: export in float32, or set strict layer norms"
        return failed("embedding", f"{seen}, which is not 1", remedy)
    return ok("embedding", seen)


def _batch_check(alone: Vector, mixed: list[Vector]) -> Check:
    name = "batches"
    if not mixed:
        return failed(name, "a request of two texts got no vectors", "its log says why")
    cosine = sum(a * b for a, b in zip(alone, mixed[0], strict=False))
    if cosine < LEAST_COSINE:
        seen = f"a text beside a longer one gets another vector (cosine {cosine:.2f})"
        return failed(name, seen, RUNBOOK_REMEDY)
    return ok(name, f"a text has the same vector beside a longer one (cosine {cosine:.4f})")


def _query_check(document: Vector, query: list[Vector]) -> Check:
    name = "queries"
    if not query:
        return skipped(name, "a query got no vector")
    cosine = sum(a * b for a, b in zip(document, query[0], strict=False))
    if cosine > SAME_COSINE:
        seen = "a query has the vector of a document: the instruction is not added"
        return warning(name, seen, "ask this gateway with input_type=query")
    return ok(name, f"a query differs from a document (cosine {cosine:.2f})")


def _vectors(reply: Reply) -> list[Vector]:
    rows: object = reply.document.get("embeddings") if reply.status == OK else None
    if not isinstance(rows, list):
        return []
    # JSON has no NaN: servers write null for it.
    return [
        [math.nan if value is None else value for value in row]
        for row in cast("list[list[float | None]]", rows)
    ]
