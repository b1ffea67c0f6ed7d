"""Users' own converters: commands, and functions of installed packages."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen3_triton_ingest.documents import BadRecord, Document
from qwen3_triton_ingest.errors import SourceError
from qwen3_triton_ingest.sources import conversion, converters
from record_files import good, read

PYTHON = f"'{sys.executable}' -S"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A converter of files to Markdown, which takes their path."""
    path = tmp_path / "the converter.py"
    path.write_text(
        "import os, sys\n"
        "text = open(sys.argv[1], encoding='utf-8').read()\n"
        "sys.stdout.reconfigure(encoding='utf-8')\n"
        "if text == 'bad':\n"
        "    sys.exit('Line 3 is wrong.')\n"
        "if text == 'endless':\n"
        "    while True: print('x' * 1000)\n"
        "if text == 'large':\n"
        "    b'x' * (1 << 34)\n"
        "print('# ' + os.path.basename(sys.argv[1]) + '\\n\\n' + text, end='')\n"
    )
    return path


def converted(path: Path, content: str, script: Path, **options: Any) -> Document | BadRecord:
    path.write_text(content)
    command = {path.suffix: f"{PYTHON} '{script}' {{path}}"}
    (item,) = read(path, converters=command, **options)
    return item


def test_a_command_converts_files_of_an_extension(tmp_path: Path, script: Path) -> None:
    item = converted(tmp_path / "a $(touch x); 'b'.DWG", "Größe\n", script)
    assert isinstance(item, Document), item
    assert item.text == "# a $(touch x); 'b'.DWG\n\nGröße\n"
    assert (item.markup, [mark.kind for mark in item.marks]) == ("markdown", ["heading"])


def test_a_command_replaces_the_loaders_own_reader(tmp_path: Path, script: Path) -> None:
    item = converted(tmp_path / "a.md", "Text", script)
    assert isinstance(item, Document)
    assert item.text == "# a.md\n\nText"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("bad", "failed with exit code 1: Line 3 is wrong."),
        ("endless", "The converter's output has"),
        ("large", "MemoryError"),
    ],
)
def test_a_command_that_fails_is_reported(
    tmp_path: Path, script: Path, content: str, words: str
) -> None:
    item = converted(tmp_path / "a.dwg", content, script, max_document_bytes=100_000)
    assert isinstance(item, BadRecord)
    assert words in item.reason
    assert item.doc_id == str(tmp_path / "a.dwg")


def test_a_command_ends_with_its_time(tmp_path: Path) -> None:
    # A shell, because it starts in no time.
    (tmp_path / "wait.sh").write_text('echo $$ >"$1.pid"\nexec sleep 1000\n')
    (tmp_path / "a.dwg").write_text("x")
    command = {"dwg": f"sh {tmp_path}/wait.sh {{path}}"}
    (item,) = read(tmp_path / "a.dwg", converters=command, max_convert_seconds=5)
    assert isinstance(item, BadRecord)
    assert "--max-convert-seconds" in item.reason
    pid = (tmp_path / "a.dwg.pid").read_text().strip()
    while _is_running(pid):
        time.sleep(0.05)


def _is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("ending", "command", "words"),
    [
        ("org", "pandoc -t gfm", "must look like `EXT=COMMAND {path}`"),
        ("org", "{path}", "must look like"),
        (".", f"{sys.executable} {{path}}", "must look like"),
        ("org", "'pandoc {path}", "No closing quotation"),
        ("org", "no-such-program {path}", "'no-such-program' is not an installed program"),
    ],
)
def test_a_wrong_command_is_an_error_at_once(
    tmp_path: Path, ending: str, command: str, words: str
) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(SourceError, match=words.replace("{", r"\{")):
        read(tmp_path / "a.txt", converters={ending: command})


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package with a converter."""
    (tmp_path / "site" / "drawings-1.0.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "drawings-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: drawings\nVersion: 1.0\n"
    )
    (tmp_path / "site" / "drawings-1.0.dist-info" / "entry_points.txt").write_text(
        f"[{converters.ENTRY_POINTS}]\ndwg = drawings:convert\n"
    )
    (tmp_path / "site" / "drawings.py").write_text(
        "def convert(path):\n    return '# Drawing\\n\\n' + open(path).read()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    converters._installed.cache_clear()  # pyright: ignore[reportPrivateUsage]
    conversion.close_idle_processes()  # which know the packages of before
    yield
    converters._installed.cache_clear()  # pyright: ignore[reportPrivateUsage]
    conversion.close_idle_processes()


@pytest.mark.usefixtures("package")
def test_a_package_brings_a_converter(tmp_path: Path) -> None:
    (tmp_path / "a.dwg").write_text("Lines.")
    (item,) = good(read(tmp_path / "a.dwg"))
    assert item.text == "# Drawing\n\nLines."
