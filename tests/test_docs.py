"""Every code block of the documentation runs, against the real gateway, Triton and PostgreSQL."""

from __future__ import annotations

import gc
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from gateway_process import GatewayProcess
from psql import PARADEDB_SHIM, psql
from qwen3_triton_gateway.settings import Settings
from qwen3_triton_tools.local_triton import LocalTriton

ROOT = Path(__file__).resolve().parents[1]
PATTERNS = ("*.md", "docs/**/*.md", "packages/*/README.md", "server/README.md")
PAGES = sorted(page for pattern in PATTERNS for page in ROOT.glob(pattern))
DEFAULT_URL = "http://localhost:8101"
BLOCK = re.compile(r"^```(python|sql|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks_of(page: Path, *languages: str) -> list[tuple[str, int, str]]:
    """Return the code blocks of a page: language, line number, text."""
    text = page.read_text()
    return [
        (match[1], text.count("\n", 0, match.start(2)), match[2])
        for match in BLOCK.finditer(text)
        if match[1] in languages
    ]


# Starts several Ray clusters, one after the other; `test_engines.py` covers the same calls.
LONG_PAGES: dict[tuple[str, ...], pytest.MarkDecorator] = {
    ("docs/ray.md", "bash"): pytest.mark.campaign
}


def pages_with(*languages: str) -> list[Any]:
    return [
        pytest.param(page, id=name(page), marks=LONG_PAGES.get((name(page), *languages), ()))
        for page in PAGES
        if blocks_of(page, *languages)
    ]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(name="reader", autouse=True)
def _reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that looks like the root of the repository, where readers run the blocks."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(name="database")
def _database(
    page: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> str | None:
    """An empty database for a page that uses one."""
    if "DATABASE_URL" not in page.read_text() and not blocks_of(page, "sql"):
        return None
    url = request.getfixturevalue("database_url")
    monkeypatch.setenv("DATABASE_URL", url)
    if page.stem == "paradedb":
        psql(url, PARADEDB_SHIM.read_text(), {})
    return url


@pytest.fixture(name="url")
def _url(page: Path, request: pytest.FixtureRequest, triton: LocalTriton) -> str:
    """The gateway of a page: with a reranker if one of its blocks needs it."""
    assert triton  # so that the tests are marked
    blocks = (block for _, _, block in blocks_of(page, "python", "bash"))
    needs_reranker = any("rerank" in block.lower() for block in blocks)
    gateway: GatewayProcess = request.getfixturevalue(
        "reranking_gateway" if needs_reranker else "gateway"
    )
    return gateway.url


@pytest.fixture(name="names")
def _names(page: Path) -> Generator[dict[str, Any]]:
    """The variables of a page, LlamaIndex's global settings among them."""
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        if "llama_index" in page.read_text():
            from llama_index.core import Settings

            patch.setattr(Settings, "_embed_model", None)
            patch.setattr(Settings, "_llm", None)
        yield names
    # So that anything the page left open fails its own test. OpenAI's client closes itself in its
    # finalizer, and a full collection would finalize a socket of the youngest generation before a
    # client of the second; after a collection of both, the client comes first.
    gc.collect(1)
    names.clear()
    gc.collect()


@pytest.mark.parametrize("page", pages_with("python", "sql"))
def test_the_python_and_sql_blocks_of_a_page_run_one_after_another(
    page: Path,
    url: str,
    database: str | None,
    names: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QWEN3_TRITON_URL", url)
    for language, line, block in blocks_of(page, "python", "sql"):
        source = block.replace(DEFAULT_URL, url)
        if language == "sql":
            assert database is not None
            psql(database, source, names)  # with the variables of the Python blocks
        else:
            code = compile("\n" * line + source, str(page), "exec")  # so that errors name the line
            exec(code, names)


@pytest.mark.parametrize("page", pages_with("bash"))
def test_the_bash_blocks_of_a_page_run(
    page: Path, url: str, database: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN3_TRITON_URL", url)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for _, _, block in blocks_of(page, "bash"):
        script = block.replace(DEFAULT_URL, url)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            capture_output=True,
            check=False,
            timeout=240,  # a Ray cluster starts slowly on a busy machine
        )
        assert done.returncode == 0, done.stderr.decode()
        assert b'"error"' not in done.stdout


# The site. `make docs` itself checks anchors and builds every page strictly.


@pytest.fixture(name="site", scope="module")
def _site() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "build_site.py"))


def test_the_settings_page_lists_every_setting_with_its_flag(site: dict[str, Any]) -> None:
    rows = site["settings_table"]().splitlines()[2:]
    variables = [str(field.validation_alias) for field in Settings.model_fields.values()]
    assert [row.split("`")[1] for row in rows] == variables
    assert all(row.split("`")[3].startswith("--") for row in rows)


def test_the_command_page_lists_every_command(site: dict[str, Any]) -> None:
    headings = re.findall(r"^#+ (qwen3-triton.*)$", site["command_reference"](), re.MULTILINE)
    assert {
        *("qwen3-triton serve", "qwen3-triton up", "qwen3-triton doctor"),
        *("qwen3-triton model verify", "qwen3-triton-ingest load", "qwen3-triton-ingest search"),
    } <= set(headings)


def test_every_page_is_in_the_navigation(site: dict[str, Any]) -> None:
    site["check_navigation"]()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_to_files_of_the_repository_exist(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert missing == []
