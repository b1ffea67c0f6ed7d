"""What the backend on OpenVINO computes, and in which precision."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qwen3_nano
from embed_call import cosines
from qwen3_triton_gateway.backends import choose_backend
from qwen3_triton_gateway.backends.engines import X86, Machine
from qwen3_triton_gateway.backends.onnx import OnnxBackend
from qwen3_triton_gateway.backends.openvino import OpenVinoBackend
from qwen3_triton_gateway.batching import pad_batch
from qwen3_triton_gateway.errors import BackendError, StartupError
from qwen3_triton_gateway.openvino_model import OpenVinoModel, has_int8_weights
from qwen3_triton_gateway.pooling import l2_normalize, vectors_of
from qwen3_triton_gateway.settings import Precision, Settings
from qwen3_triton_gateway.tensors import Float32Matrix, TokenBatch
from qwen3_triton_gateway.tokenization import TextTokenizer
from tolerances import BFLOAT16_COSINE, FLOAT32_COSINE, INT8_COSINE

GOLDEN = np.load(qwen3_nano.golden_path(), allow_pickle=False)
# Of 2 to 1,024 tokens, in no order of length.
SAMPLE = slice(0, None, 4)
TEXTS: list[str] = GOLDEN["texts"][SAMPLE].tolist()
GOLDEN_VECTORS = GOLDEN["vectors"][SAMPLE]
TOLERANCES: dict[Precision, float] = {
    "float32": FLOAT32_COSINE,
    "bfloat16": BFLOAT16_COSINE,
    "int8": INT8_COSINE,
}
NANO = qwen3_nano.model_dir()


def needs(precision: Precision) -> None:
    if precision in ("bfloat16", "int8") and (obstacle := Machine.this().why_not(precision)):
        pytest.skip(f"{precision}: {obstacle}")


@pytest.fixture(name="tokenizer", scope="module")
def _tokenizer() -> TextTokenizer:
    return TextTokenizer(NANO, max_length=1024)


async def embed(
    backend: OpenVinoBackend, tokenizer: TextTokenizer, texts: Sequence[str]
) -> Float32Matrix:
    """Embed the texts in one batch."""
    pad = tokenizer.end_token_id
    batch = pad_batch(tokenizer.encode(texts), pad_token_id=pad, max_length=1024)
    states = await backend.infer(batch, timeout_seconds=120, priority=2)
    return l2_normalize(vectors_of(states, batch.attention_mask))


@pytest.mark.parametrize("precision", TOLERANCES)
async def test_vectors_match_the_reference_implementation_in_any_batch(
    precision: Precision, tokenizer: TextTokenizer
) -> None:
    needs(precision)
    backend = OpenVinoBackend(NANO, precision=precision)
    assert (await backend.connect()).precision == precision
    alone = np.concatenate([await embed(backend, tokenizer, [text]) for text in TEXTS])
    parts = [TEXTS[start : start + 6] for start in range(0, len(TEXTS), 6)]
    together = np.concatenate([await embed(backend, tokenizer, part) for part in parts])
    await backend.close()
    assert cosines(alone, GOLDEN_VECTORS).min() >= TOLERANCES[precision]
    assert cosines(together, GOLDEN_VECTORS).min() >= TOLERANCES[precision]
    assert cosines(together, alone).min() >= TOLERANCES[precision]


def write_graph(
    folder: Path,
    *,
    table: type[np.generic] = np.float32,
    matrix: type[np.generic] = np.float32,
) -> Path:
    """Write a graph that looks tokens up in a table of 100, and multiplies by a matrix."""
    random = np.random.default_rng(1)
    weights = {
        "table": (40 * random.normal(size=(100, 64))).astype(table),
        "matrix": (40 * random.normal(size=(64, 64))).astype(matrix),
    }
    tokens = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["rows"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["matrix"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["floats", "factor"], ["last_hidden_state"]),
    ]
    states = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["b", "l", 64])
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", tokens, [states], tensors)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "model.onnx")
    return folder


async def test_int8_needs_weights_in_int8(tmp_path: Path) -> None:
    needs("int8")
    write_graph(tmp_path)
    with pytest.raises(StartupError, match=r"are not int8\..*qwen3-triton model quantize"):
        await OpenVinoBackend(tmp_path, precision="int8").connect()
    write_graph(tmp_path, matrix=np.int8)
    await OpenVinoBackend(tmp_path, precision="int8").connect()


@pytest.mark.parametrize("table", [np.float32, np.int8])
@pytest.mark.parametrize(("matrix", "expected"), [(np.float32, False), (np.int8, True)])
def test_a_table_of_tokens_in_int8_does_not_make_a_quantized_model(
    tmp_path: Path, table: type[np.generic], matrix: type[np.generic], expected: bool
) -> None:
    path = write_graph(tmp_path, table=table, matrix=matrix) / "model.onnx"
    assert has_int8_weights(OpenVinoModel(path).model) == expected


@pytest.mark.parametrize("token", [100, 10**7, -101])
async def test_a_token_that_the_model_lacks_is_refused(tmp_path: Path, token: int) -> None:
    backend = OpenVinoBackend(write_graph(tmp_path))
    await backend.connect()
    batch = TokenBatch(np.array([[1, token]]), np.array([[1, 1]]))
    with pytest.raises(BackendError, match=f"token ID {token} is outside of its 100 tokens"):
        await backend.infer(batch, timeout_seconds=10, priority=1)


async def test_a_file_that_openvino_cannot_read_does_not_start(tmp_path: Path) -> None:
    node = helper.make_node("NoSuchOperator", ["input_ids"], ["last_hidden_state"])
    value = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "l"])
    states = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["b", "l", 64])
    onnx.save(
        helper.make_model(helper.make_graph([node], "g", [value], [states])), tmp_path / "m.onnx"
    )
    with pytest.raises(StartupError, match="OpenVINO cannot"):
        await OpenVinoBackend(tmp_path).connect()


async def test_a_compiled_model_is_kept_by_the_digest_of_its_weights(tmp_path: Path) -> None:
    model_dir, cache = tmp_path / "model", tmp_path / "cache"
    model_dir.mkdir()
    digests: list[str] = []
    for table in (np.float32, np.int8):
        backend = OpenVinoBackend(write_graph(model_dir, table=table), cache_dir=cache)
        digests.append((await backend.connect()).weights_digest)
    assert {folder.name for folder in cache.iterdir()} == {digest[:16] for digest in digests}
    assert all(list(folder.iterdir()) for folder in cache.iterdir())


async def test_a_folder_for_compiled_models_that_cannot_be_is_named_by_its_setting(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        StartupError, match=r"EMBED_ENGINE_CACHE_DIR cannot be used.*Not a directory"
    ):
        await OpenVinoBackend(NANO, cache_dir=tmp_path / "file").connect()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("start", ["first", "cached"])
async def test_weights_of_a_compiled_model_are_resident_once(
    start: str, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    if start == "cached":
        await OpenVinoBackend(NANO, cache_dir=tmp_path).connect()
    backend = OpenVinoBackend(NANO, cache_dir=tmp_path)
    await assert_weights_are_resident_once(backend, tokenizer, tmp_path)


def write_with_weights(folder: Path) -> Path:
    """Write the nano model with its weights in a file of their own, and return that."""
    folder.mkdir()
    onnx.save_model(
        onnx.load(NANO / "model.onnx"),
        folder / "model.onnx",
        save_as_external_data=True,
        location="weights",
    )
    return folder / "weights"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_weights_next_to_the_graph_are_resident_once(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    folder = write_with_weights(tmp_path / "model").parent
    await assert_weights_are_resident_once(OpenVinoBackend(folder), tokenizer, folder)


@pytest.fixture(name="snapshot")
def _snapshot(tmp_path: Path) -> Path:
    """A folder as in the cache of a model hub: links to files in another one."""
    snapshot, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    blobs.mkdir()
    write_with_weights(snapshot)
    for number, file in enumerate(list(snapshot.iterdir())):
        file.symlink_to(file.rename(blobs / str(number)))
    return snapshot


async def test_weights_behind_a_link_out_of_the_folder_are_refused_with_a_remedy(
    snapshot: Path,
) -> None:
    values: dict[str, Any] = {"EMBED_MODEL_DIR": snapshot, "EMBED_ENGINE": "openvino"}
    with pytest.raises(StartupError, match="Copy the folder with `cp -rL`"):
        await choose_backend(Settings(**values)).connect()


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
async def test_where_only_the_weights_are_a_link_no_engine_that_refuses_them_too_is_recommended(
    snapshot: Path, engine: str
) -> None:
    model = snapshot / "model.onnx"
    content = model.read_bytes()
    model.unlink()
    model.write_bytes(content)
    values: dict[str, Any] = {"EMBED_MODEL_DIR": snapshot, "EMBED_ENGINE": engine}
    with pytest.raises(StartupError, match=r"Copy .* with `cp -rL`") as refused:
        await choose_backend(Settings(**values)).connect()
    assert "set EMBED_ENGINE" not in str(refused.value)


@pytest.mark.skipif(Machine.this().architecture not in X86, reason="auto is ONNX Runtime anyway")
async def test_onnx_runtime_serves_weights_behind_a_link_out_of_the_folder(
    snapshot: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values: dict[str, Any] = {"EMBED_MODEL_DIR": snapshot}
    caplog.set_level(logging.INFO)
    backend = choose_backend(Settings(**values))
    assert isinstance(backend, OnnxBackend)
    assert "does not read weights through a link out of the model's folder" in caplog.text
    await backend.connect()
    await backend.close()


async def assert_weights_are_resident_once(
    backend: OpenVinoBackend, tokenizer: TextTokenizer, folder: Path
) -> None:
    """Check that little is left in memory of the files that a backend has mapped from a folder."""
    await backend.connect()
    before = await embed(backend, tokenizer, TEXTS[:8])
    file_bytes = mapped_bytes(folder, "Size")
    assert file_bytes > 0
    assert mapped_bytes(folder, "Rss") < file_bytes / 2
    np.testing.assert_array_equal(await embed(backend, tokenizer, TEXTS[:8]), before)


def mapped_bytes(folder: Path, field: str) -> int:
    """Add up a field of this process's mappings of the files in a folder."""
    total, is_counted = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *values = line.split(maxsplit=5)
        if not name.endswith(":"):
            is_counted = bool(values) and values[-1].startswith(f"{folder}/")
        elif is_counted and name == f"{field}:":
            total += int(values[0]) << 10
    return total


def test_nothing_is_sent_or_written_when_openvino_is_imported(tmp_path: Path) -> None:
    """Importing it alone would send an event, and write an identifier to the home folder."""
    code = (
        "import asyncio, socket, sys, qwen3_nano\n"
        "def refuse(*arguments): raise SystemExit(f'connects to {arguments}')\n"
        "socket.getaddrinfo = socket.create_connection = refuse\n"
        "from qwen3_triton_gateway.backends.openvino import OpenVinoBackend\n"
        "asyncio.run(OpenVinoBackend(qwen3_nano.model_dir()).connect())\n"
        "print('openvino_telemetry.main' in sys.modules)\n"
    )
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, env=home, capture_output=True, text=True
    )
    assert done.stdout.split() == ["False"]
    assert list(tmp_path.rglob("*")) == []


async def test_a_closed_model_is_not_run(tmp_path: Path) -> None:
    backend = OpenVinoBackend(write_graph(tmp_path))
    await backend.connect()
    assert await backend.is_ready()
    await backend.close()
    assert not await backend.is_ready()
    await asyncio.sleep(0)
