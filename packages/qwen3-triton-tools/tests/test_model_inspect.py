import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from onnx_exports import (
    HIDDEN_SIZE,
    TINY_SIZE,
    VARIANTS,
    nano_weights,
    peak_memory,
    save,
    tiny_model,
    write_export,
    write_external_giant,
    write_inline_giant,
    write_tokenizer,
)
from qwen3_nano.graph import build_graph
from qwen3_triton_gateway.cli import main
from qwen3_triton_gateway.fingerprint import weights_digest
from qwen3_triton_tools.errors import ModelError
from qwen3_triton_tools.findings import Finding
from qwen3_triton_tools.model.files import find_model
from qwen3_triton_tools.model.inspection import Inspection, inspect_model
from qwen3_triton_tools.onnx_model import DTYPES, MAX_FILE_BYTES, read_model

MEMORY_BYTES = 300 * 1024 * 1024
GIB = 1024**3


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["model", "inspect", *arguments])
    return result.exit_code, result.output


def of_severity(inspection: Inspection, severity: str) -> list[Finding]:
    return [finding for finding in inspection.findings if finding.severity == severity]


def inspect_tiny(tmp_path: Path, model: onnx.ModelProto, **config: Any) -> Inspection:
    """Inspect a tiny model with a tokenizer that it has room for."""
    save(model, tmp_path / "model.onnx")
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    write_tokenizer(
        tmp_path,
        {
            "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
            "added_tokens": [{"id": 1, "content": "<|endoftext|>"}],
        },
    )
    return inspect_model(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("variant", "past", "positions", "dtype"),
    [
        ("plain", 0, "input", "float32"),
        ("float16", 0, "input", "float16"),
        ("past", 2, "input", "float32"),
        ("no_positions", 0, "mask", "float32"),
        ("past_no_positions", 2, "mask", "float32"),
    ],
)
def test_every_form_of_export_is_recognized(
    tmp_path: Path, variant: str, past: int, positions: str, dtype: str
) -> None:
    inspection = inspect_model(write_export(tmp_path, **VARIANTS[variant]))
    assert inspection.is_servable
    assert not of_severity(inspection, "error") + of_severity(inspection, "warning")
    assert len(inspection.model.past_inputs) == past
    assert (inspection.positions, inspection.padding) == (positions, "either side")
    assert not inspection.is_pooled
    assert inspection.hidden_size == HIDDEN_SIZE
    assert str(inspection.spec.output.dtype if inspection.spec else "") == dtype
    assert (inspection.model.opset, inspection.model.proto.ir_version) == (17, 8)
    assert inspection.model.proto.producer_name == "qwen3-nano"
    [file] = inspection.external_files
    assert (file.location, file.is_whole) == ("model.onnx_data", True)
    assert inspection.embedding_rows == 24_000


def test_a_pooled_export_is_recognized_and_needs_no_pooling(tmp_path: Path) -> None:
    inspection = inspect_model(write_export(tmp_path, output="sentence_embedding"))
    assert inspection.is_pooled
    assert inspection.problems == []


def test_weights_and_inputs_are_those_of_the_file(tmp_path: Path) -> None:
    for external in (True, False):
        path = write_export(tmp_path / str(external), external=external, past_key_values=True)
        theirs, ours = onnx.load(path, load_external_data=False), read_model(path)
        stored = [(w.name, w.shape, w.dtype) for w in ours.weights]
        expected = [(t.name, tuple(t.dims), DTYPES[t.data_type]) for t in theirs.graph.initializer]
        assert stored == expected
        for weight, tensor in zip(ours.weights, theirs.graph.initializer, strict=True):
            entries = {entry.key: entry.value for entry in tensor.external_data}
            assert bool(weight.external) == bool(entries)
            if weight.external:
                assert weight.external.location == entries["location"]
                assert weight.external.offset == int(entries["offset"])
                assert weight.external.length == int(entries["length"]) == weight.size_bytes
        shapes = [
            tuple(d.dim_param or str(d.dim_value) for d in v.type.tensor_type.shape.dim)
            for v in theirs.graph.input
        ]
        assert [tensor.dimensions for tensor in ours.inputs] == shapes


def test_dtypes_are_those_of_onnx() -> None:
    for element_type, dtype in DTYPES.items():
        if element_type in (TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.COMPLEX128):
            continue
        name = helper.tensor_dtype_to_np_dtype(element_type).name.replace("_", "")
        assert dtype.name == name.removesuffix("fn") or dtype.name == name
        packed = dtype.bits < 8  # numpy spends a byte on each
        assert packed or dtype.bits == helper.tensor_dtype_to_np_dtype(element_type).itemsize * 8


def test_nodes_and_weights_of_branches_constants_and_functions_are_seen(tmp_path: Path) -> None:
    constant = helper.make_node(
        "Constant", [], ["c"], value=numpy_helper.from_array(np.ones((3, 4), np.float32))
    )
    empty = helper.make_tensor_value_info("c", TensorProto.FLOAT, None)
    branch = helper.make_graph([constant], "branch", [], [empty])
    choice = helper.make_node("If", ["b"], ["y"], then_branch=branch, else_branch=branch)
    function = helper.make_function(
        "custom",
        "F",
        ["x"],
        ["z"],
        [helper.make_node("Erf", ["x"], ["z"])],
        [helper.make_opsetid("", 17)],
    )
    graph = helper.make_graph(
        [choice],
        "g",
        [helper.make_tensor_value_info("b", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, functions=[function])
    onnx.save(model, tmp_path / "model.onnx")
    read = read_model(tmp_path / "model.onnx")
    assert read.operators == {"If": 1, "Constant": 2, "Erf": 1}
    assert [weight.shape for weight in read.weights] == [(3, 4), (3, 4)]


def missing(folder: Path) -> None:
    (folder / "model.onnx_data").unlink()


def short(folder: Path) -> None:
    os.truncate(folder / "model.onnx_data", 5000)


def pointer(folder: Path) -> None:
    (folder / "model.onnx_data").write_text("version https://git-lfs.github.com/spec/v1\noid x")


def wrong_tokenizer(folder: Path) -> None:
    tokens = [{"id": 30_000, "content": "<|endoftext|>"}]
    write_tokenizer(folder, {"added_tokens": tokens})


def no_end_token(folder: Path) -> None:
    write_tokenizer(folder, {"added_tokens": []})


def tokenizer_pointer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (missing, "model.onnx_data is missing"),
        (short, "is truncated: 5,000 bytes of 9,6"),
        (pointer, "is a Git LFS pointer"),
        (wrong_tokenizer, "30,001 tokens, the model's embedding table 24,000 rows"),
        (no_end_token, "has no token '<|endoftext|>'"),
        (tokenizer_pointer, "is not a tokenizer file but a Git LFS pointer"),
    ],
)
def test_a_broken_export_ends_with_1_and_says_what_to_do(
    tmp_path: Path, damage: Any, words: str
) -> None:
    write_export(tmp_path)
    damage(tmp_path)
    inspection = inspect_model(tmp_path / "model.onnx")
    [error] = of_severity(inspection, "error")
    assert words in error.message
    code, output = run(str(tmp_path))
    assert code == 1
    assert "The gateway cannot serve it: 1 error above." in output
    code, output = run(str(tmp_path), "--json")
    assert code == 1
    assert json.loads(output)["servable"] is False


def test_linked_weights_are_a_warning(tmp_path: Path) -> None:
    path = write_export(tmp_path)
    (tmp_path / "model.onnx_data").rename(tmp_path / "blob")
    (tmp_path / "model.onnx_data").symlink_to("blob")
    [warning] = of_severity(inspect_model(path), "warning")
    assert "is a symbolic link" in warning.message
    assert "1.24" in warning.message


def test_weights_outside_of_the_folder_are_refused(tmp_path: Path) -> None:
    path = write_export(tmp_path / "model")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights"
    onnx.save(model, path)
    (tmp_path / "model" / "model.onnx_data").rename(tmp_path / "weights")
    [error] = of_severity(inspect_model(path), "error")
    assert "outside of the model's folder" in error.message


def test_an_offset_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    path = write_export(tmp_path)
    model = onnx.load(path, load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    next(entry for entry in tensor.external_data if entry.key == "offset").value = "first"
    onnx.save(model, path)
    with pytest.raises(ModelError, match="invalid offset or length of external weights"):
        inspect_model(path)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        pytest.param(tiny_model(batch=4), "a batch fixed to 4", id="batch"),
        pytest.param(tiny_model(length=128), "a length fixed to 128", id="length"),
        pytest.param(
            tiny_model(element_type=TensorProto.BFLOAT16), "float32 or float16", id="bfloat16"
        ),
        pytest.param(
            tiny_model(
                outputs=[helper.make_tensor_value_info("last_hidden_state", 1, ["b", 2, 3, 4])]
            ),
            "float32 or float16 of shape",
            id="rank",
        ),
    ],
)
def test_what_the_gateway_cannot_feed_or_read_is_an_error(
    tmp_path: Path, model: onnx.ModelProto, words: str
) -> None:
    inspection = inspect_tiny(tmp_path, model)
    assert any(words in error.message for error in of_severity(inspection, "error"))


def test_positions_counted_in_the_graph_allow_right_padding_only(tmp_path: Path) -> None:
    inspection = inspect_tiny(tmp_path, tiny_model())
    assert (inspection.positions, inspection.padding) == ("counted", "right only")
    assert inspection.is_servable


def test_grouped_attention_allows_right_padding_only(tmp_path: Path) -> None:
    attention = helper.make_node(
        "GroupQueryAttention",
        ["last_hidden_state", "", "", "", "", "lengths", "total"],
        ["attended", "key", "value"],
        domain="com.microsoft",
        num_heads=2,
        kv_num_heads=1,
    )
    inspection = inspect_tiny(tmp_path, tiny_model(nodes=[attention]))
    assert inspection.grouped_attention
    assert inspection.padding == "right only"


@pytest.mark.parametrize(
    ("nodes", "words", "batch_dependent"),
    [
        pytest.param(
            [("DynamicQuantizeLinear", "", {})], "scales taken at run time", True, id="dynamic"
        ),
        pytest.param(
            [("MatMulNBits", "com.microsoft", {"bits": 4, "block_size": 32, "K": 8, "N": 8})],
            "weights of 4 bits in blocks of 32",
            False,
            id="int4",
        ),
        pytest.param(
            [("QuantizeLinear", "", {}), ("DequantizeLinear", "", {})], "(QDQ)", False, id="qdq"
        ),
        pytest.param([("DequantizeLinear", "", {})], "weights only", False, id="weights"),
    ],
)
def test_quantization_is_named(
    tmp_path: Path, nodes: list[Any], words: str, batch_dependent: bool
) -> None:
    made = [
        helper.make_node(
            op_type, ["last_hidden_state", "table"], [f"n{i}"], domain=domain, **attributes
        )
        for i, (op_type, domain, attributes) in enumerate(nodes)
    ]
    inspection = inspect_tiny(tmp_path, tiny_model(nodes=made))
    assert words in inspection.precision.quantization
    assert inspection.precision.is_batch_dependent == batch_dependent
    warned = any("depends on what shares" in f.message for f in of_severity(inspection, "warning"))
    assert warned == batch_dependent


def test_a_small_hidden_size_and_another_config_are_warnings(tmp_path: Path) -> None:
    inspection = inspect_tiny(tmp_path, tiny_model(), hidden_size=1024, vocab_size=50)
    messages = [warning.message for warning in of_severity(inspection, "warning")]
    assert f"config.json says hidden_size 1024, the graph says {TINY_SIZE}." in messages
    assert any("fewer than the default of 1024" in message for message in messages)
    assert not any("vocab_size" in message for message in messages)


@pytest.mark.parametrize(
    ("processor", "appends"),
    [
        (None, None),
        ({"type": "ByteLevel"}, None),
        ({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}]}, None),
        (
            {
                "type": "Sequence",
                "processors": [
                    {"type": "ByteLevel"},
                    {
                        "type": "TemplateProcessing",
                        "single": [
                            {"Sequence": {"id": "A"}},
                            {"SpecialToken": {"id": "<|im_end|>"}},
                        ],
                    },
                ],
            },
            "<|im_end|>",
        ),
    ],
)
def test_what_the_tokenizer_appends_is_reported(
    tmp_path: Path, processor: Any, appends: str | None
) -> None:
    path = write_export(tmp_path)
    write_tokenizer(tmp_path, {"post_processor": processor})
    inspection = inspect_model(path)
    assert inspection.tokenizer is not None
    assert inspection.tokenizer.appends == appends
    assert inspection.is_servable
    assert any("the gateway appends it" in f.remedy for f in of_severity(inspection, "note"))


def test_the_hubs_layout_with_a_folder_onnx_is_understood(tmp_path: Path) -> None:
    inner = write_export(tmp_path / "onnx")
    for name in ("tokenizer.json", "config.json"):
        (inner.parent / name).rename(tmp_path / name)
    assert find_model(tmp_path) == inner
    assert inspect_model(inner).tokenizer is not None
    for name in ("model_fp16.onnx", "model_q4.onnx"):
        (inner.parent / name).write_bytes(inner.read_bytes())
    assert find_model(tmp_path) == inner
    inner.unlink()
    with pytest.raises(ModelError, match=r"onnx/model_fp16\.onnx, onnx/model_q4\.onnx"):
        find_model(tmp_path)


def test_what_is_not_a_model_is_refused(tmp_path: Path) -> None:
    code, output = run("Qwen/no-such-model", "--endpoint", "http://127.0.0.1:1")
    assert code == 1
    assert "There is no Qwen/no-such-model on this machine; looking for it on the hub." in output
    assert "Fetching Qwen/no-such-model failed" in output
    code, output = run(str(tmp_path))
    assert code == 1
    assert "has no ONNX file" in output
    for content, words in (
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\xff" * 40, "is not an ONNX model"),
        (b"", "is not an ONNX model: it is empty"),
        (build_graph(nano_weights()).SerializeToString()[:-1000], "is not an ONNX model"),
    ):
        (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(ModelError, match=words):
            inspect_model(tmp_path / "model.onnx")
        assert run(str(tmp_path))[0] == 1


def test_a_file_above_two_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "model.onnx").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ModelError, match=r"ONNX files above 2 GiB .* as external data"):
        read_model(tmp_path / "model.onnx")


def test_eight_gigabytes_of_external_weights_are_not_loaded(tmp_path: Path) -> None:
    write_external_giant(tmp_path / "external", 8 * GIB)
    status, peak = peak_memory("inspect", str(tmp_path / "external"))
    assert (status, peak < MEMORY_BYTES) == (0, True)
    inspection = inspect_model(tmp_path / "external" / "model.onnx")
    assert inspection.precision.bytes_by_type["float16"] > 7.9 * GIB


@pytest.mark.campaign
def test_weights_inside_the_file_cost_about_twice_their_size(tmp_path: Path) -> None:
    write_inline_giant(tmp_path / "model.onnx", GIB // 2)
    code, output = run(str(tmp_path), "--json")
    assert code == 0
    assert "Reading" in output
    status, peak = peak_memory("inspect", str(tmp_path))
    assert (status, peak < 2 * GIB // 2 + MEMORY_BYTES) == (0, True)


def test_the_digest_covers_the_files_that_the_model_names_and_no_others(tmp_path: Path) -> None:
    path = write_export(tmp_path)
    digest = weights_digest(path)
    (tmp_path / "model_fp16.onnx_data").write_bytes(b"of another model")
    assert weights_digest(path) == digest
    read: list[int] = []
    assert weights_digest(path, read.append) == digest
    assert sum(read) == path.stat().st_size + (tmp_path / "model.onnx_data").stat().st_size
    with (tmp_path / "model.onnx_data").open("r+b") as file:
        file.write(b"x")
    assert weights_digest(path) != digest


def test_people_read_a_table_and_scripts_json(tmp_path: Path) -> None:
    write_export(tmp_path, past_key_values=True)
    code, output = run(str(tmp_path))
    assert code == 0
    for words in (
        "past_key_values.0.key    float32   (batch, 4, past, 64)",
        "feeds input_ids, attention_mask, position_ids, and 2 empty past tensors",
        "appends <|endoftext|>",
        "The gateway can serve it.",
    ):
        assert words in output
    document = json.loads(run(str(tmp_path), "--json")[1])
    assert document["hidden_size"] == HIDDEN_SIZE
    assert document["inputs"][0] == {
        "name": "input_ids",
        "dtype": "int64",
        "shape": [-1, -1],
        "dimensions": ["batch", "sequence"],
    }


def test_an_input_that_is_not_a_tensor_is_refused_by_name(tmp_path: Path) -> None:
    model = tiny_model()
    model.graph.input.append(helper.make_tensor_sequence_value_info("words", TensorProto.INT64, []))
    [error] = of_severity(inspect_tiny(tmp_path, model), "error")
    assert "`words`" in error.message


def test_a_hidden_size_that_the_graph_leaves_open_is_the_configurations(tmp_path: Path) -> None:
    """Exports that pool and normalize in the graph lose it on the way."""
    path = write_export(tmp_path)
    model = onnx.load(path, load_external_data=False)
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_param = "Div_dim_1"
    onnx.save(model, path)
    inspection = inspect_model(path)
    assert (inspection.is_servable, inspection.hidden_size) == (True, HIDDEN_SIZE)
    (tmp_path / "config.json").unlink()
    assert not inspect_model(path).is_servable
