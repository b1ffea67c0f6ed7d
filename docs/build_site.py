"""Build the documentation site into `build/site`: `make docs`.

The pages in `docs/` read well as they are. For the site, their links out of the folder are turned
into links between pages, and the references are generated from the code where a page asks for it
with a line such as `<!-- generated: settings -->`. A dead link, a page outside of the navigation
and any warning of the generator fail the build.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import yaml

from qwen3_triton_gateway.cli import allowed_values, default_value, flag_name
from qwen3_triton_gateway.cli import main as gateway_command
from qwen3_triton_gateway.settings import Settings
from qwen3_triton_ingest.cli import main as ingest_command

ROOT = Path(__file__).resolve().parents[1]
STAGE = ROOT / "build" / "docs"
# Pages that live outside of `docs/`, by their name in the site.
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "CODE_OF_CONDUCT.md": "code-of-conduct.md",
    "SECURITY.md": "security.md",
    "bench/README.md": "measurements.md",
}
ASSETS = {".svg", ".png", ".json"}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|!?\[[^\]]*\]\([^)]*\))*)\]\(([^()\s]+)\)")
FENCE = re.compile(r"^( *```.*?^ *```)$", re.DOTALL | re.MULTILINE)
BAR = "\\|"  # a table would otherwise end the cell
MARKER = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


class DocumentationError(Exception):
    """A problem of the pages, named by file."""


def pages() -> dict[Path, str]:
    """Map each page of the repository to its name in the site."""
    found = {path: str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md")}
    return found | {ROOT / source: name for source, name in ELSEWHERE.items()}


def stage() -> None:
    """Write every page and asset to the folder that the generator reads."""
    shutil.rmtree(STAGE, ignore_errors=True)
    for source, name in pages().items():
        target = STAGE / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(MARKER.sub(_generate, _with_site_links(source, name)), encoding="utf-8")
    for asset in ROOT.glob("docs/*"):
        if asset.suffix in ASSETS:
            shutil.copy(asset, STAGE / asset.name)


def check_navigation() -> None:
    """Fail where the navigation and the pages differ."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed = [page for section in config["nav"] for page in next(iter(section.values()))]
    orphans = set(pages().values()) - set(listed)
    missing = set(listed) - set(pages().values())
    if orphans or missing:
        raise DocumentationError(
            f"mkdocs.yml: not in the navigation: {sorted(orphans)}; not there: {sorted(missing)}."
        )


# Links


def _with_site_links(source: Path, name: str) -> str:
    """Return a page's text with its links as they are in the site; code blocks stay."""

    def replace(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        text = LINK.sub(replace, text)
        path, hash_, anchor = target.partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return f"{image}[{text}]({target})"
        linked = (source.parent / path).resolve()
        if not linked.exists():
            raise DocumentationError(f"{source.relative_to(ROOT)}: `{target}` does not exist.")
        if linked.is_dir() and linked / "README.md" in pages():
            linked /= "README.md"
        if linked in pages():
            there = pages()[linked]
        elif linked.parent == ROOT / "docs" and linked.suffix in ASSETS:
            there = linked.name
        else:
            return text  # a source file: the text names it
        relative = os.path.relpath(there, Path(name).parent)
        return f"{image}[{text}]({relative}{hash_}{anchor})"

    parts = FENCE.split(source.read_text(encoding="utf-8"))
    return "".join(
        part if number % 2 else LINK.sub(replace, part) for number, part in enumerate(parts)
    )


# References


def _generate(match: re.Match[str]) -> str:
    return GENERATED[match[1]]()


def settings_table() -> str:
    """Return the settings of the gateway as a table, from their one declaration."""
    rows = ["| variable | flag | default | allowed | |", "|---|---|---|---|---|"]
    for field in Settings.model_fields.values():
        variable = str(field.validation_alias)
        default = default_value(field)
        cells = [
            f"`{variable}`",
            f"`{flag_name(variable)}`",
            f"`{default}`" if default else "",
            _cell(allowed_values(field)),
            _cell(field.description),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def command_reference() -> str:
    """Return the help of every command, from the commands themselves."""
    commands = {"qwen3-triton": gateway_command, "qwen3-triton-ingest": ingest_command}
    return "\n\n".join(
        section
        for name, command in commands.items()
        for section in _command_sections(command, name, None)
    )


def _command_sections(
    command: click.Command, name: str, parent: click.Context | None
) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    level = "#" * (2 + len(context.command_path.split()) - 1)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [f"{level} {context.command_path}", f"```text\n{usage}\n```", *_help(command)]
    if options := _option_rows(command, context):
        parts.append("\n".join(["| option | |", "|---|---|", *options]))
    yield "\n\n".join(parts)
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None and not found.hidden:
                yield from _command_sections(found, child, context)


def _help(command: click.Command) -> Iterator[str]:
    """Give the paragraphs of a command's help; those that click leaves unwrapped are code."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(command.help or "")):
        if not paragraph.startswith("\b"):
            yield _escape(paragraph)
            continue
        lines = paragraph.removeprefix("\b\n").splitlines()
        if lines and lines[0].endswith(":"):
            yield lines.pop(0)
        yield "```text\n" + inspect.cleandoc("\n".join(["", *lines])) + "\n```"


def _option_rows(command: click.Command, context: click.Context) -> list[str]:
    records = [
        record
        for parameter in command.get_params(context)
        if (record := parameter.get_help_record(context)) and "--help" not in record[0]
    ]
    return [f"| `{flags.replace('|', BAR)}` | {_cell(text)} |" for flags, text in records]


def _cell(text: str | None) -> str:
    return _escape(" ".join((text or "").split())).replace("|", "\\|")


def _escape(text: str) -> str:
    """Keep what Markdown would take for links or tags as it is, code spans aside."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if number % 2 else re.sub(r"([\[\]<*])", r"\\\1", part)
        for number, part in enumerate(parts)
    )


GENERATED: dict[str, Callable[[], str]] = {
    "settings": settings_table,
    "commands": command_reference,
}


def main() -> int:
    try:
        stage()
        check_navigation()
    except DocumentationError as error:
        click.echo(f"Error: {error}", err=True)
        return 1
    build = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    code = subprocess.run(
        build, cwd=ROOT, check=False, env=os.environ | {"NO_COLOR": "1"}
    ).returncode
    if code == 0:
        click.echo("The site is in build/site; look at it: python3 -m http.server -d build/site")
    return code


if __name__ == "__main__":
    sys.exit(main())
