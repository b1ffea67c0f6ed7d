"""What the commands do with models that are not what their outputs' names say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import qwen3_nano
from onnx_exports import HIDDEN_SIZE, nano_weights, tiny_model
from qwen3_nano.graph import build_graph
from qwen3_triton_gateway.cli import main
from qwen3_triton_tools.model.inspection import inspect_model
from qwen3_triton_tools.onnx_model import read_model

REPOSITORY = ("--model-name", "m", "--gpu", "cpu")
LOGITS = [helper.make_node("MatMul", ["states", "head"], ["logits"])]
MEAN = [helper.make_node("ReduceMean", ["states"], ["vectors"], axes=[1], keepdims=0)]
FIRST = [helper.make_node("Gather", ["states", "zero"], ["vectors"], axis=1)]
LAST_POSITION = [helper.make_node("Gather", ["states", "minus_one"], ["vectors"], axis=1)]


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["model", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


def write(folder: Path, nodes: list[onnx.NodeProto], *, width: int = HIDDEN_SIZE) -> Path:
    """Write the nano model with nodes behind its states, and its tokenizer."""
    model = build_graph(nano_weights())
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["states" if o == "last_hidden_state" else o for o in node.output]
    head = np.random.default_rng(0).normal(size=(HIDDEN_SIZE, width)).astype(np.float32)
    constants = {"head": head, "zero": np.array(0), "minus_one": np.array(-1)}
    used = {name for node in nodes for name in node.input}
    graph.initializer.extend(
        numpy_helper.from_array(values, name) for name, values in constants.items() if name in used
    )
    graph.node.extend(nodes)
    name = nodes[-1].output[0]
    shape = ["batch", "sequence", width] if name == "logits" else ["batch", width]
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    shutil.copy(qwen3_nano.model_dir() / "tokenizer.json", folder)
    return folder


def commands(folder: Path, out: Path) -> dict[str, tuple[object, ...]]:
    return {
        "inspect": (folder,),
        "pool": (folder, "-o", out / "pooled"),
        "repository": (folder, "-o", out / "r", *REPOSITORY),
        "python": (folder, "-o", out / "p", *REPOSITORY, "--backend", "python"),
        "verify": (folder,),
    }


def run_all(folder: Path, out: Path, *more: str) -> None:
    """Check that every command exits with 1, says why, and leaves nothing."""
    for name, arguments in commands(folder, out).items():
        code, output = run("repository" if name == "python" else name, *arguments)
        assert code == 1, name
        assert any(words in output for words in more), (name, output)
    assert not out.exists()


def test_scores_for_the_vocabulary_are_refused_by_every_command(tmp_path: Path) -> None:
    """As `optimum-cli export onnx --task text-generation` writes them."""
    folder = write(tmp_path / "m", LOGITS, width=24_000)
    run_all(folder, tmp_path / "out", "scores for a vocabulary and not states")


@pytest.mark.parametrize("nodes", [FIRST, MEAN, LAST_POSITION], ids=["cls", "mean", "position"])
def test_another_pooling_is_refused_by_every_command(
    tmp_path: Path, nodes: list[onnx.NodeProto]
) -> None:
    folder = write(tmp_path / "m", nodes)
    run_all(folder, tmp_path / "out", "pools the first token", "padding changes its vectors")


def test_a_pooling_is_accepted_where_it_is_told(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", FIRST)
    code, output = run("inspect", folder, "--pooling", "cls", "--json")
    assert code == 0
    assert json.loads(output)["probe"]["pooling"] == "cls"
    assert run("inspect", folder, "--no-probe")[0] == 0


def test_a_correct_model_s_behavior_is_shown() -> None:
    code, output = run("inspect", qwen3_nano.model_dir())
    assert code == 0
    assert "probe hidden states, independent of padding" in output


def write_tiny(folder: Path, **options: Any) -> Path:
    folder.mkdir(parents=True)
    onnx.save(tiny_model(**options), folder / "model.onnx")
    return folder


def test_a_batch_fixed_to_one_is_part_of_all_dims(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "m", batch=1)
    code, output = run("inspect", folder)
    assert code == 0
    assert "texts one by one" in output
    for backend in ("onnxruntime", "python"):
        out = tmp_path / backend
        assert run("repository", folder, "-o", out, *REPOSITORY, "--backend", backend)[0] == 0
        config = (out / "m" / "config.pbtxt").read_text()
        assert "max_batch_size: 0" in config
        assert "dims: [ 1, -1 ]" in config
        assert "dynamic_batching" not in config


def test_the_local_triton_s_repository_is_not_overwritten(tmp_path: Path) -> None:
    options = ("-o", tmp_path / "r", *REPOSITORY, "--backend", "python")
    folder = write_tiny(tmp_path / "m")
    assert run("repository", folder, *options)[0] == 0
    code, output = run("repository", folder, *options)
    assert code == 1
    assert "already exists. Pass `--force`" in output
    assert run("repository", folder, *options, "--force")[0] == 0


def test_shapes_that_the_file_omits_are_inferred(tmp_path: Path) -> None:
    output = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, None)
    folder = write_tiny(tmp_path / "m", outputs=[output])
    assert read_model(folder / "model.onnx").outputs[0].shape == (-1, -1, 8)
    assert inspect_model(folder / "model.onnx").is_servable


@pytest.mark.parametrize(("level", "is_warned"), [(None, False), (0, False), (4, True)])
def test_the_accuracy_level_of_packed_weights_is_named(
    tmp_path: Path, level: int | None, is_warned: bool
) -> None:
    options = {} if level is None else {"accuracy_level": level}
    packed = helper.make_node(
        "MatMulNBits",
        ["last_hidden_state", "packed", "scales"],
        ["out"],
        domain="com.microsoft",
        K=32,
        N=8,
        bits=4,
        block_size=32,
        **options,
    )
    inspection = inspect_model(write_tiny(tmp_path / "m", nodes=[packed]) / "model.onnx")
    assert f"accuracy_level {level or 0}" in inspection.precision.quantization
    warned = [f for f in inspection.findings if "onnxruntime#29849" in f.message]
    assert bool(warned) is is_warned


def test_what_is_not_utf_8_in_a_file_is_shown(tmp_path: Path) -> None:
    model = tiny_model()
    model.producer_name, model.producer_version = "MARK", "1"
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="MARK" * 99)
    (tmp_path / "model.onnx").write_bytes(
        model.SerializeToString().replace(b"MARK", b"\xff\xfe\xe9\xe8")
    )
    assert run("inspect", tmp_path)[0] == 0
    assert run("pool", tmp_path, "-o", tmp_path / "pooled")[0] == 0
