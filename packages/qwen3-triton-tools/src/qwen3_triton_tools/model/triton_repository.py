"""Write a Triton model repository for the ONNX Runtime or OpenVINO backend from an export."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from qwen3_triton_gateway.fingerprint import weights_digest
from qwen3_triton_gateway.settings import Pooling, WantedPrecision

from ..errors import ModelError
from ..onnx_model import describe_graph
from ..writing import all_or_none, is_place_next_to, replacing_file, replacing_folder
from .files import (
    TOKENIZER_FILES,
    Transfer,
    check_place,
    copy_tokenizer,
    is_readable_by_triton,
    transfer_file,
    transfer_weights,
)
from .gpu_plan import CARDS, MemoryPlan, model_shape, plan_cpu, plan_gpu
from .inspection import Inspection, check_servable, inspect_graph, inspect_model
from .openvino_plan import OpenVinoPlan, plan_openvino
from .pool import check_size
from .pooling_plan import PoolingPlan, output_to_pool, plan_pooling
from .probing import canary_of, with_probe
from .quantize import NARROW, is_quantized
from .triton_config import TritonConfig, plan_samples, render_config, write_warmup_files

# The first Triton with ONNX Runtime 1.27, whose fused layer norms sum in float32.
_SAFE_LAYER_NORM = (26, 7)
_MODEL_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_VERSION = re.compile(r"(\d\d)\.(\d\d)")
_FLOAT_BYTES = {"float16": 2, "bfloat16": 2, "float64": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryOptions:
    """What the graph does not say.

    Attributes:
        gpu: One of `CARDS`, or `cpu`.
        gpu_memory_gib: The GPU's memory, if it differs from that of the card.
        model_size: One of `MODEL_SIZES`, if there is no config.json.
        max_length: Tokens of the longest text.
        rerank: Take a causal language model for a reranker, whatever its name says.
        instances: Copies of the model on the GPU; with OpenVINO, batches at the same time.
        triton_version: Release of Triton's image, such as `26.07`.
        openvino: The precision in which Triton's OpenVINO backend runs it, on a CPU like this one;
            by default, its ONNX Runtime backend does.
        threads: Threads of OpenVINO, 0 for one per core.
        pool: Pool the last token in the graph, if the export returns hidden states.
    """

    model_name: str
    gpu: str
    gpu_memory_gib: float | None = None
    model_size: str | None = None
    max_length: int = 1024
    instances: int = 1
    triton_version: str = "26.07"
    openvino: WantedPrecision | None = None
    threads: int = 0
    transfer: Transfer = "auto"
    with_digest: bool = True
    queue_policy: bool = False
    force: bool = False
    pooling: Pooling = "last_token"
    pool: bool = True
    rerank: bool = False
    tokenizer_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class WrittenRepository:
    """What was written.

    Attributes:
        folder: The model's folder in the repository.
        tokenizer: The tokenizer's folder, next to the repository.
        canary_problem: Why the configuration does not state the canary's vector; empty if it does.
        not_pooled: Why the graph is the export's own; empty if pooling was added to it.
        not_compared: Why the pooled graph was not compared with the export; empty if it was, and
            returns the same vectors.
        unreadable: Files that Triton's account may not read: a hard link has the mode of the
            original.
    """

    folder: Path
    tokenizer: Path | None
    canary_problem: str
    not_pooled: str
    not_compared: str
    plan: MemoryPlan
    inspection: Inspection
    unreadable: tuple[str, ...]


def write_triton_repository(
    model_path: Path,
    repository: Path,
    options: RepositoryOptions,
    on_digest: Callable[[int], object] | None = None,
) -> WrittenRepository:
    """Write `<repository>/<model_name>` and, next to the repository, the tokenizer's folder.

    Weights become hard links, or copies on another disk, never symbolic links.

    Args:
        model_path: The ONNX file.
        repository: The model repository, which is created if necessary.
        options: What the graph does not say.
        on_digest: Called with the number of bytes read for the digest since its last call.

    Raises:
        ModelError: The file is not an ONNX model, the gateway could not serve it, it does not fit
            the GPU, or the folder already exists.
    """
    _check_options(options)
    inspection = inspect_model(model_path, rerank=options.rerank)
    pooling, not_pooled = _plan_pooling(inspection, options)
    if pooling:
        pooling.append()
        pooled = describe_graph(model_path, inspection.model.proto)
        inspection = inspect_graph(pooled, rerank=options.rerank)
    # What runs is the export: a pooled graph has no file yet, and does not behave differently.
    inspection = with_probe(inspection, options.pooling)
    check_servable(inspection)
    plan, openvino = _plan(inspection, options), _plan_openvino(inspection, options)
    folder = repository / options.model_name
    check_place(folder, model_path, force=options.force)
    compare, not_compared = _sample(pooling)
    # The digest is the export's, pooled or not: pooling changes no vector.
    digest = weights_digest(model_path, on_digest) if options.with_digest else None
    config = _config(inspection, options, plan, openvino, digest)
    tokenizer = _tokenizer_folder(repository, options) if inspection.tokenizer else None
    with all_or_none([tokenizer / name for name in TOKENIZER_FILES] if tokenizer else []):
        if tokenizer:
            copy_tokenizer(model_path, tokenizer, force=True)
        with replacing_folder(folder) as unfinished:
            _write_graph(inspection, unfinished / "1", options, is_pooled=pooling is not None)
            compare(unfinished / "1" / "model.onnx")
            canary_problem = _write_settings(inspection, config, unfinished, options)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    unreadable = tuple(path.name for path in files if not is_readable_by_triton(path))
    return WrittenRepository(
        folder,
        tokenizer,
        canary_problem,
        not_pooled,
        not_compared,
        plan,
        inspection,
        unreadable,
    )


def _plan_pooling(
    inspection: Inspection, options: RepositoryOptions
) -> tuple[PoolingPlan | None, str]:
    """Return how to pool an export on the way, or None and the reason."""
    _, reason = output_to_pool(inspection, options.pooling, wanted=options.pool)
    if reason:
        return None, reason
    try:
        check_size(inspection.path)
        return plan_pooling(inspection, widen=False), ""
    except ModelError as error:
        return None, str(error)


def _sample(pooling: PoolingPlan | None) -> tuple[Callable[[Path], None], str]:
    """Return what compares a pooled graph with the export, or nothing and the reason."""
    if pooling is None:
        return _accept, ""
    try:
        check = pooling.sample()
    except ModelError as error:
        return _accept, str(error)

    def compare(path: Path) -> None:
        try:
            check(path)
        except ModelError as error:
            raise ModelError(f"{error} `--no-pool` writes the export as it is.") from error

    return compare, ""


def _accept(_path: Path) -> None:
    """Compare nothing."""


def _write_graph(
    inspection: Inspection, version: Path, options: RepositoryOptions, *, is_pooled: bool
) -> None:
    """Write the ONNX file and its weights: a pooled graph from memory, else the export's own."""
    target = version / "model.onnx"
    if is_pooled:
        with replacing_file(target, inspection.path.stat().st_mode & 0o777) as unfinished:
            unfinished.write_bytes(inspection.model.proto.SerializeToString())
    else:
        transfer_file(inspection.path, target, transfer=options.transfer)
    transfer_weights(inspection.model, version, transfer=options.transfer)


def _write_settings(
    inspection: Inspection, config: TritonConfig, folder: Path, options: RepositoryOptions
) -> str:
    """Write all but the model, and return why that does not state the canary's vector."""
    problem = ""
    try:
        vector = _canary_vector(inspection, folder / "1", options)
        config = replace(config, canary_vector=vector)
    except ModelError as error:
        problem = str(error)
    tokenizer = inspection.tokenizer
    write_warmup_files(
        folder / "warmup",
        config.samples,
        vocabulary=inspection.embedding_rows or inspection.config.get("vocab_size"),
        end_token_id=tokenizer.end_token_id if tokenizer else None,
    )
    (folder / "config.pbtxt").write_text(render_config(config), encoding="utf-8")
    return problem


def _canary_vector(inspection: Inspection, version: Path, options: RepositoryOptions) -> str:
    if not options.with_digest:
        raise ModelError("The weights are not read without their digest.")
    return canary_of(inspection, version, max_length=options.max_length)


def _check_options(options: RepositoryOptions) -> None:
    if not _MODEL_NAME.fullmatch(options.model_name):
        msg = (
            "`--model-name` must consist of letters, digits, `_`, `-` and `.`, not "
            f"{options.model_name!r}."
        )
        raise ModelError(msg)
    _parse_version(options.triton_version)


def _parse_version(version: str) -> tuple[int, int]:
    match = _VERSION.fullmatch(version)
    if not match:
        msg = f"`--triton-version` must be the release of an image, such as 26.07, not {version!r}."
        raise ModelError(msg)
    return int(match[1]), int(match[2])


def _plan(inspection: Inspection, options: RepositoryOptions) -> MemoryPlan:
    if options.gpu == "cpu":
        return plan_cpu()
    if inspection.hidden_size is None:  # of a reranker whose token table was not found
        raise ModelError(
            "The size of the states is unknown. Put the model's config.json next to it."
        )
    reranker = inspection.reranker
    shape = model_shape(
        inspection.config,
        hidden_size=inspection.hidden_size,
        float_bytes=_FLOAT_BYTES.get(inspection.precision.compute, 4),
        fused_attention=inspection.grouped_attention,
        model_size=options.model_size,
        logits=reranker.width if reranker and not reranker.is_pooled else 0,
    )
    memory_mib = CARDS[options.gpu]
    if options.gpu_memory_gib:
        memory_mib = int(options.gpu_memory_gib * 1024)
    return plan_gpu(
        shape,
        weight_bytes=inspection.precision.weight_bytes,
        memory_mib=memory_mib,
        max_length=options.max_length,
        instances=options.instances,
    )


def _plan_openvino(inspection: Inspection, options: RepositoryOptions) -> OpenVinoPlan | None:
    if options.openvino is None:
        return None
    model = inspection.model
    return plan_openvino(
        options.openvino,
        is_quantized=is_quantized(model, types=NARROW) or "MatMulNBits" in model.operators,
        threads=options.threads,
        instances=options.instances,
    )


def _config(
    inspection: Inspection,
    options: RepositoryOptions,
    plan: MemoryPlan,
    openvino: OpenVinoPlan | None,
    digest: str | None,
) -> TritonConfig:
    spec, output = inspection.spec, inspection.output
    assert spec is not None  # a servable model has both
    assert output is not None
    float16 = inspection.precision.compute == "float16" or str(spec.output.dtype) == "float16"
    old = _parse_version(options.triton_version) < _SAFE_LAYER_NORM
    is_single = spec.max_batch_size == 1
    return TritonConfig(
        name=options.model_name,
        source=_source(inspection),
        inputs=inspection.model.inputs,
        output=output,
        hidden_size=spec.hidden_size,
        unlisted_outputs=len(inspection.model.outputs) - 1,
        plan=plan,
        instances=options.instances,
        gpu=options.gpu,
        strict_layer_norm=float16 and old and options.gpu != "cpu",
        samples=plan_samples(
            max_length=options.max_length,
            max_batch_size=1 if options.gpu == "cpu" or is_single else plan.max_batch_size,
            batch_tokens=plan.batch_tokens,
        ),
        weights_digest=digest,
        canary_vector=None,
        queue_policy=options.queue_policy,
        is_batched=not is_single and not openvino,
        openvino=openvino,
    )


def _source(inspection: Inspection) -> str:
    precision = inspection.precision
    kind = precision.quantization or precision.compute
    pooled = "pooled in the graph" if inspection.is_pooled else "pooled by the gateway"
    return f"{precision.parameters / 1e6:,.0f} million values in {kind}, {pooled}"


def _tokenizer_folder(repository: Path, options: RepositoryOptions) -> Path:
    """Return a folder next to the repository: inside, Triton would take it for a model.

    Raises:
        ModelError: The repository is a volume, or nothing may be written next to it.
    """
    if options.tokenizer_dir:
        return options.tokenizer_dir
    folder = repository.absolute().parent / f"{options.model_name}-tokenizer"
    if folder.exists() or not repository.exists() or is_place_next_to(repository):
        return folder
    msg = (
        f"The tokenizer's folder cannot be next to {repository}: that is a volume, or the folder "
        f"above it may not be written to. Write to a folder below it, such as "
        f"{repository / 'repository'}, or pass `--tokenizer-dir`."
    )
    raise ModelError(msg)
