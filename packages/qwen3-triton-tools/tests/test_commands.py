from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qwen3_triton_gateway.backends.engines import Machine
from qwen3_triton_gateway.cli import TOOLS_COMMANDS, flag_name, main
from qwen3_triton_gateway.settings import Settings
from qwen3_triton_tools.commands.triton import choose_for_triton

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


@pytest.mark.parametrize("variable", VARIABLES)
def test_up_takes_every_setting_of_the_gateway(variable: str) -> None:
    _, output = run("up", "--help")
    assert f"{flag_name(variable)} " in output
    assert f"[{variable}" in output.replace("\n", " ")


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


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    code, output = run("triton", "--model-dir", str(tmp_path), "--http-port", "0")
    assert code == 1
    assert "has no ONNX file" in output
