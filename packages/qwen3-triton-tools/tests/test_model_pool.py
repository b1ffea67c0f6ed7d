import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from onnx_exports import (
    HIDDEN_SIZE,
    TINY_SIZE,
    TINY_VOCABULARY,
    VARIANTS,
    feed,
    masks,
    peak_memory,
    save,
    tiny_model,
    write_export,
    write_external_giant,
    write_inline_giant,
)
from onnx_session import open_session
from qwen3_triton_gateway.cli import main
from qwen3_triton_gateway.pooling import last_token_pool
from qwen3_triton_tools.errors import ModelError
from qwen3_triton_tools.model import pooling_plan
from qwen3_triton_tools.model.pool import pool_model
from qwen3_triton_tools.onnx_model import MAX_FILE_BYTES, read_model

# The same sums over the same numbers; what may differ is which kernels two sessions choose.
FLOAT32 = 1e-6
MEMORY_BYTES = 300 * 1024 * 1024
GIB = 1024**3


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["model", "pool", *arguments])
    return result.exit_code, result.output


def outputs(path: Path) -> list[Any]:
    return list(onnx.load(path, load_external_data=False).graph.output)


@pytest.mark.parametrize("variant", VARIANTS)
def test_pooled_vectors_are_those_of_pooling_outside(tmp_path: Path, variant: str) -> None:
    source = write_export(tmp_path, **VARIANTS[variant])
    done = pool_model(source)
    assert done.checked_by == "onnx"
    hidden_model = open_session(source)
    pooled_model = open_session(done.path)
    [output] = pooled_model.get_outputs()
    assert (output.name, output.type) == ("sentence_embedding", "tensor(float)")
    assert output.shape == ["batch", HIDDEN_SIZE]
    for padding, mask in masks().items():
        arrays = feed(hidden_model, mask)
        [hidden] = hidden_model.run(None, arrays)
        [pooled] = pooled_model.run(None, arrays)
        assert pooled.dtype == np.float32
        expected = last_token_pool(hidden, mask)
        np.testing.assert_allclose(pooled, expected, rtol=FLOAT32, atol=FLOAT32, err_msg=padding)


@pytest.mark.parametrize("past", [0, 1, 5])
@pytest.mark.parametrize("variant", ["past", "past_no_positions"])
def test_with_a_past_the_index_counts_within_the_sequence(
    tmp_path: Path, variant: str, past: int
) -> None:
    source = write_export(tmp_path, **VARIANTS[variant])
    session = open_session(pool_model(source, keep_hidden=True).path)
    for mask in masks().values():
        hidden, pooled = session.run(
            ["last_hidden_state", "sentence_embedding"], feed(session, mask, past)
        )
        expected = last_token_pool(hidden, mask)
        np.testing.assert_allclose(pooled, expected, rtol=FLOAT32, atol=FLOAT32)


@pytest.mark.parametrize("opset", [12, 13, 17, 18, 21])
def test_operators_are_those_of_the_files_own_opset(tmp_path: Path, opset: int) -> None:
    save(tiny_model(opset=opset), tmp_path / "model.onnx")
    done = pool_model(tmp_path / "model.onnx", keep_hidden=True)
    before, after = read_model(tmp_path / "model.onnx"), read_model(done.path)
    assert (after.opsets, after.proto.ir_version) == (before.opsets, before.proto.ir_version)
    session = open_session(done.path)
    for mask in masks().values():
        hidden, pooled = session.run(None, feed(session, mask))
        np.testing.assert_array_equal(pooled, last_token_pool(hidden, mask))


def test_the_pooling_in_the_graph_is_that_of_the_nano_models_own(tmp_path: Path) -> None:
    source = write_export(tmp_path / "plain")
    own = write_export(tmp_path / "own", output="sentence_embedding")
    pooled = open_session(pool_model(source).path)
    expected = open_session(own)
    for mask in masks().values():
        arrays = feed(pooled, mask)
        [a], [b] = pooled.run(None, arrays), expected.run(None, arrays)
        np.testing.assert_allclose(a, b, rtol=FLOAT32, atol=FLOAT32)


def grouped_attention_model() -> onnx.ModelProto:
    """One GroupQueryAttention over the states, fed as GenAI's builder does: lengths by the mask."""
    attended = helper.make_tensor_value_info("attended", TensorProto.FLOAT, ["b", "s", TINY_SIZE])
    one = helper.make_node("Constant", [], ["one"], value_ints=[1])
    only = helper.make_node("Constant", [], ["only"], value_int=1)
    nodes = [
        one,
        only,
        helper.make_node("ReduceSum", ["attention_mask", "one"], ["counts"], keepdims=0),
        helper.make_node("Sub", ["counts", "only"], ["ends"]),
        helper.make_node("Cast", ["ends"], ["lengths"], to=TensorProto.INT32),
        helper.make_node("Shape", ["attention_mask"], ["shape"]),
        helper.make_node("Gather", ["shape", "only"], ["wide"], axis=0),
        helper.make_node("Cast", ["wide"], ["total"], to=TensorProto.INT32),
        helper.make_node(
            "GroupQueryAttention",
            [*["last_hidden_state"] * 3, "", "", "lengths", "total"],
            ["attended", "key", "value"],
            domain="com.microsoft",
            num_heads=1,
            kv_num_heads=1,
        ),
    ]
    return tiny_model(nodes=nodes, outputs=[attended])


def test_grouped_attention_is_pooled_correctly_for_right_padding(
    tmp_path: Path,
) -> None:
    save(grouped_attention_model(), tmp_path / "model.onnx")
    session = open_session(pool_model(tmp_path / "model.onnx", keep_hidden=True).path)
    mask = masks()["right"]
    arrays = feed(session, mask)
    hidden, pooled = session.run(None, arrays)
    np.testing.assert_allclose(pooled, last_token_pool(hidden, mask), rtol=FLOAT32, atol=FLOAT32)
    for row, count in enumerate(mask.sum(axis=1)):
        alone = {name: array[row : row + 1, :count] for name, array in arrays.items()}
        [_, expected] = session.run(None, alone)
        np.testing.assert_allclose(pooled[row], expected[0], rtol=1e-5, atol=1e-5)


def test_a_fully_masked_row_gives_its_first_state_and_no_crash(tmp_path: Path) -> None:
    save(tiny_model(), tmp_path / "model.onnx")
    session = open_session(pool_model(tmp_path / "model.onnx", keep_hidden=True).path)
    hidden, pooled = session.run(None, feed(session, np.zeros((2, 3), dtype=np.int64)))
    np.testing.assert_array_equal(pooled, hidden[:, 0])


@pytest.mark.parametrize("element_type", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_a_narrow_state_becomes_float32_after_it_was_gathered(
    tmp_path: Path, element_type: int
) -> None:
    save(tiny_model(element_type=element_type), tmp_path / "model.onnx")
    done = pool_model(tmp_path / "model.onnx")
    [output] = outputs(done.path)
    assert output.type.tensor_type.elem_type == TensorProto.FLOAT
    assert [node.op_type for node in read_model(done.path).nodes][-2:] == ["GatherND", "Cast"]
    assert not {"LpNormalization", "ArgMax"} & read_model(done.path).operators.keys()


def test_without_keep_hidden_the_vector_is_the_only_output(tmp_path: Path) -> None:
    model = tiny_model()
    model.graph.node.append(helper.make_node("Identity", ["input_ids"], ["present.0.key"]))
    present = helper.make_tensor_value_info("present.0.key", TensorProto.INT64, ["batch", "n"])
    model.graph.output.append(present)
    save(model, tmp_path / "model.onnx")
    alone = pool_model(tmp_path / "model.onnx").path
    assert [output.name for output in outputs(alone)] == ["sentence_embedding"]
    inner = onnx.load(alone, load_external_data=False).graph.value_info
    assert {info.name for info in inner} == {"last_hidden_state", "present.0.key"}
    both = pool_model(tmp_path / "model.onnx", tmp_path / "both.onnx", keep_hidden=True).path
    names = [output.name for output in outputs(both)]
    assert names == ["last_hidden_state", "sentence_embedding"]
    open_session(both)


def test_everything_else_of_the_file_stays_as_it_was(tmp_path: Path) -> None:
    source = write_export(tmp_path, external=False)
    before, after = onnx.load(source), onnx.load(pool_model(source).path)
    count = len(before.graph.node)
    assert list(after.graph.node)[:count] == list(before.graph.node)
    assert list(after.graph.initializer) == list(before.graph.initializer)
    for model in (before, after):
        model.ClearField("graph")
    assert after == before


def test_the_result_lies_beside_its_weights_by_default(tmp_path: Path) -> None:
    source = write_export(tmp_path)
    done = pool_model(source)
    assert done.path == tmp_path / "model_pooled.onnx"
    assert done.path.stat().st_size < 100_000
    assert read_model(done.path).external_locations == ("model.onnx_data",)


def test_a_folder_gets_real_files_even_where_the_source_has_links(tmp_path: Path) -> None:
    blobs = write_export(tmp_path / "blobs").parent
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    done = pool_model(snapshot / "model.onnx", tmp_path / "out")
    assert done.external_files == 1
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"model.onnx", "model.onnx_data", "tokenizer.json", "config.json"}
    assert not any(file.is_symlink() for file in (tmp_path / "out").iterdir())
    assert (tmp_path / "out" / "model.onnx_data").samefile(blobs / "model.onnx_data")
    open_session(done.path)  # which minds hard links no more than files
    copied = pool_model(blobs / "model.onnx", tmp_path / "copied", transfer="copy")
    assert copied.checked_by == "onnx"
    assert not (tmp_path / "copied" / "model.onnx_data").samefile(blobs / "model.onnx_data")


def test_nothing_that_is_there_is_replaced_unless_forced(tmp_path: Path) -> None:
    source = str(write_export(tmp_path / "model"))
    out = tmp_path / "out"
    assert run(source, "-o", str(out))[0] == 0
    (out / "model.onnx").write_bytes(b"mine")
    code, output = run(source, "-o", str(out))
    assert code == 1
    assert "--force" in output
    assert (out / "model.onnx").read_bytes() == b"mine"
    assert run(source, "-o", str(out), "--force")[0] == 0
    # The weights of another model, too, which happen to have the same name.
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.onnx_data").write_bytes(b"mine")
    code, output = run(source, "-o", str(other / "new.onnx"))
    assert code == 1
    assert "model.onnx_data already exists" in output
    assert (other / "model.onnx_data").read_bytes() == b"mine"


def test_a_model_may_be_pooled_in_its_place(tmp_path: Path) -> None:
    source = write_export(tmp_path)
    assert run(str(source), "-o", str(source), "--force")[0] == 0
    assert [output.name for output in outputs(source)] == ["sentence_embedding"]
    open_session(source)


def test_a_pooled_file_is_left_alone(tmp_path: Path) -> None:
    source = write_export(tmp_path, output="sentence_embedding")
    code, output = run(str(source))
    assert code == 0
    assert "is already pooled" in output
    pooled = pool_model(write_export(tmp_path / "plain"), keep_hidden=True).path
    assert pool_model(pooled).already_pooled


def test_the_result_is_compared_with_pooling_outside(tmp_path: Path) -> None:
    source = write_export(tmp_path)
    code, output = run(str(source))
    assert code == 0
    assert "its vectors are those of pooling outside" in output
    assert pool_model(source, tmp_path / "again.onnx").not_compared == ""


def test_a_result_that_differs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_export(tmp_path)
    before = {file.name for file in tmp_path.iterdir()}

    def first_token(states: str, output: str, **_: object) -> Iterator[onnx.NodeProto]:
        value = helper.make_tensor("", TensorProto.INT64, [4, 1], [0] * 4)
        yield helper.make_node("Constant", [], ["index"], value=value)
        yield helper.make_node("GatherND", [states, "index"], [output], batch_dims=1)

    monkeypatch.setattr(pooling_plan, "last_token_nodes", first_token)
    with pytest.raises(ModelError, match="from those of pooling its hidden states"):
        pool_model(source)
    assert {file.name for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("why", ["not asked for", "only up to 0 GiB", "no tokenizer.json"])
def test_what_is_not_compared_is_reported_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    source = write_export(tmp_path)
    if "GiB" in why:
        monkeypatch.setattr("qwen3_triton_tools.model.inspection.MAX_WEIGHT_BYTES", 1024)
    if "tokenizer" in why:
        (tmp_path / "tokenizer.json").unlink()
    code, output = run(str(source), *(["--no-probe"] if "asked" in why else []))
    assert code == 0
    assert "Not compared with pooling outside of the graph" in output
    assert why in output


def unnamed_output() -> onnx.ModelProto:
    model = tiny_model()
    model.graph.node.append(helper.make_node("Identity", ["last_hidden_state"], ["logits"]))
    model.graph.output[0].name = "hidden"
    model.graph.node.append(helper.make_node("Identity", ["last_hidden_state"], ["hidden"]))
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", 4])
    model.graph.output.append(logits)
    return model


def taken_name() -> onnx.ModelProto:
    node = helper.make_node("Identity", ["last_hidden_state"], ["sentence_embedding"])
    return tiny_model(nodes=[node])


def without_mask() -> onnx.ModelProto:
    model = tiny_model()
    del model.graph.input[1]
    return model


@pytest.mark.parametrize(
    ("model", "words"),
    [
        pytest.param(unnamed_output(), "has no output of shape", id="no-hidden-state"),
        pytest.param(taken_name(), "already computes `sentence_embedding`", id="name-taken"),
        pytest.param(without_mask(), "no input `attention_mask`", id="no-mask"),
        pytest.param(tiny_model(opset=11), "opset 11", id="old-opset"),
    ],
)
def test_what_cannot_be_pooled_is_refused_with_a_reason(
    tmp_path: Path, model: onnx.ModelProto, words: str
) -> None:
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match=words):
        pool_model(tmp_path / "model.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_missing_weights_are_named_before_anything_is_written(tmp_path: Path) -> None:
    source = write_export(tmp_path)
    os.truncate(tmp_path / "model.onnx_data", 1000)
    with pytest.raises(ModelError, match="truncated: 1,000 bytes of"):
        pool_model(source)
    (tmp_path / "model.onnx_data").unlink()
    with pytest.raises(ModelError, match=r"model\.onnx_data is missing"):
        pool_model(source)
    assert not (tmp_path / "model_pooled.onnx").exists()


def test_eight_gigabytes_of_weights_beside_the_file_are_not_loaded(tmp_path: Path) -> None:
    source = write_external_giant(tmp_path, 8 * GIB)
    status, peak = peak_memory("pool", str(source), "-o", str(tmp_path / "out"))
    assert status == 0
    assert peak < MEMORY_BYTES
    assert (tmp_path / "out" / "model.onnx_data").stat().st_size == 8 * GIB


@pytest.mark.campaign
def test_weights_inside_the_file_cost_about_three_times_their_size(tmp_path: Path) -> None:
    source, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    write_inline_giant(source, GIB // 2)
    status, peak = peak_memory("pool", str(source), "-o", str(out))
    assert status == 0
    assert peak < 3 * GIB // 2 + MEMORY_BYTES
    model = read_model(out)
    sizes = [weight.size_bytes for weight in model.weights]
    assert sizes[:2] == [TINY_VOCABULARY * TINY_SIZE * 4, GIB // 2]
    assert [tensor.name for tensor in model.outputs] == ["sentence_embedding"]


def test_a_file_that_would_pass_two_gigabytes_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    with source.open("wb") as file:
        file.truncate(MAX_FILE_BYTES - 2000)
    with pytest.raises(ModelError, match="larger than 2 GiB"):
        pool_model(source)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_the_command_says_what_it_wrote_and_gives_json(tmp_path: Path) -> None:
    source = write_export(tmp_path)
    code, output = run(str(tmp_path), "--json")
    assert code == 0
    assert f'"path": "{source.with_name("model_pooled.onnx")}"' in output
    code, output = run(str(source), "-o", str(tmp_path / "again.onnx"))
    assert code == 0
    assert "Not normalized" in output
    assert "Its fingerprint differs" in output
    code, output = run("nobody/no-model")
    assert code == 1
    assert "model pull nobody/no-model" in output
