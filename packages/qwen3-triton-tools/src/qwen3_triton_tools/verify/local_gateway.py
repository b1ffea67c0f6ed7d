"""A gateway for a model folder, in a thread of this process, for the time of a `with` block."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from qwen3_triton_gateway.app import create_app
from qwen3_triton_gateway.backends import choose_backend
from qwen3_triton_gateway.backends.base import Backend
from qwen3_triton_gateway.errors import StartupError
from qwen3_triton_gateway.model_files import find_sibling
from qwen3_triton_gateway.service import EmbeddingService
from qwen3_triton_gateway.settings import Engine, Settings, Task, WantedPrecision

from ..errors import ModelError
from ..model.files import find_model
from ..onnx_model import read_model

TOKENIZER_FILE = "tokenizer.json"
DEFAULT_DIMENSIONS = 1024
PAIR_TOKENS = 1024
POLL_SECONDS = 0.02


class FolderSettings(Settings):
    """Settings that ignore the environment."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


def find_tokenizer(model: Path) -> Path:
    """Find the tokenizer.json of an ONNX file.

    Raises:
        ModelError: It is missing.
    """
    tokenizer = find_sibling(model, TOKENIZER_FILE)
    if tokenizer is None:
        raise ModelError(f"{model.parent} has no {TOKENIZER_FILE}. Fetch the one of the model.")
    return tokenizer


def folder_settings(
    folder: Path,
    *,
    model_id: str | None = None,
    engine: Engine = "onnxruntime",
    precision: WantedPrecision = "auto",
    task: Task = "embed",
) -> Settings:
    """Return settings for the model and the tokenizer of a folder, at up to 1024 dimensions.

    By default they show what the graph itself returns, whatever is installed on this machine. A
    reranker takes pairs of up to `PAIR_TOKENS`: longer ones cost the square of their length.

    Raises:
        ModelError: The model or the tokenizer is missing, or the file is not an ONNX model.
    """
    model = find_model(folder)
    tokenizer = find_tokenizer(model)
    values: dict[str, Any] = {"EMBED_ENGINE": engine, "EMBED_PRECISION": precision}
    if task == "rerank":
        values |= {
            "RERANK_MODEL_DIR": model,
            "RERANK_TOKENIZER_PATH": tokenizer.parent,
            "RERANK_MODEL_ID": model_id,
            "RERANK_MAX_LENGTH": PAIR_TOKENS,
        }
        return FolderSettings(**values)
    widths = [output.shape[-1] for output in read_model(model).outputs if output.shape]
    width = widths[0] if widths and widths[0] > 0 else DEFAULT_DIMENSIONS
    values |= {
        "EMBED_MODEL_DIR": model,
        "TOKENIZER_PATH": tokenizer.parent,
        "EMBED_MODEL_ID": model_id,
        "EMBED_OUTPUT_DIM": min(DEFAULT_DIMENSIONS, width),
    }
    return FolderSettings(**values)


@contextmanager
def local_gateway(settings: Settings, backend: Backend | None = None) -> Generator[str]:
    """Serve on a free port, and yield the URL once requests are answered.

    Args:
        settings: The model and its options.
        backend: Replaces the backend of the embedding model that the settings select.

    Raises:
        StartupError: The tokenizer or the model cannot be served.
    """
    failures: list[str] = []
    if backend is None and settings.serves_embeddings:
        backend = choose_backend(settings)
    rerank_backend = choose_backend(settings, "rerank") if settings.serves_reranker else None
    service = EmbeddingService(settings, backend, rerank_backend)
    app = create_app(service, on_fatal=failures.append)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, args=([listener],), name="gateway")
        thread.start()
        try:
            while not service.readiness.ready:
                if failures or not thread.is_alive():
                    raise StartupError(failures[0] if failures else "The gateway did not start.")
                time.sleep(POLL_SECONDS)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
