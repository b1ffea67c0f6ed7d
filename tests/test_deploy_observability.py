"""Alert rules and the dashboard query metrics that the gateway and Triton really expose."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.metrics import MetricWrapperBase

from qwen3_triton_gateway.metrics import GatewayState, LaneState, Metrics
from qwen3_triton_gateway.settings import Settings
from qwen3_triton_tools.local_triton import LocalTriton

OBSERVABILITY = Path(__file__).resolve().parents[1] / "deploy" / "observability"
ALERTS: dict[str, Any] = yaml.safe_load((OBSERVABILITY / "alerts.yaml").read_text())
RULES: list[dict[str, Any]] = [rule for group in ALERTS["groups"] for rule in group["rules"]]
DASHBOARD: dict[str, Any] = json.loads(
    (OBSERVABILITY / "grafana" / "dashboards" / "qwen3-triton.json").read_text()
)
# What Triton exposes with a GPU, in addition to the local one (its user guide, "Metrics").
GPU_SERIES = {
    "nv_gpu_power_usage",
    "nv_gpu_power_limit",
    "nv_gpu_utilization",
    "nv_gpu_memory_total_bytes",
    "nv_gpu_memory_used_bytes",
}
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
# Variables that Grafana substitutes, with a value that the parser accepts.
VARIABLES = {"$__rate_interval": "1m", "$gateway": ".*"}


def series_names(family: Metric) -> list[str]:
    return [family.name + suffix for suffix in SUFFIXES.get(family.type, ("",))]


def gateway_series() -> dict[str, set[str]]:
    """Return every series of a gateway with its labels."""
    metrics = Metrics()
    lane = LaneState(lane="query", texts=0, tokens=0, oldest_seconds=0)
    state = GatewayState(
        lanes=[lane],
        batches_in_flight=0,
        requests_under_way=0,
        memory_bytes=0,
        cache_bytes=0,
        ready=True,
        backends={"grpc://triton:8001": True},
    )
    metrics.observe_state(lambda: state)
    series = {
        name: {label for sample in family.samples for label in sample.labels}
        for family in metrics.registry.collect()
        for name in series_names(family)
    }
    for instrument in vars(metrics).values():
        if isinstance(instrument, MetricWrapperBase):
            for family in instrument.describe():
                for name in series_names(family):
                    series[name] = set(instrument._labelnames) | {"le"}
    return series


@pytest.fixture(name="series", scope="module")
def _series(triton: LocalTriton) -> dict[str, set[str]]:
    """Return every series with its labels, without those that a scrape adds."""
    answer = httpx2.get(triton.metrics_url, timeout=60).text
    # By hand: the parser would append `_total` to Triton's counters, which lack it.
    samples = re.findall(r"^(\w+)(?:\{(.*)\})? ", answer, re.MULTILINE)
    of_triton = {name: set(re.findall(r'(\w+)="', labels)) for name, labels in samples}
    assert "nv_inference_count" in of_triton
    return gateway_series() | of_triton | {name: {"gpu_uuid"} for name in GPU_SERIES}


def dashboard_expressions() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"]


EXPRESSIONS = [*(rule["expr"] for rule in RULES), *dashboard_expressions()]


def substituted(expression: str) -> str:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    return expression


def selectors(expression: str) -> Generator[tuple[str, set[str]]]:
    """Find the series in an expression, each with the labels that it is filtered by."""
    for match in re.finditer(r"\b((?:qwen3_triton|nv|process)_\w+)(?:\{([^}]*)\})?", expression):
        yield match[1], set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", match[2] or ""))


def test_every_expression_uses_existing_series_and_labels(
    series: dict[str, set[str]],
) -> None:
    for expression in EXPRESSIONS:
        found = list(selectors(expression))
        assert found, expression
        for name, labels in found:
            assert name in series, expression
            assert labels <= series[name] | {"instance"}, expression


def test_every_expression_is_valid_promql() -> None:
    promql_parser = pytest.importorskip("promql_parser")
    for expression in EXPRESSIONS:
        promql_parser.parse(substituted(expression))


def test_label_values_in_expressions_are_values_that_the_gateway_sets() -> None:
    source = "".join(
        path.read_text() for path in (Path(__file__).parents[1] / "server" / "src").rglob("*.py")
    )
    for expression in EXPRESSIONS:
        for value in re.findall(r'(?:kind|lane|outcome)="(\w+)"', expression):
            assert re.search(rf'"{value}"|\b{value.upper()} = ', source), value


def test_every_rule_has_a_severity_a_summary_and_a_description() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
    for rule in RULES:
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"].keys() == {"summary", "description"}


def test_an_excluded_triton_is_alerted_and_drawn() -> None:
    name = "qwen3_triton_backend_excluded"
    for expressions in ([rule["expr"] for rule in RULES], dashboard_expressions()):
        assert any(name in expression for expression in expressions)


def test_the_rules_use_the_gateways_default_limits() -> None:
    near, slow = (
        next(rule["expr"] for rule in RULES if rule["alert"] == name)
        for name in ("EmbeddingQueueNearItsBound", "EmbeddingQueueSlowToDrain")
    )
    assert near.endswith(f"> 0.8 * {Settings().max_queue_tokens}")
    assert slow.strip().endswith(f"> {Settings().timeout_seconds:.0f}")


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool of Prometheus")
def test_the_rules_fire_when_they_should() -> None:
    for arguments in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts.test.yaml"]):
        subprocess.run(["promtool", *arguments], cwd=OBSERVABILITY, check=True)


def test_the_dashboards_panels_do_not_overlap_and_share_one_data_source() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) == 23
    drawn = [panel for panel in panels if panel["type"] != "row"]
    assert all(panel["description"] and panel["fieldConfig"]["defaults"]["unit"] for panel in drawn)
    assert {panel["datasource"]["uid"] for panel in drawn} == {"${datasource}"}


def test_the_dashboard_compares_the_gateways_view_with_tritons() -> None:
    def kinds(panel: dict[str, Any]) -> set[str]:
        names = [name for t in panel.get("targets", []) for name, _ in selectors(t["expr"])]
        return {name.partition("_")[0] for name in names}

    assert sum(kinds(panel) == {"qwen3", "nv"} for panel in DASHBOARD["panels"]) >= 3


def test_prometheus_scrapes_the_services_of_compose_with_its_key() -> None:
    compose = yaml.safe_load((OBSERVABILITY.parent / "compose.yaml").read_text())["services"]
    prometheus = yaml.safe_load((OBSERVABILITY / "prometheus.yml").read_text())
    gateway, triton = prometheus["scrape_configs"]
    for job in (gateway, triton):
        (discovery,) = job["dns_sd_configs"]
        (host,) = discovery["names"]
        assert set(compose[host]["networks"]) & set(compose["prometheus"]["networks"])
    key = gateway["authorization"]["credentials_file"]
    assert key.removeprefix("/run/secrets/") in compose["prometheus"]["secrets"]
    mounted = [volume.split(":")[1] for volume in compose["prometheus"]["volumes"]]
    assert set(prometheus["rule_files"]) <= set(mounted)


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    compose = yaml.safe_load((OBSERVABILITY.parent / "compose.yaml").read_text())["services"]
    provisioning = OBSERVABILITY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "qwen3-triton.yaml").read_text())[
        "providers"
    ]
    volumes: list[str] = compose["grafana"]["volumes"]
    pairs = [volume.removesuffix(":ro").rsplit(":", 1) for volume in volumes]
    mounts = {target: source for source, target in pairs}
    folder = OBSERVABILITY.parent / mounts[provider["options"]["path"]]
    assert [path.name for path in folder.iterdir()] == ["qwen3-triton.json"]
