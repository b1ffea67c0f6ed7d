import pytest
from click.testing import CliRunner

from qwen3_triton_gateway.cli import flag_name, main
from qwen3_triton_gateway.settings import Settings

VARIABLES = [str(field.validation_alias) for field in Settings.model_fields.values()]


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, arguments)
    return result.exit_code, result.output


def test_serve_has_help_with_examples() -> None:
    code, output = run("serve", "--help")
    assert code == 0
    assert "qwen3-triton serve" in output.split("Examples:")[1]


@pytest.mark.parametrize("variable", VARIABLES)
def test_every_setting_is_a_flag_that_names_its_variable(variable: str) -> None:
    _, output = run("serve", "--help")
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
