import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner

import qwen3_nano
from qwen3_triton_gateway.backends.engines import Machine
from qwen3_triton_gateway.cli import TOOLS_COMMANDS, flag_name, main
from qwen3_triton_gateway.settings import Settings
from qwen3_triton_tools.commands.triton_models import (
    WantedModels,
    choose_for_triton,
    local_triton,
)
from reranker_graph import write_reranker

VARIABLES = [str(field.validation_alias) for field in Settings.model_fields.values()]


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, arguments)
    return result.exit_code, result.output


def test_the_gateway_s_command_lists_those_of_the_tools() -> None:
    _, output = run("--help")
    listed = output.split("Commands:")[1]
    assert all(f"  {command} " in listed for command in TOOLS_COMMANDS)


@pytest.mark.parametrize("command", ["triton", "tune", "up"])
def test_every_command_has_help_with_examples(command: str) -> None:
    code, output = run(command, "--help")
    assert code == 0
    assert f"qwen3-triton {command}" in output.split("Examples:")[1]


def test_up_takes_every_setting_of_the_gateway() -> None:
    words = " ".join(run("up", "--help")[1].split())
    assert [name for name in VARIABLES if f" {flag_name(name)} " not in words] == []
    assert [name for name in VARIABLES if f"[{name}" not in words] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["triton", "--model-dir", "/nowhere"], "does not exist", id="no-folder"),
        pytest.param(
            ["triton", "--model-dir", ".", "--model-repository", "."], "not both", id="two-models"
        ),
        pytest.param(["tune", "--minutes", "0"], "not in the range", id="no-time"),
        pytest.param(["up", "--triton-url", "http://a"], "run `serve`", id="up-with-url"),
        pytest.param(
            ["triton", "--model-repository", ".", "--engine", "openvino"],
            "has its own engine",
            id="engine-of-a-repository",
        ),
        pytest.param(
            ["triton", "--model-repository", ".", "--rerank"],
            "has all its models",
            id="reranker-of-a-repository",
        ),
    ],
)
def test_bad_usage_ends_with_2_and_says_what_is_wrong(arguments: list[str], words: str) -> None:
    code, output = run(*arguments)
    assert code == 2
    assert words in output


@pytest.mark.parametrize("command", ["triton", "up"])
def test_an_engine_without_a_precision_does_not_start(command: str) -> None:
    code, output = run(command, "--engine", "onnxruntime", "--precision", "int8")
    assert code == 1
    assert "Set EMBED_ENGINE to openvino, or EMBED_PRECISION to auto." in output


@pytest.mark.parametrize(
    ("has_openvino", "engine", "precision", "expected"),
    [
        (True, "auto", "auto", ("openvino", "bfloat16")),
        (False, "auto", "auto", ("onnxruntime", "graph")),
        (False, "auto", "bfloat16", ("openvino", "bfloat16")),
        (False, "openvino", "float32", ("openvino", "float32")),
        (True, "onnxruntime", "auto", ("onnxruntime", "graph")),
    ],
)
def test_triton_s_environment_gets_the_engine_that_is_asked_for(
    has_openvino: bool, engine: Any, precision: Any, expected: tuple[str, str]
) -> None:
    machine = Machine("x86_64", frozenset({"avx512_bf16"}), "", has_openvino)
    settings = Settings(EMBED_ENGINE=engine, EMBED_PRECISION=precision)
    choice = choose_for_triton(settings, machine)
    assert (choice.engine, choice.precision) == expected


@pytest.mark.parametrize(
    ("engine", "expected"), [("auto", "onnxruntime"), ("openvino", "openvino")]
)
def test_weights_that_openvino_does_not_read_run_on_onnx_runtime_unless_it_is_named(
    tmp_path: Path, engine: str, expected: str
) -> None:
    files = [tmp_path / "blobs" / name for name in ("model.onnx", "weights")]
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    model = onnx.load(qwen3_nano.model_dir() / "model.onnx")
    onnx.save(model, files[0], save_as_external_data=True, location="weights")
    for file in files:
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    machine = Machine("x86_64", frozenset(), "", has_openvino=True)
    path = tmp_path / "snapshot" / "model.onnx"
    choice = choose_for_triton(Settings(EMBED_ENGINE=engine), machine, model_paths=[path])
    assert choice.engine == expected


@pytest.mark.parametrize("command", ["triton", "up"])
def test_a_missing_nano_reranker_is_an_error_that_says_how_to_install_it(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "qwen3_nano_reranker", None)
    code, output = run(command, "--rerank", "--http-port", "0")
    assert code == 1
    assert "pip install qwen3-nano-reranker" in output
    assert "RERANK_MODEL_DIR" in output


def test_an_embedding_model_in_place_of_a_reranker_is_named() -> None:
    nano = str(qwen3_nano.model_dir())
    code, output = run("triton", "--rerank-model-dir", nano, "--http-port", "0")
    assert code == 1
    assert "It is not a reranker: it returns `last_hidden_state`" in output


def test_a_model_in_the_current_folder_has_that_folder_s_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_reranker(tmp_path / "ranks")
    monkeypatch.chdir(folder)
    flags = ("--rerank-model-name", "ranks", "--http-port", "0")
    code, output = run("triton", "--model-dir", ".", "--rerank-model-dir", ".", *flags)
    assert code == 1
    assert "Both models are called 'ranks'." in output


@pytest.mark.parametrize("name", ["a/b", "a b", "$(id)", "模型"])
def test_a_name_that_triton_s_shell_would_change_is_refused(name: str) -> None:
    code, output = run("triton", "--model-name", name, "--http-port", "0")
    assert code == 1
    assert f"A model cannot be called {name!r} in the local Triton. Set --model-name" in output


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    folder = str(write_reranker(tmp_path / "ranks"))
    flags = ("--model-name", "ranks", "--rerank-model-name", "ranks", "--http-port", "0")
    code, output = run("triton", "--rerank-model-dir", folder, *flags)
    assert code == 1
    assert "Both models are called 'ranks'." in output


@pytest.mark.stack
def test_two_folders_of_one_name_are_two_models(tmp_path: Path) -> None:
    wanted = WantedModels(
        model_dir=None,
        model_name="My_ranks",
        rerank=True,
        rerank_model_dir=write_reranker(tmp_path / "My $ranks"),
        rerank_model_name=None,
        pool=True,
    )
    with local_triton(wanted, Settings(), print) as server:
        assert server.model_names == "My_ranks and My_ranks-reranker"


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    code, output = run("triton", "--model-dir", str(tmp_path), "--http-port", "0")
    assert code == 1
    assert "has no ONNX file" in output
