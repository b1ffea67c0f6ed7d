"""What follows from a graph's operators: where positions come from, which padding it bears."""

from __future__ import annotations

from typing import Literal, TypeAlias

from ..onnx_file import Node, OnnxModel

Positions: TypeAlias = Literal["input", "mask", "counted"]
Padding: TypeAlias = Literal["either side", "right only"]

_GROUPED = "GroupQueryAttention"
# Operators that hand on token ids, a mask or a table of weights as they are.
_PASSING = {"Cast", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze", "DequantizeLinear"}
_LOOKUPS = {"Gather", "GatherBlockQuantized", "GatherElements"}


def uses_grouped_attention(model: OnnxModel) -> bool:
    """Say whether attention is one fused GroupQueryAttention, as GenAI's builder makes it."""
    return model.operators[_GROUPED] > 0


def position_source(model: OnnxModel) -> Positions:
    """Tell where positions come from: an input, the running sum of the mask, or plain counting."""
    if any(tensor.name == "position_ids" for tensor in model.signature.inputs):
        return "input"
    handed_on = _handed_on(model, "attention_mask")
    summed = any(
        node.op_type == "CumSum" and node.inputs and node.inputs[0] in handed_on
        for node in model.nodes
    )
    return "mask" if summed else "counted"


def tolerated_padding(model: OnnxModel) -> Padding:
    """Tell which side may be padded. The right always may, in a causal model.

    Left padding needs positions that start at the first real token. GroupQueryAttention takes the
    mask's sum for the length of a text, and so sees pads on the left as text
    (microsoft/onnxruntime#18283).
    """
    if uses_grouped_attention(model) or position_source(model) == "counted":
        return "right only"
    return "either side"


def embedding_rows(model: OnnxModel) -> int | None:
    """Find how many tokens the table knows in which `input_ids` are looked up, if it is found."""
    tokens = _handed_on(model, "input_ids")
    shapes = {weight.name: weight.shape for weight in model.weights if weight.shape}
    makers = {output: node for node in model.nodes for output in node.outputs}
    for node in model.nodes:
        if node.op_type in _LOOKUPS and len(node.inputs) > 1 and node.inputs[1] in tokens:
            table = _origin(node.inputs[0], makers)
            if table in shapes:
                return shapes[table][0]
    return None


def _handed_on(model: OnnxModel, name: str) -> set[str]:
    """Name the tensors that hold the same values as `name`; nodes are in topological order."""
    names = {name}
    for node in model.nodes:
        if node.op_type in _PASSING and node.inputs and node.inputs[0] in names:
            names.update(node.outputs)
    return names


def _origin(name: str, makers: dict[str, Node]) -> str:
    """Follow a table back through casts to the tensor that is stored."""
    while (node := makers.get(name)) and node.op_type in _PASSING and node.inputs:
        name = node.inputs[0]
    return name
