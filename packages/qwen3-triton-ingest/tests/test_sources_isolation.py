"""Files that take too much, crash what reads them, or outlive the loader."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from pdf_files import pdf, pdf_bomb
from qwen3_triton_ingest.config import MIB, ReadOptions
from qwen3_triton_ingest.documents import BadRecord, Document
from qwen3_triton_ingest.sources import conversion, plan_shards, read_shard
from record_files import read, reasons


def test_a_file_that_takes_too_much_memory_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf("Before"))
    (tmp_path / "b.pdf").write_bytes(pdf_bomb(40))
    (tmp_path / "c.pdf").write_bytes(pdf("After"))
    assert (tmp_path / "b.pdf").stat().st_size < MIB
    items = read(tmp_path, max_convert_bytes=100 * MIB)
    assert [getattr(item, "text", None) for item in items] == ["Before", None, "After"]
    assert "`--max-convert-mib`" in reasons(items)[0]
    assert items[1].doc_id == str(tmp_path / "b.pdf")


def test_a_file_that_takes_too_long_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf_bomb(40))
    (tmp_path / "b.pdf").write_bytes(pdf("After"))
    read(tmp_path / "b.pdf")  # the start of a process is not counted
    options = ReadOptions(max_convert_seconds=0.2)
    (shard,) = plan_shards([str(tmp_path)], options)
    bad = next(read_shard(shard, options))
    assert isinstance(bad, BadRecord)
    assert bad.reason == "Reading it took more than 0.2 seconds (`--max-convert-seconds`)."
    assert isinstance(read(tmp_path / "b.pdf")[0], Document)


def test_a_parquet_file_that_unfolds_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": ["one", "x" * (60 * MIB)]})
    parquet.write_table(table, path, compression="zstd", row_group_size=1, use_dictionary=False)
    assert path.stat().st_size < MIB
    (reason,) = reasons(read(path, max_convert_bytes=40 * MIB))
    assert "`--max-convert-mib`" in reason


def test_processes_are_kept_and_replaced_when_they_have_died(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf("Text"))
    conversion.close_idle_processes()
    pids = [_pid_after(path) for _ in range(2)]
    assert pids[0] == pids[1]
    os.kill(pids[0], signal.SIGKILL)
    assert _pid_after(path) != pids[0]


def _pid_after(path: Path) -> int:
    assert isinstance(read(path)[0], Document)
    (process,) = conversion._POOL._idle  # pyright: ignore[reportPrivateUsage]
    return process._process.pid  # pyright: ignore[reportPrivateUsage]


def test_a_source_that_is_left_early_leaves_no_work_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": [f"{n} " + "x" * 1000 for n in range(10_000)]}), path)
    options = ReadOptions()
    conversion.close_idle_processes()
    (shard,) = plan_shards([str(path)], options)
    records = read_shard(shard, options)
    assert isinstance(next(records), Document)
    records.close()
    assert not conversion._POOL._idle  # pyright: ignore[reportPrivateUsage]
    assert len(read(path)) == 10_000


@pytest.mark.parametrize("name", ["a.pdf", "a.txt"])
def test_a_process_ends_with_the_loader_and_leaves_no_files(tmp_path: Path, name: str) -> None:
    """Killed while a file is being read, and while the process is idle."""
    path = tmp_path / name
    path.write_bytes(pdf_bomb(150) if name == "a.pdf" else b"Text")
    script = f"""
import os, threading
from qwen3_triton_ingest.config import ReadOptions
from qwen3_triton_ingest.sources import conversion, plan_shards, read_shard
started = conversion._Process.start
def start(process, request):
    started(process, request)
    print(process._process.pid, flush=True)
    if {name == "a.pdf"}:
        os.kill(os.getpid(), 9)
conversion._Process.start = start
options = ReadOptions()
for shard in plan_shards([{str(path)!r}], options):
    list(read_shard(shard, options))
os.kill(os.getpid(), 9)
"""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        timeout=200,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout.split()[0])
    while _is_running(pid):
        time.sleep(0.05)
    assert not list(temporary.iterdir())


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_files_of_the_working_folder_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pickle.py").write_text("raise SystemExit('imported')")
    (tmp_path / "a.txt").write_text("Text")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    conversion.close_idle_processes()
    assert isinstance(read(Path("a.txt"))[0], Document)
