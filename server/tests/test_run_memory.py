"""What a run of the model takes: the estimate, what it is compared with, and what is refused."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

import qwen3_nano
from fake_backend import FakeBackend
from qwen3_triton_gateway import memory, run_memory
from qwen3_triton_gateway.backends.onnx import OnnxBackend
from qwen3_triton_gateway.batching import BatchLimits, similar_lengths
from qwen3_triton_gateway.errors import InsufficientMemoryError
from qwen3_triton_gateway.memory import ModelRuns
from qwen3_triton_gateway.run_memory import RunMemory, estimate_run_memory
from qwen3_triton_gateway.tensors import TokenBatch
from qwen3_triton_gateway.text_errors import TextErrors

StartGateway = Callable[..., TestClient]
GIB = 1 << 30
# Prints what a run of each shape added to the resident memory, and the estimate of it.
MEASURE = """
import asyncio, sys
from pathlib import Path
import numpy as np
from qwen3_triton_gateway.backends.onnx import OnnxBackend
from qwen3_triton_gateway.backends.openvino import OpenVinoBackend
from qwen3_triton_gateway.tensors import TokenBatch

def resident(field):
    status = Path("/proc/self/status").read_text()
    return int(status.partition(field)[2].split()[0]) * 1024

async def main():
    engine = {"onnxruntime": OnnxBackend, "openvino": OpenVinoBackend}[sys.argv[1]]
    backend = engine(Path(sys.argv[2]))
    await backend.connect()
    for rows, length in ((1, 16), *[tuple(map(int, shape.split("x"))) for shape in sys.argv[3:]]):
        ids = np.full((rows, length), 7)
        before = resident("VmRSS:")
        Path("/proc/self/clear_refs").write_text("5")
        await backend.infer(TokenBatch(ids, np.ones_like(ids)), timeout_seconds=600, priority=1)
        print(resident("VmHWM:") - before, backend.run_memory.bytes_of(rows, length),
              resident("VmRSS:") - before)

asyncio.run(main())
"""


def measure(engine: str, model: Path, *shapes: str) -> list[tuple[int, int, int]]:
    command = [sys.executable, "-c", MEASURE, engine, str(model), *shapes]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [tuple(map(int, line.split())) for line in out.splitlines()]
    return [(peak, estimate, kept) for peak, estimate, kept in rows[1:]]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_estimate_is_what_onnx_runtime_takes_and_returns() -> None:
    [(peak, estimate, kept)] = measure("onnxruntime", qwen3_nano.model_dir(), "1x2048")
    assert 0.5 * estimate < peak < 1.05 * estimate
    assert kept < 0.3 * estimate


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_estimate_bounds_what_openvino_takes_without_scores() -> None:
    [(peak, estimate, _)] = measure("openvino", qwen3_nano.model_dir(), "1x2048")
    assert peak < 1.05 * estimate
    assert estimate < 8 * 2048**2 * 4  # one copy of the scores


async def run(backend: OnnxBackend, rows: int, length: int) -> None:
    ids = np.full((rows, length), 7)
    batch = TokenBatch(ids, np.ones_like(ids))
    await backend.infer(batch, timeout_seconds=60, priority=1)


async def test_a_text_that_does_not_fit_is_refused_before_it_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: GIB)
    backend = OnnxBackend(qwen3_nano.model_dir())
    await backend.connect()
    with pytest.raises(InsufficientMemoryError) as error:
        await run(backend, 1, 27_000)
    assert error.value.message.startswith(
        "A text of 27,000 tokens takes about 58.3 GB of memory, and 1.1 GB are "
        "available. Send shorter texts, lower EMBED_MAX_LENGTH so that they are truncated"
    )
    await run(backend, 1, 1024)


def test_the_error_of_a_request_names_its_text() -> None:
    refused = TextErrors("text", "embedded", "vector").failed(3, InsufficientMemoryError("Why."))
    assert (refused.status, refused.index, refused.code) == (413, 3, "insufficient_memory")
    assert refused.message == "Text 3 could not be embedded, even alone. Why."


def test_runs_wait_for_each_other_s_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: GIB)
    runs = ModelRuns()
    started = threading.Event()

    def second() -> None:
        with runs.room_for(1, 8, GIB // 2 + 1):
            started.set()

    with runs.room_for(1, 8, GIB // 2):
        other = threading.Thread(target=second)
        other.start()
        with runs.room_for(1, 8, 1):
            assert not started.is_set()
    other.join(timeout=10)
    assert started.is_set()


def test_a_batch_is_bounded_by_the_square_of_its_length() -> None:
    scores = RunMemory(token_bytes=0, pair_bytes=8)
    limits = BatchLimits(32, 8192, 1024, scores, max_batch_bytes=2 * 8 * 512**2)
    assert len(similar_lengths([512] * 16, 0, limits)) == 2
    assert len(similar_lengths([128] * 64, 0, limits)) == 32
    assert len(similar_lengths([1024] * 2, 0, limits)) == 1


@pytest.mark.parametrize("max_bytes", [1, 10**6, 3 * 10**9])
def test_the_longest_text_is_the_longest_that_fits(max_bytes: int) -> None:
    for run in (RunMemory(70_000, 133), RunMemory(70_000, 0)):
        longest = run.longest_text(max_bytes)
        assert run.bytes_of(1, longest) <= max_bytes < run.bytes_of(1, longest + 1)


def test_a_model_without_a_configuration_has_the_sizes_of_the_family() -> None:
    def estimate(hidden_size: int, *, fuses: bool = False) -> RunMemory:
        return estimate_run_memory(
            {},
            output_bytes=0,
            hidden_size=hidden_size,
            operators={"GroupQueryAttention" if fuses else "Softmax"},
            fuses_softmax=False,
            is_float16=False,
        )

    assert estimate(1024) == estimate(2) == RunMemory(78_336, 150)
    assert estimate(2560).pair_bytes == 294
    assert estimate(1024, fuses=True).pair_bytes == 0


def test_a_gateway_warns_of_a_length_that_does_not_fit(
    start_gateway: StartGateway, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.run_memory = RunMemory(token_bytes=1 << 30, pair_bytes=1 << 30)
    start_gateway(EMBED_MAX_LENGTH=4096)
    assert "EMBED_MAX_LENGTH is 4,096, but the" in caplog.text
    assert "refused with status 413" in caplog.text


@pytest.mark.parametrize(
    ("files", "available"),
    [
        pytest.param({"max": "max", "current": 1, "stat": ""}, 9 * GIB, id="no limit"),
        pytest.param({"max": 4 * GIB, "current": GIB, "stat": "anon 5"}, 3 * GIB, id="a limit"),
        pytest.param(
            {"max": 4 * GIB, "current": 4 * GIB, "stat": f"inactive_file {GIB}\nslab 1"},
            GIB,
            id="files in memory",
        ),
        pytest.param({"max": GIB, "current": 2 * GIB, "stat": ""}, 0, id="more than the limit"),
    ],
)
def test_what_is_available_is_the_least_of_the_machine_and_the_container(
    files: dict[str, int | str], available: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in files.items():
        (tmp_path / f"memory.{name}").write_text(f"{content}\n")
    (tmp_path / "own").write_text("0::/\n")
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {9 * GIB // 1024} kB\n")
    monkeypatch.setattr(run_memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(run_memory, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(run_memory, "MEMORY_INFO", tmp_path / "meminfo")
    assert run_memory.available_bytes() == available
