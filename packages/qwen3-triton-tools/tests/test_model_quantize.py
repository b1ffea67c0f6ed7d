"""Weights in int8, and what they lose: little in some models, too much in others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import qwen3_nano
from onnx_exports import float_weights, nano_weights, write_export
from onnx_session import open_session
from qwen3_triton_gateway.backends.engines import Machine
from qwen3_triton_gateway.cli import main
from qwen3_triton_tools import verify
from qwen3_triton_tools.errors import ModelError
from qwen3_triton_tools.model.quantize import default_folder, is_quantized, quantize_model
from qwen3_triton_tools.onnx_model import read_model
from qwen3_triton_tools.verify.local_gateway import folder_settings, local_gateway
from qwen3_triton_tools.verify.loss import compare, corpus
from qwen3_triton_tools.verify.probe import GatewayClient

# Enough for ten neighbors, few enough for seconds.
TEXTS = "24"


def quantize(path: Path, folder: Path) -> dict[str, Any]:
    arguments = ["model", "quantize", str(path), "-o", str(folder), "--texts", TEXTS, "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.slow
def test_a_plain_model_loses_little_and_is_a_quarter_of_its_size(tmp_path: Path) -> None:
    path = write_export(tmp_path / "model", weights=float_weights())
    report = quantize(path, tmp_path / "int8")
    assert report["bytes_after"] < 0.27 * report["bytes_before"]
    assert (tmp_path / "int8" / "tokenizer.json").exists()
    assert report["losses"]
    assert all(loss["safe"] for loss in report["losses"].values()), report
    assert all(loss["lowest_cosine"] >= 0.998 for loss in report["losses"].values()), report


def test_what_could_not_be_measured_is_not_written(tmp_path: Path) -> None:
    path = write_export(tmp_path / "model", weights=float_weights())
    (tmp_path / "model" / "tokenizer.json").unlink()
    result = CliRunner().invoke(main, ["model", "quantize", str(path)])
    assert result.exit_code == 1
    assert "has no tokenizer.json" in result.output
    assert [folder.name for folder in tmp_path.iterdir()] == ["model"]


def test_massive_activations_are_found_to_be_unsafe_in_int8(tmp_path: Path) -> None:
    if obstacle := Machine.this().why_not("int8"):
        pytest.skip(obstacle)
    path = write_export(tmp_path / "model", weights=float_weights(massive=1000.0))
    loss = quantize(path, tmp_path / "int8")["losses"]["OpenVINO, int8"]
    assert not loss["safe"]
    assert loss["lowest_cosine"] < 0.95


@pytest.mark.slow
def test_verify_compares_a_server_with_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = corpus()[: int(TEXTS)]
    monkeypatch.setattr(verify.loss, "corpus", lambda: texts)
    weights = float_weights()
    original = write_export(tmp_path / "model", weights=weights)
    other = replace(weights, norm=np.roll(weights.norm, 1))
    served = write_export(tmp_path / "other", weights=other)
    with (
        local_gateway(folder_settings(original)) as reference_url,
        local_gateway(folder_settings(served)) as url,
    ):
        reference = GatewayClient(reference_url, timeout_seconds=60)
        for client, severity in (
            (reference, "ok"),
            (GatewayClient(url, timeout_seconds=60), "error"),
        ):
            result = verify.verify(client, reference=reference, checks=())
            assert [finding.severity for finding in result.findings] == [severity]


def write_product(folder: Path, *, transposed: bool, dtype: type[np.floating]) -> Path:
    """Write a table of tokens, and a product by a matrix as exporters store it."""
    random = np.random.default_rng(4)
    table = random.normal(size=(600, 64)).astype(dtype)
    matrix = random.normal(size=(96, 64) if transposed else (64, 96)).astype(dtype)
    turn = [helper.make_node("Transpose", ["matrix"], ["turned"], perm=[1, 0])]
    factor = "turned" if transposed else "matrix"
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        *(turn if transposed else []),
        helper.make_node("MatMul", ["rows", factor], ["last_hidden_state"]),
    ]
    element_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("last_hidden_state", element_type, ["b", "l", 96])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(matrix, "matrix")],
    )
    folder.mkdir()
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "model.onnx")
    return folder / "model.onnx"


def states(path: Path) -> np.ndarray:
    ids = np.random.default_rng(2).integers(0, 600, (3, 7))
    session = open_session(path)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return np.asarray(session.run(None, feed)[0])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_tables_and_matrices_are_quantized_however_they_are_stored(
    tmp_path: Path, transposed: bool, dtype: type[np.floating]
) -> None:
    path = write_product(tmp_path / "model", transposed=transposed, dtype=dtype)
    quantized = quantize_model(path, tmp_path / "int8")
    assert quantized.matrices == 2
    expected, got = states(path), states(quantized.path)
    assert got.dtype == expected.dtype
    assert np.abs(got.astype(np.float32) - expected).max() < 0.03 * np.abs(expected).max()
    stored = {tensor.data_type for tensor in onnx.load(quantized.path).graph.initializer}
    assert stored == {TensorProto.INT8, TensorProto.FLOAT}


def test_int8_in_a_table_alone_does_not_make_a_quantized_model(tmp_path: Path) -> None:
    plain = float_weights()
    table = replace(plain, embedding=nano_weights().embedding)
    found = [
        is_quantized(read_model(write_export(tmp_path / name, weights=weights)))
        for name, weights in (("plain", plain), ("table", table), ("nano", nano_weights()))
    ]
    assert found == [False, False, True]


def test_quantizing_twice_is_refused(tmp_path: Path) -> None:
    path = write_product(tmp_path / "model", transposed=False, dtype=np.float32)
    quantized = quantize_model(path, tmp_path / "int8")
    # The second has a scale for each of many tokens.
    for once in (quantized.path, qwen3_nano.model_dir() / "model.onnx"):
        with pytest.raises(ModelError, match="quantized already"):
            quantize_model(once, tmp_path / "twice")
    with pytest.raises(ModelError, match="already exists"):
        quantize_model(path, tmp_path / "int8")
    assert not (tmp_path / "twice").exists()


@pytest.mark.parametrize("place", ["model.onnx", "onnx/model.onnx"])
def test_the_result_is_next_to_the_folder_of_the_model(place: str) -> None:
    assert default_folder(Path("/models/large") / place) == Path("/models/large-int8")


def test_neighbors_show_what_cosines_hide() -> None:
    random = np.random.default_rng(0)
    crowd = 1.0 + 0.01 * random.normal(size=(40, 64))  # all alike, so rounding reorders them
    noisy = crowd + 0.003 * random.normal(size=crowd.shape)
    assert compare(crowd, crowd).is_safe
    loss = compare(crowd, noisy)
    assert loss.lowest_cosine > 0.9999
    assert not loss.is_safe


def test_the_bundled_texts_are_as_many_as_the_help_says() -> None:
    assert len(corpus()) == 312
