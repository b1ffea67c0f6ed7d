from pathlib import Path

import pytest
from click.testing import CliRunner

from qwen3_triton_gateway.cli import TOOLS_COMMANDS, flag_name, main
from qwen3_triton_gateway.settings import Settings

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
        pytest.param(["up", "--precision", "int8"], "for OpenVINO, run `serve`", id="up-in-int8"),
    ],
)
def test_bad_usage_ends_with_2_and_says_what_is_wrong(arguments: list[str], words: str) -> None:
    code, output = run(*arguments)
    assert code == 2
    assert words in output


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    code, output = run("triton", "--model-dir", str(tmp_path), "--http-port", "0")
    assert code == 1
    assert "has no ONNX file" in output
