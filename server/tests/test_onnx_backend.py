"""What the backend on ONNX Runtime finds in a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qwen3_triton_gateway.backends.base import AnyArray
from qwen3_triton_gateway.backends.onnx import OnnxBackend
from qwen3_triton_gateway.errors import StartupError
from qwen3_triton_gateway.tensors import TokenBatch

LOOKUP = helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])


def write_graph(
    path: Path,
    nodes: list[onnx.NodeProto],
    *,
    output: str = "last_hidden_state",
    shape: tuple[str | int, ...] | None = ("batch", "length", 64),
    inputs: tuple[str, ...] = (),
) -> None:
    """Write a graph around a table of 100 tokens."""
    table = np.random.default_rng(1).normal(size=(100, 64)).astype(np.float32)
    names = ("input_ids", "attention_mask", *inputs)
    tokens = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in names
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        tokens,
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([2]), "axis")],
    )
    opset = [helper.make_opsetid("", 17)]
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


async def test_a_folder_without_a_model_refuses_to_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"EMBED_MODEL_DIR cannot be served\..*has no ONNX file"):
        await OnnxBackend(tmp_path).connect()


async def test_a_file_that_is_not_a_model_refuses_to_start(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(StartupError, match="is not an ONNX model"):
        await OnnxBackend(tmp_path).connect()


async def test_a_model_that_the_runtime_refuses_does_not_start(tmp_path: Path) -> None:
    node = helper.make_node("NoSuchOperator", ["input_ids"], ["last_hidden_state"])
    write_graph(tmp_path / "model.onnx", [node])
    with pytest.raises(StartupError, match="ONNX Runtime cannot load"):
        await OnnxBackend(tmp_path).connect()


async def test_the_hub_s_layout_is_served_under_the_name_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "qwen3-embedding"
    write_graph(folder / "onnx" / "model.onnx", [LOOKUP])
    spec = await OnnxBackend(folder).connect()
    assert spec.name == "qwen3-embedding"


async def test_a_shape_that_the_file_leaves_open_is_measured(tmp_path: Path) -> None:
    pooled = helper.make_node("ReduceMax", ["states"], ["vectors"], axes=[1], keepdims=0)
    lookup = helper.make_node("Gather", ["table", "input_ids"], ["states"])
    for name, nodes, shape in (
        ("last_hidden_state", [LOOKUP], (-1, -1, 64)),
        ("vectors", [lookup, pooled], (-1, 64)),
    ):
        write_graph(tmp_path / name / "model.onnx", nodes, output=name, shape=None)
        spec = await OnnxBackend(tmp_path / name).connect()
        assert spec.output.shape == shape


async def test_activations_are_not_rounded_where_only_weights_are_in_int8(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    weights = rng.integers(-127, 128, (64, 64)).astype(np.int8)
    scales = rng.uniform(0.01, 0.02, 64).astype(np.float32)
    stored = {"weights": weights, "scales": scales, "zeros": np.zeros(64, dtype=np.int8)}
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))
        for name, array in stored.items()
    ]
    nodes += [
        helper.make_node("DequantizeLinear", list(stored), ["matrix"], axis=1),
        helper.make_node("Gather", ["table", "input_ids"], ["states"]),
        helper.make_node("MatMul", ["states", "matrix"], ["last_hidden_state"]),
    ]
    write_graph(tmp_path / "model.onnx", nodes)
    backend = OnnxBackend(tmp_path)
    await backend.connect()
    ids = np.arange(12).reshape(1, 12)
    answer = await backend.infer(TokenBatch(ids, np.ones_like(ids)), timeout_seconds=60, priority=2)
    table = np.random.default_rng(1).normal(size=(100, 64)).astype(np.float32)
    np.testing.assert_allclose(answer.values[0], table[:12] @ (weights * scales), atol=1e-3)
    await backend.close()


async def test_token_types_are_zeros(tmp_path: Path) -> None:
    types = helper.make_node("Cast", ["token_type_ids"], ["floats"], to=TensorProto.FLOAT)
    column = helper.make_node("Unsqueeze", ["floats", "axis"], ["column"])
    lookup = helper.make_node("Gather", ["table", "input_ids"], ["states"])
    total = helper.make_node("Add", ["states", "column"], ["last_hidden_state"])
    nodes = [types, column, lookup, total]
    write_graph(tmp_path / "with" / "model.onnx", nodes, inputs=("token_type_ids",))
    write_graph(tmp_path / "without" / "model.onnx", [LOOKUP])
    batch = TokenBatch(np.array([[3, 4]]), np.array([[1, 1]]))
    answers: list[AnyArray] = []
    for name in ("with", "without"):
        backend = OnnxBackend(tmp_path / name)
        await backend.connect()
        answers.append((await backend.infer(batch, timeout_seconds=10, priority=1)).values)
    assert np.array_equal(answers[0], answers[1])
