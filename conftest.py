"""Fixtures for the tests of every distribution: a real Triton, real gateways, a real PostgreSQL."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import types
from collections.abc import Generator
from functools import lru_cache
from pathlib import Path

import hypothesis
import pytest
from tokenizers import Tokenizer

import qwen3_nano
from demo.embedded_postgres import embedded_postgres
from gateway_process import GatewayProcess, running_gateway, triton_flags
from qwen3_triton_gateway import tokenization
from qwen3_triton_tools.local_triton import LocalTriton

# Tests import ONNX Runtime directly; the product sets this itself.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# To look for plugins, pydantic would read the entry points of some 280 distributions in every
# process.
os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"

# As in the Makefile, for tests that are run without it: compile each module once, not in every
# process that a test starts.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell starts background jobs (`nohup make test &`) with SIGINT ignored, and every process that
# a test starts would inherit that. With a handler installed here, they start with the default.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every run, and no failure because the machine is busy.
hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("repeatable")

# Build a tokenizer once per process. Each gateway, model and command that a test starts would build
# the same few again, which took a quarter of the CPU time of `make fast`.
build_tokenizer = lru_cache(maxsize=8)(Tokenizer.from_buffer)
setattr(tokenization, "Tokenizer", types.SimpleNamespace(from_buffer=build_tokenizer))  # noqa: B010

# What a test needs, by the fixtures that it uses, directly or through others.
MARK_OF_FIXTURE = {
    "triton": "stack",
    "gateway": "stack",
    "grpc_gateway": "stack",
    "reranking_gateway": "stack",
    "in_process_gateway": "stack",
    "any_gateway": "stack",
    "postgres_uri": "stack",
    "wheels": "slow",
}
CAMPAIGN_SECONDS = 900


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Exempt all modules and tests from garbage collection, a seventh of the tests' CPU time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their fixtures; a test that starts a server by itself carries its own mark."""
    for item in items:
        fixtures = item.fixturenames if isinstance(item, pytest.Function) else []
        for mark in {MARK_OF_FIXTURE[name] for name in fixtures if name in MARK_OF_FIXTURE}:
            item.add_marker(mark)
        if item.get_closest_marker("campaign"):
            item.add_marker(pytest.mark.timeout(CAMPAIGN_SECONDS))


@pytest.fixture(name="triton", scope="session")
def _triton() -> Generator[LocalTriton]:
    """A real Triton serving the nano model; tests that break it start their own."""
    with LocalTriton(
        model_dir=qwen3_nano.model_dir(),
        model_name=qwen3_nano.MODEL_ID,
        max_batch_size=8,
        intra_op_threads=1,
    ) as triton:
        yield triton


@pytest.fixture(name="gateway", scope="session")
def _gateway(triton: LocalTriton) -> Generator[GatewayProcess]:
    """The gateway in front of the real Triton."""
    with running_gateway(*triton_flags(triton.http_url)) as gateway:
        yield gateway


@pytest.fixture(name="gateway_url", scope="session")
def _gateway_url(gateway: GatewayProcess) -> str:
    return gateway.url


@pytest.fixture(name="reranking_gateway", scope="session")
def _reranking_gateway(triton: LocalTriton) -> Generator[GatewayProcess]:
    """The same with the nano reranker in its process, for documentation and examples."""
    import qwen3_nano_reranker  # which few tests need

    reranker = ("--rerank-model-dir", str(qwen3_nano_reranker.model_dir()))
    with running_gateway(*triton_flags(triton.http_url), *reranker) as gateway:
        yield gateway


@pytest.fixture(name="grpc_gateway", scope="session")
def _grpc_gateway(triton: LocalTriton) -> Generator[GatewayProcess]:
    """The same over gRPC."""
    with running_gateway(*triton_flags(triton.grpc_url)) as gateway:
        yield gateway


@pytest.fixture(name="in_process_gateway", scope="session")
def _in_process_gateway() -> Generator[GatewayProcess]:
    """The gateway with ONNX Runtime in its own process, and the model it has without settings."""
    with running_gateway() as gateway:
        yield gateway


@pytest.fixture(
    name="any_gateway",
    scope="session",
    params=["gateway", "grpc_gateway", "in_process_gateway"],
)
def _any_gateway(request: pytest.FixtureRequest) -> GatewayProcess:
    """Each kind of gateway in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(name="postgres_uri", scope="session")
def _postgres_uri() -> Generator[str]:
    """A real PostgreSQL with pgvector, for tests that each take a database of their own."""
    with embedded_postgres(0, timeout_seconds=120) as uri:
        yield uri


@pytest.fixture(name="database_url")
def _database_url(postgres_uri: str) -> Generator[str]:
    """The libpq URI of an empty database, dropped after the test."""
    from filled_tables import create_database  # with the loader, which few tests need

    yield from create_database(postgres_uri)


@pytest.fixture(name="certificate", scope="session")
def _certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", key, "-out", certificate, "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key
