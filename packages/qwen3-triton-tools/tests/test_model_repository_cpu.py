"""`model repository --cpu`: for the OpenVINO backend of Triton's image.

That backend does not run here. What it does with a configuration is repeated from its source
(https://github.com/triton-inference-server/openvino_backend, `src/openvino.cc` at db19304), and the
local Triton serves the same configuration through its Python backend.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from click.testing import CliRunner
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from embed_call import cosines
from onnx_exports import HIDDEN_SIZE, feed, float_weights, masks, nano_weights, write_export
from onnx_session import open_session
from qwen3_triton_gateway.backends.engines import Machine, openvino_options
from qwen3_triton_gateway.backends.triton import TritonBackend
from qwen3_triton_gateway.cli import main
from qwen3_triton_gateway.openvino_model import core_count, import_openvino
from qwen3_triton_tools.errors import ModelError
from qwen3_triton_tools.local_triton import LocalTriton
from qwen3_triton_tools.local_triton.repository import (
    CHECKSUM_SOURCE,
    MODEL_SOURCE,
    OPENVINO_SOURCE,
)
from qwen3_triton_tools.model.openvino_plan import plan_openvino
from tolerances import BFLOAT16_COSINE, FLOAT32_COSINE

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "pooled": {"output": "sentence_embedding"},
    "no_positions": {"position_ids": False},
}
MODERN = Machine("x86_64", frozenset({"avx512_bf16", "avx512_vnni"}), "", has_openvino=False)
OLD = Machine("x86_64", frozenset({"avx2"}), "", has_openvino=False)
HINTS = {"float32": "f32", "bfloat16": "bf16"}
TOLERANCES = {"float32": FLOAT32_COSINE, "bfloat16": BFLOAT16_COSINE}


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["model", "repository", *arguments])
    return result.exit_code, result.output


def parse(folder: Path) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def parameters_of(folder: Path) -> dict[str, str]:
    return {key: value.string_value for key, value in parse(folder).parameters.items()}


@pytest.fixture(name="repository", scope="module")
def _repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository for this machine, and next to it the exports that it was written from."""
    folder = tmp_path_factory.mktemp("cpu")
    weights = float_weights()
    for name, options in FORMS.items():
        export = write_export(folder / "exports" / name, weights=weights, **options)
        arguments = ["-o", str(folder / "repository"), "--model-name", name, "--cpu"]
        if name == "plain":
            arguments.append("--no-pool")
        code, output = run(str(export.parent), *arguments, "--max-length", "64")
        assert code == 0, output
    return folder / "repository"


def test_the_batch_is_part_of_the_dims(repository: Path) -> None:
    """With `max_batch_size`, the backend would fix the batch to it."""
    config = parse(repository / "plain")
    assert (config.backend, config.default_model_filename) == ("openvino", "model.onnx")
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert all(list(tensor.dims) == [-1, -1] for tensor in config.input)
    assert [list(tensor.dims) for tensor in config.output] == [[-1, -1, HIDDEN_SIZE]]
    assert list(parse(repository / "pooled").output[0].dims) == [-1, HIDDEN_SIZE]
    samples = config.model_warmup
    assert [sample.batch_size for sample in samples] == [1] * len(samples)
    assert list(samples[-1].inputs["input_ids"].dims) == [1, 64]


def test_threads_and_streams_are_those_of_the_machine(repository: Path, tmp_path: Path) -> None:
    parameters = parameters_of(repository / "plain")
    assert parameters["INFERENCE_NUM_THREADS"] == str(core_count())
    assert (parameters["NUM_STREAMS"], parameters["PERFORMANCE_HINT"]) == ("1", "LATENCY")
    native = not Machine.this().why_not("bfloat16")
    assert ("HINT_BF16" in parameters) == native
    assert parameters["precision"] == ("bfloat16" if native else "float32")
    source = str(repository.parent / "exports" / "plain")
    arguments = ("-o", str(tmp_path / "r"), "--model-name", "m", "--cpu", "--threads", "6")
    assert run(source, *arguments, "--instances", "3")[0] == 0
    parameters = parameters_of(tmp_path / "r" / "m")
    assert parameters["INFERENCE_NUM_THREADS"] == "6"
    assert (parameters["NUM_STREAMS"], parameters["PERFORMANCE_HINT"]) == ("3", "THROUGHPUT")
    assert parse(tmp_path / "r" / "m").instance_group[0].count == 3


def test_every_parameter_has_its_reason(repository: Path) -> None:
    lines = (repository / "plain" / "config.pbtxt").read_text().splitlines()
    for start in ("default_model_filename", "max_batch_size", "instance_group"):
        index = next(i for i, line in enumerate(lines) if line.startswith(start))
        assert lines[index - 1].startswith("# "), start
    for key in ("INFERENCE_NUM_THREADS", "NUM_STREAMS", "precision", "weights_digest"):
        index = next(i for i, line in enumerate(lines) if f'"{key}"' in line)
        assert lines[index - 1].startswith("# "), key


@pytest.mark.parametrize(
    ("machine", "wanted", "is_quantized", "expected"),
    [
        (MODERN, "auto", False, ("bfloat16", True)),
        (MODERN, "bfloat16", False, ("bfloat16", True)),
        (MODERN, "int8", True, ("int8", True)),
        (OLD, "auto", False, ("float32", False)),
        (OLD, "float32", False, ("float32", False)),
    ],
)
def test_the_precision_is_what_the_backend_computes_in(
    machine: Machine, wanted: Any, is_quantized: bool, expected: tuple[str, bool]
) -> None:
    plan = plan_openvino(wanted, is_quantized=is_quantized, machine=machine)
    assert (plan.precision, plan.is_bfloat16) == expected


@pytest.mark.parametrize(
    ("machine", "wanted", "is_quantized", "words"),
    [
        (MODERN, "float32", False, "computes in bfloat16, and has no parameter against it"),
        (MODERN, "auto", True, "Pass `--precision int8` if"),
        (MODERN, "bfloat16", True, "The weights are quantized"),
        (MODERN, "int8", False, "needs weights in int8"),
    ],
)
def test_what_the_backend_has_no_parameter_for_is_refused(
    machine: Machine, wanted: Any, is_quantized: bool, words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        plan_openvino(wanted, is_quantized=is_quantized, machine=machine)


def test_a_table_of_tokens_in_int8_is_no_reason_to_round(tmp_path: Path) -> None:
    """Only products round their inputs."""
    plain, quantized = float_weights(), nano_weights()
    for name, weights, code in (
        ("table", replace(plain, embedding=quantized.embedding), 0),
        ("matrices", replace(quantized, embedding=plain.embedding), 1),
    ):
        source = write_export(tmp_path / name, weights=weights).parent
        arguments = ("-o", str(tmp_path / "r"), "--model-name", name, "--cpu", "--no-digest")
        assert run(str(source), *arguments)[0] == code, name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cpu", "--gpu", "l4"], "omit --gpu and --backend"),
        (["--cpu", "--backend", "python"], "omit --gpu and --backend"),
        (["--gpu", "cpu", "--precision", "int8"], "pass --cpu"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    repository: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    source = str(repository.parent / "exports" / "plain")
    code, output = run(source, "-o", str(tmp_path / "r"), "--model-name", "m", *arguments)
    assert code == 2
    assert words in output
    assert not (tmp_path / "r").exists()


def fits(stated: int, dimension: Any) -> bool:
    """Compare as the backend's `doesMatch`, for dimensions without bounds."""
    return dimension.get_length() == stated if dimension.is_static else True


@pytest.mark.stack
@pytest.mark.parametrize("form", FORMS)
def test_openvino_takes_model_and_parameters_as_the_backend_passes_them(
    repository: Path, form: str
) -> None:
    folder = repository / form
    config, parameters = parse(folder), parameters_of(folder)
    openvino = import_openvino()
    core = openvino.Core()
    model = core.read_model(folder / "1" / config.default_model_filename)
    assert len(model.inputs) == len(config.input)
    for ports, tensors in ((model.inputs, config.input), (model.outputs, config.output)):
        by_name = {port.get_any_name(): port.partial_shape for port in ports}
        for tensor in tensors:
            shape = by_name[tensor.name]
            assert len(shape) == len(tensor.dims)
            assert all(map(fits, tensor.dims, shape)), (tensor.name, str(shape))
    for key in ("INFERENCE_NUM_THREADS", "NUM_STREAMS", "PERFORMANCE_HINT"):
        core.set_property("CPU", {key: parameters[key]})
    if "HINT_BF16" in parameters:
        core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    compiled = core.compile_model(model, "CPU", {"ALLOW_AUTO_BATCHING": False})
    hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    assert hint == HINTS[parameters["precision"]]
    session = open_session(folder / "1" / "model.onnx")
    arrays = feed(session, masks()["right"])
    [expected] = session.run(None, arrays)
    answer = compiled(arrays)[config.output[0].name]
    ours, theirs = (np.reshape(values, (-1, HIDDEN_SIZE)) for values in (answer, expected))
    assert cosines(ours, theirs).min() >= TOLERANCES[parameters["precision"]]


@pytest.mark.stack
@pytest.mark.skipif(bool(Machine.this().why_not("bfloat16")), reason="float32 is the default")
def test_openvino_takes_bfloat16_by_itself_where_the_processor_has_it(repository: Path) -> None:
    """So float32 is refused there: the backend has no parameter for it."""
    core = import_openvino().Core()
    compiled = core.compile_model(repository / "plain" / "1" / "model.onnx", "CPU", {})
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "bf16"
    assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") > 0


@pytest.fixture(name="triton", scope="module")
def _triton(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    """The written repositories, with the one backend that the local Triton has."""
    served = tmp_path_factory.mktemp("served") / "repository"
    shutil.copytree(repository, served)
    for folder in served.iterdir():
        precision: Any = parameters_of(folder)["precision"]
        options = json.dumps(json.dumps(openvino_options(precision)))
        config = (folder / "config.pbtxt").read_text()
        config = config.replace('backend: "openvino"', 'backend: "python"')
        config = config.replace('default_model_filename: "model.onnx"', "")
        config += f'parameters {{ key: "openvino_options" value {{ string_value: {options} }} }}\n'
        (folder / "config.pbtxt").write_text(config)
        shutil.copyfile(MODEL_SOURCE, folder / "1" / "model.py")
        shutil.copyfile(CHECKSUM_SOURCE, folder / "1" / CHECKSUM_SOURCE.name)
        shutil.copyfile(OPENVINO_SOURCE, folder / "1" / OPENVINO_SOURCE.name)
    with LocalTriton(model_repository=served) as server:
        yield server


@pytest.mark.parametrize("form", FORMS)
def test_a_real_triton_loads_warms_up_and_answers(
    triton: LocalTriton, repository: Path, form: str
) -> None:
    """Names, types, shapes and warm-up are the ones written; only the backend is another."""
    session = open_session(repository / form / "1" / "model.onnx")
    arrays = feed(session, masks()["right"])
    [expected] = session.run(None, arrays)
    inputs = []
    for name, array in arrays.items():
        inputs.append(tritonclient.grpc.InferInput(name, list(array.shape), "INT64"))
        inputs[-1].set_data_from_numpy(array)
    with tritonclient.grpc.InferenceServerClient(triton.grpc_url.partition("://")[2]) as client:
        answer = client.infer(form, inputs).as_numpy(session.get_outputs()[0].name)
    assert answer is not None
    ours, theirs = (np.reshape(values, (-1, HIDDEN_SIZE)) for values in (answer, expected))
    precision = parameters_of(repository / form)["precision"]
    assert cosines(ours, theirs).min() >= TOLERANCES[precision]


async def test_the_gateway_learns_the_precision(triton: LocalTriton, repository: Path) -> None:
    backend = TritonBackend(triton.grpc_url, "plain")
    spec = await backend.connect()
    await backend.close()
    assert spec.precision == parameters_of(repository / "plain")["precision"]
    assert spec.max_batch_size > 1
