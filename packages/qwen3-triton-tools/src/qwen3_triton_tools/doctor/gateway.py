"""A running gateway: its kind, health and key, and its answers as `model verify` checks them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, cast

from ..errors import HttpError, UnreachableError
from ..findings import Finding, failure, missing, ok
from ..http import Reply, request
from ..verify import QUICK_CHECKS, QUICK_RERANK_CHECKS, verify, verify_reranker
from ..verify.probe import GatewayClient
from .error_patterns import find_known_error

RUNBOOK_FIELDS = {"status", "triton_status", "triton_model", "tokenizer_path", "embed_output_dim"}
# What `/health` shows without a valid key if the gateway requires one.
STRANGERS_FIELDS = {"status"}
RUNBOOK_TITLE = "Qwen3 Embedding Gateway"
START = (
    "Start it: `qwen3-triton up`, `qwen3-triton serve`, or its container; for one that keeps "
    "restarting, see `docker logs -n 200 embed-gateway`."
)
RUNBOOK_REMEDY = (
    "Replace it with this gateway (docs/switching.md) and re-create the index: in a batch with "
    "longer texts, it returns wrong vectors for short ones."
)
KEY_REMEDY = (
    "Pass one of its EMBED_API_KEYS with --api-key, QWEN3_TRITON_API_KEY or EMBED_API_KEYS."
)


@dataclass(frozen=True, slots=True)
class GatewayReport:
    """Findings, and what a gateway reports about itself for other checks.

    Attributes:
        dimensions: Of its vectors; None if it has no embedding model, or does not answer.
        triton_model: The name of its embedding model in Triton; likewise for `rerank_model`.
    """

    findings: list[Finding]
    dimensions: int | None = None
    triton_urls: tuple[str, ...] = ()
    triton_model: str | None = None
    rerank_model: str | None = None


def check_gateway(
    url: str, *, is_required: bool, api_key: str | None, timeout_seconds: float
) -> GatewayReport:
    """Check a gateway's health, its vectors, and its scores if it serves a reranker."""
    try:
        headers = _headers(api_key)
        reply = request(f"{url}/health", headers=headers, timeout_seconds=timeout_seconds)
        if reply.document.keys() == STRANGERS_FIELDS:
            models = request(f"{url}/v1/models", headers=headers, timeout_seconds=timeout_seconds)
            if models.status == HTTPStatus.UNAUTHORIZED:
                key = check_models(models, has_key=bool(api_key))
                return GatewayReport([check_health(url, reply), key])
        if not reply.document.keys() >= RUNBOOK_FIELDS:
            return GatewayReport([_identify_other_server(url, reply, timeout_seconds)])
        return _check(url, reply, api_key, timeout_seconds)
    except UnreachableError as error:
        return GatewayReport([missing("gateway", str(error), START, is_required=is_required)])


def _headers(api_key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def _identify_other_server(url: str, reply: Reply, timeout_seconds: float) -> Finding:
    if request(f"{url}/v2", timeout_seconds=timeout_seconds).document.get("name") == "triton":
        message = f"{url} is Triton, not the gateway in front of it."
        return failure("gateway", message, "Use the gateway's port, 8101; 8200 is Triton's.")
    api = request(f"{url}/openapi.json", timeout_seconds=timeout_seconds).document
    if cast("dict[str, Any]", api.get("info") or {}).get("title") == RUNBOOK_TITLE:
        message = "This is the runbook's app.py, and its /health fails: its Triton does not answer."
        return failure("gateway", message, f"Restart Triton (below). {RUNBOOK_REMEDY}")
    message = f"Another server answers at {url} (status {reply.status}: {reply.excerpt})."
    return failure("gateway", message, "Stop it or choose another --url; the default port is 8101.")


def _check(url: str, reply: Reply, api_key: str | None, timeout_seconds: float) -> GatewayReport:
    health = reply.document
    findings = [check_health(url, reply)]
    is_ours = "backend" in health
    may_ask = findings[0].severity == "ok"
    dimensions: object = health.get("embed_output_dim")
    embeds = dimensions != 0 or not is_ours
    reranker = _reranker_of(health, embeds=embeds)
    if reranker:
        findings.append(check_reranker(reranker))
    if is_ours:
        models = request(
            f"{url}/v1/models", headers=_headers(api_key), timeout_seconds=timeout_seconds
        )
        findings.append(check_models(models, has_key=bool(api_key)))
        may_ask = may_ask and models.status != HTTPStatus.UNAUTHORIZED
    else:
        findings.append(failure("implementation", "This is the runbook's app.py.", RUNBOOK_REMEDY))
    if may_ask and embeds:
        findings += check_vectors(url, api_key, timeout_seconds)
    if may_ask and reranker:
        findings += check_scores(url, api_key, timeout_seconds)
    backends: dict[str, bool] = {}
    for model in (health, reranker):
        backends |= cast("dict[str, bool]", model.get("backends") or {})
    return GatewayReport(
        findings,
        dimensions if isinstance(dimensions, int) and embeds else None,
        tuple(name for name in backends if "://" in name),
        health.get("triton_model") if embeds else None,
        reranker.get("triton_model"),
    )


def _reranker_of(health: dict[str, Any], *, embeds: bool) -> dict[str, Any]:
    """Return what `/health` reports of a reranker: next to an embedding model, or alone."""
    return cast("dict[str, Any]", health.get("reranker") or {}) if embeds else health


def check_health(url: str, reply: Reply) -> Finding:
    """Judge `GET /health` of this gateway or the runbook's."""
    health = reply.document
    if health.keys() == STRANGERS_FIELDS:
        if health["status"] == "ok":
            return ok("gateway", f"healthy at {url}; it shows no more without a key")
        return failure("gateway", "degraded; the reason needs a key", KEY_REMEDY)
    reason = str(health.get("reason", ""))
    if health.get("status") == "ok":
        model = health.get("model") or health.get("triton_model")
        size, dimensions = health.get("model_hidden_dim"), health.get("embed_output_dim")
        if dimensions == 0:
            return ok("gateway", f"healthy at {url}: {model}, a reranker only")
        return ok("gateway", f"healthy at {url}: {model}, {dimensions} of {size} dimensions")
    message = f"degraded: {reason or 'Triton answers ' + str(health.get('triton_status'))}"
    match = find_known_error(reason)
    if "away" in reason or "waiting" in reason or not reason:
        remedy = "Restart Triton and its model (below); the gateway resumes on its own."
    elif "another" in reason or "vector" in reason or "canary" in reason:
        remedy = "The model behind the gateway has changed: restart the gateway, and re-embed."
    else:
        remedy = match[1].remedy if match else "See its log; `GET /health` has all fields."
    return failure("gateway", message, remedy)


def check_reranker(reranker: dict[str, Any]) -> Finding:
    """Judge what `GET /health` reports of the reranker."""
    name, where = reranker.get("model"), reranker.get("backend")
    if reranker.get("ready"):
        return ok("reranker", f"{name}, {where}")
    message = f"{name} is not ready: {reranker.get('reason')}"
    return failure("reranker", message, "Check RERANK_TRITON_MODEL, and that model in Triton.")


def check_models(reply: Reply, *, has_key: bool) -> Finding:
    """Judge `GET /v1/models`, the first call that needs a key if there are any."""
    if reply.status == HTTPStatus.UNAUTHORIZED:
        problem = "The API key is not one of its keys" if has_key else "It requires an API key"
        return failure("API key", f"{problem} (status 401).", KEY_REMEDY)
    entries = cast("list[dict[str, Any]]", reply.document.get("data") or [])
    if reply.status != HTTPStatus.OK or not entries:
        return failure("models", f"GET /v1/models answers {reply.status}: {reply.excerpt}")
    return ok("models", ", ".join(str(entry.get("id")) for entry in entries))


def check_vectors(url: str, api_key: str | None, timeout_seconds: float) -> list[Finding]:
    """Run the quick checks of `model verify`."""
    client = GatewayClient(url, api_key=api_key, timeout_seconds=timeout_seconds)
    try:
        return list(verify(client, checks=QUICK_CHECKS).findings)
    except HttpError as error:
        return [_explain("embedding", error)]


def check_scores(url: str, api_key: str | None, timeout_seconds: float) -> list[Finding]:
    """Run the quick checks of `model verify` for rerankers."""
    client = GatewayClient(url, api_key=api_key, timeout_seconds=timeout_seconds)
    try:
        verified = verify_reranker(client, has_card=False, checks=QUICK_RERANK_CHECKS)
    except HttpError as error:
        return [_explain("reranking", error)]
    return [replace(finding, name=f"reranker: {finding.name}") for finding in verified.findings]


def _explain(name: str, error: HttpError) -> Finding:
    match = find_known_error(str(error))
    remedy = match[1].remedy if match else "See its log and Triton's."
    return failure(name, str(error), remedy)
