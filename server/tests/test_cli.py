import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from qwen3_triton_gateway import cli
from qwen3_triton_gateway.cli import allowed_values, flag_name, main
from qwen3_triton_gateway.settings import Settings

VARIABLES = [str(field.validation_alias) for field in Settings.model_fields.values()]


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, arguments)
    return result.exit_code, result.output


@pytest.fixture(name="add_plugin")
def _add_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Install a distribution that adds the command `extra`, from the source of its module."""

    def add(source: str) -> None:
        folder = tmp_path / "acme_plugin-1.2.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-plugin\nVersion: 1.2\n")
        (folder / "entry_points.txt").write_text(
            f"[{cli.COMMANDS_GROUP}]\nextra = acme_plugin:main\n"
        )
        (tmp_path / "acme_plugin.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "acme_plugin", raising=False)

    return add


def test_serve_has_help_with_examples() -> None:
    code, output = run("serve", "--help")
    assert code == 0
    assert "qwen3-triton serve" in output.split("Examples:")[1]


def test_every_setting_is_a_flag_that_names_its_variable() -> None:
    words = " ".join(run("serve", "--help")[1].split())
    assert [name for name in VARIABLES if f" {flag_name(name)} " not in words] == []
    assert [name for name in VARIABLES if f"[{name}" not in words] == []


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [
        pytest.param("port", "0 to 65535", id="both-bounds"),
        pytest.param("output_dim", "at least 32", id="lower-bound"),
        pytest.param("timeout_seconds", "more than 0", id="strict-lower-bound"),
        pytest.param("log_format", "text or json", id="choices"),
        pytest.param("cache_bytes", "", id="any-size"),
        pytest.param("triton_model", "", id="any-text"),
    ],
)
def test_help_states_what_a_setting_allows(setting: str, allowed: str) -> None:
    assert allowed_values(Settings.model_fields[setting]) == allowed
    assert f"; {allowed}" in " ".join(run("serve", "--help")[1].split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["serve", "--nosuch"], "No such option", id="unknown-flag"),
        pytest.param(
            ["serve", "--port", "many"], "`EMBED_PORT` should be a valid integer", id="not-a-number"
        ),
        pytest.param(
            ["serve", "--timeout-s", "inf"], "`EMBED_TIMEOUT_S` should be a finite", id="endless"
        ),
        pytest.param(
            ["serve", "--output-dim", "31"],
            "greater than or equal to 32 (got '31').",
            id="out-of-range",
        ),
        pytest.param(
            ["serve", "--triton-url", "http://a", "--model-dir", "b"],
            "TRITON_URL and EMBED_MODEL_DIR are both set",
            id="two-backends",
        ),
        pytest.param(
            ["serve", "--tls-key", "/nowhere"],
            "`EMBED_TLS_KEY`: The file '/nowhere' cannot be read.\n",
            id="unreadable-file",
        ),
        pytest.param(["serv"], "No such command 'serv'", id="unknown-command"),
    ],
)
def test_bad_usage_exits_with_2_and_says_what_is_wrong(arguments: list[str], words: str) -> None:
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


@pytest.mark.parametrize("command", cli.TOOLS_COMMANDS)
def test_a_command_of_missing_tools_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(cli, "entry_points", lambda group: [])
    code, output = run(command, "--help")
    assert code == 2
    assert 'pip install "qwen3-triton-gateway[tools]"' in output


def test_an_installed_distribution_adds_a_command(add_plugin: Callable[[str], None]) -> None:
    add_plugin("import click\n@click.command()\ndef main():\n    click.echo('done')\n")
    assert "extra" in run("--help")[1]
    assert run("extra") == (0, "done\n")


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        pytest.param("import nosuchmodule", "No module named 'nosuchmodule'", id="import-fails"),
        pytest.param("main = 1 / 0", "ZeroDivisionError", id="module-fails"),
        pytest.param("", "AttributeError", id="no-command"),
        pytest.param("main = print", "is not a click command", id="not-a-command"),
    ],
)
def test_a_broken_command_names_its_distribution_and_leaves_the_others_alone(
    add_plugin: Callable[[str], None], source: str, cause: str
) -> None:
    add_plugin(source)
    assert run("serve", "--help")[0] == 0
    code, output = run("--help")
    assert code == 0
    assert "Unavailable (acme-plugin 1.2)." in output
    code, output = run("extra", "--flag", "value")
    assert code == 1
    assert "`extra` of acme-plugin 1.2 cannot be loaded" in output
    assert cause in output
