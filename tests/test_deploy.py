"""The deployment files, as far as they can be checked without Docker and a GPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from qwen3_triton_gateway.settings import Settings

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
VARIABLES = {str(field.validation_alias) for field in Settings.model_fields.values()}


def test_triton_publishes_no_port_and_shares_only_the_inner_network() -> None:
    triton = COMPOSE["services"]["triton"]
    assert "ports" not in triton
    assert triton["networks"] == ["model"]
    assert COMPOSE["networks"]["model"] == {"internal": True}


def test_the_gateway_runs_without_root_and_without_writing() -> None:
    gateway = COMPOSE["services"]["gateway"]
    assert gateway["read_only"] is True
    assert gateway["cap_drop"] == ["ALL"]
    assert re.search(r"^USER [1-9]", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)


def test_compose_sets_only_settings_that_exist() -> None:
    assert set(COMPOSE["services"]["gateway"]["environment"]) <= VARIABLES


def test_every_variable_of_compose_is_explained_or_has_a_default() -> None:
    example = (DEPLOY / ".env.example").read_text()
    required = re.findall(r"\$\{(\w+):\?", (DEPLOY / "compose.yaml").read_text())
    assert required
    assert all(re.search(rf"^{name}=\S", example, re.MULTILINE) for name in required)


def test_a_variable_left_empty_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in COMPOSE["services"]["gateway"]["environment"]:
        monkeypatch.setenv(name, "")
    settings = Settings()
    assert settings.api_keys == []
    assert settings.model_id is None
    assert settings.output_dim == 1024


def test_the_model_configuration_is_one_that_triton_understands() -> None:
    for path in DEPLOY.glob("model_repository/*/config.pbtxt"):
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        assert config.name == path.parent.name
        assert not config.dynamic_batching.preferred_batch_size
        # Any queue policy or priority lets Triton miss wake-ups: docs/architecture.md.
        assert config.HasField("dynamic_batching")
        assert not config.dynamic_batching.HasField("default_queue_policy")
        assert not config.dynamic_batching.priority_levels
