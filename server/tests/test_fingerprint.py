"""Which files count as a model's weights, compared with models that the onnx library writes."""

import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

import qwen3_nano
from qwen3_triton_gateway.fingerprint import (
    EmbeddingSpace,
    digest_of_version,
    weight_files,
    weights_digest,
)
from qwen3_triton_gateway.model_files import ModelFileError

SPACE = EmbeddingSpace("Qwen/Qwen3-Embedding-0.6B", "w", "t", "last_token", "p", "float32")
ENTRY = b"\x0a\x08location\x12"  # what precedes the length of a location


def stored_in(location: str) -> TensorProto:
    """A tensor whose bytes are in another file."""
    tensor = numpy_helper.from_array(np.ones(4, dtype=np.float32), name=location)
    set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    return tensor


def constant(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [f"{tensor.name}.out"], value=tensor)


def write_model(
    folder: Path, *initializers: TensorProto, nodes: tuple[onnx.NodeProto, ...] = ()
) -> Path:
    graph = helper.make_graph(list(nodes), "g", [], [], initializer=list(initializers))
    path = folder / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def write_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode())


def names_of(model: Path) -> list[str]:
    return [str(path.relative_to(model.parent)) for path in weight_files(model)]


def test_a_model_without_external_weights_is_one_file(tmp_path: Path) -> None:
    model = write_model(tmp_path, numpy_helper.from_array(np.ones(4), name="w"))
    write_files(tmp_path, "model.onnx_data")
    assert names_of(model) == ["model.onnx"]


def test_external_weights_are_found_wherever_a_model_keeps_tensors(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [constant(stored_in("constant-in-branch"))],
        "branch",
        [],
        [],
        initializer=[stored_in("initializer-in-branch")],
    )
    condition = helper.make_node("If", ["c"], ["o"], then_branch=branch, else_branch=branch)
    model = write_model(
        tmp_path,
        stored_in("weights/initializer"),
        stored_in("weights/initializer"),
        nodes=(condition, constant(stored_in("constant"))),
    )
    files = ["constant", "constant-in-branch", "initializer-in-branch", "weights/initializer"]
    write_files(tmp_path, *files)
    assert names_of(model) == ["model.onnx", *files]


@pytest.mark.parametrize("length", [1, 127, 128, 200])
def test_a_location_may_have_any_length(tmp_path: Path, length: int) -> None:
    write_files(tmp_path, "x" * length)
    assert names_of(write_model(tmp_path, stored_in("x" * length))) == ["model.onnx", "x" * length]


def test_a_location_may_have_any_letters(tmp_path: Path) -> None:
    write_files(tmp_path, "Gewichte für ü")
    assert len(names_of(write_model(tmp_path, stored_in("Gewichte für ü")))) == 2


def test_external_weights_saved_by_onnx_are_found(tmp_path: Path) -> None:
    model = onnx.load(write_model(tmp_path, numpy_helper.from_array(np.ones(999), name="w")))
    path = tmp_path / "split.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="split.onnx_data")
    assert names_of(path) == ["split.onnx", "split.onnx_data"]


def test_external_weights_of_functions_and_sparse_tensors_are_found(tmp_path: Path) -> None:
    opset = [helper.make_opsetid("", 17)]
    function = helper.make_function("own", "f", [], ["o"], [constant(stored_in("function"))], opset)
    graph = helper.make_graph([], "g", [], [])
    sparse = onnx.SparseTensorProto(values=stored_in("values"), indices=stored_in("indices"))
    graph.sparse_initializer.append(sparse)
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph, functions=[function]).SerializeToString())
    write_files(tmp_path, "function", "values", "indices")
    assert names_of(path) == ["model.onnx", "function", "indices", "values"]


def test_a_location_need_not_be_utf_8(tmp_path: Path) -> None:
    model = write_model(tmp_path, stored_in("weights-MARK"))
    model.write_bytes(model.read_bytes().replace(b"-MARK", b"-\xff\xfe\xe9\xe8"))
    external = tmp_path / os.fsdecode(b"weights-\xff\xfe\xe9\xe8")
    external.write_bytes(b"1")
    before = weights_digest(model)
    external.write_bytes(b"2")
    assert weights_digest(model) != before


@pytest.mark.parametrize("length", [1, 127, 128, 200, 100_000])
def test_metadata_of_any_kind_is_no_location(tmp_path: Path, length: int) -> None:
    """As torch's exporter writes it for every node: stack traces, and names of its own."""
    node = helper.make_node("Identity", ["w"], ["o"])
    for key, value in (("location", "torch.py"), ("pkg.torch.onnx.stack_trace", "x" * length)):
        node.metadata_props.add(key=key, value=value)
    write_files(tmp_path, "torch.py", "w.data")
    model = write_model(tmp_path, stored_in("w.data"), nodes=(node,))
    assert names_of(model) == ["model.onnx", "w.data"]
    model.write_bytes(model.read_bytes().replace(b"torch.py", b"\xff\xfe\x80\x81\x82\x83\x84\x85"))
    assert names_of(model) == ["model.onnx", "w.data"]


@pytest.mark.parametrize("entry", ["folder", "nothing", "link to nothing"])
def test_there_is_no_digest_without_a_file_of_weights(tmp_path: Path, entry: str) -> None:
    model = write_model(tmp_path, stored_in("weights"))
    if entry == "folder":
        (tmp_path / "weights").mkdir()
    elif entry == "link to nothing":
        (tmp_path / "weights").symlink_to("elsewhere")
    with pytest.raises(ModelFileError, match=r"has weights in .*weights', which is missing"):
        weights_digest(model)


def test_there_is_no_digest_of_what_cannot_be_parsed_to_its_end(tmp_path: Path) -> None:
    whole = write_model(tmp_path, stored_in("w"), numpy_helper.from_array(np.ones(99), name="v"))
    write_files(tmp_path, "w")
    content = whole.read_bytes()
    for part in (b"", content[:-1], content[: len(content) // 2], content + b"\x07", b"\xff" * 99):
        whole.write_bytes(part)
        with pytest.raises(ModelFileError, match="is not an ONNX model"):
            weights_digest(whole)


@pytest.mark.parametrize(
    "bytes_by_chance",
    [
        pytest.param(ENTRY + b"\x04\xff\xfe\xfd\xfc", id="not-text"),
        pytest.param(ENTRY + b"\x04a\x00bc", id="not-a-name"),
        pytest.param(ENTRY + b"\xff\x7f" + b"n" * 16383, id="too-long-for-a-name"),
        pytest.param(ENTRY + b"\x7f", id="cut-off"),
    ],
)
def test_weights_that_look_like_a_location_are_harmless(
    tmp_path: Path, bytes_by_chance: bytes
) -> None:
    weights = np.frombuffer(bytes_by_chance, dtype=np.uint8)
    model = write_model(tmp_path, numpy_helper.from_array(weights, name="w"))
    assert names_of(model) == ["model.onnx"]


def test_the_digest_changes_with_external_weights(tmp_path: Path) -> None:
    model = write_model(tmp_path, stored_in("w"))
    write_files(tmp_path, "w")
    before = weights_digest(model)
    (tmp_path / "w").write_bytes(b"other weights")
    assert weights_digest(model) != before


def test_the_weights_digest_is_the_digest_of_the_files_digests() -> None:
    model = qwen3_nano.model_dir() / "model.onnx"
    read: list[int] = []
    file_digest = hashlib.sha256(model.read_bytes()).digest()
    assert weights_digest(model, read.append) == hashlib.sha256(file_digest).hexdigest()
    assert sum(read) == model.stat().st_size


def test_a_fingerprint_never_changes_for_the_same_space() -> None:
    # Tables of vectors store it: another value here makes every one of them unusable.
    assert SPACE.fingerprint(1024) == "ef1b3c6d99a4a500"


@pytest.mark.parametrize(
    ("versions", "same"), [(["1"], True), (["1", "2"], False), (["2"], False), ([], True)]
)
def test_a_stated_digest_is_bound_to_the_version_that_answers(
    versions: list[str], same: bool
) -> None:
    assert (digest_of_version("stated", versions) == "stated") is same
