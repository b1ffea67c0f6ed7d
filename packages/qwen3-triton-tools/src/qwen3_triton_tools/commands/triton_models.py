"""What the local Triton of `triton` and `up` serves, and which engine runs it."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import report_progress

if TYPE_CHECKING:
    from qwen3_triton_gateway.backends.engines import EngineChoice, Machine
    from qwen3_triton_gateway.settings import Settings

    from ..local_triton import LocalReranker, LocalTriton, OpenVino, TritonRuntime


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedModels:
    """The models that the flags of a command name.

    Attributes:
        model_dir: Folder of the embedding model; by default that of the nano model.
        model_name: Its name in Triton; by default that of its folder.
        rerank: Whether a reranker is served too.
        rerank_model_dir: Its folder; by default that of the nano reranker.
        rerank_model_name: Its name in Triton; by default that of its folder.
        pool: Whether models are pooled on the way to Triton.
    """

    model_dir: Path | None
    model_name: str | None
    rerank: bool
    rerank_model_dir: Path | None
    rerank_model_name: str | None
    pool: bool


def choose_for_triton(
    settings: Settings, machine: Machine | None = None, *, model_paths: Sequence[Path] = ()
) -> EngineChoice:
    """Decide what runs the models in Triton, whose environment gets the engine that is asked for.

    `auto` means what it means for `serve`: OpenVINO is not fetched unless it is installed here.

    Raises:
        StartupError: This machine or that engine cannot do it.
    """
    from qwen3_triton_gateway.backends.engines import Machine, choose_engine

    machine = machine or Machine.this()
    is_wanted = settings.engine == "openvino" or settings.precision in ("bfloat16", "int8")
    machine = replace(machine, has_openvino=machine.has_openvino or is_wanted)
    return choose_engine(settings.engine, settings.precision, machine, model_paths=model_paths)


def _openvino(settings: Settings, choice: EngineChoice) -> OpenVino | None:
    from qwen3_triton_gateway.backends.engines import openvino_options

    from ..local_triton import OpenVino

    if choice.engine == "onnxruntime":
        return None
    return OpenVino(
        precision=choice.precision,
        options=openvino_options(choice.precision),
        cache_dir=settings.engine_cache_dir,
    )


@contextmanager
def local_triton(
    wanted: WantedModels, settings: Settings, announce: Callable[[str], None], **options: Any
) -> Generator[LocalTriton]:
    """Prepare a Triton with these models, not started yet; what was written for it goes at the end.

    Args:
        wanted: The models.
        settings: What runs them, and the pooling of the embedding model.
        announce: Called with what is decided.
        options: Further arguments of `LocalTriton`.

    Raises:
        StartupError: A nano model or the engine is not installed.
        ToolError: A model cannot be served, or the server cannot be installed.
    """
    from qwen3_triton_gateway.backends import NANO_MODEL_ID, nano_model_dir
    from qwen3_triton_gateway.container import thread_count

    from ..local_triton import LocalTriton
    from ..model.files import find_model

    folder = wanted.model_dir or nano_model_dir()
    output, reason = _output_to_pool(folder, settings, wanted=wanted.pool)
    if reason:
        announce(f"The model is served as it is. {reason}")
    name = _name(wanted.model_name, wanted.model_dir, NANO_MODEL_ID, "--model-name")
    with ExitStack() as stack:
        reranker = _reranker(wanted, name, stack, announce) if wanted.rerank else None
        paths = [find_model(folder), *([find_model(reranker.model_dir)] if reranker else [])]
        choice = choose_for_triton(settings, model_paths=paths)
        announce(choice.describe("both models" if wanted.rerank else "the embedding model"))
        openvino = _openvino(settings, choice)
        yield LocalTriton(
            model_dir=folder,
            pooled_output=output,
            model_name=name,
            reranker=reranker,
            intra_op_threads=thread_count(settings.threads),
            openvino=openvino,
            runtime=install(with_openvino=openvino is not None),
            **options,
        )


def repository_triton(
    model_repository: Path, model_name: str | None, **options: Any
) -> LocalTriton:
    """Prepare a Triton with a complete model repository, not started yet.

    Raises:
        ToolError: The server cannot be installed.
    """
    from qwen3_triton_gateway.backends import NANO_MODEL_ID

    from ..local_triton import LocalTriton, needs_openvino

    runtime = install(with_openvino=needs_openvino(model_repository))
    name = model_name or NANO_MODEL_ID
    return LocalTriton(
        model_repository=model_repository, model_name=name, runtime=runtime, **options
    )


def _name(given: str | None, model_dir: Path | None, bundled: str, flag: str) -> str:
    """Return the name of a model in Triton: the given one, else what is possible of its folder's.

    Raises:
        ModelError: The local Triton cannot serve a model of that name.
    """
    from qwen3_triton_gateway.model_files import export_name

    from ..errors import ModelError
    from ..local_triton import MODEL_NAME
    from ..model.files import find_model

    wanted = name = given
    if name is None:
        wanted = export_name(find_model(model_dir)) if model_dir else bundled
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", wanted).lstrip("._-")
    if not MODEL_NAME.fullmatch(name):
        msg = (
            f"A model cannot be called {wanted!r} in the local Triton. Set {flag}, with letters, "
            "digits, `.`, `_` and `-`."
        )
        raise ModelError(msg)
    return name


def _output_to_pool(folder: Path, settings: Settings, *, wanted: bool) -> tuple[str | None, str]:
    from ..model.files import find_model
    from ..model.inspection import inspect_model
    from ..model.pooling_plan import output_to_pool

    inspection = inspect_model(find_model(folder))
    if inspection.reranker and not inspection.is_pooled:
        return None, "It is a reranker: as --rerank-model-dir, its vocabulary head is cut down."
    return output_to_pool(inspection, settings.pooling, wanted=wanted)


def _reranker(
    wanted: WantedModels, other_name: str, stack: ExitStack, announce: Callable[[str], None]
) -> LocalReranker:
    """Return the reranker to serve: where its head is cut down, a copy that `stack` removes."""
    from qwen3_triton_gateway.backends import NANO_RERANKER_ID, nano_reranker_dir
    from qwen3_triton_gateway.fingerprint import weights_digest
    from qwen3_triton_gateway.model_files import reranker_name

    from ..errors import ModelError
    from ..local_triton import LocalReranker
    from ..model.files import find_model
    from ..model.graph import INTERFACE
    from ..model.inspection import check_servable, inspect_model
    from ..model.pool import place_to_link, pool_for_local_triton
    from ..writing import temporary_folder

    chosen = wanted.rerank_model_dir
    inspection = inspect_model(find_model(chosen or nano_reranker_dir()), rerank=True)
    # The gateway need not be able to read an output that pooling is about to replace.
    pools = wanted.pool and not inspection.is_pooled
    check_servable(inspection, besides=INTERFACE if pools else "")
    name = _name(wanted.rerank_model_name, chosen, NANO_RERANKER_ID, "--rerank-model-name")
    if wanted.rerank_model_name is None:
        name = reranker_name(name, other_name)
    if name == other_name:
        msg = f"Both models are called {name!r}. Set --model-name or --rerank-model-name."
        raise ModelError(msg)
    path, digest, reason = inspection.path, None, "`--no-pool` was passed."
    if pools:
        folder = stack.enter_context(temporary_folder(place_to_link(inspection), ".qwen3-pooled-"))
        # Not copied: gigabytes in the folder for temporary files may be memory.
        path, reason = pool_for_local_triton(inspection, folder, probe=False, transfer="link")
        digest = None if reason else weights_digest(inspection.path)
    if not inspection.is_pooled and reason:
        announce(f"The reranker is served as it is. {reason}")
    return LocalReranker(model_dir=path, model_name=name, digest=digest)


def install(*, with_openvino: bool) -> TritonRuntime:
    """Install the local Triton, if necessary, and OpenVINO in its environment.

    Raises:
        ToolError: That is not possible.
    """
    from ..local_triton import ensure_openvino, ensure_runtime

    runtime = ensure_runtime(report_progress)
    if with_openvino:
        ensure_openvino(runtime, report_progress)
    return runtime
