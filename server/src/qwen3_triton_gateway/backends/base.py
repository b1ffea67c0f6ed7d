"""The contract between the gateway and whatever runs the model.

A backend learns the model's interface when it connects, and refuses what the pipeline cannot
serve; from then on it turns a `TokenBatch` into `HiddenStates` or `PooledStates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from ..errors import BackendError, StartupError
from ..tensors import HiddenStates, PooledStates, TokenBatch

HIDDEN_OUTPUT = "last_hidden_state"
POOLED_OUTPUT = "sentence_embedding"
TOKEN_INPUTS = ("input_ids", "attention_mask", "position_ids")
PAST_PREFIX = "past_key_values."
TOKEN_RANK = 2
# Shape of a past key or value: (batch, key-value heads, past length, head size).
PAST_RANK = 4
# (batch, hidden size) and (batch, length, hidden size): the rank tells a pooled output.
POOLED_RANK = 2
HIDDEN_RANK = 3
FLOAT_DTYPES = (np.dtype(np.float32), np.dtype(np.float16))

AnyArray: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Feed: TypeAlias = dict[str, AnyArray]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output: its dtype, and its shape with the batch first and -1 where free."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What was learnt about the served model.

    `past_inputs` are fed with zero-length tensors; `weights_digest` names the weights as well as
    the backend can tell; `instance_count` batches can run at the same time.
    """

    name: str
    inputs: tuple[str, ...]
    past_inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    pooling: Literal["last_token", "in_graph"]
    max_batch_size: int
    instance_count: int
    weights_digest: str

    @property
    def hidden_size(self) -> int:
        return self.output.shape[-1]


class Backend(Protocol):
    """Run batches on one model."""

    @property
    def spec(self) -> ModelSpec:
        """What `connect` learnt."""
        ...

    @property
    def description(self) -> str:
        """Say in a few words where the model runs, for logs and `/info`."""
        ...

    @property
    def states(self) -> dict[str, bool]:
        """Say for each place that runs the model whether it answered last, for metrics."""
        ...

    async def connect(self) -> ModelSpec:
        """Learn the model.

        Raises:
            StartupError: the pipeline cannot serve this model.
            BackendUnavailableError: nobody answers, or the model is not loaded yet.
        """
        ...

    async def infer(
        self, batch: TokenBatch, *, timeout_seconds: float, priority: int
    ) -> HiddenStates | PooledStates:
        """Run one batch; `priority` 1 overtakes 2.

        Raises:
            BackendError: the model refused the batch, or its answer has the wrong shape.
            BackendUnavailableError: nobody answers.
            DeadlineExceededError: no answer within `timeout_seconds`.
        """
        ...

    async def is_ready(self) -> bool:
        """Say whether the model would answer now; never raises."""
        ...

    async def close(self) -> None:
        """Release connections and threads."""
        ...


def describe_model(
    *,
    name: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    max_batch_size: int,
    instance_count: int,
    weights_digest: str,
) -> ModelSpec:
    """Check a model's interface and record how to feed it.

    Raises:
        StartupError: a missing or unknown input, a wrong dtype or rank, or no usable output.
    """
    by_name = {spec.name: spec for spec in inputs}
    for required in ("input_ids", "attention_mask"):
        if required not in by_name:
            msg = f"Model {name!r} has no input `{required}`; it has: {_names(inputs)}."
            raise StartupError(msg)
    past = tuple(spec for spec in inputs if spec.name.startswith(PAST_PREFIX))
    for spec in inputs:
        if spec.name in TOKEN_INPUTS:
            _check_token_input(name, spec)
        elif spec not in past:
            msg = (
                f"Model {name!r} wants an input `{spec.name}` that the gateway does not know. "
                "Export it for feature extraction, without a cache branch."
            )
            raise StartupError(msg)
    for spec in past:
        _check_past_input(name, spec)
    output = _choose_output(name, outputs)
    return ModelSpec(
        name=name,
        inputs=tuple(spec.name for spec in inputs if spec.name in TOKEN_INPUTS),
        past_inputs=past,
        output=output,
        pooling="in_graph" if len(output.shape) == POOLED_RANK else "last_token",
        max_batch_size=max_batch_size,
        instance_count=max(1, instance_count),
        weights_digest=weights_digest,
    )


def build_feed(spec: ModelSpec, batch: TokenBatch) -> Feed:
    """Name the arrays that the model wants for a batch."""
    feed: Feed = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if "position_ids" in spec.inputs:
        positions = np.cumsum(batch.attention_mask, axis=1) - 1
        feed["position_ids"] = np.maximum(positions, 0)
    for past in spec.past_inputs:
        shape = (len(batch.input_ids), past.shape[1], 0, past.shape[3])
        feed[past.name] = np.empty(shape, dtype=past.dtype)
    return feed


def wrap_output(
    spec: ModelSpec, batch: TokenBatch, values: AnyArray
) -> HiddenStates | PooledStates:
    """Check the shape of a model's answer and name what it is.

    Raises:
        BackendError: rows, length or hidden size are not those of the batch.
    """
    rows, length = batch.input_ids.shape
    pooled = spec.pooling == "in_graph"
    expected = (rows, spec.hidden_size) if pooled else (rows, length, spec.hidden_size)
    if values.shape != expected:
        msg = (
            f"Model {spec.name!r} answered `{spec.output.name}` of shape {values.shape} where "
            f"{expected} was due; the export is broken."
        )
        raise BackendError(msg)
    return PooledStates(values) if pooled else HiddenStates(values)


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"`{spec.name}`" for spec in specs) or "none"


def _with_hidden_size(output: TensorSpec, outputs: Sequence[TensorSpec]) -> TensorSpec:
    """Fill in a hidden size that the graph leaves open, as the states beside it tell it.

    Exports that pool and normalize in the graph lose it on the way. The answer's shape is checked.
    """
    if not output.shape or output.shape[-1] > 0:
        return output
    sizes = [spec.shape[-1] for spec in outputs if len(spec.shape) == HIDDEN_RANK]
    known = next((size for size in sizes if size > 0), output.shape[-1])
    return replace(output, shape=(*output.shape[:-1], known))


def _check_token_input(model: str, spec: TensorSpec) -> None:
    if spec.dtype != np.dtype(np.int64) or len(spec.shape) != TOKEN_RANK:
        msg = (
            f"Model {model!r} declares input `{spec.name}` as {spec.dtype} of shape {spec.shape}; "
            "the gateway sends int64 of shape (batch, length)."
        )
        raise StartupError(msg)


def _check_past_input(model: str, spec: TensorSpec) -> None:
    fixed = len(spec.shape) == PAST_RANK and spec.shape[1] > 0 and spec.shape[3] > 0
    if not fixed or spec.dtype not in FLOAT_DTYPES:
        msg = (
            f"Model {model!r} declares `{spec.name}` as {spec.dtype} of shape {spec.shape}; an "
            "empty past needs float of shape (batch, heads, past length, head size) with the "
            "heads and the head size fixed. Export the model without a past instead."
        )
        raise StartupError(msg)


def _choose_output(model: str, outputs: Sequence[TensorSpec]) -> TensorSpec:
    by_name = {spec.name: spec for spec in outputs}
    # A pooled output, where the graph has one, is a length-th of the bytes on the wire.
    output = by_name.get(POOLED_OUTPUT) or by_name.get(HIDDEN_OUTPUT)
    if output is None and len(outputs) == 1:
        output = outputs[0]
    if output is None:
        msg = (
            f"Model {model!r} has no output `{HIDDEN_OUTPUT}` or `{POOLED_OUTPUT}`; it has: "
            f"{_names(outputs)}. Export it with the task feature-extraction."
        )
        raise StartupError(msg)
    output = _with_hidden_size(output, outputs)
    rank_fits = len(output.shape) in (POOLED_RANK, HIDDEN_RANK)
    if output.dtype not in FLOAT_DTYPES or not rank_fits or output.shape[-1] <= 0:
        msg = (
            f"Model {model!r} declares output `{output.name}` as {output.dtype} of shape "
            f"{output.shape}; float32 or float16 of shape (batch, length, hidden size) or (batch, "
            "hidden size) with the hidden size fixed is needed. If Triton serves it, compare its "
            "config.pbtxt with the ONNX file."
        )
        raise StartupError(msg)
    return output
