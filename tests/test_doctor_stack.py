"""`qwen3-triton doctor` with a real Triton, gateway and PostgreSQL, healthy and broken."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import onnx
import psycopg
import pytest
from click.testing import CliRunner

import qwen3_nano
from gateway_process import GatewayProcess, running_gateway, triton_flags
from json_server import Request, answering
from polling import wait_for
from qwen3_nano.graph import build_graph
from qwen3_nano.weights import load_weights
from qwen3_triton_gateway.cli import main
from qwen3_triton_tools.local_triton import LocalTriton, ensure_runtime, write_repository
from qwen3_triton_tools.local_triton.launch import answers_ok
from qwen3_triton_tools.local_triton.process import (
    Ports,
    SupervisedProcess,
    choose_ports,
    free_ports,
    server_command,
)
from qwen3_triton_tools.local_triton.repository import MODEL_SOURCE

pytestmark = pytest.mark.stack

NANO = qwen3_nano.MODEL_ID
HOST = "127.0.0.1"
# What the `onnxruntime` backend does when it loads a model: report the types of the file. The
# refusal that follows is Triton's, in the words that users of that backend see.
REPORTS_ITS_TYPES = '''

class TritonPythonModel(TritonPythonModel):
    @staticmethod
    def auto_complete_config(config):
        """Report the types of the ONNX file."""
        config.add_output(
            {"name": "last_hidden_state", "data_type": "TYPE_FP32", "dims": [-1, 1152]}
        )
        return config
'''
KEY = "a-secret-key"
RESTRICTED = "admin-key=open-sesame"


def doctor(*arguments: str) -> tuple[int, dict[str, dict[str, str]], str]:
    """Run the command; give its exit code, its checks by name, and its output."""
    result = CliRunner().invoke(main, ["doctor", "--json", *arguments])
    checks: list[dict[str, str]] = json.loads(result.stdout)["checks"]
    return result.exit_code, {check["name"]: check for check in checks}, result.stdout


def serving(
    answers: Callable[[str, dict[str, Any]], object], certificate: tuple[Path, Path] | None = None
) -> AbstractContextManager[str]:
    """Serve what `answers(path, body)` returns, or 404 for None."""

    def reply(request: Request) -> tuple[int, Any]:
        answer = answers(request.path, request.body)
        return (404 if answer is None else 200), answer

    return answering(reply, certificate=certificate)


@contextmanager
def forgiving_triton(repository: Path, log_file: Path) -> Generator[str]:
    """Run a Triton that stays up when models do not load, and give its URL.

    Its models are only for callers with the header RESTRICTED.
    """
    runtime = ensure_runtime(print)
    ports = choose_ports(HOST, Ports(0, 0, 0))
    command = server_command(
        runtime,
        repository=repository,
        host=HOST,
        ports=ports,
        shm_prefix=f"doctor{ports.http}",
        exit_timeout_seconds=1,
        complete_config=True,
    )
    command.append(f"--http-restricted-api=metadata,inference,model-repository:{RESTRICTED}")
    process = SupervisedProcess(
        ["--exit-on-error=false" if part == "--exit-on-error=true" else part for part in command],
        environment=runtime.environment(),
        log_file=log_file,
        shm_prefix=f"doctor{ports.http}",
        work_dir=None,
        grace_seconds=2,
    )
    try:
        wait_for(lambda: answers_ok(f"http://{HOST}:{ports.http}/v2/health/live"), "a live Triton")
        yield f"http://{HOST}:{ports.http}"
    finally:
        process.stop()


@pytest.fixture(name="broken_repository", scope="module")
def _broken_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model for each fault that keeps Triton from loading it, and one that loads."""
    folder = tmp_path_factory.mktemp("models")
    repository = tmp_path_factory.mktemp("repository")
    weights = load_weights(qwen3_nano.model_dir() / "model.onnx")

    def write(name: str, **options: Any) -> Path:
        source = folder / name
        source.mkdir()
        external = name == "no_data"
        onnx.save_model(
            build_graph(weights, **options),
            source / "model.onnx",
            save_as_external_data=external,
            location="model.onnx_data" if external else None,
        )
        return write_repository(source, repository, model_name=name, intra_op_threads=1)

    write("half", float16_output=True)
    written = write("wrong_dtype")
    config = written / "config.pbtxt"
    config.write_text(config.read_text().replace("TYPE_FP32", "TYPE_FP16"))
    (written / "1" / "model.py").write_text(MODEL_SOURCE.read_text() + REPORTS_ITS_TYPES)
    write("no_data")
    (folder / "no_data" / "model.onnx_data").unlink()
    narrow = write("narrow_ids") / "config.pbtxt"
    narrow.write_text(narrow.read_text().replace("TYPE_INT64", "TYPE_INT32"))
    return repository


@pytest.fixture(name="broken_triton", scope="module")
def _broken_triton(
    broken_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Generator[str]:
    with forgiving_triton(broken_repository, tmp_path_factory.mktemp("log") / "log") as url:
        yield url


@pytest.fixture(name="ask_broken_triton")
def _ask_broken_triton(broken_triton: str) -> Callable[[str], Any]:
    def ask(model: str) -> Any:
        flags = ("--triton-url", broken_triton, "--triton-headers", RESTRICTED)
        return doctor(*flags, "--triton-model", model)

    return ask


def test_a_healthy_stack_exits_with_0(
    triton: LocalTriton, gateway: GatewayProcess, database_url: str
) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute("CREATE TABLE chunks (embedding vector(1024))")
        connection.execute(
            "CREATE INDEX nearest ON chunks USING hnsw (embedding vector_cosine_ops)"
        )
    flags = ["--url", gateway.url, "--triton-url", triton.http_url, "--triton-model", NANO]
    code, checks, output = doctor(*flags, "--database-url", database_url)
    assert code == 0, output
    assert checks["gateway"]["outcome"] == "ok"
    assert checks["Triton"]["outcome"] == "ok"
    assert checks["gRPC"]["outcome"] in {"ok", "skipped"}  # its port is not always HTTP's next
    assert checks["inference"]["seen"] == "a batch of two runs, all numbers finite"
    assert checks["norm"]["seen"].startswith("norms within")
    assert checks["batch invariance"]["outcome"] == "ok"
    assert checks["instruction"]["outcome"] == "ok"
    assert checks["column public.chunks.embedding"]["seen"] == "vector(1024)"
    assert checks["index nearest"]["outcome"] == "ok"


def test_triton_is_found_by_what_the_gateway_says(gateway: GatewayProcess) -> None:
    code, checks, _ = doctor("--url", gateway.url)
    assert code == 0
    assert checks[f"model {NANO}"]["seen"].startswith("READY")
    assert "last_hidden_state" in checks["interface"]["seen"]


def test_the_grpc_address_of_triton_is_asked_the_same(triton: LocalTriton) -> None:
    code, checks, _ = doctor("--triton-url", triton.grpc_url)
    assert code == 0
    assert checks["Triton version"]["seen"] == "2.51.0"
    assert checks["inference"]["outcome"] == "ok"


def test_more_dimensions_than_the_model_has_are_an_error(triton: LocalTriton) -> None:
    code, checks, _ = doctor("--triton-url", triton.http_url, "--output-dim", "2560")
    assert code == 1
    assert checks["interface"]["seen"].endswith("EMBED_OUTPUT_DIM is 2560")


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_triton_that_is_named_and_down_is_a_failure(scheme: str) -> None:
    code, checks, _ = doctor("--triton-url", f"{scheme}://{HOST}:{free_ports(1)[0]}")
    assert code == 1
    assert checks["Triton"]["outcome"] == "failed"
    assert "docker start triton" in checks["Triton"]["remedy"]
    assert "Nothing listens" in checks["Triton"]["seen"] or "gRPC" in checks["Triton"]["seen"]


def test_a_model_that_triton_lacks_is_reported_with_those_that_it_has(
    triton: LocalTriton,
) -> None:
    code, checks, _ = doctor("--triton-url", triton.http_url, "--triton-model", "qwen3_typo")
    assert code == 1
    assert checks["model qwen3_typo"]["seen"] == f"Triton does not have it. Its models: {NANO}."
    assert "TRITON_MODEL" in checks["model qwen3_typo"]["remedy"]


@pytest.mark.parametrize(
    ("model", "cause", "remedy"),
    [
        ("wrong_dtype", "config.pbtxt and the ONNX file disagree about a dtype", "TYPE_FP16"),
        ("no_data", "The external weights are missing", "model.onnx_data"),
    ],
)
def test_a_model_that_does_not_load_is_explained_by_tritons_own_words(
    ask_broken_triton: Callable[[str], Any], model: str, cause: str, remedy: str
) -> None:
    code, checks, _ = ask_broken_triton(model)
    check = checks[f"model {model}"]
    assert code == 1
    assert check["outcome"] == "failed"
    assert check["cause"].startswith(cause)
    assert check["seen"].startswith("UNAVAILABLE: ")
    assert remedy in check["remedy"]
    assert checks["Triton"]["seen"].endswith("a model is loading or failed to load")


def test_an_input_of_another_type_than_the_gateway_sends_is_named(
    ask_broken_triton: Callable[[str], Any],
) -> None:
    code, checks, _ = ask_broken_triton("narrow_ids")
    assert code == 1
    assert "input `input_ids` as int32" in checks["interface"]["seen"]


def test_float16_over_json_is_explained_for_a_model_that_works(
    ask_broken_triton: Callable[[str], Any],
) -> None:
    _, checks, _ = ask_broken_triton("half")
    check = checks["float16 over JSON"]
    assert checks["inference"]["outcome"] == "ok"
    assert check["outcome"] == "warning"
    assert "sending FP16 data via JSON is not supported" in check["seen"]
    assert "binary_data=True" in check["remedy"]


def test_the_headers_of_the_gateways_requests_are_those_of_the_doctor(
    broken_triton: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--triton-url", broken_triton, "--triton-model", "half")
    code, checks, _ = doctor(*flags)
    assert code == 1
    assert checks["Triton"]["outcome"] == "failed"
    monkeypatch.setenv("EMBED_TRITON_HEADERS", RESTRICTED)
    _, checks, output = doctor(*flags)
    assert checks["inference"]["outcome"] == "ok"
    assert RESTRICTED.partition("=")[2] not in output


def test_the_certificates_of_the_setting_are_trusted(certificate: tuple[Path, Path]) -> None:
    triton = {"version": "2.51.0", "extensions": []}
    with serving(lambda path, _: triton if path == "/v2" else None, certificate) as url:
        code, checks, _ = doctor("--triton-url", url)
        assert code == 1
        assert "CERTIFICATE_VERIFY_FAILED" in checks["Triton"]["seen"]
        _, checks, _ = doctor("--triton-url", url, "--triton-ca-file", str(certificate[0]))
        assert checks["Triton version"]["seen"] == "2.51.0"


def test_the_files_of_those_models_show_the_same_without_a_triton(broken_repository: Path) -> None:
    code, checks, output = doctor("--model-repository", str(broken_repository))
    assert code == 1
    assert "is TYPE_FP16 in config.pbtxt and TYPE_FP32 in the ONNX file" in output
    assert "is TYPE_INT32 in config.pbtxt and TYPE_INT64 in the ONNX file" in output
    assert "model.onnx_data is missing" in checks["weights model.onnx_data"]["seen"]


def test_a_gateway_that_is_named_and_down_is_a_failure() -> None:
    code, checks, _ = doctor("--url", f"http://{HOST}:{free_ports(1)[0]}")
    assert code == 1
    assert "Nothing listens" in checks["gateway"]["seen"]
    assert "docker logs -n 200 embed-gateway" in checks["gateway"]["remedy"]


def test_tritons_port_in_place_of_the_gateways_is_recognized(triton: LocalTriton) -> None:
    code, checks, _ = doctor("--url", triton.http_url)
    assert code == 1
    assert "is Triton, not the gateway" in checks["gateway"]["seen"]


def test_another_server_at_the_gateways_port_is_recognized() -> None:
    other = {"status": "ok", "version": "1.2"}
    with serving(lambda path, _: other if path == "/health" else None) as url:
        code, checks, _ = doctor("--url", url)
    assert code == 1
    assert "Another server answers" in checks["gateway"]["seen"]
    port = url.rpartition(":")[2]
    assert "which is not the gateway" in checks[f"port {port}"]["seen"]


def test_the_gateways_port_in_place_of_tritons_is_recognized(gateway: GatewayProcess) -> None:
    code, checks, _ = doctor("--triton-url", gateway.url)
    assert code == 1
    assert "is not Triton" in checks["Triton"]["seen"]


def test_a_missing_and_a_wrong_key_are_distinguished_and_never_shown() -> None:
    with running_gateway("--api-keys", KEY) as gateway:
        code, checks, _ = doctor("--url", gateway.url)
        assert code == 1
        assert checks["API key"]["seen"] == "It requires an API key (status 401)."
        code, checks, output = doctor("--url", gateway.url, "--api-key", "hunter2")
        assert code == 1
        assert "not one of its keys" in checks["API key"]["seen"]
        assert "hunter2" not in output
        code, checks, output = doctor("--url", gateway.url, "--api-key", KEY)
        assert code == 0, output
        assert checks["norm"]["outcome"] == "ok"
        assert KEY not in output


def test_a_gateway_without_its_triton_is_degraded_and_says_why() -> None:
    waiting = GatewayProcess(*triton_flags(f"http://{HOST}:{free_ports(1)[0]}"))
    try:
        waiting.wait_listening()
        code, checks, _ = doctor("--url", waiting.url)
    finally:
        waiting.kill()
    assert code == 1
    assert checks["gateway"]["seen"].startswith("degraded: waiting for Triton")
    assert "resumes on its own" in checks["gateway"]["remedy"]


def test_the_runbooks_gateway_is_recognized_by_its_answers_and_its_vectors() -> None:
    health = {
        "status": "ok",
        "triton_status": 200,
        "triton_model": "qwen3_embed_4b_onnx",
        "tokenizer_path": "/models/qwen3-embedding-4b-zhiqing",
        "embed_output_dim": 1024,
        "model_hidden_dim": 2560,
        "requires_past_kv": False,
    }

    def app(path: str, body: dict[str, Any]) -> object:
        if path == "/health":
            return health
        if path != "/embed":
            return None
        # In a mixed batch it pools the short text at a padding token.
        longest = max(len(text) for text in body["texts"])
        angles = [len(text) if len(text) == longest else 99 for text in body["texts"]]
        rows = [[math.cos(a), math.sin(a), *[0.0] * 1022] for a in angles]
        return {"embeddings": rows, "model": "Qwen/Qwen3-Embedding-4B"}

    with serving(app) as url:
        code, checks, _ = doctor("--url", url)
    assert code == 1
    assert checks["implementation"]["seen"] == "This is the runbook's app.py."
    assert "Padding changes the vector" in checks["batch invariance"]["cause"]
    assert "without their instruction" in checks["instruction"]["cause"]


def test_vectors_that_are_not_numbers_are_an_error() -> None:
    health = dict.fromkeys(("triton_status", "triton_model", "tokenizer_path"), "x")
    health |= {"status": "ok", "embed_output_dim": "1024"}

    def app(path: str, body: dict[str, Any]) -> object:
        if path == "/embed":
            return {"embeddings": [[None] * 1024 for _ in body["texts"]]}
        return health if path == "/health" else None

    with serving(app) as url:
        code, checks, _ = doctor("--url", url)
    assert code == 1
    assert checks["norm"]["seen"] == "norms from nan to nan"


def test_the_runbooks_gateway_without_its_triton_is_recognized() -> None:
    # Its /health ends with an exception then.
    title = {"info": {"title": "Qwen3 Embedding Gateway"}}
    with serving(lambda path, _: title if path == "/openapi.json" else None) as url:
        code, checks, _ = doctor("--url", url)
    assert code == 1
    assert "its Triton does not answer" in checks["gateway"]["seen"]


def test_a_column_of_other_dimensions_than_the_gateways_is_a_failure(
    gateway: GatewayProcess, database_url: str
) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute("CREATE TABLE old (embedding vector(768), any_size vector)")
        connection.execute("CREATE INDEX far ON old USING hnsw (embedding vector_l2_ops)")
    code, checks, _ = doctor("--url", gateway.url, "--database-url", database_url)
    assert code == 1
    column = checks["column public.old.embedding"]
    assert column["seen"] == "vector(768), but the gateway's vectors have 1024 dimensions"
    assert checks["column public.old.any_size"]["outcome"] == "warning"
    assert "do not use it" in checks["index far"]["seen"]
    assert checks["pgvector"]["outcome"] == "ok"


def test_a_database_without_pgvector_or_without_an_answer_is_a_failure(database_url: str) -> None:
    code, checks, _ = doctor("--database-url", database_url)
    assert code == 1
    assert checks["pgvector"]["remedy"] == "CREATE EXTENSION vector"
    lost = f"postgresql://me:hunter2@{HOST}:{free_ports(1)[0]}/rag"
    code, checks, output = doctor("--database-url", lost)
    assert code == 1
    assert "Start PostgreSQL" in checks["database"]["remedy"]
    assert "hunter2" not in output
