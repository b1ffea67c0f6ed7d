"""The inputs and outputs of a model: what the gateway can serve, feed and read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from ..errors import BackendError, StartupError
from ..settings import Precision, Task
from ..tensors import HiddenStates, PooledStates, TokenBatch
from .base import AnyArray, ModelSpec, TensorSpec

HIDDEN_OUTPUT = "last_hidden_state"
POOLED_OUTPUT = "sentence_embedding"
LOGITS_OUTPUT = "logits"
# In the order of preference: a pooled output has as many times fewer bytes as a text has tokens.
OUTPUTS: dict[Task, tuple[str, ...]] = {
    "embed": (POOLED_OUTPUT, HIDDEN_OUTPUT),
    "rerank": (LOGITS_OUTPUT,),
}
EXPORT_TASKS: dict[Task, str] = {"embed": "feature-extraction", "rerank": "text-generation"}
TOKEN_INPUTS = ("input_ids", "attention_mask", "position_ids", "token_type_ids")
PAST_PREFIX = "past_key_values."
TOKEN_RANK = 2
# Shape of a past key or value: (batch, key-value heads, past length, head size).
PAST_RANK = 4
# (batch, hidden size) and (batch, length, hidden size): the rank identifies a pooled output.
POOLED_RANK = 2
HIDDEN_RANK = 3
FLOAT_DTYPES = (np.dtype(np.float32), np.dtype(np.float16))

Feed: TypeAlias = dict[str, AnyArray]


def describe_model(
    *,
    name: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    max_batch_size: int,
    instance_count: int,
    weights_digest: str,
    stated_canary: str = "",
    engine: str = "triton",
    precision: Precision = "graph",
    task: Task = "embed",
) -> ModelSpec:
    """Check a model's interface, and determine how to feed it.

    Raises:
        StartupError: An input is missing or unknown, a dtype or rank is wrong, or no output is
            usable.
    """
    check_inputs(name, inputs)
    batch_limit = _check_sizes(name, inputs)
    output = _choose_output(name, outputs, task)
    return ModelSpec(
        name=name,
        task=task,
        inputs=tuple(spec.name for spec in inputs if spec.name in TOKEN_INPUTS),
        past_inputs=tuple(spec for spec in inputs if is_past(spec)),
        output=output,
        pooling="in_graph" if len(output.shape) == POOLED_RANK else "last_token",
        max_batch_size=min(max_batch_size, batch_limit or max_batch_size),
        instance_count=max(1, instance_count),
        weights_digest=weights_digest,
        stated_canary=stated_canary,
        engine=engine,
        precision=precision,
    )


def build_feed(spec: ModelSpec, batch: TokenBatch) -> Feed:
    """Build the inputs of a batch, by name."""
    return feed_inputs(spec.inputs, spec.past_inputs, batch)


def feed_inputs(
    names: Collection[str], past_inputs: Sequence[TensorSpec], batch: TokenBatch
) -> Feed:
    """Build the token inputs with these names, and an empty past."""
    feed: Feed = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if "position_ids" in names:
        positions = np.cumsum(batch.attention_mask, axis=1) - 1
        feed["position_ids"] = np.maximum(positions, 0)
    if "token_type_ids" in names:
        # A text is one segment. The family has no segments, but some exporters add the input.
        feed["token_type_ids"] = np.zeros_like(batch.input_ids)
    for past in past_inputs:
        shape = (len(batch.input_ids), past.shape[1], 0, past.shape[3])
        feed[past.name] = np.empty(shape, dtype=past.dtype)
    return feed


def wrap_output(
    spec: ModelSpec, batch: TokenBatch, values: AnyArray, *, seconds: float = 0.0
) -> HiddenStates | PooledStates:
    """Check the shape of a model's answer, and wrap it as what it is.

    Raises:
        BackendError: Rows, length or hidden size are not those of the batch.
    """
    rows, length = batch.input_ids.shape
    pooled = spec.pooling == "in_graph"
    expected = (rows, spec.hidden_size) if pooled else (rows, length, spec.hidden_size)
    if values.shape != expected:
        msg = (
            f"Model {spec.name!r} returned `{spec.output.name}` of shape {values.shape} instead of "
            f"{expected}. The export is broken."
        )
        raise BackendError(msg)
    return PooledStates(values, seconds) if pooled else HiddenStates(values, seconds)


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"`{spec.name}`" for spec in specs) or "none"


def _with_hidden_size(output: TensorSpec, outputs: Sequence[TensorSpec]) -> TensorSpec:
    """Fill in a hidden size that the graph does not state, from its other outputs.

    Exports that pool and normalize in the graph may lose it on the way. A wrong guess would be
    noticed by the shape of the first answer.
    """
    if not output.shape or output.shape[-1] > 0:
        return output
    sizes = [spec.shape[-1] for spec in outputs if len(spec.shape) == HIDDEN_RANK]
    hidden_size = next((size for size in sizes if size > 0), output.shape[-1])
    return replace(output, shape=(*output.shape[:-1], hidden_size))


def is_past(spec: TensorSpec) -> bool:
    return spec.name.startswith(PAST_PREFIX)


def check_inputs(model: str, inputs: Sequence[TensorSpec]) -> None:
    """Check that the gateway can feed a model.

    Raises:
        StartupError: An input is missing or unknown, or its dtype or rank is wrong.
    """
    names = {spec.name for spec in inputs}
    for required in ("input_ids", "attention_mask"):
        if required not in names:
            msg = f"Model {model!r} has no input `{required}`. Its inputs: {_names(inputs)}."
            raise StartupError(msg)
    for spec in inputs:
        if spec.name in TOKEN_INPUTS:
            _check_token_input(model, spec)
        elif is_past(spec):
            _check_past_input(model, spec)
        else:
            msg = (
                f"Model {model!r} needs an input `{spec.name}`, which the gateway does not "
                "support. Export it for feature extraction, without a cache branch."
            )
            raise StartupError(msg)


def _check_token_input(model: str, spec: TensorSpec) -> None:
    if spec.dtype != np.dtype(np.int64) or len(spec.shape) != TOKEN_RANK:
        msg = (
            f"Model {model!r} declares input `{spec.name}` as {spec.dtype} of shape {spec.shape}, "
            "but the gateway sends int64 of shape (batch, length). Export it with int64 inputs."
        )
        raise StartupError(msg)


def _check_sizes(model: str, inputs: Sequence[TensorSpec]) -> int | None:
    """Check that a batch may have any length, and return the number of texts that it must have.

    None if it may have any. A batch of one is a way to serve texts; any other number is not.
    """
    tokens = [spec for spec in inputs if spec.name in TOKEN_INPUTS]
    batches = {spec.shape[0] for spec in tokens} - {-1}
    lengths = {spec.shape[1] for spec in tokens} - {-1}
    for what, sizes in (("batch", batches - {1}), ("length", lengths)):
        if sizes:
            fixed = " and ".join(map(str, sorted(sizes)))
            msg = (
                f"Model {model!r} has a {what} fixed to {fixed}, but the gateway sends batches of "
                f"any {what}. Export it with dynamic axes, as optimum does by default."
            )
            raise StartupError(msg)
    return 1 if batches else None


def _check_past_input(model: str, spec: TensorSpec) -> None:
    fixed = len(spec.shape) == PAST_RANK and spec.shape[1] > 0 and spec.shape[3] > 0
    if not fixed or spec.dtype not in FLOAT_DTYPES:
        msg = (
            f"Model {model!r} declares `{spec.name}` as {spec.dtype} of shape {spec.shape}, but "
            "the gateway needs float32 or float16 of shape (batch, heads, past length, head size) "
            "with fixed heads and head size. Export the model without past keys and values."
        )
        raise StartupError(msg)


def find_output(outputs: Sequence[TensorSpec], task: Task = "embed") -> TensorSpec | None:
    """Return the output that the gateway asks for, None if it is not clear which.

    torch's exporter names outputs after operators; next to the states it may return the keys and
    values of each layer, whose rank is another.
    """
    by_name = {spec.name: spec for spec in outputs}
    named = next((by_name[name] for name in OUTPUTS[task] if name in by_name), None)
    if named or len(outputs) == 1:
        return named or outputs[0]
    fitting = [
        spec
        for spec in outputs
        if spec.dtype in FLOAT_DTYPES and len(spec.shape) in (POOLED_RANK, HIDDEN_RANK)
    ]
    return fitting[0] if len(fitting) == 1 else None


def _choose_output(model: str, outputs: Sequence[TensorSpec], task: Task) -> TensorSpec:
    output = find_output(outputs, task)
    if output is None:
        wanted = " or ".join(f"`{name}`" for name in reversed(OUTPUTS[task]))
        msg = (
            f"Model {model!r} has no output {wanted}. Its outputs: {_names(outputs)}. Export it "
            f"with the task {EXPORT_TASKS[task]}."
        )
        raise StartupError(msg)
    output = _with_hidden_size(output, outputs)
    rank_fits = len(output.shape) in (POOLED_RANK, HIDDEN_RANK)
    if output.dtype not in FLOAT_DTYPES or not rank_fits or output.shape[-1] <= 0:
        msg = (
            f"Model {model!r} declares output `{output.name}` as {output.dtype} of shape "
            f"{output.shape}, but the gateway needs float32 or float16 of shape (batch, length, "
            "hidden size) or (batch, hidden size) with a fixed hidden size. If Triton serves it, "
            "compare its config.pbtxt with the ONNX file."
        )
        raise StartupError(msg)
    return output
