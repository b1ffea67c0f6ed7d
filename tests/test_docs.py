"""Every code block of the documentation runs, against the real gateway and the real Triton."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from qwen3_triton_gateway.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
PATTERNS = ("*.md", "docs/*.md", "packages/*/README.md", "server/README.md")
PAGES = sorted(page for pattern in PATTERNS for page in ROOT.glob(pattern))
DEFAULT_URL = "http://localhost:8101"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks_of(page: Path, language: str) -> list[tuple[int, str]]:
    """Find the code blocks of a page with the number of their first line."""
    text = page.read_text()
    return [
        (text.count("\n", 0, match.start(2)), match[2])
        for match in BLOCK.finditer(text)
        if match[1] == language
    ]


def pages_with(language: str) -> list[Any]:
    return [pytest.param(page, id=name(page)) for page in PAGES if blocks_of(page, language)]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", pages_with("python"))
def test_the_python_blocks_of_a_page_run_one_after_another(
    page: Path, gateway_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN3_TRITON_URL", gateway_url)
    names: dict[str, Any] = {}
    for line, block in blocks_of(page, "python"):
        source = block.replace(DEFAULT_URL, gateway_url)
        code = compile("\n" * line + source, str(page), "exec")  # so that errors name the line
        exec(code, names)


@pytest.mark.parametrize("page", pages_with("bash"))
def test_the_bash_blocks_of_a_page_run(page: Path, gateway_url: str) -> None:
    for _, block in blocks_of(page, "bash"):
        script = block.replace(DEFAULT_URL, gateway_url)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            capture_output=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr.decode()
        assert b'"error"' not in done.stdout


def test_the_interface_page_lists_every_setting_as_the_code_has_it() -> None:
    page = (ROOT / "docs" / "http.md").read_text()
    for field in Settings.model_fields.values():
        assert f"| `{field.validation_alias}` |" in page
        assert str(field.description) in page


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_to_files_of_the_repository_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert missing == []
