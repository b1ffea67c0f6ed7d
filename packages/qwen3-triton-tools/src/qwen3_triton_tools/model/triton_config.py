"""Write a `config.pbtxt` for Triton's ONNX Runtime or OpenVINO backend, with reasons.

Warm-up samples are files of their own next to it: Triton runs them before it calls a model ready.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwen3_triton_gateway.backends.base import CANARY_PARAMETER, PRECISION_PARAMETER

from ..onnx_model import TensorInfo
from .gpu_plan import MemoryPlan
from .openvino_plan import OpenVinoPlan

_COMMENT_WIDTH = 110
# The gateway's default deadline, in Triton's microseconds.
_QUEUE_TIMEOUT_MICROSECONDS = 120_000_000
_MAX_QUEUE_SIZE = 256
# Warm-up lengths double from here: the first run of a size pays for kernel choice and memory.
_SHORTEST_WARMUP = 16
_WARMUP_ID_STEP = 37
_DEFAULT_VOCABULARY = 1000
# Ids of plain text are below this in every tokenizer of the family; special tokens are above.
_PLAIN_TOKENS = 20_000


@dataclass(frozen=True, slots=True)
class WarmupSample:
    """One request: `rows` texts of `length` tokens each."""

    length: int
    rows: int


@dataclass(frozen=True, slots=True)
class TritonConfig:
    """The values in the file."""

    name: str
    source: str
    inputs: tuple[TensorInfo, ...]
    output: TensorInfo
    hidden_size: int
    unlisted_outputs: int
    plan: MemoryPlan
    instances: int
    gpu: str
    strict_layer_norm: bool
    samples: list[WarmupSample]
    weights_digest: str | None
    canary_vector: str | None
    queue_policy: bool
    is_batched: bool = True
    openvino: OpenVinoPlan | None = None

    def dims(self, shape: tuple[int, ...] | None) -> tuple[int, ...]:
        """Return a shape as Triton takes it: without the batch, if it batches the model."""
        return (shape or ())[1 if self.is_batched else 0 :]


def render_config(config: TritonConfig) -> str:
    """Write the configuration in protocol buffers' text format."""
    sections = [
        _head(config),
        _tensors(config),
        _instances(config),
        _batching(config),
        _optimization(config),
        _parameters(config),
        _warmup(config),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def plan_samples(*, max_length: int, max_batch_size: int, batch_tokens: int) -> list[WarmupSample]:
    """Double the length up to `max_length`, each time with the largest batch the gateway sends."""
    lengths: list[int] = []
    length = _SHORTEST_WARMUP
    while length < max_length:
        lengths.append(length)
        length *= 2
    return [
        WarmupSample(length, max(1, min(max_batch_size, batch_tokens // length)))
        for length in [*lengths, max_length]
    ]


def write_warmup_files(
    folder: Path, samples: list[WarmupSample], *, vocabulary: int | None, end_token_id: int | None
) -> None:
    """Write one row of each token input for each length; Triton repeats it for the other rows.

    Ids are spread over plain tokens and end with the end token, the mask is all ones, positions
    count up: int64, little-endian. Random bytes would be ids that are not in the vocabulary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    limit = min(vocabulary or _DEFAULT_VOCABULARY, _PLAIN_TOKENS)
    for sample in samples:
        positions = np.arange(sample.length, dtype="<i8")
        ids = positions * _WARMUP_ID_STEP % limit
        if end_token_id is not None:
            ids[-1] = end_token_id
        arrays = {
            "input_ids": ids,
            "attention_mask": np.ones(sample.length, dtype="<i8"),
            "position_ids": positions,
            "token_type_ids": np.zeros_like(positions),
        }
        for name, array in arrays.items():
            (folder / _warmup_file(name, sample)).write_bytes(array.tobytes())


def _head(config: TritonConfig) -> str:
    machine = "a CPU" if config.gpu == "cpu" else f"one {config.gpu.upper()}"
    return "\n".join(
        [
            *_comment(
                f"{config.source}; for {machine}. Written by "
                "`qwen3-triton model repository` from the file's own inputs and outputs."
            ),
            f"name: {_quote(config.name)}",
            *_backend(config),
            *_comment(_batch_reason(config)),
            f"max_batch_size: {config.plan.max_batch_size if config.is_batched else 0}",
            *_comment(
                "One version, by number: a second version folder changes nothing by accident."
            ),
            "version_policy { specific { versions: [ 1 ] } }",
        ]
    )


def _backend(config: TritonConfig) -> list[str]:
    if not config.openvino:
        return ['backend: "onnxruntime"']
    return [
        'backend: "openvino"',
        *_comment("The backend's default is OpenVINO's own format, model.xml."),
        'default_model_filename: "model.onnx"',
    ]


def _batch_reason(config: TritonConfig) -> str:
    if config.openvino:
        return (
            "With a number here, the backend fixes the model's batch to it, and refuses smaller "
            "batches or pads them with rows that cost as much as texts. So the batch is part of "
            "all dims, and the gateway forms the batches."
        )
    if config.is_batched:
        return f"Maximum rows per batch. {config.plan.reason}"
    return "The graph takes one text at a time, so the batch is part of all dims."


def _tensors(config: TritonConfig) -> str:
    inputs = [_tensor(tensor, config.dims(tensor.shape)) for tensor in config.inputs]
    dims = (*config.dims(config.output.shape)[:-1], config.hidden_size)
    lines = ["input [", ",\n".join(inputs), "]"]
    reason = (
        "Name, type and size are those of the file; Triton refuses to load the model otherwise."
    )
    if config.unlisted_outputs:
        reason += (
            f" The file's {config.unlisted_outputs} other outputs are omitted: Triton computes "
            "and copies every output listed here for every request."
        )
    return "\n".join([*lines, *_comment(reason), "output [", _tensor(config.output, dims), "]"])


def _tensor(tensor: TensorInfo, dims: tuple[int, ...]) -> str:
    sizes = ", ".join(map(str, dims))
    return f"  {{ name: {_quote(tensor.name)} data_type: {tensor.dtype.triton} dims: [ {sizes} ] }}"


def _instances(config: TritonConfig) -> str:
    kind = "KIND_CPU" if config.gpu == "cpu" else "KIND_GPU"
    reason = (
        "Instances share one copy of the weights; each needs a stream."
        if config.openvino
        else "Each instance holds its own copy of the weights."
    )
    return "\n".join(
        [*_comment(reason), f"instance_group [ {{ kind: {kind} count: {config.instances} }} ]"]
    )


def _batching(config: TritonConfig) -> str:
    if not config.is_batched:
        return ""
    if config.queue_policy:
        comment = (
            "A queue policy, as requested. With it, Triton (2.51, measured) misses the wake-up of "
            "about every tenth batch and leaves it idle for half a second; `dynamic_batching { }` "
            "does not. The gateway orders and bounds its queue itself. A request's own timeout "
            "only counts if it is below a default that is not 0."
        )
        policy = (
            "{ timeout_action: REJECT "
            f"default_timeout_microseconds: {_QUEUE_TIMEOUT_MICROSECONDS} "
            f"allow_timeout_override: true max_queue_size: {_MAX_QUEUE_SIZE} }}"
        )
        body = [
            "dynamic_batching {",
            "  # 1 for queries, 2 for documents, as the gateway sends them.",
            "  priority_levels: 2",
            "  default_priority_level: 2",
            f"  default_queue_policy {policy}",
            "}",
        ]
        return "\n".join([*_comment(comment), *body])
    comment = (
        "The gateway forms the batches, orders them and bounds the queue; Triton merges requests "
        "of equal shape and never waits for more. Empty on purpose: with priority levels, or a "
        "queue policy with a timeout or a size, Triton (2.51, measured) misses the wake-up of "
        "about every tenth batch and leaves it idle for half a second. No preferred sizes: sizes "
        "below the queue's length split it."
    )
    return "\n".join([*_comment(comment), "dynamic_batching { }"])


def _optimization(config: TritonConfig) -> str:
    if not config.strict_layer_norm:
        return ""
    comment = (
        "Float16 needs strict layer norms on ONNX Runtime before 1.27 (Triton before 26.07): the "
        "fused one sums squares in float16, overflows and zeroes whole rows "
        "(microsoft/onnxruntime#29034)."
    )
    entry = 'parameters { key: "enable_skip_layer_norm_strict_mode" value: "1" }'
    return "\n".join(
        [
            *_comment(comment),
            "optimization {",
            "  execution_accelerators {",
            f'    gpu_execution_accelerator : [ {{ name: "cuda" {entry} }} ]',
            "  }",
            "}",
        ]
    )


def _parameters(config: TritonConfig) -> str:
    lines = _openvino_parameters(config.openvino) if config.openvino else []
    if config.plan.arena_bytes:
        lines += _comment(
            "Memory settings go here and not in the accelerator's block, where the backend "
            "overwrites them. The arena may take its share of the GPU's memory, so that a batch "
            "that is too large fails alone and leaves room for CUDA itself."
        )
        lines.append(_parameter("gpu_mem_limit", str(config.plan.arena_bytes)))
        lines += _comment("Grow the arena by the requested size, not to the next power of two.")
        lines.append(_parameter("arena_extend_strategy", "1"))
    if config.weights_digest:
        lines += _comment(
            "Digest of the export and its weights, for the gateway's fingerprint; Triton's "
            "metadata does not include it. Pooling that was added here changes no vector, so it is "
            "not part of the digest."
        )
        lines.append(_parameter("weights_digest", config.weights_digest))
    if config.canary_vector:
        lines += _comment(
            "The answer to the gateway's canary: a vector, or a reranker's scores. The gateway "
            "refuses to start if the weights give another: they were replaced, not the digest."
        )
        lines.append(_parameter(CANARY_PARAMETER, config.canary_vector))
    return "\n".join(lines)


def _openvino_parameters(plan: OpenVinoPlan) -> list[str]:
    lines = [
        *_comment("The cores of the machine on which this was written."),
        _parameter("INFERENCE_NUM_THREADS", str(plan.threads)),
        *_comment("Batches that run at the same time. One is done soonest with all threads."),
        _parameter("NUM_STREAMS", str(plan.streams)),
        _parameter("PERFORMANCE_HINT", "LATENCY" if plan.streams == 1 else "THROUGHPUT"),
    ]
    if plan.is_bfloat16:
        lines += _comment("The processor of that machine multiplies in bfloat16.")
        lines.append(_parameter("HINT_BF16", "YES"))
    lines += _comment(
        "What this computes in, for the gateway's fingerprint: "
        f"{plan.reason}. OpenVINO decides by the processor, so write this again for another kind."
    )
    lines.append(_parameter(PRECISION_PARAMETER, plan.precision))
    return lines


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def _warmup(config: TritonConfig) -> str:
    comment = (
        "Run before the model is ready, one sample per length, with the largest batch that the "
        "gateway sends: memory is allocated at startup, and the first callers do not wait for "
        "kernels to be chosen. From files, since random bytes are ids outside of the vocabulary."
    )
    samples = ",\n".join(_sample(config, sample) for sample in config.samples)
    return "\n".join([*_comment(comment), "model_warmup [", samples, "]"])


def _sample(config: TritonConfig, sample: WarmupSample) -> str:
    inputs = "\n".join(f"    {line}" for line in _sample_inputs(config, sample))
    return (
        f'  {{\n    name: "{sample.length} tokens"\n    batch_size: {sample.rows}\n{inputs}\n  }}'
    )


def _sample_inputs(config: TritonConfig, sample: WarmupSample) -> Iterator[str]:
    for tensor in config.inputs:
        sizes = config.dims(tensor.shape)
        if tensor.dtype.name != "int64":  # a past, fed empty: `zero_data` of no bytes
            dims, source = [max(size, 0) for size in sizes], "zero_data: true"
        else:
            dims = [*([] if config.is_batched else [1]), sample.length]
            source = f'input_data_file: "{_warmup_file(tensor.name, sample)}"'
        value = f"data_type: {tensor.dtype.triton} dims: [ {', '.join(map(str, dims))} ] {source}"
        yield f"inputs {{ key: {_quote(tensor.name)} value {{ {value} }} }}"


def _warmup_file(name: str, sample: WarmupSample) -> str:
    """Return the name of the file of one input, below `<model>/warmup/`."""
    return f"{name}-{sample.length}"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        width=_COMMENT_WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _quote(text: str) -> str:
    """Quote for protocol buffers' text format, whose escapes are those of JSON."""
    return json.dumps(text, ensure_ascii=False)
