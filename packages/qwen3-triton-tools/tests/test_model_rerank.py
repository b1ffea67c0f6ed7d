"""Rerankers: recognized in each form, and cut down to the logits of "no" and "yes"."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import qwen3_nano
from onnx_exports import feed, masks, peak_memory, write_tokenizer
from onnx_session import open_session
from qwen3_triton_gateway.cli import main
from qwen3_triton_tools.errors import ModelError
from qwen3_triton_tools.model.inspection import inspect_model
from qwen3_triton_tools.model.pool import pool_model
from qwen3_triton_tools.model.quantize import quantize_model
from qwen3_triton_tools.model.tokenizer_file import read_tokenizer_file
from qwen3_triton_tools.onnx_model import read_model
from reranker_exports import (
    HEADS,
    HIDDEN,
    NO,
    TABLE,
    VOCABULARY,
    YES,
    Head,
    causal_model,
    classifier_model,
    dynamic_head,
    trunk,
    with_logits,
    write_reranker,
)

# The same sums over the same numbers, by other kernels.
FLOAT32 = 1e-4
# Ten bits of mantissa: the whole head rounds its logits, the pooled one does not.
ROUNDING: dict[int, float] = {TensorProto.FLOAT16: 2e-3, TensorProto.BFLOAT16: 1.6e-2}
GIB = 1024**3
RANDOM = np.random.default_rng(3)


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["model", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


def document(*arguments: object) -> Any:
    result = CliRunner().invoke(main, ["model", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def last_logits(path: Path, mask: np.ndarray, past: int = 0) -> Any:
    """Return the logits of "no" and "yes" at each row's last token, of the whole head."""
    session = open_session(path)
    [logits] = session.run(["logits"], feed(session, mask, past))
    last = mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)
    return logits[np.arange(len(mask)), last][:, [NO, YES]].astype(np.float32)


def pooled_logits(path: Path, mask: np.ndarray, past: int = 0) -> Any:
    session = open_session(path)
    [output] = session.get_outputs()
    assert (output.name, output.type) == ("logits", "tensor(float)")
    assert output.shape == ["batch", 2]
    return session.run(None, feed(session, mask, past))[0]


@pytest.mark.parametrize("head", HEADS)
def test_the_pooled_logits_are_those_of_no_and_yes_at_the_last_token(
    tmp_path: Path, head: Head
) -> None:
    source = write_reranker(tmp_path / "reranker", causal_model(head))
    done = pool_model(source, probe=head == "tied")
    assert (done.output, done.width, done.hidden_size) == ("logits", 2, HIDDEN)
    assert done.checked_by == "onnx"
    assert bool(done.not_compared) == (head != "tied")
    for padding, mask in masks().items():
        expected = last_logits(source, mask)
        actual = pooled_logits(done.path, mask)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=FLOAT32, err_msg=padding)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["tied", "stored", "transposed"])
@pytest.mark.parametrize(
    ("dtype", "cast_back"),
    [(TensorProto.FLOAT16, False), (TensorProto.FLOAT16, True), (TensorProto.BFLOAT16, True)],
)
def test_a_narrow_head_is_multiplied_by_in_float32(
    tmp_path: Path, head: Head, dtype: int, cast_back: bool
) -> None:
    model = causal_model(head, dtype=dtype, cast_back=cast_back)
    source = write_reranker(tmp_path / "reranker", model)
    path = pool_model(source, probe=False).path
    if dtype == TensorProto.BFLOAT16:  # ONNX Runtime has no product of bfloat16 on a CPU
        [expected_graph] = [causal_model(head, dtype=TensorProto.FLOAT16, cast_back=True)]
        source = write_reranker(tmp_path / "expected", expected_graph)
    for mask in masks().values():
        expected = last_logits(source, mask)
        scale = np.abs(expected).max()
        actual = pooled_logits(path, mask)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=ROUNDING[dtype] * scale)


@pytest.mark.parametrize("past", [0, 3])
def test_a_past_and_counted_positions_are_kept(tmp_path: Path, past: int) -> None:
    model = causal_model(past_key_values=True, position_ids=False)
    source = write_reranker(tmp_path / "reranker", model, external=False)
    path = pool_model(source, probe=past == 0).path
    for mask in masks().values():
        expected, actual = last_logits(source, mask, past), pooled_logits(path, mask, past)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=FLOAT32)


def test_a_head_of_its_own_leaves_the_graph_and_a_shared_table_stays(tmp_path: Path) -> None:
    kept: dict[str, set[str]] = {}
    for head in HEADS:
        source = write_reranker(tmp_path / f"reranker-{head}", causal_model(head))
        done = pool_model(source, tmp_path / f"pooled-{head}", probe=False)
        assert done.external_files == 1
        model = read_model(done.path)
        kept[head] = {weight.name for weight in model.weights}
        assert {node.op_type for node in model.nodes} & {"FusedMatMul", "Gemm"} == set()
        assert max(w.size_bytes for w in model.weights if w.external is None) <= HIDDEN * 2 * 4
    assert all(TABLE in names for names in kept.values())
    assert not any("head" in names for names in kept.values())
    assert (tmp_path / "pooled-tied" / "tokenizer.json").exists()


def test_stored_tensors_among_the_inputs_leave_with_the_head(tmp_path: Path) -> None:
    model = causal_model("transposed")
    for tensor in model.graph.initializer:
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(info)
    source = write_reranker(tmp_path / "reranker", model)
    inputs = {entry.name for entry in onnx.load(pool_model(source, probe=False).path).graph.input}
    assert TABLE in inputs
    assert "head" not in inputs


def test_names_used_in_branches_only_are_kept(tmp_path: Path) -> None:
    model = causal_model()
    [table] = [node for node in model.graph.node if "states" in node.output]
    table.output[:] = ["inner"]
    value = helper.make_tensor_value_info("branch", TensorProto.FLOAT, None)
    branch = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["branch"])], "branch", [], [value]
    )
    place = list(model.graph.node).index(table) + 1
    model.graph.node.insert(
        place, helper.make_node("If", ["yes"], ["states"], then_branch=branch, else_branch=branch)
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    source = write_reranker(tmp_path / "reranker", model)
    path = pool_model(source, probe=False).path
    mask = masks()["right"]
    np.testing.assert_allclose(
        pooled_logits(path, mask), last_logits(source, mask), rtol=0, atol=FLOAT32
    )


def test_other_outputs_are_removed_with_what_only_they_need(tmp_path: Path) -> None:
    model = causal_model()
    model.graph.node.append(helper.make_node("Sinh", ["states"], ["present"]))
    info = helper.make_tensor_value_info("present", TensorProto.FLOAT, ["b", "s", HIDDEN])
    model.graph.output.append(info)
    source = write_reranker(tmp_path / "reranker", model)
    pooled = read_model(pool_model(source, probe=False).path)
    assert [tensor.name for tensor in pooled.outputs] == ["logits"]
    assert "Sinh" not in pooled.operators


def test_a_pooled_reranker_and_a_classifier_need_no_pooling(tmp_path: Path) -> None:
    source = write_reranker(tmp_path / "reranker", causal_model())
    pooled = document("pool", source, "-o", tmp_path / "any-name")
    again = document("pool", pooled["path"])
    assert (again["already_pooled"], again["width"]) == (True, 2)
    classifier = write_reranker(tmp_path / "classifier", classifier_model())
    again = document("pool", classifier)
    assert (again["already_pooled"], again["width"]) == (True, 1)


def test_each_form_is_recognized_and_said(tmp_path: Path) -> None:
    source = write_reranker(tmp_path / "reranker", causal_model())
    found = document("inspect", source)
    assert found["servable"]
    assert found["reranker"] == {"form": "causal", "pooled": False, "width": VOCABULARY}
    assert (found["hidden_size"], found["embedding_rows"]) == (HIDDEN, VOCABULARY)
    pool_model(source, tmp_path / "pooled", probe=False)
    pooled = document("inspect", tmp_path / "pooled")["reranker"]
    assert pooled == {"form": "causal", "pooled": True, "width": 2}
    classifier = write_reranker(tmp_path / "classifier", classifier_model())
    found = document("inspect", classifier)["reranker"]
    assert found == {"form": "seq-cls", "pooled": True, "width": 1}
    code, output = run("inspect", source)
    assert code == 0
    assert f'"no" ({NO}) and "yes" ({YES})' in output
    assert "24,000 logits of every token cross the wire" in output
    assert "The gateway can serve it as a reranker." in output


def with_output(nodes: list[onnx.NodeProto], shape: list[Any]) -> onnx.ModelProto:
    """Let nodes compute the `logits` from those of all tokens at all positions, named `all`."""
    model = causal_model()
    for node in model.graph.node:
        node.output[:] = ["all" if name == "logits" else name for name in node.output]
    del model.graph.output[:]
    indices = {"last": -1, "last_one": [-1], "answers": [NO, YES], "yes": [YES]}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(value), name) for name, value in indices.items()
    )
    model.graph.node.extend(nodes)
    model.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape))
    return model


def gather(indices: str, axis: int) -> list[onnx.NodeProto]:
    return [helper.make_node("Gather", ["all", indices], ["logits"], axis=axis)]


@pytest.mark.parametrize(
    ("kept", "width", "form"), [("answers", 2, "causal"), ("yes", 1, "seq-cls")]
)
def test_a_head_cut_at_every_position_is_recognized_and_pooled(
    tmp_path: Path, kept: str, width: int, form: str
) -> None:
    model = with_output(gather(kept, 2), ["batch", "sequence", width])
    source = write_reranker(tmp_path / "any-name", model)
    found = document("inspect", source)["reranker"]
    assert found == {"form": form, "pooled": False, "width": width}
    pooled = document("pool", source)
    assert (pooled["width"], pooled["not_compared"]) == (width, "")


@pytest.mark.parametrize("build", [causal_model, classifier_model])
def test_the_logits_may_have_any_name(tmp_path: Path, build: Callable[[], onnx.ModelProto]) -> None:
    model = build()
    model.graph.output[0].name = "scores"
    model.graph.node.append(helper.make_node("Identity", ["logits"], ["scores"]))
    source = write_reranker(tmp_path / "reranker", model)
    done = pool_model(source, probe=False)
    assert done.width == (2 if build is causal_model else 1)
    assert document("inspect", done.path)["reranker"]


@pytest.mark.parametrize("activation", ["Sigmoid", "Softmax"])
def test_probabilities_are_not_logits(tmp_path: Path, activation: str) -> None:
    model = classifier_model()
    model.graph.node[-1].output[0] = "raw"
    model.graph.node.append(helper.make_node(activation, ["raw"], ["logits"]))
    source = write_reranker(tmp_path / "reranker", model)
    code, output = run("inspect", source, "--no-probe")
    assert code == 1
    assert f"`logits` is computed by {activation}" in output


def test_an_output_in_bfloat16_is_replaced_by_one_in_float32(tmp_path: Path) -> None:
    # Only a GPU runs it.
    source = write_reranker(tmp_path / "reranker", causal_model(dtype=TensorProto.BFLOAT16))
    assert run("inspect", source)[0] == 1
    pooled = document("pool", source, "-o", tmp_path / "pooled")
    assert read_model(Path(pooled["path"])).outputs[0].dtype.name == "float32"


@pytest.mark.parametrize(
    ("index", "shape", "words"),
    [
        ("last", [], r"returns `logits` as float32 \(batch, 24000\)"),
        ("last_one", [1], "logits of one position only, the last one, which is a pad"),
        ("last_one", ["kept"], r"cannot score a pair: .* of shape \(1, 1, 24000\)"),
    ],
)
def test_logits_of_the_last_position_only_are_an_error(
    tmp_path: Path, index: str, shape: list[Any], words: str
) -> None:
    model = with_output(gather(index, 1), ["batch", *shape, VOCABULARY])
    source = write_reranker(tmp_path / "reranker", model)
    code, output = run("inspect", source)
    assert code == 1
    assert re.search(words, output)
    assert run("pool", source)[0] == 1


@pytest.mark.parametrize("command", ["inspect", "pool", "verify", "quantize"])
def test_an_embedding_model_does_not_rerank_by_the_user_s_word(
    tmp_path: Path, command: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(qwen3_nano.model_dir(), folder)
    code, output = run(command, folder, "--rerank")
    assert code == 1
    assert "It is not a reranker: it returns `last_hidden_state`" in output


def test_an_embedding_model_that_is_named_a_reranker_is_served_with_a_warning(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "Qwen3-Reranker-0.6B"
    shutil.copytree(qwen3_nano.model_dir(), folder)
    code, output = run("inspect", folder)
    assert code == 0
    assert "Export it again with the task text-generation" in output


@pytest.mark.parametrize(
    "name",
    ["Qwen3-Reranker-0.6B", "by-flag", "by-file", "by-config", "by-manifest", "onnx", "1"],
)
def test_a_causal_model_is_a_reranker_by_its_name_or_a_flag(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "my-reranker" / name if name in ("onnx", "1") else tmp_path / name
    source = write_reranker(folder, causal_model())
    if name == "by-file":
        source = source.rename(folder / "reranker.onnx")
    if name == "by-config":
        config = json.loads((folder / "config.json").read_text())
        config["_name_or_path"] = "Qwen/Qwen3-Reranker-0.6B"
        (folder / "config.json").write_text(json.dumps(config))
    if name == "by-manifest":
        manifest = {"repo": "x/Qwen3-Reranker", "revision": "1", "date": "", "files": []}
        (folder / "qwen3-triton.json").write_text(json.dumps(manifest))
    assert inspect_model(source, rerank=name == "by-flag").reranker is not None


@pytest.mark.parametrize("command", ["inspect", "pool"])
def test_without_a_name_the_flag_is_named_and_settles_it(tmp_path: Path, command: str) -> None:
    source = write_reranker(tmp_path / "model", causal_model())
    code, output = run(command, source)
    assert code == 1
    assert "scores for a vocabulary and not states" in output
    assert "If it is a reranker, such as Qwen3-Reranker, pass `--rerank`" in output
    assert run(command, source, "--rerank")[0] == 0


def packed_head() -> onnx.ModelProto:
    """The head as q4 exports have it."""
    model = trunk()
    options = {"K": HIDDEN, "N": VOCABULARY, "bits": 4, "block_size": 32}
    packed = RANDOM.integers(256, size=(VOCABULARY, 1, 16), dtype=np.uint8)
    scales = np.full(VOCABULARY, 0.1, dtype=np.float32)
    model.graph.initializer.extend(
        [numpy_helper.from_array(packed, "packed"), numpy_helper.from_array(scales, "scales")]
    )
    inputs = ["states", "packed", "scales"]
    node = helper.make_node("MatMulNBits", inputs, ["logits"], domain="com.microsoft", **options)
    return with_logits(model, [node])


def scaled_head() -> onnx.ModelProto:
    """The head as DequantizeLinear widens it."""
    model = trunk()
    head = RANDOM.integers(-127, 128, size=(HIDDEN, VOCABULARY), dtype=np.int8)
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(head, "head"),
            numpy_helper.from_array(np.array(0.1, np.float32), "s"),
        ]
    )
    nodes = [
        helper.make_node("DequantizeLinear", ["head", "s"], ["matrix"]),
        helper.make_node("MatMul", ["states", "matrix"], ["logits"]),
    ]
    return with_logits(model, nodes)


def biased_head() -> onnx.ModelProto:
    model = causal_model("gemm")
    bias = RANDOM.normal(size=VOCABULARY).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(bias, "bias"))
    [gemm] = [node for node in model.graph.node if node.op_type == "Gemm"]
    gemm.input.append("bias")
    return model


def capped_head() -> onnx.ModelProto:
    """The head with a soft cap, between a division and a product."""
    model = causal_model()
    model.graph.initializer.append(numpy_helper.from_array(np.array(5, np.float32), "cap"))
    [last] = [node for node in model.graph.node if "logits" in node.output]
    last.output[0] = "uncapped"
    model.graph.node.extend(
        [
            helper.make_node("Div", ["uncapped", "cap"], ["narrowed"]),
            helper.make_node("Tanh", ["narrowed"], ["bent"]),
            helper.make_node("Mul", ["bent", "cap"], ["logits"]),
        ]
    )
    return model


def single_position() -> onnx.ModelProto:
    model = causal_model()
    shape = model.graph.output[0].type.tensor_type.shape
    shape.dim[1].Clear()
    shape.dim[1].dim_value = 1
    return model


@pytest.mark.parametrize("build", [packed_head, scaled_head, biased_head, capped_head])
def test_a_head_of_which_no_rows_can_be_taken_is_computed_for_the_last_token_only(
    tmp_path: Path, build: Callable[[], onnx.ModelProto]
) -> None:
    source = write_reranker(tmp_path / "reranker", build())
    done = pool_model(source, probe=build is packed_head)
    for padding, mask in masks().items():
        expected, actual = last_logits(source, mask), pooled_logits(done.path, mask)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=FLOAT32, err_msg=padding)


def test_our_own_int8_weights_are_pooled(tmp_path: Path) -> None:
    source = write_reranker(tmp_path / "reranker", causal_model())
    quantized = quantize_model(source, tmp_path / "reranker-int8").path
    mask = masks()["right"]
    actual = pooled_logits(pool_model(quantized).path, mask)
    np.testing.assert_allclose(actual, last_logits(quantized, mask), rtol=0, atol=FLOAT32)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        pytest.param(dynamic_head, "rounds states to integers .MatMulInteger.", id="dynamic"),
        pytest.param(single_position, "logits of one position only", id="single-position"),
    ],
)
def test_a_head_that_cannot_be_cut_is_refused_with_the_reason(
    tmp_path: Path, model: Any, words: str
) -> None:
    source = write_reranker(tmp_path / "reranker", model())
    with pytest.raises(ModelError, match=words):
        pool_model(source)
    assert not (source.parent / "model_pooled.onnx").exists()
    assert re.search(words, run("inspect", source, "--no-probe")[1])


def test_no_hidden_state_can_be_kept_of_a_reranker(tmp_path: Path) -> None:
    source = write_reranker(tmp_path / "reranker", causal_model())
    code, output = run("pool", source, "--keep-hidden")
    assert code == 1
    assert "no hidden states to keep" in output


@pytest.mark.parametrize(
    ("vocabulary", "added", "words"),
    [
        ({"no": 0}, ["<|im_start|>", "<|im_end|>"], "no token for 'yes'"),
        ({"no": 0, "yes": 1}, ["<|im_start|>"], "no token '<|im_end|>'"),
        ({"no": 0, "yes": VOCABULARY}, ["<|im_start|>", "<|im_end|>"], "too few for the tokens"),
    ],
)
def test_a_tokenizer_that_cannot_ask_or_answer_is_an_error(
    tmp_path: Path, vocabulary: dict[str, int], added: list[str], words: str
) -> None:
    source = write_reranker(tmp_path / "reranker", causal_model())
    tokens = [{"id": 2 + n, "content": text} for n, text in enumerate(["<|endoftext|>", *added])]
    model = {"type": "BPE", "vocab": vocabulary, "merges": []}
    write_tokenizer(source.parent, {"model": model, "added_tokens": tokens})
    code, output = run("inspect", source)
    assert code == 1
    assert words in output
    assert run("pool", source)[0] == 1


def test_answers_may_be_added_tokens(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    added = [{"id": 5, "content": "yes"}]
    model = {"type": "BPE", "vocab": {"no": 0, "yes": 1}, "merges": []}
    file.write_text(json.dumps({"model": model, "added_tokens": added}))
    assert read_tokenizer_file(file).answer_ids == (0, 5)


def test_without_a_tokenizer_the_rows_of_the_head_are_unknown(tmp_path: Path) -> None:
    source = write_reranker(tmp_path / "reranker", causal_model())
    (source.parent / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer\.json next to it"):
        pool_model(source)


def test_a_classifier_that_reads_the_last_position_is_refused(tmp_path: Path) -> None:
    source = write_reranker(tmp_path / "classifier", classifier_model(position="end"))
    code, output = run("inspect", source)
    assert code == 1
    assert "Padding on the right changes its logits" in output
    assert run("inspect", source, "--no-probe")[0] == 0


@pytest.mark.slow
def test_gigabytes_of_a_head_are_not_loaded(tmp_path: Path) -> None:
    source = write_reranker(tmp_path / "reranker", causal_model("transposed"))
    model = onnx.load(source, load_external_data=False)
    # The rows of a wider model, which would take 8 GiB: a sparse file of zeros.
    [head] = [t for t in model.graph.initializer if t.name == "head"]
    width = 8 * GIB // 4 // VOCABULARY
    head.dims[0] = width
    entries = {"location": "giant", "offset": "0", "length": str(width * VOCABULARY * 4)}
    del head.external_data[:]
    for key, value in entries.items():
        head.external_data.add(key=key, value=value)
    onnx.save(model, source)
    with (source.parent / "giant").open("wb") as file:
        file.truncate(width * VOCABULARY * 4)
    status, peak = peak_memory("pool", str(source))
    assert status == 0
    assert peak < 300 * 1024 * 1024
