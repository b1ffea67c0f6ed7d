"""A running Triton: version, models, interface, a batch through the model, and its ports."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

import numpy as np

from qwen3_triton_gateway.backends.address import GRPC_OPTIONS, TritonAddress
from qwen3_triton_gateway.backends.base import ModelSpec
from qwen3_triton_gateway.backends.interface import LOGITS_OUTPUT
from qwen3_triton_gateway.backends.triton import TritonBackend
from qwen3_triton_gateway.cli import flag_name
from qwen3_triton_gateway.errors import EmbeddingServerError, StartupError
from qwen3_triton_gateway.rerank_prompt import ANSWERS
from qwen3_triton_gateway.tensors import HiddenStates, PooledStates, TokenBatch

from ..errors import UnreachableError
from ..findings import Finding, failure, missing, ok, skipped, warning
from ..http import accepts_connections, host_and_port, is_local, request
from .error_patterns import find_known_error
from .machine import run_program

# The shape and the numbers are checked, not the meaning, so any tokens will do. Two rows of
# different lengths, padded as the gateway pads them.
PROBE = TokenBatch(
    np.array([[1, 2, 3], [1, 0, 0]], dtype=np.int64),
    np.array([[1, 1, 1], [1, 0, 0]], dtype=np.int64),
)
START = (
    "Start it (`docker start triton`, or `qwen3-triton triton` without Docker). If it ends again "
    "at once, a model does not load: see `docker logs -n 300 triton`."
)
PORT_PATHS = {"gateway": "/openapi.json", "http": "/v2", "metrics": "/metrics"}
PORT_MARKS = {"gateway": b'"/embed"', "http": b'"triton"', "metrics": b"nv_"}
PORT_TIMEOUT_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class ModelState:
    """An entry of the repository index; `reason` says why a model is not ready."""

    name: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class ServerState:
    """What a Triton reports about itself.

    Attributes:
        version: Empty if the server is not Triton.
        index: The models; None if the index is closed.
    """

    version: str
    is_ready: bool
    index: tuple[ModelState, ...] | None


def check_triton(
    url: str,
    model: str | None,
    *,
    rerank_model: str | None = None,
    headers: Mapping[str, str],
    ca_file: Path | None,
    is_required: bool,
    is_model_certain: bool,
    output_dim: int,
    timeout_seconds: float,
) -> list[Finding]:
    """Check one Triton and the models that the gateway needs from it.

    Args:
        url: Its address, as in TRITON_URL.
        model: The name of the embedding model; None if only a reranker is needed.
        rerank_model: The name of the reranker, if one is needed.
        headers: What every request carries, as in EMBED_TRITON_HEADERS.
        ca_file: The certificates to trust, as in EMBED_TRITON_CA_FILE.
        is_required: Whether its absence is a failure.
        is_model_certain: Whether `model` was chosen; if not, a Triton's only model is checked.
        output_dim: Dimensions of the vectors.
        timeout_seconds: Limit of each request.
    """
    try:
        address = TritonAddress.parse(url).with_options(headers, ca_file)
        state = _server_state(address, timeout_seconds)
    except StartupError as error:
        remedy = "Correct it; `qwen3-triton serve` would not start with it."
        return [failure("Triton", error.message, remedy)]
    except UnreachableError as error:
        return [missing("Triton", str(error), START, is_required=is_required)]
    if not state.version:
        message = f"The server at {address} is not Triton."
        remedy = "Triton's HTTP port is 8200 in this stack, 8000 inside its container."
        return [failure("Triton", message, remedy)]
    if not is_model_certain and rerank_model is None:
        model = _only_model(state) or model
    findings = [_check_readiness(address, state), ok("Triton version", state.version)]
    needed = ((model, "TRITON_MODEL", output_dim), (rerank_model, "RERANK_TRITON_MODEL", 0))
    for name, setting, dimensions in needed:
        if name is None:
            continue
        findings.append(check_model_state(name, state, setting))
        if findings[-1].severity != "error":
            findings += asyncio.run(_try_model(address, name, dimensions, timeout_seconds))
    if not address.is_grpc:
        findings.append(_check_grpc_port(address))
    return findings


def check_model_state(model: str, state: ServerState, setting: str = "TRITON_MODEL") -> Finding:
    """Report whether the model that a setting names is loaded, or why it is not."""
    name = f"model {model}"
    if state.index is None:
        return skipped(name, "the repository index of this Triton is closed")
    entries = [entry for entry in state.index if entry.name == model]
    if not entries:
        others = ", ".join(sorted({entry.name for entry in state.index})) or "none"
        remedy = f"Set {setting} ({flag_name(setting)}) to one of these, or add the model."
        return failure(name, f"Triton does not have it. Its models: {others}.", remedy)
    broken = [entry for entry in entries if entry.state != "READY"]
    if not broken:
        return ok(name, f"READY, version {', '.join(entry.version for entry in entries)}")
    reason = broken[0].reason
    # The Python backend appends the position in its own files.
    words = " ".join(re.split(r"\n\s*At:\s*\n", reason)[0].split())[:600]
    message = f"{broken[0].state or 'not loaded'}: {words or 'Triton reports no reason'}"
    match = find_known_error(reason)
    if match is None:
        remedy = "See `docker logs -n 300 triton`, or check the files with --model-repository DIR."
        return failure(name, message, remedy)
    return Finding(name, "error", message, cause=match[1].cause, remedy=match[1].remedy)


def check_ports(ports: dict[int, str]) -> list[Finding]:
    """Report for ports of this machine whether they are free, or which program holds them.

    Args:
        ports: The service that belongs on each port.
    """
    return [_check_port(port, service) for port, service in ports.items()]


def _server_state(address: TritonAddress, timeout_seconds: float) -> ServerState:
    """Request version, readiness and models.

    Raises:
        UnreachableError: Nothing answers there.
    """
    if address.is_grpc:
        return _server_state_by_grpc(address, timeout_seconds)
    url = str(address)
    options = _http_options(address, timeout_seconds)
    metadata = request(f"{url}/v2", **options).document
    if "version" not in metadata or "extensions" not in metadata:
        return ServerState("", is_ready=False, index=None)
    ready = request(f"{url}/v2/health/ready", **options)
    index = request(f"{url}/v2/repository/index", body={}, **options)
    return ServerState(
        str(metadata["version"]),
        ready.status == HTTPStatus.OK,
        _parse_index(index.parsed) if index.status == HTTPStatus.OK else None,
    )


def _http_options(address: TritonAddress, timeout_seconds: float) -> dict[str, Any]:
    """Return the options of `request` for this Triton: the gateway's headers and certificates."""
    context = address.ssl_context() if address.is_secure else None
    return {
        "headers": address.headers,
        "ssl_context": context,
        "timeout_seconds": timeout_seconds,
    }


def _server_state_by_grpc(address: TritonAddress, timeout_seconds: float) -> ServerState:
    import tritonclient.grpc as grpc_protocol
    from tritonclient.utils import InferenceServerException

    client: Any = grpc_protocol.InferenceServerClient(
        address.netloc, creds=address.grpc_credentials(), channel_args=GRPC_OPTIONS
    )
    limit: dict[str, Any] = {"client_timeout": timeout_seconds, "headers": address.headers}
    try:
        metadata = client.get_server_metadata(as_json=True, **limit)
        is_ready = bool(client.is_server_ready(**limit))
        try:
            index = client.get_model_repository_index(as_json=True, **limit)
        except InferenceServerException:
            return ServerState(metadata.get("version", ""), is_ready, None)
    except InferenceServerException as error:
        text = " ".join(str(error).split())
        match = re.search(r"(?:Failed|failed) to connect[^;\"]*|Deadline Exceeded", text)
        reason = match[0] if match else text[:120]
        raise UnreachableError(f"{address.netloc} does not answer gRPC ({reason}).") from None
    finally:
        client.close()
    return ServerState(metadata.get("version", ""), is_ready, _parse_index(index.get("models", [])))


def _parse_index(models: object) -> tuple[ModelState, ...] | None:
    if not isinstance(models, list):
        return None
    return tuple(
        ModelState(
            str(entry.get("name")),
            str(entry.get("version", "")),
            str(entry.get("state", "")),
            str(entry.get("reason", "")),
        )
        for entry in cast("list[dict[str, Any]]", models)
    )


def _only_model(state: ServerState) -> str | None:
    """Return the model of a Triton that has just one."""
    names = {entry.name for entry in state.index or ()}
    return names.pop() if len(names) == 1 else None


def _check_readiness(address: TritonAddress, state: ServerState) -> Finding:
    if state.is_ready:
        return ok("Triton", f"live and ready at {address}")
    message = f"live at {address}, but not ready: a model is loading or failed to load"
    return failure("Triton", message, "See the model below; Triton is ready once all models are.")


async def _try_model(
    address: TritonAddress, model: str, output_dim: int, timeout_seconds: float
) -> list[Finding]:
    """Do what the gateway does: learn the interface, then run a batch.

    Args:
        address: Triton's address.
        model: The name of the model.
        output_dim: Dimensions of the vectors; 0 for a reranker.
        timeout_seconds: Limit of the batch.
    """
    is_reranker = output_dim == 0
    prefix = "reranker: " if is_reranker else ""
    backend = TritonBackend(address, model, task="rerank" if is_reranker else "embed")
    try:
        spec = await backend.connect()
        answer = await backend.infer(PROBE, timeout_seconds=timeout_seconds, priority=1)
    except StartupError as error:
        remedy = "Correct config.pbtxt, or export the model again."
        return [failure(f"{prefix}interface", error.message, remedy)]
    except EmbeddingServerError as error:
        match = find_known_error(error.message)
        remedy = match[1].remedy if match else "See `docker logs -n 300 triton`."
        return [failure(f"{prefix}inference", error.message, remedy)]
    finally:
        await backend.close()
    if is_reranker:
        findings = [_check_logits(spec), _check_numbers(answer)]
        return [replace(finding, name=prefix + finding.name) for finding in findings]
    findings = [_check_interface(spec, output_dim), _check_numbers(answer)]
    if not address.is_grpc and spec.output.dtype == np.float16:
        findings.append(_check_json_float16(address, spec, timeout_seconds))
    return findings


def _check_interface(spec: ModelSpec, output_dim: int) -> Finding:
    pooling = "in the graph" if spec.pooling == "in_graph" else "by the gateway"
    message = (
        f"`{spec.output.name}` {spec.output.dtype}, hidden size {spec.hidden_size}, pooled "
        f"{pooling}, batches of up to {spec.max_batch_size}"
    )
    if output_dim > spec.hidden_size:
        message += f"; EMBED_OUTPUT_DIM is {output_dim}"
        return failure("interface", message, "Lower EMBED_OUTPUT_DIM, or serve a larger model.")
    return ok("interface", message)


def _check_logits(spec: ModelSpec) -> Finding:
    name = "interface"
    message = (
        f"`{spec.output.name}` {spec.output.dtype}, {spec.hidden_size:,} for each "
        f"{'pair' if spec.pooling == 'in_graph' else 'token'}, batches of up to "
        f"{spec.max_batch_size}"
    )
    if spec.output.name != LOGITS_OUTPUT and spec.hidden_size > len(ANSWERS):
        remedy = "Set RERANK_TRITON_MODEL to a reranker, which returns `logits`."
        return failure(name, message, remedy)
    if spec.pooling != "in_graph":
        remedy = "`qwen3-triton model repository` cuts them down to two for each pair."
        return warning(name, message, remedy)
    return ok(name, message)


def _check_numbers(answer: HiddenStates | PooledStates) -> Finding:
    values = answer.values.astype(np.float32)
    rows = values if isinstance(answer, PooledStates) else values[:, 0]
    if not np.isfinite(rows).all() or not np.linalg.norm(rows, axis=-1).all():
        message = "The model answers with rows that are zero or not finite."
        remedy = (
            "float16 overflows: set enable_skip_layer_norm_strict_mode, or export the model in "
            "float32."
        )
        return failure("inference", message, remedy)
    return ok("inference", "a batch of two runs, all numbers finite")


def _check_json_float16(address: TritonAddress, spec: ModelSpec, timeout_seconds: float) -> Finding:
    """Send the request that a user of curl would, and explain Triton's answer."""
    name = "float16 over JSON"
    feed = {"datatype": "INT64", "shape": [1, 1], "data": [[1]]}
    body = {
        "inputs": [{"name": each, **feed} for each in spec.inputs],
        "outputs": [{"name": spec.output.name}],
    }
    url = f"{address}/v2/models/{spec.name}/infer"
    reply = request(url, body=body, **_http_options(address, timeout_seconds))
    match = find_known_error(str(reply.document.get("error", "")))
    if match is None:
        return skipped(name, f"a JSON request answers {reply.status}: {reply.excerpt}")
    line, pattern = match
    message = f"Triton answers `{line}`; the gateway uses the binary format."
    return Finding(name, "warning", message, cause=pattern.cause, remedy=pattern.remedy)


def _check_grpc_port(address: TritonAddress) -> Finding:
    host, port = host_and_port(str(address))
    netloc = f"{host}:{port + 1}"
    if is_grpc_alive(netloc):
        return ok("gRPC", f"answers at {netloc}")
    where = "here" if is_local(str(address)) else "from here"
    return skipped("gRPC", f"no gRPC at {netloc} {where}; only a grpc:// TRITON_URL needs it")


def _check_port(port: int, service: str) -> Finding:
    name = f"port {port}"
    title = "the gateway" if service == "gateway" else f"Triton's {service} service"
    if not accepts_connections("127.0.0.1", port):
        return ok(name, f"free (for {title})")
    if _is_our_service(port, service):
        return ok(name, f"used by {title}")
    message = f"Taken by {_port_holder(port)}, which is not {title}."
    return failure(name, message, f"Stop it, or choose another port for {title}.")


def _is_our_service(port: int, service: str) -> bool:
    if service == "grpc":
        return is_grpc_alive(f"127.0.0.1:{port}")
    url = f"http://127.0.0.1:{port}{PORT_PATHS[service]}"
    try:
        return PORT_MARKS[service] in request(url, timeout_seconds=PORT_TIMEOUT_SECONDS).body
    except UnreachableError:
        return False


def _port_holder(port: int) -> str:
    """Return the name of the program that listens on a port, as far as this user may know."""
    unknown = "another program (as root, `ss -ltnp` shows which)"
    result = run_program("ss", "--no-header", "--listening", "--tcp", "--numeric", "--processes")
    if result is None:
        return unknown
    for line in result.output.splitlines():
        # State, two queues, then the local address.
        if f":{port}" in line and re.match(rf"(\S+\s+){{3}}\S*:{port}\s", line):
            match = re.search(r'\("([^"]+)",pid=(\d+)', line)
            return f"{match[1]} (process {match[2]})" if match else unknown
    return unknown


def is_grpc_alive(netloc: str) -> bool:
    """Return whether a Triton answers gRPC there."""
    import tritonclient.grpc as grpc_protocol
    from tritonclient.utils import InferenceServerException

    client: Any = grpc_protocol.InferenceServerClient(netloc, channel_args=GRPC_OPTIONS)
    try:
        return bool(client.is_server_live(client_timeout=PORT_TIMEOUT_SECONDS))
    except InferenceServerException:
        return False
    finally:
        client.close()
