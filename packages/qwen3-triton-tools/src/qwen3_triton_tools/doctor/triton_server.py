"""A running Triton: version, models, interface, and a batch through the model."""

from __future__ import annotations

import asyncio
import re

import numpy as np

from qwen3_triton_gateway.backends.base import ModelSpec
from qwen3_triton_gateway.backends.triton import TritonAddress, TritonBackend
from qwen3_triton_gateway.errors import EmbeddingServerError, StartupError
from qwen3_triton_gateway.tensors import HiddenStates, PooledStates, TokenBatch

from ..plain_http import UnreachableError, ask, host_and_port, is_local
from .checks import Check, absent, failed, ok, skipped, warning
from .known_problems import explain
from .listening import is_grpc_alive
from .triton_facts import ModelState, TritonFacts, ask_triton
from .triton_releases import check_release

# Any tokens do: the shape and the numbers are looked at, not the meaning. Two rows of unlike
# lengths, as the gateway pads them.
PROBE = TokenBatch(
    np.array([[1, 2, 3], [1, 0, 0]], dtype=np.int64),
    np.array([[1, 1, 1], [1, 0, 0]], dtype=np.int64),
)
START = (
    "start it (`docker start triton`, or `qwen3-triton triton` without Docker); one that ends "
    "again at once has a model that does not load: `docker logs -n 300 triton`"
)


def check_triton(
    url: str,
    model: str,
    *,
    named: bool,
    model_named: bool,
    output_dim: int,
    timeout_seconds: float,
) -> list[Check]:
    """Look at one Triton and the model that the gateway wants from it."""
    try:
        address = TritonAddress.parse(url)
        facts = ask_triton(address, timeout_seconds)
    except StartupError as error:
        return [failed("Triton", error.message, "mend TRITON_URL or --triton-url")]
    except UnreachableError as error:
        return [absent("Triton", str(error), START, named=named)]
    if not facts.version:
        seen = f"something answers at {address}, and it is not Triton"
        remedy = "Triton's HTTP port is 8200 in this stack, 8000 inside its container"
        return [failed("Triton", seen, remedy)]
    if not model_named:
        model = only_model(facts) or model
    checks = [_liveness(address, facts), check_release(facts.version)]
    state = check_model_state(model, facts)
    checks.append(state)
    if state.outcome != "failed":
        checks += asyncio.run(_try_model(address, model, output_dim, timeout_seconds))
    if not address.scheme.startswith("grpc"):
        checks.append(_grpc_port(address))
    return checks


def only_model(facts: TritonFacts) -> str | None:
    """Name the model of a Triton that has just one; nobody needs to be told which is meant."""
    names = {entry.name for entry in facts.index or ()}
    return names.pop() if len(names) == 1 else None


def check_model_state(model: str, facts: TritonFacts) -> Check:
    """Say whether the model is loaded, and else why it is not."""
    name = f"model {model}"
    if facts.index is None:
        return skipped(name, "this Triton keeps its repository index closed")
    entries = [entry for entry in facts.index if entry.name == model]
    if not entries:
        held = ", ".join(sorted({entry.name for entry in facts.index})) or "none at all"
        remedy = "set TRITON_MODEL (--triton-model) to one of these, or add the model"
        return failed(name, f"Triton does not have it; it has: {held}", remedy)
    broken = [entry for entry in entries if entry.state != "READY"]
    if not broken:
        versions = ", ".join(entry.version for entry in entries)
        return ok(name, f"READY, version {versions}")
    return _not_loaded(name, broken[0])


def _not_loaded(name: str, entry: ModelState) -> Check:
    # The Python backend adds where in its own files it was.
    reason = " ".join(re.split(r"\n\s*At:\s*\n", entry.reason)[0].split())[:600]
    seen = f"{entry.state or 'not loaded'}: {reason or 'Triton gives no reason'}"
    known = explain(entry.reason)
    if known is None:
        return failed(
            name, seen, "docker logs -n 300 triton; `--model-repository DIR` looks closer"
        )
    problem = known[1]
    return failed(name, f"{problem.cause}. Triton says {seen}", problem.remedy)


def _liveness(address: TritonAddress, facts: TritonFacts) -> Check:
    if facts.ready:
        return ok("Triton", f"live and ready at {address}")
    seen = f"live at {address} and not ready: a model is loading or did not load"
    return failed("Triton", seen, "see the model below; Triton is ready once all its models are")


async def _try_model(
    address: TritonAddress, model: str, output_dim: int, timeout_seconds: float
) -> list[Check]:
    """Do what the gateway does: learn the interface, then run a batch."""
    backend = TritonBackend(str(address), model)
    try:
        spec = await backend.connect()
        answer = await backend.infer(PROBE, timeout_seconds=timeout_seconds, priority=1)
    except StartupError as error:
        return [failed("interface", error.message, "mend config.pbtxt, or export the model anew")]
    except EmbeddingServerError as error:
        known = explain(error.message)
        remedy = known[1].remedy if known else "docker logs -n 300 triton"
        return [failed("inference", error.message, remedy)]
    finally:
        await backend.close()
    checks = [_interface(spec, output_dim), _numbers(answer)]
    if not address.scheme.startswith("grpc") and spec.output.dtype == np.float16:
        checks.append(_json_float16(str(address), spec, timeout_seconds))
    return checks


def _interface(spec: ModelSpec, output_dim: int) -> Check:
    pooled = "pooled in the graph" if spec.pooling == "in_graph" else "pooled by the gateway"
    seen = (
        f"`{spec.output.name}` {spec.output.dtype}, hidden size {spec.hidden_size}, {pooled}, "
        f"batches of up to {spec.max_batch_size}"
    )
    if output_dim > spec.hidden_size:
        seen += f"; EMBED_OUTPUT_DIM is {output_dim}"
        return failed("interface", seen, "lower EMBED_OUTPUT_DIM, or serve a larger model")
    return ok("interface", seen)


def _numbers(answer: HiddenStates | PooledStates) -> Check:
    values = answer.values.astype(np.float32)
    rows = values if isinstance(answer, PooledStates) else values[:, 0]
    if not np.isfinite(rows).all() or not np.linalg.norm(rows, axis=-1).all():
        seen = "the model answers, with rows that are zero or not finite"
        remedy = "float16 overflows: set enable_skip_layer_norm_strict_mode, or export in float32"
        return failed("inference", seen, remedy)
    return ok("inference", "a batch of two runs, all numbers finite")


def _json_float16(url: str, spec: ModelSpec, timeout_seconds: float) -> Check:
    """Ask as somebody with curl would, and hear what Triton says to it."""
    name = "float16 over JSON"
    feed = {"datatype": "INT64", "shape": [1, 1], "data": [[1]]}
    body = {
        "inputs": [{"name": each, **feed} for each in spec.inputs],
        "outputs": [{"name": spec.output.name}],
    }
    reply = ask(f"{url}/v2/models/{spec.name}/infer", body=body, timeout_seconds=timeout_seconds)
    known = explain(str(reply.document.get("error", "")))
    if known is None:
        return skipped(name, f"a JSON request answers {reply.status}: {reply.excerpt}")
    line, problem = known
    return warning(name, f"`{line}`: {problem.cause}; the gateway asks in binary", problem.remedy)


def _grpc_port(address: TritonAddress) -> Check:
    host, port = host_and_port(str(address))
    netloc = f"{host}:{port + 1}"
    if is_grpc_alive(netloc):
        return ok("gRPC", f"answers at {netloc}")
    where = "here" if is_local(str(address)) else "from here"
    return skipped("gRPC", f"no gRPC at {netloc} {where}; only a grpc:// TRITON_URL needs it")
