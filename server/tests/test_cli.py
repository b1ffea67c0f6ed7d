from pathlib import Path

import pytest
from click.testing import CliRunner

from qwen3_triton_gateway.cli import flag_name, main
from qwen3_triton_gateway.settings import Settings

COMMANDS = ["serve", "triton", "up"]
VARIABLES = [str(field.validation_alias) for field in Settings.model_fields.values()]


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, arguments)
    return result.exit_code, result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str) -> None:
    code, output = run(command, "--help")
    assert code == 0
    assert f"qwen3-triton {command}" in output.split("Examples:")[1]


@pytest.mark.parametrize("command", ["serve", "up"])
@pytest.mark.parametrize("variable", VARIABLES)
def test_every_setting_is_a_flag_that_names_its_variable(command: str, variable: str) -> None:
    _, output = run(command, "--help")
    assert f"{flag_name(variable)} " in output
    assert f"[{variable}" in output.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["serve", "--nosuch"], "No such option", id="unknown-flag"),
        pytest.param(["serve", "--port", "many"], "EMBED_PORT", id="not-a-number"),
        pytest.param(["serve", "--output-dim", "31"], "greater than or equal to 32", id="range"),
        pytest.param(
            ["serve", "--triton-url", "http://a", "--model-dir", "b"],
            "TRITON_URL and EMBED_MODEL_DIR are both set",
            id="two-backends",
        ),
        pytest.param(["triton", "--model-dir", "/nowhere"], "does not exist", id="no-folder"),
        pytest.param(
            ["triton", "--model-dir", ".", "--model-repository", "."], "not both", id="two-models"
        ),
        pytest.param(["up", "--triton-url", "http://a"], "use `serve`", id="up-with-url"),
    ],
)
def test_bad_usage_ends_with_2_and_says_what_is_wrong(arguments: list[str], words: str) -> None:
    code, output = run(*arguments)
    assert code == 2
    assert words in output


def test_the_environment_sets_what_no_flag_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBED_PORT", "many")
    code, output = run("serve")
    assert code == 2
    assert "EMBED_PORT" in output


def test_a_wrong_key_setting_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBED_API_KEYS", "secret-key")
    monkeypatch.setenv("EMBED_PORT", "many")
    assert "secret-key" not in run("serve")[1]


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    code, output = run("triton", "--model-dir", str(tmp_path), "--http-port", "0")
    assert code == 1
    assert "model.onnx" in output
