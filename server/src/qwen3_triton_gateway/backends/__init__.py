"""What runs the model, chosen by the settings: Triton, or an engine in this process."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

from ..errors import StartupError
from ..model_files import find_tokenizer, stated_max_length
from ..settings import Settings, Task
from .base import Backend

logger: logging.Logger = logging.getLogger(__name__)

NANO_MODEL_ID = "qwen3-nano"
NANO_RERANKER_ID = "qwen3-nano-reranker"
MODELS: dict[Task, str] = {"embed": "the embedding model", "rerank": "the reranker"}


def choose_backend(settings: Settings, task: Task = "embed") -> Backend:
    """Create the backend that the settings name for a task, not yet connected.

    Raises:
        StartupError: An engine or a model's folder cannot be used.
    """
    model_dir = settings.model_dir if task == "embed" else settings.rerank_model_dir
    if model_dir is not None:
        return _open_in_process(settings, model_dir, task)
    model = settings.triton_model if task == "embed" else settings.rerank_triton_model
    assert model is not None, "the settings name a model"
    from .address import TritonAddress
    from .replicas import ReplicatedBackend
    from .triton import TritonBackend

    headers = {name: value.get_secret_value() for name, value in settings.triton_headers.items()}
    tritons = [
        TritonBackend(
            TritonAddress.parse(url).with_options(headers, settings.triton_ca_file),
            model,
            task=task,
        )
        for url in settings.triton_url
    ]
    return tritons[0] if len(tritons) == 1 else ReplicatedBackend(tritons)


def _open_in_process(settings: Settings, model_dir: Path, task: Task) -> Backend:
    from .engines import choose_engine
    from .in_process import find_served

    # Before anything says that its tokenizer is missing.
    model_path = find_served(model_dir, task)
    choice = choose_engine(settings.engine, settings.precision, model_paths=[model_path])
    logger.info("%s", choice.describe(MODELS[task]))
    if choice.engine == "onnxruntime":
        from .onnx import OnnxBackend

        return OnnxBackend(model_dir, threads=settings.threads, task=task)
    from .openvino import OpenVinoBackend

    return OpenVinoBackend(
        model_dir,
        precision=choice.precision,
        threads=settings.threads,
        cache_dir=settings.engine_cache_dir,
        task=task,
    )


def nano_model_dir() -> Path:
    """Return the nano model's folder.

    Raises:
        StartupError: The package `qwen3-nano` is not installed.
    """
    try:
        # Imported by name: the gateway does not depend on other distributions of this project.
        nano: Any = importlib.import_module("qwen3_nano")
    except ImportError as error:
        msg = (
            "Neither TRITON_URL nor EMBED_MODEL_DIR is set, and the bundled nano model is not "
            'installed. Set one of them, or run `pip install "qwen3-triton-gateway[nano]"`.'
        )
        raise StartupError(msg) from error
    return nano.model_dir()


def nano_reranker_dir() -> Path:
    """Return the nano reranker's folder.

    Raises:
        StartupError: The package `qwen3-nano-reranker` is not installed.
    """
    try:
        nano: Any = importlib.import_module("qwen3_nano_reranker")
    except ImportError as error:
        msg = (
            "RERANK_MODEL_DIR is not set, and the nano reranker is not installed. Set it to a "
            "folder with a reranker's model.onnx, or run `pip install qwen3-nano-reranker`."
        )
        raise StartupError(msg) from error
    return nano.model_dir()


def with_nano_reranker(settings: Settings) -> Settings:
    """Add the nano reranker to settings that name none.

    Raises:
        StartupError: The package `qwen3-nano-reranker` is not installed.
    """
    if settings.serves_reranker:
        return settings
    update = {
        "rerank_model_dir": nano_reranker_dir(),
        "rerank_model_id": settings.rerank_model_id or NANO_RERANKER_ID,
    }
    return settings.model_copy(update=update)


def with_stated_lengths(settings: Settings) -> Settings:
    """Lower default maximum lengths to what the models were made for, and warn of longer ones."""
    folders = {
        "max_length": find_tokenizer(settings.tokenizer_path, settings.model_dir),
        "rerank_max_length": find_tokenizer(
            settings.rerank_tokenizer_path, settings.rerank_model_dir
        ),
    }
    update: dict[str, int] = {}
    for field, folder in folders.items():
        length: int = getattr(settings, field)
        stated = stated_max_length(folder) if folder else None
        if stated is None or length <= stated:
            continue
        if field not in settings.model_fields_set:
            update[field] = stated
            continue
        logger.warning(
            "%s is %s, but the model was made for up to %s tokens (`max_position_embeddings` in "
            "%s): it may be wrong about longer texts.",
            Settings.model_fields[field].validation_alias,
            f"{length:,}",
            f"{stated:,}",
            folder,
        )
    return settings.model_copy(update=update)


def with_bundled_model(settings: Settings) -> Settings:
    """Add the nano model to settings that name neither Triton nor a model."""
    if settings.triton_url or settings.model_dir:
        return settings
    model_dir = nano_model_dir()
    return settings.model_copy(
        update={
            "model_dir": model_dir,
            "tokenizer_path": settings.tokenizer_path or model_dir,
            "model_id": settings.model_id or NANO_MODEL_ID,
        }
    )
