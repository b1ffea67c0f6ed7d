"""The tables of docs/sizing.md match its own formulas."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen3_triton_tools.model.gpu_plan import ModelShape

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "sizing.md").read_text()


@pytest.fixture(name="formulas", scope="module")
def _formulas() -> dict[str, Any]:
    names: dict[str, Any] = {}
    block = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert block
    exec(compile(block[1], "docs/sizing.md", "exec"), names)
    return names


def table(name: str) -> tuple[list[str], dict[str, list[str]]]:
    """Return the columns of a table of the page, and the cells of each row by its model."""
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end -->", PAGE, re.DOTALL)
    assert found
    head, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines()
    )
    return head[1:], {row[0]: row[1:] for row in rows}


def test_the_tables_of_tokens_queries_pairs_gateways_and_hours_match_the_formulas(
    formulas: dict[str, Any],
) -> None:
    computed: dict[str, Callable[[str, str], str]] = {
        "speed": lambda m, c: f"{formulas['tokens_per_second'](m, c, 512) / 1000:,.1f}k",
        "query": lambda m, c: f"{formulas['query_floor_seconds'](m, c) * 1000:.1f}",
        "gateway documents": lambda m, c: f"{formulas['gateway_cores'](m, c, 512, 32):.2f}",
        "gateway queries": lambda m, c: f"{formulas['gateway_cores'](m, c, 64, 1):.2f}",
        "rerank": lambda m, c: f"{formulas['rerank_seconds'](50, 300, m, c) * 1000:,.0f}",
        "corpus": lambda m, c: f"{formulas['embed_seconds'](1_000_000, 512, m, c) / 3600:,.1f}",
        "large corpus": lambda m, c: (
            f"{formulas['embed_seconds'](10_000_000, 512, m, c) / 3600:,.0f}"
        ),
    }
    for name, cell in computed.items():
        cards, rows = table(name)
        assert list(rows) == list(formulas["MODELS"])
        assert cards == list(formulas["CARDS"])
        for model, cells in rows.items():
            assert cells == [cell(model, card) for card in cards], name


def test_the_table_of_memory_matches_the_formulas(formulas: dict[str, Any]) -> None:
    (first, *columns), rows = table("memory")
    assert first == "weights"
    assert list(rows) == list(formulas["MODELS"])
    for model, (weights, *cells) in rows.items():
        assert weights == f"{formulas['weight_bytes'](model) / 1e9:.1f}"
        for column, cell in zip(columns, cells, strict=True):
            kind, _, length = column.partition(", ")
            tokens = int(length.replace(",", ""))
            memory = formulas["memory_bytes"](model, 8192, tokens, fused=kind == "fused")
            assert cell == f"{memory / 1e9:.1f}"


def test_the_chart_adds_gateways_by_the_rule_of_the_page(formulas: dict[str, Any]) -> None:
    chart = yaml.safe_load((ROOT / "deploy" / "chart" / "values.yaml").read_text())["gateway"]
    share = chart["autoscaling"]["targetCPUUtilizationPercentage"] / 100
    cores = float(chart["resources"]["requests"]["cpu"])
    assert share * cores == formulas["CORES_PER_GATEWAY"]
    assert chart["autoscaling"]["minReplicas"] == chart["replicas"] == formulas["gateways"](1, 0.1)


def test_the_page_estimates_memory_as_model_repository_does(formulas: dict[str, Any]) -> None:
    for model, (_, _, heads, hidden_size, intermediate_size) in formulas["MODELS"].items():
        for fused in (False, True):
            shape = ModelShape(hidden_size, heads, intermediate_size, 2, fused)
            weights = formulas["weight_bytes"](model)
            batch = formulas["memory_bytes"](model, 8192, 1024, fused=fused) - weights
            assert batch == 8192 * shape.bytes_per_token(1024)
