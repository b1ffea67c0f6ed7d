"""What a Triton says about itself, over HTTP or gRPC."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, cast

from qwen3_triton_gateway.backends.triton import TritonAddress

from ..plain_http import UnreachableError, ask

OK = 200


@dataclass(frozen=True, slots=True)
class ModelState:
    """A line of the repository index; `reason` says why a model is not ready."""

    name: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class TritonFacts:
    """`version` is empty where what answers is no Triton; `index` is None where it is closed."""

    version: str
    ready: bool
    index: tuple[ModelState, ...] | None


def ask_triton(address: TritonAddress, timeout_seconds: float) -> TritonFacts:
    """Ask for version, readiness and models.

    Raises:
        UnreachableError: nobody answers.
    """
    if address.scheme.startswith("grpc"):
        return _ask_grpc(address, timeout_seconds)
    return _ask_http(str(address), timeout_seconds)


def _ask_http(url: str, timeout_seconds: float) -> TritonFacts:
    metadata = ask(f"{url}/v2", timeout_seconds=timeout_seconds).document
    if "version" not in metadata or "extensions" not in metadata:
        return TritonFacts("", ready=False, index=None)
    ready = ask(f"{url}/v2/health/ready", timeout_seconds=timeout_seconds).status == OK
    index = ask(f"{url}/v2/repository/index", body={}, timeout_seconds=timeout_seconds)
    return TritonFacts(
        str(metadata["version"]), ready, _states(index.parsed) if index.status == OK else None
    )


def _ask_grpc(address: TritonAddress, timeout_seconds: float) -> TritonFacts:
    import tritonclient.grpc as grpc_protocol
    from tritonclient.utils import InferenceServerException

    client: Any = grpc_protocol.InferenceServerClient(address.netloc, ssl=address.scheme == "grpcs")
    limit = {"client_timeout": timeout_seconds}
    try:
        metadata = client.get_server_metadata(as_json=True, **limit)
        ready = bool(client.is_server_ready(**limit))
        try:
            index = client.get_model_repository_index(as_json=True, **limit)
        except InferenceServerException:
            return TritonFacts(metadata.get("version", ""), ready, None)
    except InferenceServerException as error:
        said = " ".join(str(error).split())
        reason = re.search(r"(?:Failed|failed) to connect[^;\"]*|Deadline Exceeded", said)
        msg = f"no gRPC answer from {address.netloc} ({reason[0] if reason else said[:120]})"
        raise UnreachableError(msg) from None
    finally:
        client.close()
    return TritonFacts(metadata.get("version", ""), ready, _states(index.get("models", [])))


def _states(models: object) -> tuple[ModelState, ...] | None:
    if not isinstance(models, list):
        return None
    entries = cast("list[dict[str, Any]]", models)
    return tuple(
        ModelState(
            str(entry.get("name")),
            str(entry.get("version", "")),
            str(entry.get("state", "")),
            str(entry.get("reason", "")),
        )
        for entry in entries
    )
