"""What a container's limits leave: threads for a quota of CPU time."""

import math
import os
from pathlib import Path

import pytest

from qwen3_triton_gateway import container, run_memory
from qwen3_triton_gateway.backends.onnx import OnnxBackend

V1_QUOTA, V1_PERIOD = "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        pytest.param({}, 8, id="no control groups"),
        pytest.param({"cpu.max": "max 100000"}, 8, id="no quota"),
        pytest.param({"cpu.max": "150000 100000"}, 2, id="version 2"),
        pytest.param({"cpu.max": "20000 100000"}, 1, id="less than a core"),
        pytest.param({"cpu.max": "1600000 100000"}, 8, id="more than the cores"),
        pytest.param({V1_QUOTA: "300000", V1_PERIOD: "100000"}, 3, id="version 1"),
        pytest.param({V1_QUOTA: "-1", V1_PERIOD: "100000"}, 8, id="version 1, no quota"),
        pytest.param({V1_QUOTA: "300000", V1_PERIOD: "0"}, 8, id="not a quota"),
    ],
)
def test_an_engine_gets_as_many_threads_as_a_quota_pays_for(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")
    (tmp_path / "own").write_text("4:cpu,cpuacct:/\n0::/\n")
    monkeypatch.setattr(run_memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(run_memory, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(container, "core_count", lambda: 8)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert container.usable_cores() == cores
    assert container.thread_count(5) == 5
    # Without a quota the engine decides: it knows which cores share their arithmetic.
    assert container.thread_count(0) == (cores if cores < 8 else 0)


def test_an_engine_gets_no_threads_for_cores_that_this_process_may_not_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ONNX Runtime would start one for each core of the machine, and fail to pin it."""
    monkeypatch.setattr(container, "cpu_quota", lambda: math.inf)
    monkeypatch.setattr(container, "core_count", lambda: 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert container.thread_count(0) == 4


def test_the_engine_in_this_process_is_started_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "usable_cores", lambda: 3)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    backends = OnnxBackend(tmp_path), OnnxBackend(tmp_path, threads=7)
    assert [backend._threads for backend in backends] == [3, 7]
