"""What the commands leave behind where they may not read or write, or the disk is full."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from onnx_exports import float_weights, write_export
from qwen3_triton_tools.errors import ModelError
from qwen3_triton_tools.model.files import check_place
from qwen3_triton_tools.writing import replacing_folder, temporary_folder

# Root may read and write everything, unless it gives up that capability.
UNPRIVILEGED = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
COMMAND = Path(sys.executable).with_name("qwen3-triton")
KILOBYTE = 1024
REPOSITORY = ("--model-name", "m", "--gpu", "cpu")


def run(*arguments: object, file_bytes: int | None = None) -> tuple[int, str]:
    """Run the command as a user without rights; no file may grow beyond `file_bytes`."""

    def limit() -> None:
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    done = subprocess.run(
        [*UNPRIVILEGED, COMMAND, "model", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        preexec_fn=limit,
    )
    return done.returncode, done.stdout


@pytest.fixture(name="export", scope="module")
def _export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    write_export(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "name", "status"),
    [
        ("inspect", "config.json", 0),  # nothing needs it
        ("inspect", "tokenizer.json", 1),
        ("pool", "model.onnx", 1),
        ("pool", "tokenizer.json", 1),
        ("repository", "model.onnx_data", 1),
        ("verify", "model.onnx_data", 1),
    ],
)
def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, command: str, name: str, status: int
) -> None:
    write_export(tmp_path / "m")
    out = ("-o", tmp_path / "new" / "r")
    options = {"pool": out, "repository": (*out, *REPOSITORY)}.get(command, ())
    (tmp_path / "m" / name).chmod(0)
    code, output = run(command, tmp_path / "m", *options)
    assert code == status
    assert f"{name}: Permission denied. Give this user access" in " ".join(output.split())
    assert "Traceback" not in output
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("command", "options"), [("pool", ()), ("repository", REPOSITORY)])
def test_a_target_that_may_not_be_written_is_named(
    tmp_path: Path, export: Path, command: str, options: tuple[str, ...]
) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    code, output = run(command, export, "-o", tmp_path / "closed" / "new" / "r", *options)
    assert code == 1
    assert "Permission denied. Give this user access" in output
    assert "Traceback" not in output
    assert list((tmp_path / "closed").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "options", "file_bytes"),
    [
        pytest.param("pool", ("--copy",), 0, id="pool"),
        pytest.param("pool", ("--copy",), 600 * KILOBYTE, id="pool-half"),
        pytest.param("repository", ("--copy", *REPOSITORY), 600 * KILOBYTE, id="repository"),
        pytest.param("repository", ("--backend", "python", *REPOSITORY), 0, id="python"),
    ],
)
def test_a_full_disk_leaves_no_pieces(
    tmp_path: Path, export: Path, command: str, options: tuple[str, ...], file_bytes: int
) -> None:
    (tmp_path / "existing").mkdir()
    (tmp_path / "existing" / "file").write_text("of somebody else")
    out = tmp_path / "existing" / "new" / "repository"
    code, output = run(command, export, "-o", out, *options, file_bytes=file_bytes)
    assert code == 1
    assert "File too large. Free some space, or choose another disk." in output
    assert "Traceback" not in output
    assert [path.name for path in tmp_path.rglob("*")] == ["existing", "file"]


@pytest.mark.slow
def test_a_model_is_written_to_a_volume_above_which_nothing_is(tmp_path: Path) -> None:
    export = write_export(tmp_path / "export", weights=float_weights())
    (tmp_path / "closed" / "volume").mkdir(parents=True)
    (tmp_path / "closed").chmod(0o555)
    folder = tmp_path / "closed" / "volume" / "int8"
    code, output = run("quantize", export, "-o", folder, "--texts", 20)
    assert code == 0, output
    assert [path.name for path in folder.parent.iterdir()] == ["int8"]


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path) -> None:
    folder = tmp_path / "parent" / "model"
    folder.mkdir(parents=True)
    (folder / "model.onnx").touch()
    with pytest.raises(ModelError, match="No such file"), replacing_folder(folder) as unfinished:
        unfinished.rmdir()  # and cannot be moved then
    assert [path.name for path in tmp_path.rglob("*")] == ["parent", "model", "model.onnx"]


def test_only_the_folder_of_another_model_is_replaced(tmp_path: Path) -> None:
    model = tmp_path / "model" / "model.onnx"
    for path in (model, tmp_path / "models" / "a" / "model.onnx", tmp_path / "b" / "model.onnx"):
        path.parent.mkdir(parents=True)
        path.touch()
    for folder, problem in (
        (tmp_path / "model", "is in"),
        (tmp_path, "is in"),
        (tmp_path / "models", "no model in it"),
        (tmp_path / "b" / "model.onnx", "is a file"),
    ):
        with pytest.raises(ModelError, match=problem):
            check_place(folder, model, force=True)
    check_place(tmp_path / "b", model, force=True)
    with pytest.raises(ModelError, match="already exists"):
        check_place(tmp_path / "b", model, force=False)


def test_a_temporary_folder_goes_at_the_end(tmp_path: Path) -> None:
    with temporary_folder(tmp_path, "pooled-") as folder:
        (folder / "model.onnx").touch()
    assert not any(tmp_path.iterdir())


def test_a_folder_left_by_a_killed_process_goes_at_the_next_start(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; "
        "from qwen3_triton_tools.writing import temporary_folder; "
        "block = temporary_folder(Path(sys.argv[1]), 'pooled-'); block.__enter__(); "
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path], check=False)
    [left] = tmp_path.iterdir()
    with temporary_folder(tmp_path, "pooled-"):
        assert not left.exists()


def test_neither_a_folder_in_use_nor_what_a_link_leads_to_is_removed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "pooled-link").symlink_to("elsewhere")
    with temporary_folder(tmp_path, "pooled-") as first:
        with temporary_folder(tmp_path, "pooled-"):
            assert first.exists()
        assert (tmp_path / "elsewhere").exists()


def test_a_folder_that_cannot_be_locked_is_an_error_and_not_an_endless_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(ModelError, match="could not be locked"),
        temporary_folder(tmp_path, "pooled-"),
    ):
        pass
    assert not any(tmp_path.iterdir())
