"""The built wheels, as strangers install them."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = [ROOT / "server", *sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))]
MAX_NANO_WHEEL_BYTES = 16 * 1024 * 1024
HEAVY = {"torch", "onnx", "onnxruntime", "transformers", "sentence_transformers", "pandas", "ray"}
# distribution, what to import, and what its framework loads by itself
IMPORTS = [
    pytest.param("qwen3-triton-gateway", "qwen3_triton_gateway.cli", "click", id="gateway"),
    pytest.param("qwen3-triton-client", "qwen3_triton_client", "httpx2", id="client"),
    pytest.param(
        "langchain-qwen3-triton",
        "langchain_qwen3_triton",
        "langchain_core.embeddings",
        id="langchain",
    ),
    pytest.param(
        "llama-index-embeddings-qwen3-triton",
        "llama_index.embeddings.qwen3_triton",
        "llama_index.core.base.embeddings.base",
        id="llamaindex",
    ),
    pytest.param("qwen3-nano", "qwen3_nano", "json", id="nano"),
]
PROBE = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
before = set(sys.modules)
module = importlib.import_module(sys.argv[2])
print(json.dumps([sorted({name.split(".")[0] for name in set(sys.modules) - before}),
                  list(getattr(module, "__all__", []))]))
"""


def project(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


def run(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(name="wheels", scope="session")
def _wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheels")
    for folder in FOLDERS:
        run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", target, folder)
    return target


def install(distribution: str, wheels: Path, folder: Path) -> Path:
    """Install a wheel and only what it declares, at the locked versions; give the Python."""
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "uv", "venv", "--quiet", "--python", sys.executable, folder)
    run(
        *(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python),
        *("--no-sources", "--no-verify-hashes", "--find-links", wheels),
        *("--constraint", ROOT / "requirements" / "dev.txt", distribution),
    )
    return python


def test_all_distributions_have_one_version_and_the_changelog_tells_it() -> None:
    (version,) = {project(folder)["version"] for folder in FOLDERS}
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_all_distributions_state_licence_floor_and_readme() -> None:
    for folder in FOLDERS:
        stated = project(folder)
        assert (stated["license"], stated["requires-python"]) == ("Apache-2.0", ">=3.11")
        assert (folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
        assert (folder / stated["readme"]).is_file()


@pytest.mark.parametrize(("distribution", "module", "framework"), IMPORTS)
def test_a_wheel_imports_with_its_declared_dependencies_only(
    wheels: Path, tmp_path: Path, distribution: str, module: str, framework: str
) -> None:
    python = install(distribution, wheels, tmp_path / "env")
    loaded, public = json.loads(run(python, "-c", PROBE, framework, module))
    assert HEAVY.isdisjoint(loaded)
    assert public == sorted(public)
    folder = next(tmp_path.glob("env/lib/*/site-packages")) / module.replace(".cli", "").replace(
        ".", "/"
    )
    assert (folder / "py.typed").is_file()


def test_importing_an_adapter_loads_no_numpy_of_its_own(wheels: Path, tmp_path: Path) -> None:
    python = install("langchain-qwen3-triton", wheels, tmp_path / "env")
    loaded, _ = json.loads(
        run(python, "-c", PROBE, "langchain_core.embeddings", "langchain_qwen3_triton")
    )
    assert "numpy" not in loaded


def test_the_nano_models_wheel_is_small(wheels: Path) -> None:
    (wheel,) = wheels.glob("qwen3_nano-*.whl")
    assert wheel.stat().st_size <= MAX_NANO_WHEEL_BYTES


def test_no_requirements_file_records_an_address_or_a_path() -> None:
    for file in ROOT.glob("requirements/*.txt"):
        text = file.read_text()
        assert "://" not in text
        assert "index-url" not in text
