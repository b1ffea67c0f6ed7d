from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

import qwen3_nano
from fake_backend import FakeBackend, FakeReranker
from polling import wait_for
from qwen3_triton_gateway.app import create_app
from qwen3_triton_gateway.service import EmbeddingService
from qwen3_triton_gateway.settings import Settings

StartGateway = Callable[..., TestClient]


@pytest.fixture(name="tokenizer_dir", scope="session")
def _tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer without merges: one token per byte."""
    return _write_tokenizer(tmp_path_factory.mktemp("tokenizer"), ["<|endoftext|>"])


@pytest.fixture(name="rerank_tokenizer_dir", scope="session")
def _rerank_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the tokens that divide a reranker's prompt."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return _write_tokenizer(tmp_path_factory.mktemp("rerank_tokenizer"), tokens)


def _write_tokenizer(folder: Path, special_tokens: list[str]) -> Path:
    vocabulary = {char: index for index, char in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(special_tokens)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(name="backend")
def _backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture(name="start_gateway")
def _start_gateway(tokenizer_dir: Path, backend: FakeBackend) -> Iterator[StartGateway]:
    """Start applications on the fake model, ready to answer, with settings by variable.

    With `reranker`, there is a fake one next to it, or alone if it does not `embed`.
    """
    with ExitStack() as stack:

        def start(*, reranker: bool = False, embed: bool = True, **settings: Any) -> TestClient:
            values: dict[str, Any] = {
                "TOKENIZER_PATH": tokenizer_dir,
                "EMBED_MODEL_ID": "fake-embedding",
            }
            if reranker:
                values["RERANK_TOKENIZER_PATH"] = qwen3_nano.model_dir()
                values["RERANK_MODEL_ID"] = "fake-reranker"
            service = EmbeddingService(
                Settings(**values | settings),
                backend if embed else None,
                FakeReranker() if reranker else None,
            )
            errors: list[str] = []
            app = create_app(service, on_fatal=errors.append)
            client = stack.enter_context(TestClient(app, raise_server_exceptions=False))
            wait_for(lambda: service.readiness.ready or bool(errors), "the gateway is ready")
            assert not errors
            backend.calls.clear()
            backend.priorities.clear()
            return client

        yield start


@pytest.fixture(name="client")
def _client(start_gateway: StartGateway) -> TestClient:
    return start_gateway()
