"""The measuring scripts run; what they measure is in `bench/README.md`, never asserted here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway_process import GatewayProcess

ROOT = Path(__file__).resolve().parents[1]


def run_script(name: str, *arguments: str) -> str:
    return run_python(str(ROOT / "bench" / name), *arguments)


def run_python(*arguments: str) -> str:
    paths = os.pathsep.join(str(ROOT / part) for part in ("tests/support", "examples"))
    environment = os.environ | {"PYTHONPATH": paths, "COLUMNS": "200"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_load_generator_loads_both_lanes(gateway_url: str) -> None:
    load = ("--clients", "2", "--texts-per-request", "4", "--query-rate", "5", "--seconds", "2")
    lines = run_script("load.py", "--url", gateway_url, *load).splitlines()
    for lane in ("documents", "queries"):
        (row,) = (line for line in lines if lane in line)
        assert "200: " in row


@pytest.mark.campaign
def test_the_table_is_printed_and_written(tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    printed = run_script("run.py", "--only", "answers", "--rounds", "1", "--markdown", str(table))
    assert "CPU of encoding 256 vectors as base64" in printed
    assert table.read_text().count("\n| CPU of encoding") == 2


@pytest.mark.campaign
def test_the_loader_is_measured_against_the_frameworks() -> None:
    printed = run_script("ingest_rates.py", "--rows", "40", "--rounds", "1")
    assert printed.count("a fresh load") == 6
    assert "the drop-in, new rows" in printed


@pytest.mark.campaign
def test_the_loader_is_measured_end_to_end() -> None:
    small = ("--texts", "40", "--rounds", "1", "--rows", "2000")
    printed = run_script("ingest_load.py", *small)
    assert "nothing embedded" in printed
    assert "2,000 chunks with precomputed vectors" in printed


@pytest.mark.campaign
def test_engines_are_measured_against_each_other(tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    small = ("--layers", "1", "--texts", "16", "--rounds", "1")
    run_script("cpu.py", *small, "--markdown", str(table))
    assert "| OpenVINO float32: documents |" in table.read_text()
    assert "| OpenVINO float32: lowest cosine | 1.00000 |" in table.read_text()


@pytest.mark.campaign
def test_reranking_is_measured_next_to_embedding(tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    small = ("--model", "nano", "--rounds", "1", "--seconds", "4", "--markdown", str(table))
    run_script("rerank.py", *small)
    assert "| latency of 50 pairs |" in table.read_text()
    assert "| embedding queries next to 4 callers who rerank 50 |" in table.read_text()


@pytest.mark.slow
def test_the_rows_and_the_plot_of_cpus_come_from_the_report_of_tune(tmp_path: Path) -> None:
    rates: dict[str, Any] = {
        "engine": "openvino",
        "threads": 0,
        "max_batch_tokens": 8192,
        "problem": None,
    }
    rates |= {"texts_per_second": 2.0, "tokens_per_second": 180.0, "lone_query_ms": 31.0}
    rows = [
        rates | {"precision": "float32", "memory_bytes": 2**31, "recommended": False, "loss": None},
        rates
        | {"precision": "int8", "memory_bytes": 2**30, "recommended": True}
        | {"loss": {"lowest_cosine": 0.991}},
        {"engine": "openvino", "precision": "bfloat16", "problem": "ONEDNN_MAX_CPU_ISA is AVX2"},
    ]
    report, page, plot = (tmp_path / name for name in ("tune.json", "page.md", "plot.svg"))
    machine = {"cores": 2, "processor": "Example"}
    report.write_text(json.dumps({"machine": machine, "texts": 24, "candidates": rows}))
    page.write_text("Before\n<!-- cpu -->\nold\n<!-- end -->\nAfter\n")
    run_script("cpu_rows.py", str(report), "--page", str(page), "--plot", str(plot))
    lines = page.read_text().splitlines()
    assert "2 cores of Example; 24 texts of 90 tokens on average:" in lines[2]
    assert "| **OpenVINO, int8** | 2.0 | 180 | 31 ms | 1.0 GiB | 0.99100 at least |" in lines
    assert lines[-2:] == ["<!-- end -->", "After"]
    assert "OpenVINO, float32" in plot.read_text()


@pytest.mark.campaign
def test_the_cost_of_reranking_is_measured_and_plotted(
    reranking_gateway: GatewayProcess, tmp_path: Path
) -> None:
    page, plot = tmp_path / "page.md", tmp_path / "plot.svg"
    page.write_text("Before\n<!-- cost -->\nold\n<!-- end -->\nAfter\n")
    small = ("--url", reranking_gateway.url, "--searches", "2", "--timed", "1")
    run_script("rerank_quality.py", *small, "--page", str(page), "--plot", str(plot))
    text = page.read_text()
    assert "(plot.svg)" in text
    assert "old" not in text
    assert text.count("\n| 100 |") == 1
    assert "100 candidates" in plot.read_text()


SCRIPTS = (
    *("adapters.py", "cpu.py", "cpu_rows.py", "fairness.py"),
    *("front_end.py", "gateways.py", "heavy.py"),
    *("ingest_load.py", "ingest_rates.py", "ingest_recall.py"),
    *("load.py", "memory.py", "overload.py", "recovery.py"),
    *("rerank.py", "rerank_quality.py", "run.py"),
)
# In one process, because they import the same libraries for seconds.
SHOW_HELP = """
import contextlib, runpy, sys
sys.path.insert(0, sys.argv[1])
for script in sys.argv[2:]:
    sys.argv = [script, "--help"]
    print("Script:", script)
    with contextlib.suppress(SystemExit):
        runpy.run_path(f"{sys.path[0]}/{script}", run_name="__main__")
"""


@pytest.mark.campaign
def test_each_script_has_help() -> None:
    shown = run_python("-c", SHOW_HELP, str(ROOT / "bench"), *SCRIPTS)
    pages = {page.split(None, 1)[0]: page for page in shown.split("Script: ")[1:]}
    assert [script for script in SCRIPTS if "--help" not in pages[script]] == []
