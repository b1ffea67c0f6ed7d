"""The Helm chart, rendered by Helm's own engine and checked against Kubernetes' schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen3_triton_gateway import served, server
from qwen3_triton_gateway.settings import Settings

helm = pytest.importorskip("helm_python")
kubernetes_validate = pytest.importorskip("kubernetes_validate")

CHART = Path(__file__).resolve().parents[1] / "deploy" / "chart"
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
# The oldest version that the chart supports, and the newest with a schema.
VERSIONS = ("1.25.16", "1.37.0")
# Resources defined by operators, for which there is no schema here.
FOREIGN = ("monitoring.coreos.com/", "keda.sh/")
# Settings that the chart sets itself, or that make no sense in it.
FIXED_SETTINGS = {
    "TRITON_URL",
    "TRITON_MODEL",
    "TOKENIZER_PATH",
    "RERANK_TOKENIZER_PATH",
    "EMBED_API_KEYS",
    "EMBED_API_KEYS_FILE",
    "EMBED_TIMEOUT_S",
    "EMBED_SHUTDOWN_DELAY_S",
    "EMBED_HOST",
    "EMBED_PORT",
    # For a model in the gateway's process; the chart's is on Triton.
    "EMBED_MODEL_DIR",
    "RERANK_MODEL_DIR",
    "EMBED_ENGINE",
    "EMBED_PRECISION",
    "EMBED_ENGINE_CACHE_DIR",
    "EMBED_THREADS",
}
MINIMAL: dict[str, Any] = {
    "gateway": {
        "image": {"repository": "registry.example/qwen3-triton-gateway"},
        "apiKeys": {"existingSecret": "keys"},
    },
    "storage": {"existingClaim": "models"},
}
MAXIMAL: dict[str, Any] = {
    "imagePullSecrets": [{"name": "registry"}],
    "gateway": {
        **MINIMAL["gateway"],
        "settings": {"EMBED_MAX_QUEUE_TOKENS": 4194304, "EMBED_MODEL_ALIASES": 'a,"b"'},
        "autoscaling": {"enabled": True},
        "podAnnotations": {"note": "yes"},
        "nodeSelector": {"kind": "cpu"},
        "tolerations": [{"operator": "Exists"}],
    },
    "triton": {
        "image": {"digest": "sha256:" + "0" * 64},
        "runtimeClassName": "nvidia",
        "nodeSelector": {"kind": "gpu"},
        "extraArgs": ["--log-verbose=1"],
        "keda": {"enabled": True, "queueTokensPerReplica": 3000000},
    },
    "storage": {**MINIMAL["storage"], "rerankTokenizerSubPath": "ranker-tokenizer"},
    "networkPolicy": {"gatewayFrom": [{"namespaceSelector": {}}]},
    "monitoring": {
        "serviceMonitor": {"enabled": True, "metricsKeySecret": "keys", "labels": {"release": "p"}},
        "prometheusRule": {"enabled": True},
        "dashboard": {"enabled": True},
    },
}


def render(values: dict[str, Any]) -> list[dict[str, Any]]:
    with helm.Chart.load(CHART) as chart:
        rendered = chart.render(values, name="demo", namespace="rag")
    texts = [text for path, text in rendered.items() if not path.endswith("NOTES.txt")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


@pytest.fixture(
    name="manifests", params=[MINIMAL, MAXIMAL], ids=["minimal", "maximal"], scope="module"
)
def _manifests(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return render(request.param)


def pick(manifests: list[dict[str, Any]], kind: str, part: str = "") -> dict[str, Any]:
    (found,) = (
        manifest
        for manifest in manifests
        if manifest["kind"] == kind and manifest["metadata"]["name"].endswith(part)
    )
    return found


def pods(manifests: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield pick(manifests, "Deployment")["spec"]["template"]["spec"]
    yield pick(manifests, "StatefulSet")["spec"]["template"]["spec"]


def environment(manifests: list[dict[str, Any]]) -> dict[str, str]:
    (gateway,) = pick(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    return {variable["name"]: variable["value"] for variable in gateway["env"]}


def test_helm_lint_passes() -> None:
    result = helm.lint(CHART, MAXIMAL)
    assert result["errors"] == []
    assert [m["error"] for m in result["messages"] if "icon" not in m["error"]] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_the_rendered_manifests_match_kubernetes_schemas(
    manifests: list[dict[str, Any]], version: str
) -> None:
    own = [m for m in manifests if not m["apiVersion"].startswith(FOREIGN)]
    assert len(own) >= 8
    for manifest in own:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_no_pod_has_root_a_writable_disk_capabilities_or_a_token(
    manifests: list[dict[str, Any]],
) -> None:
    for pod in pods(manifests):
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] >= 1000
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"]
            assert container["resources"]["limits"]["memory"]
            assert re.fullmatch(r"\S+:\d[\w.-]*(@sha256:\w{64})?", container["image"])


def test_triton_gets_a_gpu_and_has_time_to_load_its_weights(
    manifests: list[dict[str, Any]],
) -> None:
    (triton,) = pick(manifests, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    probe = triton["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 600
    assert triton["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert triton["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
    assert all(mount["readOnly"] for mount in triton["volumeMounts"] if mount["name"] == "models")


def test_the_gateway_addresses_every_triton_by_name() -> None:
    for replicas, keda in ((1, False), (3, False), (2, True)):
        triton = {"replicas": replicas, "keda": {"enabled": keda, "maxReplicas": 4}}
        manifests = render(MINIMAL | {"triton": triton})
        variables = environment(manifests)
        del variables["EMBED_API_KEYS_FILE"]  # of a mounted secret, so not a file here
        urls = Settings.model_validate(variables).triton_url
        stateful = pick(manifests, "StatefulSet")
        name, headless = stateful["metadata"]["name"], stateful["spec"]["serviceName"]
        service_of_pods = pick(manifests, "Service", "-triton")
        assert service_of_pods["metadata"]["name"] == headless
        assert service_of_pods["spec"]["clusterIP"] == "None"
        count = 4 if keda else replicas
        assert urls == [f"grpc://{name}-{number}.{headless}:8001" for number in range(count)]
        assert stateful["spec"].get("replicas") == (None if keda else replicas)


def test_the_gateway_gets_existing_settings_and_keys_only_from_a_secret(
    manifests: list[dict[str, Any]],
) -> None:
    variables = environment(manifests)
    assert set(variables) <= {str(f.validation_alias) for f in Settings.model_fields.values()}
    assert "EMBED_API_KEYS" not in variables
    (gateway,) = pick(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    folder = Path(variables["EMBED_API_KEYS_FILE"]).parent
    (mount,) = (m for m in gateway["volumeMounts"] if m["mountPath"] == str(folder))
    assert mount["readOnly"] is True
    del variables["EMBED_API_KEYS_FILE"]  # of a mounted secret, so not a file here
    Settings.model_validate(variables)


def test_a_reranker_in_the_repository_is_served_with_its_tokenizer() -> None:
    gateway = {**MINIMAL["gateway"], "settings": {"RERANK_TRITON_MODEL": "ranker"}}
    values = MINIMAL | {"gateway": gateway}
    for folder in ("", "ranker-tokenizer"):
        storage = {**MINIMAL["storage"], "rerankTokenizerSubPath": folder}
        manifests = render(values | {"storage": storage})
        variables = environment(manifests)
        del variables["EMBED_API_KEYS_FILE"]  # of a mounted secret, so not a file here
        settings = Settings.model_validate(variables)
        assert (settings.serves_embeddings, settings.rerank_triton_model) == (True, "ranker")
        (container,) = pick(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
        mounts = {m["mountPath"]: m.get("subPath") for m in container["volumeMounts"]}
        path = settings.rerank_tokenizer_path or settings.tokenizer_path
        assert mounts[str(path)] == (folder or "qwen3_embed_4b_onnx-tokenizer")


def test_numbers_and_quotes_in_settings_are_preserved() -> None:
    variables = environment(render(MAXIMAL))
    assert variables["EMBED_MAX_QUEUE_TOKENS"] == "4194304"
    assert variables["EMBED_MODEL_ALIASES"] == 'a,"b"'
    trigger = pick(render(MAXIMAL), "ScaledObject")["spec"]["triggers"][0]["metadata"]
    assert trigger["threshold"] == "3000000"
    assert "qwen3_triton_queue_tokens" in trigger["query"]


def test_a_gateway_has_time_to_drain_before_it_is_killed() -> None:
    manifests = render(MINIMAL | {"gateway": {**MINIMAL["gateway"], "timeoutSeconds": 300}})
    variables = environment(manifests)
    needed = float(variables["EMBED_TIMEOUT_S"]) + float(variables["EMBED_SHUTDOWN_DELAY_S"])
    needed += server.GRACE_SECONDS + served.DRAIN_SECONDS
    pod = pick(manifests, "Deployment")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > needed


def test_only_the_gateway_reaches_triton_and_triton_reaches_nothing() -> None:
    manifests = render(MINIMAL)
    policy = pick(manifests, "NetworkPolicy", "-triton")["spec"]
    gateway = pick(manifests, "Deployment")["spec"]["selector"]["matchLabels"]
    triton = pick(manifests, "StatefulSet")["spec"]["selector"]["matchLabels"]
    assert policy["podSelector"]["matchLabels"] == triton
    assert policy["egress"] == []
    inference, metrics = policy["ingress"]
    assert inference["from"] == [{"podSelector": {"matchLabels": gateway}}]
    assert [port["port"] for port in inference["ports"]] == ["grpc"]
    assert [port["port"] for port in metrics["ports"]] == ["metrics"]
    kinds = [m["kind"] for m in manifests]
    assert kinds.count("PodDisruptionBudget") == 2
    assert "Secret" not in kinds


def test_the_rules_and_the_dashboard_are_those_of_observability() -> None:
    manifests = render(MAXIMAL)
    observability = CHART.parent / "observability"
    rules = pick(manifests, "PrometheusRule")["spec"]
    assert rules == yaml.safe_load((observability / "alerts.yaml").read_text())
    board = pick(manifests, "ConfigMap")["data"]["qwen3-triton.json"]
    path = observability / "grafana" / "dashboards" / "qwen3-triton.json"
    assert json.loads(board) == json.loads(path.read_text())


def test_the_schema_covers_every_value_and_every_setting() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def check(value: dict[str, Any], schema: dict[str, Any]) -> None:
        properties = schema.get("properties")
        if properties is None:
            return
        assert schema["additionalProperties"] is False
        assert set(value) <= set(properties)
        for key, inner in value.items():
            if isinstance(inner, dict):
                check(inner, properties[key])

    check(values, SCHEMA)
    settings = SCHEMA["properties"]["gateway"]["properties"]["settings"]["propertyNames"]["enum"]
    names = {str(field.validation_alias) for field in Settings.model_fields.values()}
    assert set(settings) == names - FIXED_SETTINGS


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({}, "existingClaim"),
        (MINIMAL | {"gateway": {"image": {"repository": "r"}}}, "existingSecret is empty"),
        (MINIMAL | {"gatway": {}}, "gatway"),
        (MINIMAL | {"triton": {"image": {"tag": "latest"}}}, "tag"),
        (MINIMAL | {"triton": {"startupSeconds": 60}}, "startupSeconds"),
        (
            MINIMAL | {"gateway": {**MINIMAL["gateway"], "settings": {"EMBED_API_KEYS": "k"}}},
            "EMBED_API_KEYS",
        ),
    ],
)
def test_invalid_values_are_rejected_by_name(values: dict[str, Any], complaint: str) -> None:
    with helm.Chart.load(CHART) as chart, pytest.raises(helm.HelmError, match=complaint):
        chart.render(values, name="demo")


def test_the_notes_list_what_is_left_to_do() -> None:
    with helm.Chart.load(CHART) as chart:
        notes = chart.render(MINIMAL, name="demo", namespace="rag")[
            "qwen3-triton/templates/NOTES.txt"
        ]
    assert "Authorization: Bearer" in notes
    assert "set triton.image.digest" in notes
