"""The product's own gateway for a folder, in a thread of this process, while it is asked."""

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
from qwen3_triton_gateway.service import EmbeddingService
from qwen3_triton_gateway.settings import Settings

from ..onnx_file import OnnxFileError, read_signature
from .errors import ModelToolError
from .locate import find_beside, find_model

MODEL_FILE, TOKENIZER_FILE = "model.onnx", "tokenizer.json"
DEFAULT_DIMENSIONS = 1024
POLL_SECONDS = 0.02


class FolderSettings(Settings):
    """Settings that are given and nothing else: the environment is the command line's business."""

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


def folder_settings(folder: Path, *, model_id: str | None = None) -> Settings:
    """Serve `model.onnx` and `tokenizer.json` of a folder, at 1024 dimensions or all it has.

    Raises:
        ModelToolError: no model or tokenizer there, or no file of ONNX.
    """
    model = find_model(folder)
    tokenizer = find_beside(model, TOKENIZER_FILE)
    if model.name != MODEL_FILE or tokenizer is None:
        msg = f"{folder} lacks {MODEL_FILE if tokenizer else TOKENIZER_FILE}: serving needs both."
        raise ModelToolError(msg)
    try:
        outputs = read_signature(model).outputs
    except OnnxFileError as error:
        raise ModelToolError(str(error)) from error
    widths = [output.shape[-1] for output in outputs if output.shape]
    width = widths[0] if widths and widths[0] > 0 else DEFAULT_DIMENSIONS
    values: dict[str, Any] = {
        "EMBED_MODEL_DIR": model.parent,
        "TOKENIZER_PATH": tokenizer.parent,
        "EMBED_MODEL_ID": model_id,
        "EMBED_OUTPUT_DIM": min(DEFAULT_DIMENSIONS, width),
    }
    return FolderSettings(**values)


@contextmanager
def local_gateway(settings: Settings, backend: Backend | None = None) -> Generator[str]:
    """Serve on a free port of this machine, and give the URL once requests are answered.

    `backend` takes the place of the one that the settings name.

    Raises:
        StartupError: the tokenizer or the model cannot be served.
    """
    failures: list[str] = []
    service = EmbeddingService(settings, backend or choose_backend(settings))
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
