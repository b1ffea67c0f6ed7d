import asyncio
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc
from click.testing import CliRunner
from google.protobuf import text_format
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2

import qwen3_nano
from onnx_exports import (
    HIDDEN_SIZE,
    TINY_SIZE,
    VARIANTS,
    feed,
    masks,
    peak_memory,
    save,
    tiny_model,
    write_export,
    write_external_giant,
    write_tokenizer,
)
from onnx_session import open_session
from qwen3_triton_gateway.backends.base import CANARY_PARAMETER, Probe
from qwen3_triton_gateway.backends.onnx import OnnxBackend
from qwen3_triton_gateway.backends.probe import run_probe
from qwen3_triton_gateway.backends.triton import TritonBackend
from qwen3_triton_gateway.canary import canary_batch, check_stated_canary
from qwen3_triton_gateway.cli import main
from qwen3_triton_gateway.errors import StartupError
from qwen3_triton_gateway.pooling import last_token_pool
from qwen3_triton_gateway.tensors import Float32Vector, TokenBatch
from qwen3_triton_gateway.tokenization import TextTokenizer
from qwen3_triton_tools.errors import ModelError
from qwen3_triton_tools.local_triton import LocalTriton
from qwen3_triton_tools.local_triton.repository import CHECKSUM_SOURCE, MODEL_SOURCE
from qwen3_triton_tools.model import pooling_plan
from qwen3_triton_tools.model.gpu_plan import CARDS, MIB, ModelShape, plan_gpu
from qwen3_triton_tools.model.inspection import inspect_model
from qwen3_triton_tools.model.triton_repository import (
    RepositoryOptions,
    write_triton_repository,
)
from swapped_weights import write_other_weights

GIB = 1024**3
CPU = ["--gpu", "cpu"]
LOCAL = ["--model-name", "m", *CPU, "--backend", "python"]
FORMS = {**VARIANTS, "pooled": {"output": "sentence_embedding"}}
# config.json of the family: (hidden, heads, intermediate), float16, weights in bytes.
SHAPE_06B = ModelShape(1024, 16, 3072, 2, fused_attention=False)
SHAPE_4B = ModelShape(2560, 32, 9728, 2, fused_attention=False)
SHAPE_8B = ModelShape(4096, 32, 12288, 2, fused_attention=False)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["model", "repository", *arguments])
    return result.exit_code, result.output


def write(source: Path, repository: Path, **options: Any) -> Path:
    chosen = RepositoryOptions(**{"model_name": "model", "gpu": "3090"} | options)
    return write_triton_repository(source, repository, chosen).folder


def parse(folder: Path) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


@pytest.fixture(name="exports", scope="module")
def _exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    for name, options in FORMS.items():
        write_export(folder / name, **options)
    return folder


@pytest.fixture(name="triton", scope="module")
def _triton(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    """The written repositories, with the one backend that the local Triton has."""
    repository = tmp_path_factory.mktemp("served") / "repository"
    for name in FORMS:
        source = exports / name / "model.onnx"
        folder = write(source, repository, model_name=name, gpu="cpu", max_length=64)
        config = (folder / "config.pbtxt").read_text()
        config = config.replace('backend: "onnxruntime"', 'backend: "python"')
        (folder / "config.pbtxt").write_text(config)
        shutil.copyfile(MODEL_SOURCE, folder / "1" / "model.py")
        shutil.copyfile(CHECKSUM_SOURCE, folder / "1" / CHECKSUM_SOURCE.name)
    with LocalTriton(model_repository=repository) as server:
        yield server


@pytest.mark.parametrize("padding", masks())
@pytest.mark.parametrize("form", FORMS)
def test_a_real_triton_loads_warms_up_and_answers_as_onnxruntime(
    triton: LocalTriton, exports: Path, form: str, padding: str
) -> None:
    """Names, types, shapes and warm-up are the ones written; only the backend is another."""
    session = open_session(exports / form / "model.onnx")
    arrays = feed(session, masks()[padding])
    [expected] = session.run(None, arrays)
    if form != "pooled":
        rows = last_token_pool(expected, masks()[padding])
        expected = rows.astype(expected.dtype)
    inputs = []
    for name, array in arrays.items():
        kind = "INT64" if array.dtype == np.int64 else "FP32"
        inputs.append(tritonclient.grpc.InferInput(name, list(array.shape), kind))
        inputs[-1].set_data_from_numpy(array)
    address = triton.grpc_url.partition("://")[2]
    with tritonclient.grpc.InferenceServerClient(address) as client:
        answer = client.infer(form, inputs).as_numpy("sentence_embedding")
    assert answer.dtype == expected.dtype
    tolerance = 1e-5 if answer.dtype == np.float32 else 1e-2
    np.testing.assert_allclose(answer, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("form", FORMS)
async def test_the_gateway_learns_the_model_and_what_the_exports_fingerprint_is_of(
    triton: LocalTriton, exports: Path, form: str
) -> None:
    through_triton = TritonBackend(triton.grpc_url, form)
    in_process = OnnxBackend(exports / form)
    try:
        spec, of_export = await through_triton.connect(), await in_process.connect()
    finally:
        await through_triton.close()
        await in_process.close()
    assert spec.weights_digest == of_export.weights_digest
    assert spec.output.dtype == of_export.output.dtype
    assert spec.hidden_size == HIDDEN_SIZE
    assert spec.max_batch_size == 32
    assert spec.pooling == "in_graph"
    assert len(spec.past_inputs) == (2 if "past" in form else 0)


# Each form and each GPU in `make test`; every pair of them in the campaign.
PAIRS = [
    pytest.param(form, gpu, marks=() if (i + j) % 3 == 0 else pytest.mark.campaign)
    for i, form in enumerate(FORMS)
    for j, gpu in enumerate([*CARDS, "cpu"])
]


@pytest.mark.parametrize(("form", "gpu"), PAIRS)
def test_every_configuration_is_one_that_triton_understands(
    exports: Path, tmp_path: Path, form: str, gpu: str
) -> None:
    source = exports / form / "model.onnx"
    folder = write(source, tmp_path / "r", gpu=gpu, instances=2)
    config = parse(folder)
    [output] = config.output
    assert (output.name, list(output.dims)) == ("sentence_embedding", [HIDDEN_SIZE])
    assert (config.name, config.backend) == ("model", "onnxruntime")
    inputs = inspect_model(source).model.inputs
    assert [i.name for i in config.input] == [tensor.name for tensor in inputs]
    assert [list(i.dims) for i in config.input] == [
        list(tensor.shape[1:]) for tensor in inputs if tensor.shape
    ]
    [group] = config.instance_group
    kinds = model_config_pb2.ModelInstanceGroup
    assert group.kind == (kinds.KIND_CPU if gpu == "cpu" else kinds.KIND_GPU)
    assert group.count == 2
    assert list(config.version_policy.specific.versions) == [1]
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching == model_config_pb2.ModelDynamicBatching()
    assert ("gpu_mem_limit" in config.parameters) == (gpu != "cpu")
    if gpu != "cpu":
        limit = int(config.parameters["gpu_mem_limit"].string_value)
        assert limit * 2 < CARDS[gpu] * MIB
        assert config.parameters["arena_extend_strategy"].string_value == "1"


def test_every_setting_has_its_reason_beside_it(exports: Path, tmp_path: Path) -> None:
    folder = write(exports / "float16" / "model.onnx", tmp_path / "r", triton_version="26.01")
    lines = (folder / "config.pbtxt").read_text().splitlines()
    settings = (
        "max_batch_size",
        "version_policy",
        "output",
        "instance_group",
        "dynamic_batching",
        "optimization",
        "model_warmup",
    )
    for setting in settings:
        index = next(i for i, line in enumerate(lines) if line.startswith(setting))
        assert lines[index - 1].startswith("# "), setting
    for parameter in ("gpu_mem_limit", "arena_extend_strategy", "weights_digest"):
        index = next(i for i, line in enumerate(lines) if f'"{parameter}"' in line)
        assert lines[index - 1].startswith("# "), parameter


async def embed_canary(model_dir: Path) -> tuple[TokenBatch, Float32Vector]:
    batch = canary_batch(TextTokenizer(qwen3_nano.model_dir(), max_length=1024))
    backend = OnnxBackend(model_dir)
    await backend.connect()
    try:
        return batch, await run_probe(backend, Probe(batch))
    finally:
        await backend.close()


def test_the_configuration_states_the_canary_of_its_weights(tmp_path: Path) -> None:
    folder = write(qwen3_nano.model_dir() / "model.onnx", tmp_path / "r", gpu="cpu")
    stated = parse(folder).parameters[CANARY_PARAMETER].string_value
    check_stated_canary(stated, *asyncio.run(embed_canary(qwen3_nano.model_dir())), task="embed")
    (tmp_path / "other").mkdir()
    write_other_weights(tmp_path / "other" / "model.onnx")
    with pytest.raises(StartupError, match="the weights were replaced"):
        check_stated_canary(stated, *asyncio.run(embed_canary(tmp_path / "other")), task="embed")


def test_the_local_tritons_configuration_states_it_too(tmp_path: Path) -> None:
    arguments = ["-o", str(tmp_path / "r"), *LOCAL]
    assert run(str(qwen3_nano.model_dir()), *arguments)[0] == 0
    stated = parse(tmp_path / "r" / "m").parameters[CANARY_PARAMETER].string_value
    check_stated_canary(stated, *asyncio.run(embed_canary(qwen3_nano.model_dir())), task="embed")


@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_a_canary_that_is_not_computed_is_reported_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr("qwen3_triton_tools.model.inspection.MAX_WEIGHT_BYTES", 1024)
    arguments = ["-o", str(tmp_path / "r"), *LOCAL[:-1], backend]
    code, output = run(str(qwen3_nano.model_dir()), *arguments)
    assert code == 0
    assert "does not state the canary's answer: The weights have" in output
    assert "only up to 0 GiB are run here" in output
    assert CANARY_PARAMETER not in parse(tmp_path / "r" / "m").parameters


@pytest.mark.parametrize(
    ("form", "version", "gpu", "strict"),
    [
        ("float16", "26.01", "3090", True),
        ("float16", "26.06", "3090", True),
        ("float16", "26.07", "3090", False),
        ("float16", "26.01", "cpu", False),
        ("plain", "26.01", "3090", False),
    ],
)
def test_strict_layer_norms_are_for_float16_before_onnxruntime_1_27(
    exports: Path, tmp_path: Path, form: str, *, version: str, gpu: str, strict: bool
) -> None:
    source = exports / form / "model.onnx"
    config = parse(write(source, tmp_path / "r", triton_version=version, gpu=gpu))
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    found = [dict(accelerator.parameters) for accelerator in accelerators]
    # Memory settings would be overwritten here: they are among the parameters.
    assert found == ([{"enable_skip_layer_norm_strict_mode": "1"}] if strict else [])


def test_a_queue_policy_is_written_when_asked_for_with_the_trap_beside_it(
    exports: Path, tmp_path: Path
) -> None:
    folder = write(exports / "plain" / "model.onnx", tmp_path / "r", queue_policy=True)
    batching = parse(folder).dynamic_batching
    assert batching.priority_levels == batching.default_priority_level == 2
    policy = batching.default_queue_policy
    # An override counts only below a default that is not 0.
    assert policy.allow_timeout_override
    assert policy.default_timeout_microseconds > 0
    assert policy.max_queue_size > 0
    assert not batching.preferred_batch_size
    assert "misses the wake-up" in (folder / "config.pbtxt").read_text()


def test_warm_up_has_a_sample_for_each_length_of_ids_that_the_model_has(
    exports: Path, tmp_path: Path
) -> None:
    folder = write(exports / "past" / "model.onnx", tmp_path / "r", max_length=100)
    samples = parse(folder).model_warmup
    assert [sample.name for sample in samples] == [f"{n} tokens" for n in (16, 32, 64, 100)]
    assert all(sample.batch_size * 100 <= 8192 for sample in samples[-1:])
    tokenizer = TextTokenizer(exports / "past", max_length=8)
    named: set[str] = set()
    for sample in samples:
        for name, value in sample.inputs.items():
            assert not value.random_data
            if name.startswith("past"):
                assert value.zero_data
                assert list(value.dims) == [4, 0, 64]
                continue
            named.add(value.input_data_file)
            row = np.fromfile(folder / "warmup" / value.input_data_file, dtype="<i8")
            assert row.shape == tuple(value.dims)
            if name == "input_ids":
                assert row.min() >= 0
                assert row.max() < 24_000
                assert row[-1] == tokenizer.end_token_id
    assert {file.name for file in (folder / "warmup").iterdir()} >= named


@pytest.mark.parametrize(
    ("shape", "weights", "card", "rows"),
    [
        (SHAPE_06B, 1.2e9, "3090", 64),
        (SHAPE_4B, 8.0e9, "3090", 32),
        (SHAPE_4B, 8.0e9, "a100", 64),
        (SHAPE_8B, 15.1e9, "3090", 16),
        (SHAPE_8B, 15.1e9, "h100", 64),
    ],
)
def test_rows_follow_from_card_and_model(
    shape: ModelShape, weights: float, card: str, rows: int
) -> None:
    plan = plan_gpu(
        shape, weight_bytes=int(weights), memory_mib=CARDS[card], max_length=1024, instances=1
    )
    assert plan.max_batch_size == rows
    needed = weights + rows * 1024 * shape.bytes_per_token(1024)
    assert needed < plan.arena_bytes < CARDS[card] * MIB


def test_what_does_not_fit_is_refused_with_the_arithmetic() -> None:
    for weights, instances, length in ((30e9, 1, 1024), (8e9, 3, 1024), (8e9, 1, 32_768)):
        with pytest.raises(ModelError, match="Use fewer instances"):
            plan_gpu(
                SHAPE_4B,
                weight_bytes=int(weights),
                memory_mib=CARDS["3090"],
                max_length=length,
                instances=instances,
            )


def test_fused_attention_costs_no_scores() -> None:
    fused = ModelShape(2560, 32, 9728, 2, fused_attention=True)
    assert fused.bytes_per_token(8192) == fused.bytes_per_token(1) < SHAPE_4B.bytes_per_token(1024)


def test_files_are_real_and_shared_with_the_source_unless_copied(tmp_path: Path) -> None:
    source = write_export(tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in source.parent.iterdir():
        (snapshot / file.name).symlink_to(file)
    folder = write(snapshot / "model.onnx", tmp_path / "r" / "repository")
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert not any(file.is_symlink() for file in files)
    data = source.parent / "model.onnx_data"
    assert (folder / "1" / "model.onnx_data").samefile(data)
    tokenizer = tmp_path / "r" / "model-tokenizer"
    assert TextTokenizer(tokenizer, max_length=8).appends_end_token
    # Triton takes every folder of a repository for a model, and every number in one for a version.
    assert [entry.name for entry in folder.parent.iterdir()] == ["model"]
    assert {entry.name for entry in folder.iterdir()} == {"1", "config.pbtxt", "warmup"}
    copied = write(source, tmp_path / "c" / "repository", transfer="copy")
    assert not (copied / "1" / "model.onnx_data").samefile(data)
    open_session(folder / "1" / "model.onnx")


def test_another_name_of_the_onnx_file_becomes_tritons(tmp_path: Path) -> None:
    source = write_export(tmp_path / "m").rename(tmp_path / "m" / "model_fp16.onnx")
    folder = write(source, tmp_path / "r" / "repository")
    assert {file.name for file in (folder / "1").iterdir()} == {"model.onnx", "model.onnx_data"}


def test_outputs_that_nobody_asks_for_are_left_out(tmp_path: Path) -> None:
    model = tiny_model()
    extra = model.graph.output.add()
    extra.CopyFrom(model.graph.output[0])
    extra.name = "present.0.key"
    node = model.graph.node.add()
    node.CopyFrom(model.graph.node[0])
    node.output[0] = "present.0.key"
    save(model, tmp_path / "model.onnx")
    for pool, listed in (
        (False, ("last_hidden_state", [-1, TINY_SIZE])),
        (True, ("sentence_embedding", [TINY_SIZE])),
    ):
        source = tmp_path / "model.onnx"
        config = parse(write(source, tmp_path / "r", gpu="cpu", pool=pool, force=True))
        assert [(output.name, list(output.dims)) for output in config.output] == [listed]


@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
@pytest.mark.parametrize(
    ("form", "flags", "reason"),
    [
        ("plain", ["--no-pool"], "`--no-pool` was passed"),
        ("plain", ["--pooling", "mean"], "the pooling is 'mean'"),
        ("pooled", [], "is pooled in the graph already"),
    ],
)
def test_what_is_not_pooled_is_written_as_it_is_with_the_reason(
    exports: Path, tmp_path: Path, *, backend: str, form: str, flags: list[str], reason: str
) -> None:
    arguments = [str(exports / form), "-o", str(tmp_path / "r"), *LOCAL[:-1], backend, *flags]
    code, output = run(*arguments)
    assert code == 0
    assert "served as it is: " in output
    assert reason in output
    config = parse(tmp_path / "r" / "m")
    expected = "sentence_embedding" if form == "pooled" else "last_hidden_state"
    assert config.output[0].name == expected
    if backend == "onnxruntime":
        source = exports / form / "model.onnx"
        assert (tmp_path / "r" / "m" / "1" / "model.onnx").samefile(source)


def test_an_export_that_cannot_be_pooled_is_written_as_it_is(tmp_path: Path) -> None:
    save(tiny_model(opset=11), tmp_path / "model.onnx")
    code, output = run(str(tmp_path), "-o", str(tmp_path / "r"), "--model-name", "m", *CPU)
    assert code == 0
    assert "opset 11, and pooling needs 12" in output
    assert (tmp_path / "r" / "m" / "1" / "model.onnx").samefile(tmp_path / "model.onnx")


def test_a_bfloat16_export_is_served_as_float32_vectors(tmp_path: Path) -> None:
    save(tiny_model(element_type=TensorProto.BFLOAT16), tmp_path / "model.onnx")
    config = parse(write(tmp_path / "model.onnx", tmp_path / "r", gpu="cpu"))
    assert [output.data_type for output in config.output] == [model_config_pb2.TYPE_FP32]
    with pytest.raises(ModelError, match="bfloat16"):
        write(tmp_path / "model.onnx", tmp_path / "other", gpu="cpu", pool=False)


def test_a_pooled_graph_with_other_vectors_is_not_written(
    exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_token(states: str, output: str, **_: object) -> Iterator[onnx.NodeProto]:
        value = helper.make_tensor("", TensorProto.INT64, [4, 1], [0] * 4)
        yield helper.make_node("Constant", [], ["index"], value=value)
        yield helper.make_node("GatherND", [states, "index"], [output], batch_dims=1)

    monkeypatch.setattr(pooling_plan, "last_token_nodes", first_token)
    with pytest.raises(ModelError, match="`--no-pool` writes the export as it is"):
        write(exports / "plain" / "model.onnx", tmp_path / "r" / "repository")
    assert list(tmp_path.iterdir()) == []


def test_without_a_digest_the_other_fingerprint_is_announced(exports: Path, tmp_path: Path) -> None:
    words = "tables that were filled through the unpooled export need `--no-pool`"
    for name, flags, is_announced in (
        ("a", [], False),
        ("b", ["--no-digest"], True),
        ("c", ["--no-digest", "--no-pool"], False),
    ):
        arguments = ["-o", str(tmp_path / "r"), "--model-name", name, *CPU, *flags]
        code, output = run(str(exports / "plain"), *arguments)
        assert code == 0
        assert (words in output) is is_announced


def test_the_model_size_is_asked_for_only_where_nothing_tells_it(tmp_path: Path) -> None:
    save(tiny_model(), tmp_path / "model.onnx")
    with pytest.raises(ModelError, match=r"--model-size.*0\.6b, 4b, 8b"):
        write(tmp_path / "model.onnx", tmp_path / "r")
    assert write(tmp_path / "model.onnx", tmp_path / "r", model_size="4b").is_dir()


def test_eight_gigabytes_are_linked_and_not_loaded(tmp_path: Path) -> None:
    source = write_external_giant(tmp_path / "m", 8 * GIB)
    write_tokenizer(
        source.parent,
        {
            "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
            "added_tokens": [{"id": 1, "content": "<|endoftext|>"}],
        },
    )
    arguments = ["--model-name", "m", "--gpu", "a100", "--model-size", "4b", "--no-digest"]
    out = str(tmp_path / "r")
    status, peak = peak_memory("repository", str(source), "-o", out, *arguments)
    assert status == 0
    assert peak < 300 * 1024 * 1024
    assert "weights_digest" not in parse(tmp_path / "r" / "m").parameters


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--gpu", "3090"], 2, "Missing option '--model-name'"),
        (["--model-name", "m"], 2, "Missing option '--gpu'"),
        (["--model-name", "m", "--gpu", "4090"], 2, "is not one of"),
        (["--model-name", "../m", "--gpu", "cpu"], 1, "letters, digits"),
        (["--model-name", "m", "--gpu", "cpu", "--triton-version", "2.71"], 1, "such as 26.07"),
        (["--model-name", "m", "--gpu", "l4", "--backend", "python"], 2, "--gpu cpu"),
        (["--model-name", "m", "--gpu", "l4", "--instances", "0"], 2, "x>=1"),
    ],
)
def test_bad_usage_says_what_is_wrong(
    exports: Path, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    got, output = run(str(exports / "plain"), "-o", str(tmp_path / "r"), *arguments)
    assert got == code
    assert words in output
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_the_command_says_how_to_go_on_and_replaces_only_when_forced(
    exports: Path, tmp_path: Path
) -> None:
    place = tmp_path / "a place"
    arguments = [str(exports / "plain"), "-o", str(place / "r"), "--model-name", "m"]
    code, output = run(*arguments, "--gpu", "l4")
    assert code == 0
    assert f"--model-repository '{place / 'r'}' " in output
    assert f"--tokenizer-path '{place / 'm-tokenizer'}' " in output
    code, output = run(*arguments, "--gpu", "l4")
    assert code == 1
    assert "--force" in output
    code, output = run(*arguments, "--gpu", "l4", "--force", "--json")
    assert code == 0
    document = json.loads(output)
    assert document["tokenizer"] == str(place / "m-tokenizer")
    assert document["max_batch_size"] == 64


def test_what_the_gateway_could_not_serve_is_not_written(tmp_path: Path) -> None:
    source = write_export(tmp_path / "m")
    (tmp_path / "m" / "model.onnx_data").unlink()
    with pytest.raises(ModelError, match=r"could not serve .* is missing"):
        write(source, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_the_local_triton_gets_its_own_kind(exports: Path, tmp_path: Path) -> None:
    arguments = ["--model-name", "m", "--gpu", "cpu", "--backend", "python"]
    code, output = run(str(exports / "plain"), "-o", str(tmp_path), *arguments)
    assert code == 0
    assert "qwen3-triton triton --model-repository" in output
    assert parse(tmp_path / "m").backend == "python"
    assert (tmp_path / "m" / "1" / "model.py").is_file()


@pytest.mark.slow
def test_a_source_inside_of_what_would_be_replaced_is_kept(tmp_path: Path) -> None:
    folder = write(write_export(tmp_path / "m"), tmp_path / "r" / "repository")
    source = folder / "1" / "model.onnx"
    for name in ("tokenizer.json", "config.json"):
        shutil.copyfile(tmp_path / "m" / name, folder / "1" / name)
    with pytest.raises(ModelError, match="would be replaced"):
        write(source, tmp_path / "r" / "repository", force=True)
    assert source.is_file()
    # Nor is a tokenizer removed to make room for itself.
    written = tmp_path / "r" / "other"
    write(source, written, tokenizer_dir=folder / "1", transfer="copy")
    assert (folder / "1" / "tokenizer.json").stat().st_size > 1000


def test_a_repository_without_room_for_the_tokenizer_next_to_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_export(tmp_path / "m")
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(os, "access", lambda path, _mode: path != tmp_path)
    with pytest.raises(ModelError, match="volume/repository, or pass `--tokenizer-dir`"):
        write(tmp_path / "m" / "model.onnx", tmp_path / "volume")
    assert list((tmp_path / "volume").iterdir()) == []
    write(tmp_path / "m" / "model.onnx", tmp_path / "volume" / "repository")


@pytest.mark.slow
def test_a_failed_replacement_leaves_the_old_model(
    exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = exports / "plain" / "model.onnx"
    folder = write(source, tmp_path / "repository")
    before = (folder / "config.pbtxt").read_text()
    full = tmp_path / "full"
    full.mkdir()
    linked = full / "model.onnx"
    shutil.copyfile(source, linked)
    (full / "model.onnx_data").symlink_to(source.parent / "model.onnx_data")
    shutil.copyfile(source.parent / "tokenizer.json", full / "tokenizer.json")
    monkeypatch.setattr("os.link", _refuse)
    with pytest.raises(ModelError, match="Omit `--link`"):
        write(linked, tmp_path / "repository", force=True, transfer="link", model_size="0.6b")
    assert (folder / "config.pbtxt").read_text() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "full",
        "model-tokenizer",
        "repository",
    ]
    write(linked, tmp_path / "repository", force=True, model_size="0.6b")
    assert (folder / "1" / "model.onnx_data").stat().st_nlink == 1


def _refuse(*_arguments: object) -> None:
    """A file system without hard links."""
    raise OSError


@pytest.mark.slow
def test_files_that_tritons_account_cannot_read_are_named(tmp_path: Path) -> None:
    """A hard link has the mode of the original; no mode at all, since we may have the same uid."""
    write_export(tmp_path / "export")
    weights = tmp_path / "export" / "model.onnx_data"
    for mode, closed in ((0o000, True), (0o644, False)):
        weights.chmod(mode)
        arguments = ["--model-name", "m", "--gpu", "a10", "--force", "--no-digest"]
        result = CliRunner().invoke(
            main,
            ["model", "repository", str(weights.parent), "-o", str(tmp_path / "r"), *arguments],
        )
        assert result.exit_code == 0, result.output
        assert ("cannot read model.onnx_data: chmod -R a+rX" in result.output) is closed
