"""`qwen3-triton doctor` on broken files, and with programs that print what real ones do."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner

import qwen3_nano
from qwen3_nano.graph import build_graph
from qwen3_nano.weights import load_weights
from qwen3_triton_gateway.cli import main
from qwen3_triton_gateway.settings import Settings
from qwen3_triton_tools.doctor.database import check_index, check_pgvector
from qwen3_triton_tools.doctor.error_patterns import ERROR_PATTERNS, find_known_error
from qwen3_triton_tools.doctor.model_files import check_model_files, check_permissions
from qwen3_triton_tools.local_triton import write_repository
from reranker_exports import causal_model, write_reranker

Checks = dict[str, dict[str, str]]
# The beginning of a command line -> exit code, standard output, standard error.
Script = dict[str, tuple[int, str, str]]
Install = Callable[[str, Script], None]

# Recorded: nvidia-smi --query-gpu=name,memory.total,memory.used,driver_version,compute_cap
RTX_3090 = "NVIDIA GeForce RTX 3090, 24576, 9214, 590.48.01, 8.6\n"
NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that "
    "the latest NVIDIA driver is installed and running.\n"
)
MISMATCH = (
    "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.95\n"
)
SOCKET_DENIED = (
    "permission denied while trying to connect to the Docker daemon socket at "
    "unix:///var/run/docker.sock: Get "
    '"http://%2Fvar%2Frun%2Fdocker.sock/v1.50/info": dial unix /var/run/docker.sock: connect: '
    "permission denied\n"
)
NO_DAEMON = (
    "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon "
    "running?\n"
)
ENGINE = {"ServerVersion": "28.2.2", "DockerRootDir": "/var/lib/docker", "Runtimes": {"runc": {}}}
DTYPE_LOG = (
    "E0115 10:02:11 1 model_lifecycle.cc:650] \"failed to load 'qwen3_embed_4b_onnx' version 1: "
    "Invalid argument: unable to load model 'qwen3_embed_4b_onnx', configuration expects datatype "
    "TYPE_FP32 for output 'last_hidden_state', model provides TYPE_FP16\"\n"
)
DATA_LOG = (
    "E0115 10:02:11 1 model_lifecycle.cc:650] \"failed to load 'qwen3_embed_4b_onnx' version 1: "
    "Internal: onnx runtime error 1: Exception during initialization: filesystem error: in "
    'file_size: No such file or directory ["/models/qwen3_embed_4b_onnx/1/model.onnx_data"]"\n'
)
OOM_LOG = (
    "E0115 10:09:40.007 1 onnxruntime.cc:826] onnx runtime error 6: Non-zero status code returned "
    "while running MatMul node. BFCArena::AllocateRawInternal(size_t, bool) Failed to allocate "
    "memory for requested buffer of size 1073741824\n"
)
JSON_LOG = (
    "tritonclient.utils.InferenceServerException: sending FP16 data via JSON is not supported. "
    "Please use the binary data format for output last_hidden_state\n"
)
TOKENIZER_LOG = (
    "Traceback (most recent call last):\n"
    '  File "/app/app.py", line 176, in _startup\n'
    "OSError: Incorrect path_or_model_id: '/models/qwen3-embedding-4b'. Please provide either the "
    "path to a local folder or the repo_id of a model on the Hub.\n"
)
METADATA_LOG = (
    "RuntimeError: Failed to fetch model metadata for qwen3_embed_4b_onx: 400 "
    '{"error":"Request for unknown model: \'qwen3_embed_4b_onx\' is not found"}\n'
)
SYNTAX_LOG = '  File "/app/app.py", line 31\n    def broken(\n              ^\nSyntaxError: bad\n'
SS_LINE = 'LISTEN 0 4096 0.0.0.0:{port} 0.0.0.0:* users:(("nginx",pid=4242,fd=6))\n'


@pytest.fixture(name="programs", autouse=True)
def _programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A search path with none of the machine's programs on it, and no setting of the caller's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for field in Settings.model_fields.values():
        monkeypatch.delenv(str(field.validation_alias), raising=False)
    for name in ("DATABASE_URL", "QWEN3_TRITON_URL", "QWEN3_TRITON_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture(name="install")
def _install(programs: Path) -> Install:
    """Put a program on the search path that answers as a script says."""

    def install(name: str, script: Script) -> None:
        lines = ["#!/bin/sh", 'case "$*" in']
        for index, (arguments, (code, output, errors)) in enumerate(script.items()):
            stdout, stderr = (programs / f"{name}.{index}.{end}" for end in ("out", "err"))
            stdout.write_text(output)
            stderr.write_text(errors)
            lines.append(f'"{arguments}"*) /bin/cat {stdout}; /bin/cat {stderr} >&2; exit {code};;')
        program = programs / name
        program.write_text("\n".join([*lines, "esac", "exit 1", ""]))
        program.chmod(0o755)

    return install


@pytest.fixture(name="weights", scope="session")
def _weights() -> Any:
    return load_weights(qwen3_nano.model_dir() / "model.onnx")


@pytest.fixture(name="model_dir")
def _model_dir(tmp_path: Path, weights: Any) -> Path:
    """A model like exports of its size: a small graph, and its weights next to it."""
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save_model(
        build_graph(weights, float16_output=True),
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
    )
    # The onnx package keeps what it writes to its owner.
    (folder / "model.onnx_data").chmod(0o644)
    shutil.copy(qwen3_nano.model_dir() / "tokenizer.json", folder)
    return folder


@pytest.fixture(name="repository")
def _repository(tmp_path: Path, model_dir: Path) -> Path:
    """The repository that the runbook's section 8 writes for that model, without its faults."""
    folder = tmp_path / "repository" / "embed"
    (folder / "1").mkdir(parents=True)
    for name in ("model.onnx", "model.onnx_data"):
        shutil.copy(model_dir / name, folder / "1" / name)
    (folder / "config.pbtxt").write_text(CONFIG)
    return folder.parent


CONFIG = """
name: "embed"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [
  { name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] },
  { name: "attention_mask" data_type: TYPE_INT64 dims: [ -1 ] },
  { name: "position_ids" data_type: TYPE_INT64 dims: [ -1 ] }
]
output [ { name: "last_hidden_state" data_type: TYPE_FP16 dims: [ -1, 1152 ] } ]
dynamic_batching { }
instance_group [ { kind: KIND_GPU count: 1 } ]
"""


def doctor(*arguments: str) -> tuple[int, Checks, str]:
    """Run the command; give its exit code, its checks by name, and its output."""
    result = CliRunner().invoke(main, ["doctor", "--json", *arguments])
    checks = json.loads(result.stdout)["checks"]
    return result.exit_code, {check["name"]: check for check in checks}, result.stdout


def docker(containers: list[dict[str, str]], **logs: str) -> Script:
    """Answer as an engine with these containers does."""
    script = {
        "info": (0, json.dumps(ENGINE), ""),
        "ps": (0, "".join(json.dumps(item) + "\n" for item in containers), ""),
        "inspect": (0, "false\n", ""),
    }
    for name, log in logs.items():
        script[f"logs --tail 300 {name.replace('_', '-')}"] = (0, "", log)
    return script


def container(name: str, state: str, status: str) -> dict[str, str]:
    return {"Names": name, "Image": f"{name}:latest", "State": state, "Status": status}


NOBODY = 65534
RESTARTING = ("restarting", "Restarting (1) 12 seconds ago")
RUNNING = ("running", "Up 3 hours")
KILLED = ("exited", "Exited (137) 2 minutes ago")
# The runbook's section 15: container, its state, its log, and words of the cause and the remedy.
SECTION_15 = [
    pytest.param(
        "embed-gateway", RUNNING, JSON_LOG, ("float16 as JSON", "binary_data=True"), id="fp16-json"
    ),
    pytest.param(
        "triton", RESTARTING, DTYPE_LOG, ("disagree about a dtype", "TYPE_FP16"), id="dtype"
    ),
    pytest.param(
        "triton", RESTARTING, DATA_LOG, ("missing next to model.onnx", "model.onnx_data"), id="data"
    ),
    pytest.param(
        "embed-gateway", RESTARTING, TOKENIZER_LOG, ("no tokenizer", "TOKENIZER_PATH"), id="path"
    ),
    pytest.param(
        "embed-gateway", RESTARTING, METADATA_LOG, ("TRITON_MODEL", "TRITON_MODEL"), id="metadata"
    ),
    pytest.param(
        "embed-gateway", RESTARTING, SYNTAX_LOG, ("Python error", "build the image"), id="syntax"
    ),
    pytest.param("triton", RUNNING, OOM_LOG, ("Memory ran out", "max_batch_size"), id="memory"),
    pytest.param("triton", KILLED, "", ("Memory ran out", "max_batch_size"), id="killed"),
]


@pytest.mark.parametrize(("name", "state", "log", "words"), SECTION_15)
def test_a_failure_of_the_runbooks_section_15_is_recognized_in_a_containers_log(
    install: Install, name: str, state: tuple[str, str], log: str, words: tuple[str, str]
) -> None:
    cause, remedy = words
    install("docker", docker([container(name, *state)], **{name.replace("-", "_"): log}))
    code, checks, _ = doctor()
    check = checks[f"container {name}"]
    assert cause in check["cause"]
    assert remedy in check["remedy"]
    assert (code, check["outcome"]) == ((0, "warning") if state == RUNNING else (1, "failed"))


def test_section_15s_root_owned_files_are_a_warning() -> None:
    files = [path for path in (Path("/etc/passwd"), Path("/etc/group")) if path.exists()]
    finding = check_permissions(files, user_id=1000, is_served=False)
    assert finding.severity == "warning"
    assert "belong to root" in finding.message
    assert finding.remedy.startswith('sudo chown -R "$USER":"$USER" /etc')


def test_the_folder_of_a_reranker_is_checked_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANK_MODEL_DIR", str(qwen3_nano.model_dir()))
    code, checks, _ = doctor()
    assert code == 1
    assert "It is not a reranker: it returns `last_hidden_state`" in checks["reranker"]["seen"]


@pytest.mark.parametrize("variable", ["", "RERANK_TOKENIZER_PATH"])
def test_the_tokenizer_of_a_reranker_may_be_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    path = write_reranker(tmp_path / "model", causal_model())
    tokenizer = (path.parent / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    monkeypatch.setenv("RERANK_MODEL_DIR", str(path.parent))
    if variable:
        monkeypatch.setenv(variable, str(tokenizer.parent))
    _, _, output = doctor()
    assert ("has no tokenizer.json next to it" in output) is not bool(variable)


def test_a_reranker_in_the_repository_is_checked_by_its_name_in_triton(repository: Path) -> None:
    write_reranker(repository / "scores" / "1", causal_model())
    names = ("--triton-model", "embed", "--rerank-triton-model")
    _, checks, _ = doctor("--model-repository", str(repository), *names, "scores")
    assert checks["scores/config.pbtxt"]["outcome"] == "warning"
    assert "output" not in checks
    code, checks, _ = doctor("--model-repository", str(repository), *names, "absent")
    assert code == 1
    assert "has no model 'absent'" in checks["model repository"]["seen"]
    assert "Set RERANK_TRITON_MODEL" in checks["model repository"]["remedy"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can stand in for another user")
def test_section_15s_root_owned_folder_is_an_error_for_a_user_who_cannot_read_it(
    repository: Path,
) -> None:
    with contextlib.chdir(repository):  # the folders above are closed to others too
        (repository / "embed" / "1").chmod(0o700)
        os.seteuid(NOBODY)
        try:
            report = check_model_files(
                None,
                Path(),
                model_name="embed",
                is_model_explicit=False,
                tokenizer_path=None,
            )
        finally:
            os.seteuid(0)
    (finding,) = report.findings
    assert finding.severity == "error"
    assert finding.message == "embed/1/model.onnx: Permission denied (for this user)."
    assert "chown" in finding.remedy


def test_files_that_only_their_owner_can_read_are_an_error(repository: Path) -> None:
    data = repository / "embed" / "1" / "model.onnx_data"
    data.chmod(0o600)
    if data.stat().st_uid == 1000:
        pytest.skip("the caller is Triton's own user")
    code, checks, _ = doctor("--model-repository", str(repository))
    assert code == 1
    assert "cannot read model.onnx_data" in checks["file permissions"]["seen"]
    assert "chmod -R a+rX" in checks["file permissions"]["remedy"]


def test_a_bare_machine_is_not_a_failure_and_the_report_says_what_was_skipped() -> None:
    code, checks, _ = doctor()
    assert code == 0
    skipped = {name for name, check in checks.items() if check["outcome"] == "skipped"}
    assert skipped >= {"GPU", "Docker", "model", "tokenizer"}


def test_what_old_versions_and_models_take_on_disk_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN3_TRITON_RUNTIME_DIR", str(tmp_path))
    compiled = tmp_path / "compiled"
    for folder in (tmp_path / "triton-old", compiled / "one", compiled / "two"):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(bytes(1 << 20))
    _, checks, _ = doctor("--engine-cache-dir", str(compiled))
    old, models = checks["old local Tritons"], checks["compiled models"]
    assert old["seen"].startswith(f"1.0 MiB at {tmp_path}, of other versions")
    assert old["remedy"].endswith(f"rm -r {tmp_path / 'triton-old'}")
    assert models["seen"] == f"2.0 MiB at {compiled}, of 2 models or versions of them"


def test_a_machine_with_a_gpu_docker_and_the_toolkit_is_healthy(install: Install) -> None:
    install("nvidia-smi", {"--query-gpu": (0, RTX_3090, "")})
    info = ENGINE | {"Runtimes": {"nvidia": {}, "runc": {}}}
    install("docker", docker([container("triton", *RUNNING)]) | {"info": (0, json.dumps(info), "")})
    install("nvidia-ctk", {"--version": (0, "NVIDIA Container Toolkit CLI version 1.18.1\n", "")})
    code, checks, _ = doctor()
    assert code == 0
    assert checks["NVIDIA driver"]["seen"] == "590.48.01"
    assert "9.0 GiB of 24.0 GiB used, compute capability 8.6" in checks["GPU 0"]["seen"]
    assert checks["container toolkit"]["seen"] == "runtime nvidia, toolkit 1.18.1"
    assert checks["container triton"]["outcome"] == "ok"


@pytest.mark.parametrize(
    ("answer", "message", "remedy"),
    [
        pytest.param((9, NO_DRIVER, ""), "communicate", "ubuntu-drivers", id="none"),
        pytest.param((18, MISMATCH, ""), "mismatch", "reboot", id="mismatch"),
    ],
)
def test_a_broken_driver_is_an_error(
    install: Install, answer: tuple[int, str, str], message: str, remedy: str
) -> None:
    install("nvidia-smi", {"--query-gpu": answer})
    code, checks, _ = doctor()
    check = checks["NVIDIA driver"]
    assert (code, check["outcome"]) == (1, "failed")
    assert message in check["seen"]
    assert remedy in check["remedy"]


def test_a_clock_that_is_not_synchronized_is_a_warning(install: Install) -> None:
    install("timedatectl", {"show": (0, "no\n", "")})
    _, checks, _ = doctor()
    assert checks["clock"]["outcome"] == "warning"
    assert "set-ntp" in checks["clock"]["remedy"]


def test_a_gpu_smaller_than_the_model_is_an_error(install: Install, model_dir: Path) -> None:
    install("nvidia-smi", {"--query-gpu": (0, "NVIDIA T4, 4, 0, 590.48.01, 7.5\n", "")})
    code, checks, _ = doctor("--model-dir", str(model_dir))
    assert code == 1
    assert "the model alone has" in checks["GPU 0"]["seen"]
    assert "EMBED_MAX_BATCH_TOKENS" in checks["GPU 0"]["remedy"]


def test_a_docker_socket_that_refuses_this_user_is_an_error(install: Install) -> None:
    install("docker", {"info": (1, '{"ServerVersion":""}\n', SOCKET_DENIED)})
    code, checks, _ = doctor()
    assert code == 1
    assert "not in the group docker" in checks["Docker"]["seen"]
    assert "usermod -aG docker" in checks["Docker"]["remedy"]


def test_an_engine_that_is_not_running_is_skipped(install: Install) -> None:
    install("docker", {"info": (1, '{"ServerVersion":""}\n', NO_DAEMON)})
    code, checks, _ = doctor()
    assert (code, checks["Docker"]["outcome"]) == (0, "skipped")
    assert "systemctl start docker" in checks["Docker"]["remedy"]


def test_a_gpu_without_the_container_toolkit_is_an_error(install: Install) -> None:
    install("nvidia-smi", {"--query-gpu": (0, RTX_3090, "")})
    install("docker", docker([]))
    code, checks, _ = doctor()
    assert code == 1
    assert "nvidia-ctk runtime configure" in checks["container toolkit"]["remedy"]


def test_a_port_that_is_taken_is_an_error_naming_the_program(install: Install) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        install("ss", {"--no-header": (0, SS_LINE.format(port=port), "")})
        code, checks, _ = doctor("--url", f"http://localhost:{port}", "--timeout", "0.2")
    assert code == 1
    assert "Taken by nginx (process 4242)" in checks[f"port {port}"]["seen"]


def test_a_correct_repository_has_no_errors(repository: Path, model_dir: Path) -> None:
    code, checks, output = doctor(
        "--model-repository", str(repository), "--tokenizer-path", str(model_dir)
    )
    assert code == 0, output
    assert checks["embed/config.pbtxt"]["outcome"] == "ok"
    assert checks["tokenizer"]["outcome"] == "ok"


def test_a_repository_of_the_local_triton_has_no_errors(tmp_path: Path, model_dir: Path) -> None:
    """Its model adds outputs that the file does not have."""
    write_repository(model_dir, tmp_path, model_name="embed", pooled_output="last_hidden_state")
    _, checks, _ = doctor("--model-repository", str(tmp_path), "--triton-model", "embed")
    assert checks["embed/config.pbtxt"]["outcome"] == "ok"


@pytest.mark.parametrize(
    ("old", "new", "outcome", "words"),
    [
        pytest.param(
            "TYPE_FP16",
            "TYPE_FP32",
            "failed",
            "TYPE_FP32 in config.pbtxt and TYPE_FP16",
            id="dtype",
        ),
        pytest.param("1152", "2560", "failed", "and [-1, 1152] in the ONNX file", id="hidden-size"),
        pytest.param(
            "[ -1, 1152 ]", "[ 1152 ]", "failed", "and [-1, 1152] in the ONNX file", id="rank"
        ),
        pytest.param('"position_ids"', '"positions"', "failed", "`position_ids`", id="positions"),
        pytest.param(
            'name: "embed"', 'name: "other"', "failed", "its folder is 'embed'", id="name"
        ),
        pytest.param("INT64", "LONG", "failed", "not a valid model configuration", id="syntax"),
        pytest.param(
            "batching { }",
            "batching { preferred_batch_size: [ 1, 2, 4, 8 ] }",
            "warning",
            "[1, 2, 4, 8] splits the queue",
            id="preferred",
        ),
        pytest.param("count: 1", "count: 2", "warning", "2 copies of the weights", id="instances"),
        pytest.param("KIND_GPU", "KIND_CPU", "warning", "runs on the CPU", id="cpu"),
        pytest.param("size: 8", "size: 0", "failed", "max_batch_size is 0", id="no-batches"),
    ],
)
def test_a_configuration_that_does_not_match_the_file_is_reported(
    repository: Path, old: str, new: str, outcome: str, words: str
) -> None:
    config = repository / "embed" / "config.pbtxt"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    code, _, output = doctor("--model-repository", str(repository))
    checks = json.loads(output)["checks"]
    seen = [check["seen"] for check in checks if check["outcome"] == outcome]
    assert any(words in text for text in seen), output
    assert code == (outcome == "failed")


def test_a_model_without_version_folder_or_configuration_is_reported(repository: Path) -> None:
    (repository / "embed" / "config.pbtxt").unlink()
    code, checks, _ = doctor("--model-repository", str(repository))
    assert code == 0
    assert "max_batch_size 4" in checks["embed/config.pbtxt"]["seen"]
    (repository / "embed" / "1").rename(repository / "embed" / "one")
    code, checks, _ = doctor("--model-repository", str(repository), "--triton-model", "embed")
    assert code == 1
    assert "no version folder" in checks["embed"]["seen"]


def test_a_model_that_the_repository_lacks_is_an_error(repository: Path) -> None:
    code, checks, _ = doctor("--model-repository", str(repository), "--triton-model", "typo")
    assert code == 1
    assert "has no model 'typo'. Its models: embed." in checks["model repository"]["seen"]


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 8044982272\n"


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx_data", "tokenizer.json"])
def test_a_git_lfs_pointer_in_place_of_a_file_is_an_error(model_dir: Path, name: str) -> None:
    (model_dir / name).write_text(POINTER)
    code, checks, _ = doctor("--model-dir", str(model_dir))
    assert code == 1
    [check] = [check for check in checks.values() if "Git LFS pointer" in check["seen"]]
    assert "lfs pull" in check["seen"] + check["remedy"]


def test_weights_that_are_missing_truncated_or_linked_are_an_error(repository: Path) -> None:
    data = repository / "embed" / "1" / "model.onnx_data"
    whole = data.read_bytes()
    name = "weights model.onnx_data"

    data.write_bytes(whole[: len(whole) // 2])
    code, checks, _ = doctor("--model-repository", str(repository))
    assert (code, "is truncated" in checks[name]["seen"]) == (1, True)

    data.unlink()
    code, checks, _ = doctor("--model-repository", str(repository))
    assert (code, "is missing" in checks[name]["seen"]) == (1, True)

    elsewhere = repository.parent / "blob"
    elsewhere.write_bytes(whole)
    data.symlink_to(elsewhere)
    code, checks, _ = doctor("--model-repository", str(repository))
    assert (code, "ONNX Runtime 1.24" in checks[name]["seen"]) == (1, True)
    assert "cp -L" in checks[name]["remedy"]

    elsewhere.unlink()
    code, checks, _ = doctor("--model-repository", str(repository))
    assert (code, "link to nothing" in checks[name]["seen"]) == (1, True)


def test_a_tokenizer_that_the_gateway_cannot_load_is_an_error(model_dir: Path) -> None:
    file = model_dir / "tokenizer.json"
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | {"post_processor": {"type": "Unheard of"}}))
    code, checks, _ = doctor("--model-dir", str(model_dir))
    assert code == 1
    assert "is not a tokenizer file" in checks["tokenizer"]["seen"]


def test_a_folder_without_model_or_tokenizer_is_an_error(tmp_path: Path) -> None:
    code, checks, _ = doctor("--model-dir", str(tmp_path))
    assert code == 1
    assert "has no ONNX file" in checks["model.onnx"]["seen"]
    assert "No tokenizer at" in checks["tokenizer"]["seen"]
    code, checks, _ = doctor("--model-dir", str(tmp_path / "nowhere"))
    assert "does not exist" in checks["model folder"]["seen"]


def test_settings_that_serve_would_refuse_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBED_MAX_LENGTH", "many")
    code, checks, _ = doctor()
    assert code == 1
    assert "EMBED_MAX_LENGTH" in checks["settings"]["seen"]


def test_variables_are_read_as_serve_reads_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOKENIZER_PATH", str(tmp_path))
    monkeypatch.setenv("TRITON_URL", "ftp://somewhere")
    _, checks, _ = doctor()
    assert str(tmp_path) in checks["tokenizer"]["seen"]
    assert "TRITON_URL 'ftp://somewhere' is invalid" in checks["Triton"]["seen"]


@pytest.mark.parametrize(
    "url", ["postgresql://me:hunter2@127.0.0.1:1/rag", "postgresql:/me:hunter2@127.0.0.1:1/rag"]
)
def test_a_password_is_never_printed(url: str) -> None:
    result = CliRunner().invoke(main, ["doctor", "--database-url", url, "--api-key", "s3cret"])
    assert result.exit_code == 1
    assert "hunter2" not in result.output
    assert "s3cret" not in result.output


def test_the_report_has_a_line_per_check_and_the_remedy_below_it() -> None:
    result = CliRunner().invoke(main, ["doctor", "--model-dir", "/nowhere/at/all"])
    lines = result.output.splitlines()
    index = next(i for i, line in enumerate(lines) if "/nowhere/at/all does not exist" in line)
    assert lines[index].startswith("  ✗ model folder ")
    assert lines[index + 1].strip() == "-> Correct the path of the folder."
    assert lines[-1].split(", ")[-1].endswith("skipped")


def test_corrupting_versions_of_pgvector_and_invalid_indexes_are_reported() -> None:
    assert check_pgvector("0.8.3").severity == "warning"
    assert check_pgvector("0.8.10").severity == "ok"
    assert check_index("i", "hnsw", "vector_cosine_ops", False).severity == "error"
    assert check_index("i", "hnsw", "halfvec_cosine_ops", True).severity == "ok"


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("unable to find backend library for backend 'onnxruntime'", "lacks the backend"),
        (
            "unexpected directory name 'a' for model 'b', directory name must equal",
            "does not have the name",
        ),
        ("Load model from /m/model.onnx failed:Protobuf parsing failed.", "not an ONNX file"),
        ("ONNX Runtime only *guarantees* support up to opset 23", "newer than this Triton's"),
        ("External data path validation failed: symlink outside of the model dir", "symbolic link"),
        ("CUDA error 35: CUDA driver version is insufficient for CUDA runtime", "too old"),
        ('could not select device driver "" with capabilities: [[gpu]]', "no GPU"),
        ("Socket '0.0.0.0:8000' already in use", "A port"),
        ("No space left on device: '/dev/shm/triton'", "shared memory"),
    ],
)
def test_an_error_of_this_stack_is_explained(message: str, cause: str) -> None:
    match = find_known_error(f"first line\n{message}\nlast line")
    assert match is not None
    assert match[0] == message
    assert cause in match[1].cause


def test_an_unknown_message_has_no_explanation() -> None:
    assert find_known_error("all is well") is None
    assert all(pattern.remedy for pattern in ERROR_PATTERNS)


def test_a_program_that_does_not_start_does_not_crash_the_doctor(programs: Path) -> None:
    for name in ("nvidia-smi", "docker", "ss", "timedatectl"):
        (programs / name).write_bytes(os.urandom(64))
        (programs / name).chmod(0o755)
    code, checks, _ = doctor()
    assert code == 1
    assert checks["NVIDIA driver"]["outcome"] == "failed"
