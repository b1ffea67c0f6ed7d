"""What torch's default exporter writes, fetched, deployed, and told from another model."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from exported_models import HIDDEN_SIZE
from served_product import embed, info, product, running

from fake_hub import serving_hub

TEXTS = ["tea", "What is the capital of China?", "word " * 40]
REPO = "someone/Qwen3-Embedding-ONNX"


def test_a_dynamo_export_is_fetched_from_a_hub(dynamo_export: Path, tmp_path: Path) -> None:
    with serving_hub() as hub:
        hub.repos[REPO] = {path.name: path.read_bytes() for path in dynamo_export.iterdir()}
        pulled = tmp_path / "pulled"
        document = product(
            *("model", "pull", REPO, "--endpoint", hub.url, "--to", str(pulled), "--json")
        )
    assert {"model.onnx", "model.onnx.data"} <= {file["path"] for file in document["files"]}
    for path in pulled.glob("model.onnx*"):
        assert path.read_bytes() == (dynamo_export / path.name).read_bytes()
    assert product("model", "inspect", str(pulled), "--json")["hidden_size"] == HIDDEN_SIZE


def test_a_dynamo_export_becomes_a_model_repository(dynamo_export: Path, tmp_path: Path) -> None:
    flags = ("--model-name", "m", "--gpu", "cpu", "--json")
    document = product("model", "repository", str(dynamo_export), "-o", str(tmp_path / "r"), *flags)
    assert document["hidden_size"] == HIDDEN_SIZE
    assert document["canary_problem"] is None
    written = tmp_path / "r" / "m" / "1"
    assert {path.name for path in written.iterdir()} == {"model.onnx", "model.onnx.data"}


def test_two_models_of_one_graph_have_different_fingerprints(
    dynamo_export: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(dynamo_export, other)
    weights = np.fromfile(other / "model.onnx.data", np.float32)
    weights[::-1].tofile(other / "model.onnx.data")
    fingerprints: set[str] = set()
    vectors = []
    for path in (dynamo_export, other):
        with running("serve", "--model-dir", path, log=tmp_path / f"{path.name}.log") as url:
            fingerprints.add(info(url)["fingerprint"])
            vectors.append(embed(url, TEXTS))
    assert len(fingerprints) == 2
    assert np.abs((vectors[0] * vectors[1]).sum(axis=1)).max() < 0.9
