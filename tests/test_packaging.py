"""The built distributions, as users install them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import release

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = release.distributions(ROOT)
SUITES = ROOT / "tests" / "support"
MAX_NANO_WHEEL_BYTES = 16 * 1024 * 1024
MAX_NANO_RERANKER_WHEEL_BYTES = 12_000_000
HEAVY = {"torch", "onnx", "onnxruntime", "transformers", "sentence_transformers", "pandas", "ray"}
# What an adapter does not need itself; its framework may load some of it.
NUMERIC = HEAVY | {"numpy", "scipy", "sklearn", "tensorflow", "jax", "nltk", "tiktoken", "tqdm"}
ADAPTERS = [
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
]
# From extras: loaded only by the code that needs them.
OPTIONAL = NUMERIC | {
    *("all2md", "docx", "lxml", "openpyxl", "pptx", "pyarrow", "pypdfium2", "sqlalchemy"),
    *("striprtf", "webencodings"),
    *("langchain_core", "langchain_postgres", "llama_index"),
}
# distribution, what to import, and what its framework loads by itself
IMPORTS = [
    pytest.param("qwen3-triton-gateway", "qwen3_triton_gateway.cli", "click", id="gateway"),
    pytest.param("qwen3-triton-tools", "qwen3_triton_tools.commands.triton", "click", id="tools"),
    pytest.param("qwen3-triton-client", "qwen3_triton_client", "httpx2", id="client"),
    *ADAPTERS,
    pytest.param("qwen3-triton-ingest", "qwen3_triton_ingest", "psycopg", id="ingest"),
    pytest.param("qwen3-nano", "qwen3_nano", "json", id="nano"),
    pytest.param("qwen3-nano-reranker", "qwen3_nano_reranker", "json", id="nano-reranker"),
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


def isort_order(name: str) -> tuple[bool, bool, str]:
    """Sort constants before classes before functions, as ruff does."""
    return not name.isupper(), not name[0].isupper(), name


def run(*command: str | Path, **options: Any) -> str:
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(name="wheels", scope="session")
def _wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build all wheels, each from its source distribution, which lies next to it."""
    target = tmp_path_factory.mktemp("wheels")
    release.build_distributions(ROOT, target)
    return target


Install = Callable[..., Path]


@pytest.fixture(name="install", scope="session")
def _install(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """Return the Python of an environment with a wheel, what it declares, and test tools."""

    @cache
    def install(distribution: str, *tools: str) -> Path:
        folder = tmp_path_factory.mktemp("env")
        return release.install(ROOT, wheels, folder, distribution, *tools)

    return install


def test_all_distributions_have_one_version_and_the_changelog_has_a_section_for_it() -> None:
    (version,) = {project(folder)["version"] for folder in FOLDERS.values()}
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_all_distributions_state_license_python_and_readme() -> None:
    for folder in FOLDERS.values():
        stated = project(folder)
        assert (stated["license"], stated["requires-python"]) == ("Apache-2.0", ">=3.11")
        assert (folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
        assert (folder / stated["readme"]).is_file()


def test_the_gateway_alone_says_how_to_install_the_other_commands(install: Install) -> None:
    command = install("qwen3-triton-gateway").parent / "qwen3-triton"
    done = subprocess.run([command, "doctor"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert 'pip install "qwen3-triton-gateway[tools]"' in done.stderr


Probe = Callable[..., tuple[list[str], list[str]]]


@pytest.fixture(name="probe", scope="session")
def _probe(install: Install) -> Probe:
    """Return the packages a module loads beyond its framework, and its public names."""

    @cache
    def probe(distribution: str, module: str, framework: str) -> tuple[list[str], list[str]]:
        return json.loads(run(install(distribution), "-c", PROBE, framework, module))

    return probe


@pytest.mark.parametrize(("distribution", "module", "framework"), IMPORTS)
def test_a_wheel_imports_with_its_declared_dependencies_only(
    install: Install, probe: Probe, distribution: str, module: str, framework: str
) -> None:
    loaded, public = probe(distribution, module, framework)
    assert HEAVY.isdisjoint(loaded)
    assert public == sorted(public, key=isort_order)
    packages = next(install(distribution).parents[1].glob("lib/*/site-packages"))
    package = module.removesuffix(".cli").removesuffix(".commands.triton")
    folder = packages / package.replace(".", "/")
    assert (folder / "py.typed").is_file()


@pytest.mark.parametrize(("distribution", "module", "framework"), ADAPTERS)
def test_importing_an_adapter_loads_no_numeric_library_beyond_its_framework(
    probe: Probe, distribution: str, module: str, framework: str
) -> None:
    loaded, _ = probe(distribution, module, framework)
    assert NUMERIC.isdisjoint(loaded)


@pytest.mark.parametrize("module", ["qwen3_triton_ingest", "qwen3_triton_ingest.cli"])
def test_importing_the_loader_loads_no_optional_library(module: str) -> None:
    loaded, _ = json.loads(run(sys.executable, "-c", PROBE, "json", module))
    assert {"psycopg", "qwen3_triton_client"} <= set(loaded)
    assert OPTIONAL.isdisjoint(loaded)


@pytest.fixture(name="loader", scope="session")
def _loader(install: Install) -> Path:
    """The loader's command, in an environment without any extra."""
    return install("qwen3-triton-ingest").with_name("qwen3-triton-ingest")


@pytest.mark.parametrize("command", [[], ["load"], ["search"], ["status"]], ids="".join)
def test_every_command_of_the_loaders_wheel_has_help_with_examples(
    loader: Path, command: list[str]
) -> None:
    shown = run(loader, *command, "--help")
    assert " ".join(["Usage: qwen3-triton-ingest", *command]) in shown
    assert "Examples:" in shown


def test_the_loaders_wheel_loads_and_searches_with_its_declared_dependencies_only(
    loader: Path, gateway_url: str, database_url: str, tmp_path: Path
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "whales.md").write_text("# Whales\n\nWhales are mammals.\n")
    (tmp_path / "notes" / "yeast.html").write_text("<p>Yeast makes dough rise.</p>")
    here = {
        "cwd": tmp_path,
        "env": {
            "PATH": os.environ["PATH"],
            "DATABASE_URL": database_url,
            "QWEN3_TRITON_URL": gateway_url,
        },
    }
    loaded = json.loads(run(loader, "load", "notes", "--table", "notes", "--json", **here))
    assert (loaded["counts"]["documents"], loaded["counts"]["failed"]) == (1, 1)
    assert "'qwen3-triton-ingest[html]'" in run(loader, "status", "--table", "notes", **here)
    found = run(loader, "search", "Which animals give milk?", "--table", "notes", "--json", **here)
    assert json.loads(found)["hits"][0]["doc_id"] == "notes/whales.md"


@pytest.mark.parametrize(
    ("suite", "requirements", "settings"),
    [
        pytest.param(
            "langchain_suite.py",
            ("langchain-qwen3-triton", "pytest", "langchain-tests"),
            "asyncio_mode = auto\nasyncio_default_fixture_loop_scope = function",
            id="langchain",
            marks=pytest.mark.campaign,
        ),
        pytest.param(
            "llamaindex_suite.py",
            ("llama-index-embeddings-qwen3-triton", "pytest"),
            "",
            id="llamaindex",
            marks=pytest.mark.campaign,
        ),
    ],
)
def test_a_frameworks_own_suite_passes_from_the_wheel(
    suite: str, requirements: tuple[str, ...], settings: str, from_the_wheels: Callable[..., str]
) -> None:
    shown = from_the_wheels(suite, requirements, settings)
    assert re.search(r"^\d+ passed in", shown, re.MULTILINE), shown


@pytest.fixture(name="from_the_wheels")
def _from_the_wheels(
    install: Install, gateway_url: str, tmp_path: Path
) -> Callable[[str, tuple[str, ...], str], str]:
    """Run a file of tests against a real gateway, outside this repository and its settings."""

    def from_the_wheels(suite: str, requirements: tuple[str, ...], settings: str) -> str:
        shutil.copy(SUITES / suite, tmp_path)
        (tmp_path / "pytest.ini").write_text(f"[pytest]\nfilterwarnings = error\n{settings}\n")
        environment = {"PATH": os.environ["PATH"], "GATEWAY_URL": gateway_url}
        python = install(*requirements)
        return run(python, "-m", "pytest", "-q", suite, cwd=tmp_path, env=environment)

    return from_the_wheels


def test_the_metadata_of_all_distributions_is_valid(wheels: Path) -> None:
    release.check_metadata(wheels)


@pytest.mark.parametrize(
    "distribution",
    [
        pytest.param(name, marks=() if name == "qwen3-triton-gateway" else pytest.mark.campaign)
        for name in FOLDERS
    ],
)
def test_a_wheel_runs_alone_with_all_its_entry_points(
    distribution: str, wheels: Path, install: Install
) -> None:
    (wheel,) = wheels.glob(f"{distribution.replace('-', '_')}-*.whl")
    release.check_installed(install(distribution), wheel)


@pytest.mark.parametrize("distribution", FOLDERS)
def test_a_source_distribution_holds_no_tests_or_tests_that_run_from_it(
    distribution: str, wheels: Path, tmp_path: Path
) -> None:
    (sdist,) = wheels.glob(f"{distribution.replace('-', '_')}-*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    assert (folder / "LICENSE").is_file()
    if (folder / "tests").exists():
        run(sys.executable, "-m", "pytest", "-q", "tests", cwd=folder)


def test_the_gateways_wheel_holds_the_gateway_alone(wheels: Path) -> None:
    (wheel,) = wheels.glob("qwen3_triton_gateway-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        folders = {name.split("/")[0] for name in archive.namelist()}
        names = [name for name in archive.namelist() if name.endswith(".py")]
    assert {name for name in folders if not name.endswith(".dist-info")} == {"qwen3_triton_gateway"}
    assert not [name for name in names if re.search("doctor|local_triton|model_tools", name)]


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("qwen3_nano", MAX_NANO_WHEEL_BYTES),
        ("qwen3_nano_reranker", MAX_NANO_RERANKER_WHEEL_BYTES),
    ],
)
def test_the_nano_models_wheels_are_small(wheels: Path, name: str, limit: int) -> None:
    (wheel,) = wheels.glob(f"{name}-*.whl")
    assert wheel.stat().st_size <= limit


def test_no_requirements_file_contains_an_address() -> None:
    for file in ROOT.glob("requirements/*.txt"):
        text = file.read_text()
        assert "://" not in text
        assert "index-url" not in text
