"""The deployment files, as far as they can be checked without Docker and a GPU."""

from __future__ import annotations

import configparser
import copy
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from qwen3_triton_gateway import __version__, served, server
from qwen3_triton_gateway.auth import read_api_keys
from qwen3_triton_gateway.settings import Settings

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
VARIABLES = {str(field.validation_alias) for field in Settings.model_fields.values()}
# The name, an exact version, and perhaps a digest.
EXACT_IMAGE = re.compile(r"[\w./-]+:v?\d[\w.-]*(@sha256:[0-9a-f]{64})?")
# A default may itself be a reference.
REFERENCE = re.compile(r"\$\$|\$\{(\w+)(?:(:-|-|:\?)((?:\$\{\w+\}|[^}])*))?\}")
# What a shutdown may take in addition to a request's deadline and the delay before it.
END_SECONDS = server.GRACE_SECONDS + served.DRAIN_SECONDS
# Names of environment variables that would hold a secret.
SECRET_NAME = re.compile(r"PASSWORD|API_KEY|TOKEN$|SECRET")


def interpolate(text: str, variables: dict[str, str]) -> str:
    """Substitute variables as Compose does."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        found = variables.get(match[1])
        if match[2] == ":?":
            assert found, f"{match[1]} has no value"
        if match[2] == "-":
            return match[3] if found is None else found
        return found or (interpolate(match[3] or "", variables) if match[2] == ":-" else "")

    return REFERENCE.sub(value, text)


def read_variables(path: Path) -> dict[str, str]:
    variables: dict[str, str] = {}
    for name, text in re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE):
        variables[name] = interpolate(text, variables)
    return variables


def read_compose(name: str, **variables: str) -> dict[str, Any]:
    """Read a file as Compose does: parsed first, then interpolated."""
    known = read_variables(DEPLOY / ".env.example") | variables

    def fill(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: fill(value) for key, value in node.items()}
        if isinstance(node, list):
            return [fill(value) for value in node]
        return interpolate(node, known) if isinstance(node, str) else node

    return fill(yaml.safe_load((DEPLOY / name).read_text()))


COMPOSE = read_compose("compose.yaml")
STAGES = {
    re.search(r" AS (\S+)", stage)[1]: stage  # pyright: ignore[reportOptionalSubscript]
    for stage in re.split(r"^(?=FROM )", (DEPLOY / "Dockerfile").read_text(), flags=re.M)[1:]
}
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def seconds(duration: str) -> int:
    return int(duration[:-1]) * {"s": 1, "m": 60}[duration[-1]]


def test_triton_publishes_no_port_and_is_on_the_internal_network_only() -> None:
    triton = SERVICES["triton"]
    assert "ports" not in triton
    assert triton["networks"] == ["model"]
    assert COMPOSE["networks"]["model"] == {"internal": True}


def test_publishing_tritons_ports_is_optional_and_limited_to_this_machine() -> None:
    triton = read_compose("compose.ports.yaml")["services"]["triton"]
    assert triton["ports"] == [
        "127.0.0.1:8200:8000",
        "127.0.0.1:8201:8001",
        "127.0.0.1:8202:8002",
    ]
    assert set(triton["networks"]) <= set(COMPOSE["networks"])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_runs_without_root_a_writable_disk_or_capabilities(name: str) -> None:
    options = SERVICES[name]
    assert options["read_only"] is True
    assert options["cap_drop"] == ["ALL"]
    assert options["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in options
    if "build" in options and "user" not in options:
        assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", STAGES["runtime"], re.MULTILINE)
        assert STAGES[options["build"]["target"]].startswith("FROM runtime ")
    else:
        assert re.fullmatch(r"[1-9]\d*:\d+", options["user"])


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "tools"])
def test_a_service_restarts_stops_in_time_and_limits_its_logs(name: str) -> None:
    options = SERVICES[name]
    assert options["restart"] == "unless-stopped"
    assert options["stop_grace_period"]
    assert options["logging"]["options"].keys() == {"max-size", "max-file"}
    # The gateway's image has its own.
    assert name == "gateway" or options["healthcheck"]["test"]


def test_by_default_services_publish_ports_on_this_machine_only() -> None:
    for options in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in options.get("ports", []))


def test_no_image_uses_a_floating_tag() -> None:
    images = [options["image"] for options in SERVICES.values()]
    images += re.findall(r"^ARG PYTHON_IMAGE=(\S+)", (DEPLOY / "Dockerfile").read_text(), re.M)
    images += [value for name, value in all_examples() if name.endswith("_IMAGE")]
    assert len(images) > len(SERVICES) + 5
    assert [image for image in images if not EXACT_IMAGE.fullmatch(image)] == []


# Their digests could not be looked up (docs/not-run.md); deploy/prepare.sh adds Triton's.
PINNED_BY_TAG = {"triton", "paradedb", "grafana"}


def test_images_are_pinned_to_the_digests_that_are_known() -> None:
    foreign = {name: options for name, options in SERVICES.items() if "build" not in options}
    by_tag = {name for name, options in foreign.items() if "@sha256:" not in options["image"]}
    assert by_tag <= PINNED_BY_TAG
    (python,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)", (DEPLOY / "Dockerfile").read_text(), re.M)
    assert "@sha256:" in python
    for name in ("gateway", "tools"):
        assert SERVICES[name]["build"]["args"]["PYTHON_IMAGE"] == python


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_a_limit_of_memory(name: str) -> None:
    assert re.fullmatch(r"\d+[gm]", SERVICES[name]["mem_limit"])


def test_images_and_chart_carry_the_gateways_version() -> None:
    chart = yaml.safe_load((DEPLOY / "chart" / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__
    assert SERVICES["gateway"]["image"] == f"qwen3-triton-gateway:{__version__}"
    assert SERVICES["tools"]["image"] == f"qwen3-triton-tools:{__version__}"


def all_examples(*names: str) -> list[tuple[str, str]]:
    """Return every variable of the examples, including those that are commented out."""
    examples = names or (".env.example", "systemd/*.example")
    paths = [path for name in examples for path in DEPLOY.glob(name)]
    return [
        pair
        for path in paths
        for pair in re.findall(r"^#?([A-Z]\w+)=(.*)$", path.read_text(), re.M)
    ]


def test_every_variable_of_compose_is_explained_and_has_its_default() -> None:
    example = dict(all_examples(".env.example"))
    text = "".join((DEPLOY / name).read_text() for name in ("compose.yaml", "compose.ports.yaml"))
    references = [match for match in REFERENCE.finditer(text) if match[1]]
    assert len(references) > 20
    assert {match[1] for match in references} <= set(example)
    for name, operator, default in (match.groups() for match in references):
        if operator == ":-" and default:
            assert example[name] == default, name


def test_compose_and_the_units_set_only_existing_settings() -> None:
    gateway = set(SERVICES["gateway"]["environment"])
    unit = set(read_variables(DEPLOY / "systemd" / "gateway.env.example"))
    assert gateway | unit <= VARIABLES
    assert {name for name, _ in all_examples() if name.startswith("EMBED_")} <= VARIABLES


# What the container fixes, what is for a model in the gateway's process, and what needs a file that
# is not mounted: TLS ends at a proxy.
NOT_IN_COMPOSE = {
    *("EMBED_HOST", "EMBED_PORT", "EMBED_API_KEYS"),
    *("EMBED_MODEL_DIR", "EMBED_ENGINE", "EMBED_PRECISION"),
    *("EMBED_THREADS", "EMBED_ENGINE_CACHE_DIR"),
    "RERANK_MODEL_DIR",
    *("EMBED_TLS_CERTIFICATE", "EMBED_TLS_KEY", "EMBED_TRITON_CA_FILE"),
}


def test_every_setting_of_the_gateway_can_be_set_in_compose_variables() -> None:
    passed = set(SERVICES["gateway"]["environment"])
    assert VARIABLES - passed == NOT_IN_COMPOSE


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({}, "/srv/qwen3/qwen3_embed_4b_onnx-tokenizer"),
        ({"RERANK_TOKENIZER_DIR": "/srv/ranker-tokenizer"}, "/srv/ranker-tokenizer"),
    ],
)
def test_a_reranker_in_the_repository_is_served_with_its_tokenizer(
    variables: dict[str, str], folder: str
) -> None:
    compose = read_compose("compose.yaml", RERANK_TRITON_MODEL="ranker", **variables)
    gateway = compose["services"]["gateway"]
    settings = Settings.model_validate(
        {key: value for key, value in gateway["environment"].items() if "KEYS" not in key and value}
    )
    assert settings.serves_embeddings
    assert settings.serves_reranker
    assert settings.rerank_triton_model == "ranker"
    assert f"{folder}:{settings.rerank_tokenizer_path}:ro" in gateway["volumes"]


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SERVICES["gateway"]["environment"]:
        monkeypatch.setenv(name, "")
    settings = Settings()
    assert read_api_keys(settings) == []
    assert settings.model_id is None
    assert settings.output_dim == 1024


def test_keys_are_required_unless_the_variable_is_set_to_nothing() -> None:
    def keys_file(**variables: str) -> str:
        compose = read_compose("compose.yaml", **variables)
        return compose["services"]["gateway"]["environment"]["EMBED_API_KEYS_FILE"]

    assert keys_file() == "/run/secrets/api_keys"
    assert keys_file(EMBED_API_KEYS_FILE="") == ""


def test_secrets_come_from_files_that_are_not_in_the_repository() -> None:
    for secret in COMPOSE["secrets"].values():
        assert secret["file"].startswith("./secrets/")
    assert {".env", "secrets/"} <= set((DEPLOY / ".gitignore").read_text().split())
    for options in SERVICES.values():
        for name, value in (options.get("environment") or {}).items():
            # Without a value, it is passed on from the caller's environment.
            if SECRET_NAME.search(name) and value is not None:
                assert re.search(r"_FILE$", name), name
                assert value.startswith("/run/secrets/")
        for secret in options.get("secrets", []):
            assert secret in COMPOSE["secrets"]
    assert [value for name, value in all_examples() if SECRET_NAME.search(name) and value] == []


def test_the_gateway_has_time_to_drain_before_it_is_killed() -> None:
    needed = Settings().timeout_seconds + Settings().shutdown_delay_seconds + END_SECONDS
    assert seconds(SERVICES["gateway"]["stop_grace_period"]) > needed
    unit = read_unit("qwen3-triton-gateway.service")
    assert int(unit["Service"]["TimeoutStopSec"]) > needed
    # Compose and systemd stop in reverse order, so that Triton still serves requests in progress.
    assert "triton" in SERVICES["gateway"]["depends_on"]
    assert "triton.service" in unit["Unit"]["After"]


def test_a_gpu_is_reserved_and_triton_has_minutes_to_load_its_weights() -> None:
    triton = SERVICES["triton"]
    (device,) = triton["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}
    assert seconds(triton["healthcheck"]["start_period"]) >= 600


def test_the_compose_files_follow_the_specification() -> None:
    compose_spec = pytest.importorskip("compose_spec")
    merged = copy.deepcopy(COMPOSE)
    ports = read_compose("compose.ports.yaml")["services"]["triton"]
    for file in (COMPOSE, merged):
        # Docker accepts a tag with a digest, this parser does not.
        text = re.sub("@sha256:[0-9a-f]+", "", yaml.dump(file, Dumper=_PlainDumper))
        parsed = compose_spec.PyCompose.from_yaml(text)
        parsed.validate()
        assert set(parsed.service_names()) == set(SERVICES)
        merged["services"]["triton"] |= ports


class _PlainDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def test_prepare_creates_what_compose_needs_and_keeps_existing_files(tmp_path: Path) -> None:
    deploy = shutil.copytree(DEPLOY, tmp_path / "deploy", ignore=shutil.ignore_patterns(".env"))
    example = deploy / ".env.example"
    example.write_text(
        example.read_text().replace("MODELS_DIR=/srv/qwen3", f"MODELS_DIR={tmp_path}/models")
    )
    digest = "sha256:" + "0" * 64
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(f"#!/bin/sh\necho {digest}\n")
    docker.chmod(0o755)
    environment = os.environ | {"PATH": f"{docker.parent}{os.pathsep}{os.environ['PATH']}"}

    def prepare() -> dict[Path, str]:
        subprocess.run([deploy / "prepare.sh"], env=environment, check=True, capture_output=True)
        made = [deploy / ".env", *(deploy / "secrets").iterdir()]
        return {path: path.read_text() for path in made}

    first = prepare()
    assert prepare() == first
    variables = read_variables(deploy / ".env")
    assert variables["TRITON_IMAGE"].endswith(f"-py3@{digest}")
    assert variables["TOOLS_USER"] == f"{os.getuid()}:{os.getgid()}"
    assert Path(variables["MODELS_DIR"]).is_dir()
    files = {deploy / secret["file"] for secret in COMPOSE["secrets"].values()}
    assert files == {path for path in first if path.parent.name == "secrets"}
    assert stat.S_IMODE((deploy / "secrets").stat().st_mode) == 0o700
    keys = read_api_keys(
        Settings.model_validate({"EMBED_API_KEYS_FILE": deploy / "secrets" / "api_keys"})
    )
    assert len({key.secret for key in keys}) == 2
    assert all(len(key.secret) == 48 for key in keys)
    assert first[deploy / "secrets" / "metrics_key"] == keys[1].secret


def test_the_images_ship_locked_packages_and_wheels() -> None:
    images = {stage.split()[1] for stage in STAGES.values()}
    assert images == {"${PYTHON_IMAGE}", "base", "runtime"}
    for command in re.findall(r"pip install ([^\n&]*)", "".join(STAGES.values())):
        assert "--require-hashes" in command or command.startswith("--no-deps /dist/")
    for target in ("gateway", "tools"):
        assert STAGES[target].count("COPY ") == 1
        assert f"COPY --from=build-{target} " in STAGES[target]


def test_the_default_image_is_the_gateway_alone() -> None:
    assert next(reversed(STAGES)) == "gateway"
    assert "/health/ready" in STAGES["gateway"]
    for stage in ("base", "build-gateway", "runtime", "gateway"):
        assert "tools" not in STAGES[stage]


def test_the_build_context_holds_what_the_images_copy_and_nothing_else() -> None:
    lines = re.findall(r"^COPY (?!--from)(.*) \S+$", "".join(STAGES.values()), re.MULTILINE)
    copied = [source.removeprefix("requirements/") for line in lines for source in line.split()]
    folders = {source for source in copied if not source.endswith(".txt")} | {"requirements"}
    ignored = (DEPLOY.parent / ".dockerignore").read_text().split()
    assert {line[1:] for line in ignored if line.startswith("!")} == folders


UNITS = sorted(DEPLOY.glob("systemd/*.service"))


def read_unit(name: str) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(strict=False, interpolation=None, delimiters="=")
    unit.optionxform = str  # pyright: ignore[reportAttributeAccessIssue]
    text = (DEPLOY / "systemd" / name).read_text()
    unit.read_string(re.sub(r"\\\n\s*", "", text))
    return unit


def test_the_units_run_without_root_and_declare_what_they_read() -> None:
    gateway = read_unit("qwen3-triton-gateway.service")["Service"]
    assert gateway["DynamicUser"] == gateway["NoNewPrivileges"] == "yes"
    assert gateway["ProtectSystem"] == "strict"
    assert gateway["LoadCredential"] == "api_keys:/etc/qwen3-triton/api_keys"
    triton = read_unit("triton.service")["Service"]["ExecStart"]
    for flag in ("--user 1000:1000", "--read-only", "--cap-drop ALL", "no-new-privileges"):
        assert flag in triton
    assert set(re.findall(r"--publish (\S+?):\d+:\d+", triton)) == {"127.0.0.1"}
    names = set(re.findall(r"(?<!\$)\$\{(\w+)\}", triton))
    assert names == set(read_variables(DEPLOY / "systemd" / "triton.env.example"))


def test_triton_starts_with_the_same_flags_wherever_it_runs() -> None:
    compose = SERVICES["triton"]["command"][2]
    unit = read_unit("triton.service")["Service"]["ExecStart"].partition("exec tritonserver")[2]

    def flags(text: str) -> set[str]:
        return set(re.findall(r"--[a-z][\w-]+(?:=[\w/,:-]*)?", text))

    assert len(flags(compose)) == 10
    assert flags(compose) == flags(unit)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
def test_systemd_accepts_the_units_and_rates_the_gateway_as_well_sandboxed(tmp_path: Path) -> None:
    for unit in UNITS:
        here = re.sub(r"/opt/\S+/qwen3-triton|/usr/bin/docker", "/bin/true", unit.read_text())
        (tmp_path / unit.name).write_text(here)
    (tmp_path / "docker.service").write_text("[Service]\nExecStart=/bin/true\n")
    paths = [str(tmp_path / unit.name) for unit in UNITS]
    environment = os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *paths],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    # The exposure level is at most 2.0 of 10; it was 1.4 when this was written.
    subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", paths[0]],
        env=environment,
        capture_output=True,
        check=True,
    )


def test_tritons_own_parser_accepts_the_model_configuration() -> None:
    for path in DEPLOY.glob("model_repository/*/config.pbtxt"):
        # protobuf creates the class at import, out of the type checker's sight.
        empty = model_config_pb2.ModelConfig()  # pyright: ignore[reportAttributeAccessIssue]
        config = text_format.Parse(path.read_text(), empty)
        assert config.name == path.parent.name
        assert not config.dynamic_batching.preferred_batch_size
        # Any queue policy or priority lets Triton miss wake-ups: docs/architecture.md.
        assert config.HasField("dynamic_batching")
        assert not config.dynamic_batching.HasField("default_queue_policy")
        assert not config.dynamic_batching.priority_levels
