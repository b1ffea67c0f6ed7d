"""The model on NVIDIA Triton Inference Server, over HTTP or gRPC (KServe v2)."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from contextlib import suppress
from typing import Any

import aiohttp
import numpy as np

from ..answer_checksum import CHECKSUM_OUTPUT, row_checksums
from ..errors import (
    BackendError,
    BackendUnavailableError,
    DeadlineExceededError,
)
from ..fingerprint import FIRST_VERSION, digest_of_version, served_version
from ..settings import Precision, Task
from ..tensors import HiddenStates, PooledStates, TokenBatch
from ..tracing import trace_headers
from .address import METADATA_BYTES, TritonAddress
from .base import CANARY_PARAMETER, PRECISION_PARAMETER, AnyArray, Backend, ModelSpec, TensorSpec
from .interface import Feed, build_feed, describe_model, wrap_output
from .model_time import ModelTime
from .refusals import translate, translate_at_start
from .reloads import LoadHistory, Verdict, read_statistics

logger: logging.Logger = logging.getLogger(__name__)

DTYPES: dict[str, type[np.generic]] = {
    "INT64": np.int64,
    "INT32": np.int32,
    "FP32": np.float32,
    "FP16": np.float16,
    "FP64": np.float64,
    "BOOL": np.bool_,
}
PRECISIONS: dict[str, Precision] = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "int8": "int8",
}
TRITON_NAMES = {np.dtype(numpy): triton for triton, numpy in DTYPES.items()}
# A model whose config has no batch dimension accepts any number of rows; this bounds them.
UNBATCHED_MAX_BATCH_SIZE = 32
PROBE_SECONDS = 1.0
PROBES = 2
LATE_SECONDS = 0.25
# What an answer to a batch may have in addition to its output: names, shapes, parameters.
MARGIN_BYTES = 1 << 20
# The largest message of gRPC, as Triton has it.
MAX_MESSAGE_BYTES = 2**31 - 1
# Answers of up to this size are checked on the event loop, in a millisecond at most.
CHECK_INLINE_BYTES = 1 << 20


class TritonBackend(Backend):
    """One model on one Triton."""

    def __init__(self, address: TritonAddress | str, model: str, *, task: Task = "embed") -> None:
        self.address: TritonAddress = (
            TritonAddress.parse(address) if isinstance(address, str) else address
        )
        self._model = model
        self._task: Task = task
        self._client: Any = None
        # Of the client for gRPC; those that accepted less are closed at the end.
        self._accepted_bytes = METADATA_BYTES
        self._outgrown: list[Any] = []
        self._spec: ModelSpec | None = None
        # Whether the model offers a checksum of its answers.
        self._has_checksum = False
        self._answered = False
        self._last_answer = 0.0
        self._history = LoadHistory()
        self._observed_at = 0.0
        self._told_of_several = False
        self._generation = 0
        self._doubts = 0
        self._answers = 0
        self._in_flight = 0
        self._model_time = ModelTime()

    @property
    def spec(self) -> ModelSpec:
        assert self._spec is not None, "connect() comes first"
        return self._spec

    @property
    def description(self) -> str:
        return f"Triton at {self.address}, model {self._model}"

    @property
    def states(self) -> dict[str, bool]:
        return {str(self.address): self._answered}

    @property
    def generation(self) -> int:
        return self._generation

    @property
    def doubts(self) -> int:
        return self._doubts

    @property
    def max_output_bytes(self) -> int | None:
        return MAX_MESSAGE_BYTES - MARGIN_BYTES if self.address.is_grpc else None

    async def connect(self) -> ModelSpec:
        client = self._open()
        try:
            async with asyncio.timeout(10 * PROBE_SECONDS):
                metadata = await self._call(client.get_model_metadata, **self._json_arguments)
                config = await self._call(client.get_model_config, **self._json_arguments)
        except TimeoutError:
            msg = f"Triton at {self.address} accepts connections but does not answer."
            raise BackendUnavailableError(msg) from None
        except Exception as error:
            raise translate_at_start(error, self.address) from error
        self._spec = _describe(metadata, config.get("config", config), self._task)
        self._has_checksum = _offers_checksum(metadata)
        await self._notice_reload()  # the first reading is from before the first batch
        self._answered = True
        return self._spec

    async def infer(
        self, batch: TokenBatch, *, timeout_seconds: float, priority: int
    ) -> HiddenStates | PooledStates:
        self._in_flight += 1
        began = time.monotonic()
        try:
            async with asyncio.timeout(timeout_seconds):
                feed = build_feed(self.spec, batch)
                try:
                    values = await self._infer(feed, timeout_seconds, priority)
                except aiohttp.ServerDisconnectedError:
                    # The pooled connection is from before a restart; inference is idempotent.
                    values = await self._infer(feed, timeout_seconds, priority)
        except TimeoutError:
            msg = f"Triton at {self.address} did not answer within {timeout_seconds:.1f} s."
            raise DeadlineExceededError(msg) from None
        except Exception as error:
            raise translate(error, self.address) from error
        finally:
            self._in_flight -= 1
        self._last_answer = time.monotonic()
        self._answers += 1
        seconds = self._model_time.count(len(batch.input_ids), self._last_answer - began)
        return wrap_output(self.spec, batch, values, seconds=seconds)

    async def is_ready(self) -> bool:
        reload = asyncio.create_task(self._notice_reload())
        try:
            has_answered = await self._probe()
            if has_answered:
                await reload
        finally:
            reload.cancel()
        self._answered = has_answered
        return has_answered

    async def close(self) -> None:
        clients, self._outgrown = [self._client, *self._outgrown], []
        self._client = None
        for client in clients:
            if client is not None:
                await client.close()

    async def _probe(self) -> bool:
        """Return whether Triton says that the model is ready.

        A refusal counts at once. Silence counts twice: a server that gets no CPU for a second, or a
        lost packet, is not a reason to refuse requests that it would answer.
        """
        began = time.monotonic()
        for _ in range(PROBES):
            answer = await self._ask()
            if answer is not None:
                return answer
            if self._last_answer > began:
                return True  # too busy to answer a probe, but not to run batches
        return False

    async def _ask(self) -> bool | None:
        """Ask once whether the model is ready; return None if Triton does not answer in time."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                return bool(
                    await self._open().is_model_ready(self._model, headers=self.address.headers)
                )
        except TimeoutError:
            # If the event loop was late for its own timer, the answer may be waiting too.
            is_late = time.monotonic() - began > PROBE_SECONDS + LATE_SECONDS
            return self._answered if is_late else None
        except Exception:  # for any reason, the model would not answer
            return False

    async def _notice_reload(self) -> None:
        """Compare Triton's statistics of the loaded model with the ones before.

        Where the statistics are restricted, nothing is noticed here, and the canary's next turn
        has to do.
        """
        began, answered = time.monotonic(), self._answers
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                method = self._open().get_inference_statistics
                statistics = await self._call(method, **self._json_arguments)
        except Exception:  # unavailable is the probe's finding
            return
        sent = self._answers + self._in_flight
        reading = read_statistics(statistics, answered=answered, sent=sent)
        # `connect` and `is_ready` may overlap; counters read earlier would look like a reload.
        if reading is None or began < self._observed_at:
            return
        self._observed_at = time.monotonic()
        self._model_time.read(reading.runs)
        verdict = self._history.judge(reading)
        if verdict in (Verdict.RELOADED, Verdict.DOUBTFUL):
            await self._renew_outputs()
        self._draw_conclusions(verdict)

    async def _renew_outputs(self) -> None:
        """Learn whether a model that was reloaded, maybe by another release, has a checksum."""
        with suppress(Exception):  # unavailable is the probe's finding
            async with asyncio.timeout(PROBE_SECONDS):
                method = self._open().get_model_metadata
                self._has_checksum = _offers_checksum(
                    await self._call(method, **self._json_arguments)
                )

    def _draw_conclusions(self, verdict: Verdict) -> None:
        if verdict is Verdict.RELOADED:
            logger.warning("%s: the model was reloaded.", self.address)
            self._generation += 1
        elif verdict is Verdict.DOUBTFUL:
            self._doubts += 1
        elif verdict is Verdict.SEVERAL and not self._told_of_several:
            self._told_of_several = True
            logger.warning(
                "Several Tritons answer at %s. A reload of one of them may not be noticed before "
                "its canary's turn. List each of them in TRITON_URL.",
                self.address,
            )

    @property
    def _json_arguments(self) -> dict[str, Any]:
        return {"as_json": True} if self.address.is_grpc else {}

    def _open(self) -> Any:
        """Create the client on first use, since both kinds are bound to the running event loop."""
        if self._client is None:
            self._client = self.address.open_client(self._accepted_bytes)
        return self._client

    def _open_for(self, answer_bytes: int) -> Any:
        """Return a client that accepts an answer of this size.

        A channel of gRPC has one bound for all calls. It is doubled when a batch needs more, in a
        new channel, since others wait for their answers in the old one.
        """
        if self.address.is_grpc and answer_bytes > self._accepted_bytes:
            self._outgrown.append(self._client)
            self._client = None
            while self._accepted_bytes < answer_bytes:
                self._accepted_bytes *= 2
            self._accepted_bytes = min(self._accepted_bytes, MAX_MESSAGE_BYTES)
        return self._open()

    async def _call(self, method: Any, **arguments: Any) -> dict[str, Any]:
        return await method(self._model, headers=self.address.headers, **arguments)

    async def _infer(self, feed: Feed, timeout_seconds: float, priority: int) -> AnyArray:
        rows, length = feed["input_ids"].shape
        needed = _output_bytes(self.spec, rows, length) + MARGIN_BYTES
        client = self._open_for(min(needed, MAX_MESSAGE_BYTES))
        protocol: Any = _protocol(grpc=self.address.is_grpc)
        inputs = [_infer_input(protocol, name, array) for name, array in feed.items()]
        has_checksum = self._has_checksum
        names = [self.spec.output.name, *([CHECKSUM_OUTPUT] if has_checksum else [])]
        outputs = [protocol.InferRequestedOutput(name) for name in names]
        # If its queue policy allows it, Triton drops a request that has waited this long.
        options: dict[str, Any] = {"priority": priority, "timeout": int(timeout_seconds * 1e6)}
        options["headers"] = self.address.headers | trace_headers()
        if self.address.is_grpc:
            options["client_timeout"] = timeout_seconds
        else:
            options["answer_bytes"] = needed
        result = await client.infer(self._model, inputs, outputs=outputs, **options)
        values: AnyArray | None = result.as_numpy(self.spec.output.name)
        if values is None:
            msg = f"Triton's response has no output `{self.spec.output.name}`."
            raise BackendError(msg)
        if has_checksum:
            await self._check_answer(feed, values, result.as_numpy(CHECKSUM_OUTPUT))
        return values

    async def _check_answer(self, feed: Feed, values: AnyArray, checksums: AnyArray | None) -> None:
        """Check that an answer is the one to this batch.

        Raises:
            BackendUnavailableError: It is the answer to another batch, or was damaged on its way.
        """
        if values.nbytes <= CHECK_INLINE_BYTES:
            expected = row_checksums(feed, [values])
        else:
            expected = await asyncio.to_thread(row_checksums, feed, [values])
        if checksums is None or checksums.ravel().tolist() != expected:
            msg = (
                f"Triton at {self.address} returned the answer to another batch, which was "
                "discarded: the process that runs the model had been paused."
            )
            logger.warning(msg)
            raise BackendUnavailableError(msg)


def _output_bytes(spec: ModelSpec, rows: int, length: int) -> int:
    """Return the size of the output for a batch."""
    vectors = rows if spec.pooling == "in_graph" else rows * length
    return vectors * spec.hidden_size * spec.output.dtype.itemsize


def _protocol(*, grpc: bool) -> Any:
    if grpc:
        import tritonclient.grpc as grpc_protocol

        return grpc_protocol
    import tritonclient.http as http_protocol

    return http_protocol


def _infer_input(protocol: Any, name: str, array: AnyArray) -> Any:
    tensor = protocol.InferInput(name, list(array.shape), TRITON_NAMES[array.dtype])
    return tensor.set_data_from_numpy(np.ascontiguousarray(array))


def _describe(metadata: dict[str, Any], config: dict[str, Any], task: Task) -> ModelSpec:
    max_batch_size = int(config.get("max_batch_size", 0))
    parameters: dict[str, Any] = config.get("parameters", {})
    stated_digest = parameters.get("weights_digest", {}).get("string_value")
    stated_canary = parameters.get(CANARY_PARAMETER, {}).get("string_value", "")
    stated_precision = parameters.get(PRECISION_PARAMETER, {}).get("string_value", "")
    name, versions = metadata["name"], metadata.get("versions", [])
    inputs = [_tensor_spec(tensor) for tensor in metadata.get("inputs", [])]
    outputs = [
        _tensor_spec(tensor)
        for tensor in metadata.get("outputs", [])
        if tensor["name"] != CHECKSUM_OUTPUT
    ]
    interface = repr((name, versions, inputs, outputs)).encode()
    return describe_model(
        name=name,
        inputs=inputs,
        outputs=outputs,
        max_batch_size=max_batch_size or UNBATCHED_MAX_BATCH_SIZE,
        instance_count=_count_instances(config.get("instance_group", [])),
        # Triton does not expose the weights. The model's config may state their digest; otherwise
        # the model's name, versions and interface identify them.
        weights_digest=digest_of_version(stated_digest, versions)
        if stated_digest
        else hashlib.sha256(interface).hexdigest(),
        # As the digest, it is that of the first version.
        stated_canary=stated_canary if served_version(versions) == FIRST_VERSION else "",
        precision=PRECISIONS.get(stated_precision, "graph"),
        task=task,
    )


def _offers_checksum(metadata: dict[str, Any]) -> bool:
    return any(tensor["name"] == CHECKSUM_OUTPUT for tensor in metadata.get("outputs", []))


def _count_instances(groups: list[dict[str, Any]]) -> int:
    return sum(int(group.get("count", 1)) * max(1, len(group.get("gpus", []))) for group in groups)


def _tensor_spec(tensor: dict[str, Any]) -> TensorSpec:
    dtype = DTYPES.get(tensor["datatype"], np.object_)
    return TensorSpec(tensor["name"], np.dtype(dtype), tuple(int(dim) for dim in tensor["shape"]))
