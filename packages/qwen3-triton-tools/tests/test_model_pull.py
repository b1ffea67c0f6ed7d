"""`model pull` against a hub on this machine, through the hub's own library."""

from __future__ import annotations

import hashlib
import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from huggingface_hub import constants
from onnx import TensorProto, helper, numpy_helper

from fake_hub import COMMIT, FakeHub, serving_hub
from onnx_exports import write_export
from qwen3_triton_gateway.cli import main
from qwen3_triton_tools.errors import ModelError
from qwen3_triton_tools.model import hub_selection
from qwen3_triton_tools.model.hub import KNOWN_REPOS
from qwen3_triton_tools.model.pulling import (
    MANIFEST_NAME,
    PullRequest,
    pull_model,
    read_manifest,
)

PLAIN = "zhiqing/Qwen3-Embedding-0.6B-ONNX"
MANY = "onnx-community/Qwen3-Embedding-0.6B-ONNX"
ROWS = 4096
# The library writes pieces of this size, by default 10 MB.
PIECE_BYTES = 16_384


def export(folder: Path, name: str = "model.onnx", weights: str = "") -> dict[str, bytes]:
    """Make a small graph, its weights in a file of their own where that is named."""
    folder.mkdir(exist_ok=True)
    table = np.arange(ROWS * 8, dtype=np.float32).reshape(ROWS, 8)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        "tiny",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["b", "l", 8])],
        [numpy_helper.from_array(table, "table")],
    )
    options: dict[str, Any] = {"save_as_external_data": True, "location": weights}
    onnx.save_model(helper.make_model(graph), folder / name, **(options if weights else {}))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


TOKENIZER = {
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b"{}",
    "config.json": b'{"hidden_size": 8}',
    "README.md": b"# An export",
    "vocab.json": b"{}",
}


@pytest.fixture(name="hub")
def _hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", PIECE_BYTES)
    with serving_hub() as hub:
        plain = export(tmp_path / "plain", weights="model.onnx_data")
        many = export(tmp_path / "full", weights="model.onnx_data")
        many |= export(tmp_path / "half", "model_fp16.onnx", weights="model_fp16.onnx_data")
        hub.repos[PLAIN] = plain | TOKENIZER
        hub.repos[MANY] = {f"onnx/{name}": content for name, content in many.items()} | TOKENIZER
        yield hub
        huggingface_hub.close_session()


def pull(hub: FakeHub, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["model", "pull", "--endpoint", hub.url, *arguments])


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_repository_becomes_a_folder_that_can_be_served(hub: FakeHub, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    result = pull(hub, PLAIN, "--to", str(folder), "--json")
    assert result.exit_code == 0, result.output
    expected = {"model.onnx", "model.onnx_data", *list(TOKENIZER)[:3]}
    assert names(folder) == expected | {MANIFEST_NAME}
    for name in expected:
        assert (folder / name).read_bytes() == hub.repos[PLAIN][name]
        assert not (folder / name).is_symlink()
    assert json.loads(result.stdout)["revision"] == COMMIT


def test_the_manifest_names_repository_commit_sizes_and_checksums(
    hub: FakeHub, tmp_path: Path
) -> None:
    assert pull(hub, PLAIN, "--to", str(tmp_path / "model")).exit_code == 0
    manifest = read_manifest(tmp_path / "model")
    assert manifest is not None
    assert (manifest.repo, manifest.revision) == (PLAIN, COMMIT)
    for file in manifest.files:
        content = hub.repos[PLAIN][file.source]
        assert file.size_bytes == len(content)
        assert file.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("flags", "source", "weights"),
    [
        ((), "onnx/model.onnx", "model.onnx_data"),
        (("--variant", "fp32"), "onnx/model.onnx", "model.onnx_data"),
        (("--variant", "fp16"), "onnx/model_fp16.onnx", "model_fp16.onnx_data"),
    ],
)
def test_of_many_variants_one_is_fetched_and_becomes_model_onnx(
    hub: FakeHub, tmp_path: Path, flags: tuple[str, ...], source: str, weights: str
) -> None:
    folder = tmp_path / "model"
    result = pull(hub, MANY, "--to", str(folder), *flags)
    assert result.exit_code == 0, result.output
    assert (folder / "model.onnx").read_bytes() == hub.repos[MANY][source]
    assert {name for name in names(folder) if "data" in name} == {weights}
    onnx.load(folder / "model.onnx")  # finds its weights next to it


def test_an_unknown_variant_is_answered_by_those_that_exist(hub: FakeHub, tmp_path: Path) -> None:
    result = pull(hub, MANY, "--to", str(tmp_path / "model"), "--variant", "int3")
    assert result.exit_code == 1
    assert "'int3'" in result.output
    assert "onnx/model.onnx, onnx/model_fp16.onnx" in result.output


def test_weights_are_found_by_the_name_that_the_graph_has_for_them(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.repos["a/b"] = export(tmp_path / "odd", weights="tensors.bin") | TOKENIZER
    assert pull(hub, "a/b", "--to", str(tmp_path / "model")).exit_code == 0
    assert "tensors.bin" in names(tmp_path / "model")
    del hub.repos["a/b"]["tensors.bin"]
    result = pull(hub, "a/b", "--to", str(tmp_path / "other"))
    assert result.exit_code == 1
    assert "has its weights in tensors.bin, which the repository lacks" in result.output


def test_a_reranker_is_fetched_and_its_settings_are_named(hub: FakeHub, tmp_path: Path) -> None:
    name = "someone/Qwen3-Reranker-0.6B-ONNX"
    hub.repos[name] = hub.repos[PLAIN]
    result = pull(hub, name, "--to", str(tmp_path / "model"))
    assert result.exit_code == 0, result.output
    assert f"RERANK_MODEL_DIR={tmp_path / 'model'} qwen3-triton serve" in result.output
    hub.repos[name] = TOKENIZER
    result = pull(hub, name, "--to", str(tmp_path / "other"))
    assert "--task text-generation" in result.output


def test_other_files_come_where_they_are_asked_for(hub: FakeHub, tmp_path: Path) -> None:
    flags = ("--include", "*.md", "--include", "vocab.*")
    assert pull(hub, PLAIN, "--to", str(tmp_path / "model"), *flags).exit_code == 0
    assert {"README.md", "vocab.json"} <= names(tmp_path / "model")


def test_an_interrupted_download_is_resumed_within_the_run(hub: FakeHub, tmp_path: Path) -> None:
    hub.cuts = [2 * PIECE_BYTES + 100]
    folder = tmp_path / "model"
    assert pull(hub, PLAIN, "--to", str(folder)).exit_code == 0
    assert f"bytes={2 * PIECE_BYTES}-" in hub.ranges
    assert (folder / "model.onnx_data").read_bytes() == hub.repos[PLAIN]["model.onnx_data"]


def test_an_interrupted_run_is_resumed_by_the_next(hub: FakeHub, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    hub.cuts, hub.down = [3 * PIECE_BYTES + 100], True
    result = pull(hub, PLAIN, "--to", str(folder))
    assert result.exit_code == 1
    assert "Run the command again to resume where it stopped" in result.output
    assert read_manifest(folder) is None
    hub.down = False
    hub.ranges.clear()
    assert pull(hub, PLAIN, "--to", str(folder)).exit_code == 0
    assert f"bytes={3 * PIECE_BYTES}-" in hub.ranges
    assert (folder / "model.onnx_data").read_bytes() == hub.repos[PLAIN]["model.onnx_data"]
    assert not [name for name in names(folder) if "incomplete" in name]


def test_a_disk_that_fills_up_is_named_and_the_next_run_resumes(
    hub: FakeHub, tmp_path: Path
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * PIECE_BYTES, limits[1]))
    try:
        result = pull(hub, PLAIN, "--to", str(tmp_path / "model"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.exit_code == 1
    assert "File too large. Free some space, or choose another disk." in result.output
    assert "HF_ENDPOINT" not in result.output
    assert pull(hub, PLAIN, "--to", str(tmp_path / "model")).exit_code == 0
    assert f"bytes={3 * PIECE_BYTES}-" in hub.ranges


def test_a_later_run_checks_the_files_and_fixes_them(hub: FakeHub, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert pull(hub, PLAIN, "--to", str(folder)).exit_code == 0
    hub.downloads.clear()
    assert "5 of 5 files are already complete" in pull(hub, PLAIN, "--to", str(folder)).output
    assert hub.downloads == []
    damaged = bytearray((folder / "model.onnx_data").read_bytes())
    damaged[100] ^= 1
    (folder / "model.onnx_data").write_bytes(damaged)
    (folder / "tokenizer.json").unlink()
    assert pull(hub, PLAIN, "--to", str(folder)).exit_code == 0
    assert sorted(hub.downloads) == ["model.onnx_data", "tokenizer.json"]
    assert (folder / "model.onnx_data").read_bytes() == hub.repos[PLAIN]["model.onnx_data"]


@pytest.mark.parametrize("name", ["model.onnx_data", "tokenizer.json"])
def test_a_wrong_checksum_is_refused_and_leaves_nothing(
    hub: FakeHub, tmp_path: Path, name: str
) -> None:
    hub.corrupt = {name}
    result = pull(hub, PLAIN, "--to", str(tmp_path / "model"))
    assert result.exit_code == 1
    assert f"{name} of {PLAIN} has another checksum" in result.output
    assert not [file for file in names(tmp_path / "model") if name in file]


def test_too_little_disk_space_is_reported_before_anything_is_fetched(
    hub: FakeHub, tmp_path: Path
) -> None:
    wanted = PullRequest(PLAIN, tmp_path / "model")
    with pytest.raises(ModelError, match=r"has 131\.\d kB, but only 1\.0 kB are free"):
        pull_model(wanted, endpoint=hub.url, report=print, free=lambda _: 1000)
    assert hub.downloads == []


def test_a_folder_keeps_one_model(hub: FakeHub, tmp_path: Path) -> None:
    folder = str(tmp_path / "model")
    assert pull(hub, MANY, "--to", folder).exit_code == 0
    for arguments in ((PLAIN,), (MANY, "--variant", "fp16")):
        result = pull(hub, *arguments, "--to", folder)
        assert result.exit_code == 1
        assert f"contains onnx/model.onnx of {MANY}" in result.output


def test_a_missing_repository_is_answered_by_known_ones(hub: FakeHub, tmp_path: Path) -> None:
    result = pull(hub, "nobody/nothing", "--to", str(tmp_path / "model"))
    assert result.exit_code == 1
    assert "no repository nobody/nothing" in result.output
    assert KNOWN_REPOS[0] in result.output


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_is_answered_by_how_to_get_in(
    hub: FakeHub, tmp_path: Path, status: int
) -> None:
    hub.gated[PLAIN] = status
    result = pull(hub, PLAIN, "--to", str(tmp_path / "model"))
    assert result.exit_code == 1
    for words in ("is gated", f"https://huggingface.co/{PLAIN}", "hf auth login", "HF_TOKEN"):
        assert words in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((PLAIN, "--revision", "v9"), "no revision 'v9'"),
        (("not a name",), "is not the name of a repository"),
        (("empty/repo",), "has no ONNX file"),
        (("bare/repo",), "has no tokenizer.json"),
    ],
)
def test_what_cannot_be_fetched_is_explained(
    hub: FakeHub, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    hub.repos |= {"empty/repo": {"README.md": b""}, "bare/repo": {"model.onnx": b"x"}}
    result = pull(hub, *arguments, "--to", str(tmp_path / "model"))
    assert result.exit_code == 1
    assert words in result.output


def test_a_hub_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    with serving_hub() as gone:
        pass
    result = pull(gone, PLAIN, "--to", str(tmp_path / "model"))
    huggingface_hub.close_session()
    assert result.exit_code == 1
    assert f"Fetching {PLAIN} failed" in result.output


def inspect(hub: FakeHub, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["model", "inspect", "--endpoint", hub.url, *arguments])


def test_a_repository_is_inspected_without_its_weights(hub: FakeHub, tmp_path: Path) -> None:
    write_export(tmp_path / "nano")
    files = {path.name: path.read_bytes() for path in (tmp_path / "nano").iterdir()}
    hub.repos["a/nano"] = files
    remote, local = inspect(hub, "a/nano", "--json"), inspect(hub, str(tmp_path / "nano"), "--json")
    assert (remote.exit_code, local.exit_code) == (0, 0), remote.output
    documents = [json.loads(result.stdout) for result in (remote, local)]
    for document in documents:
        del document["path"], document["tokenizer"]["path"]
    # Only what is here can run.
    probes = [document.pop("probe") for document in documents]
    assert probes[0] is None
    assert probes[1]["pooling"] == "last_token"
    assert documents[0] == documents[1]
    assert not any("model.onnx_data" in path for path in hub.downloads)


def test_a_repository_that_lacks_weights_is_refused(hub: FakeHub) -> None:
    del hub.repos[PLAIN]["model.onnx_data"]
    result = inspect(hub, PLAIN)
    assert result.exit_code == 1
    assert "has its weights in model.onnx_data, which the repository lacks" in result.output


def test_a_repository_whose_graph_holds_the_weights_is_for_pull(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_selection, "MAX_GRAPH_BYTES", 100)
    result = inspect(hub, PLAIN)
    assert result.exit_code == 1
    assert f"`qwen3-triton model pull {PLAIN}`" in result.output
