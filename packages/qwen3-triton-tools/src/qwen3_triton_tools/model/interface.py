"""The gateway's own judgement of a graph's inputs and outputs, from the file alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson

from qwen3_triton_gateway.backends.base import (
    HIDDEN_OUTPUT,
    HIDDEN_RANK,
    POOLED_OUTPUT,
    POOLED_RANK,
    TOKEN_INPUTS,
    ModelSpec,
    TensorSpec,
    describe_model,
)
from qwen3_triton_gateway.errors import StartupError

from ..onnx_file import OnnxModel, TensorSignature, proto
from .findings import Finding
from .locate import find_beside

# What a model that leaves the batch open is asked about with; the gateway's own bound comes later.
_ANY_BATCH_SIZE = 1


def describe_interface(model: OnnxModel) -> ModelSpec:
    """Describe the model as the gateway would at its start.

    Raises:
        StartupError: the gateway would refuse it.
    """
    return describe_model(
        name=model.path.name,
        inputs=[_tensor_spec(tensor) for tensor in model.signature.inputs],
        outputs=_output_specs(model),
        max_batch_size=_ANY_BATCH_SIZE,
        instance_count=1,
        weights_digest="",
    )


def _output_specs(model: OnnxModel) -> list[TensorSpec]:
    """Describe the outputs; a hidden size that no output tells is the configuration's.

    Where a runtime serves the file, its shape inference tells it.
    """
    specs = [_tensor_spec(tensor) for tensor in model.signature.outputs]
    size = read_config(model.path).get("hidden_size")
    if any(len(spec.shape) == HIDDEN_RANK and spec.shape[-1] > 0 for spec in specs):
        return specs
    if not isinstance(size, int):
        return specs
    return [
        replace(spec, shape=(*spec.shape[:-1], size))
        if len(spec.shape) in (POOLED_RANK, HIDDEN_RANK) and spec.shape[-1] <= 0
        else spec
        for spec in specs
    ]


def check_interface(model: OnnxModel) -> tuple[ModelSpec | None, list[Finding]]:
    """Describe the model, and report what the gateway would refuse or could not batch."""
    findings = _check_static_shapes(model)
    try:
        return describe_interface(model), findings
    except StartupError as error:
        output = choose_output(model)
        remedy = ""
        if output and output.element_type == proto.BFLOAT16:
            remedy = "numpy has no bfloat16; `qwen3-triton model pool` gives a float32 output."
        return None, [Finding("error", error.message, remedy), *findings]


def _check_static_shapes(model: OnnxModel) -> list[Finding]:
    """Report token inputs with a fixed batch or length; the gateway's batches vary in both."""
    findings: list[Finding] = []
    for axis, what in enumerate(("batch", "length")):
        fixed = {
            tensor.shape[axis]
            for tensor in model.signature.inputs
            if tensor.name in TOKEN_INPUTS and tensor.shape and len(tensor.shape) > axis
        } - {-1}
        if fixed:
            findings.append(
                Finding(
                    "error",
                    f"The {what} is fixed to {_join(fixed)}: the gateway sends batches of any "
                    f"{what}.",
                    "Export the model again with dynamic axes; optimum does so by itself.",
                )
            )
    return findings


def choose_output(model: OnnxModel) -> TensorSignature | None:
    """Choose the output that the gateway would ask for, whatever its type and shape."""
    outputs = model.signature.outputs
    by_name = {tensor.name: tensor for tensor in outputs}
    alone = outputs[0] if len(outputs) == 1 else None
    return by_name.get(POOLED_OUTPUT) or by_name.get(HIDDEN_OUTPUT) or alone


def read_config(model_path: Path) -> dict[str, Any]:
    """Read the `config.json` of an export; empty where there is none that can be read."""
    file = find_beside(model_path, "config.json")
    if file is None:
        return {}
    try:
        document: object = orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError:
        return {}
    return cast("dict[str, Any]", document) if isinstance(document, dict) else {}


def check_config(
    model: OnnxModel, config: dict[str, Any], hidden_size: int | None, rows: int | None
) -> list[Finding]:
    """Report where `config.json` contradicts the graph."""
    past = sum(tensor.name.startswith("past_key_values.") for tensor in model.signature.inputs)
    compared = (
        ("hidden_size", hidden_size),
        ("vocab_size", rows),
        ("num_hidden_layers", past // 2 or None),
    )
    return [
        Finding(
            "warning",
            f"config.json says {name} {config[name]}, the graph {found}.",
            "They belong to different models, or the file was edited; the gateway goes by the "
            "graph.",
        )
        for name, found in compared
        if found is not None and isinstance(config.get(name), int) and config[name] != found
    ]


def _tensor_spec(tensor: TensorSignature) -> TensorSpec:
    try:
        dtype: np.dtype[Any] = np.dtype(proto.element_name(tensor.element_type))
    except TypeError:  # bfloat16 and others that numpy does not have
        dtype = np.dtype(object)
    return TensorSpec(tensor.name, dtype, tensor.shape or ())


def _join(sizes: set[int]) -> str:
    return " and ".join(map(str, sorted(sizes)))
