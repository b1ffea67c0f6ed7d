"""What `qwen3-triton tune` tries, in which order, and what of it is recommended."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import qwen3_nano
from onnx_exports import float_weights, write_export
from polling import wait_for
from qwen3_triton_gateway.backends.engines import INSTRUCTIONS, Machine
from qwen3_triton_gateway.cli import main
from qwen3_triton_tools.commands.tune import FIRST_LINE
from qwen3_triton_tools.tune import machine, search
from qwen3_triton_tools.tune.candidates import (
    Candidate,
    Result,
    batch_candidates,
    choose_best,
    engine_candidates,
    thread_candidates,
)
from qwen3_triton_tools.tune.gateway import CandidateError, Pass
from qwen3_triton_tools.tune.search import Outcome, Search, Workload
from qwen3_triton_tools.tune.texts import mixed_texts, spread_sample
from qwen3_triton_tools.verify.loss import Loss

MODERN = Machine(
    architecture="x86_64",
    instructions=frozenset({INSTRUCTIONS["bfloat16"][0], INSTRUCTIONS["int8"][0]}),
    max_isa="",
    has_openvino=True,
)
CLOSE = Loss(texts=24, lowest_cosine=0.9999, mean_cosine=0.9999, overlap=0.99)
FAR = replace(CLOSE, lowest_cosine=0.6)
SHUFFLED = replace(CLOSE, overlap=0.7)
ONNX_RUNTIME = Candidate("onnxruntime", "float32")
BFLOAT16 = Candidate("openvino", "bfloat16")
INT8 = Candidate("openvino", "int8")


def list_engines(machine: Machine = MODERN, **options: Any) -> dict[str, str]:
    """Return the problem of each candidate by its name."""
    defaults: dict[str, Any] = {
        "has_onnxruntime": True,
        "precision": None,
        "int8_dir": None,
        "tries_int8": False,
    }
    results = engine_candidates(machine, **(defaults | options))
    return {result.candidate.name: result.problem for result in results}


def test_int8_is_tried_on_request_only() -> None:
    usual = ["ONNX Runtime, float32", "OpenVINO, float32", "OpenVINO, bfloat16"]
    assert list(list_engines()) == usual
    assert list(list_engines(tries_int8=True)) == [*usual, "OpenVINO, int8"]


def test_what_cannot_run_here_has_a_reason() -> None:
    without = list_engines(replace(MODERN, has_openvino=False), has_onnxruntime=False)
    assert all("pip install" in problem for problem in without.values())
    masked = list_engines(replace(MODERN, max_isa="AVX2"), tries_int8=True)
    assert masked["OpenVINO, float32"] == ""
    assert masked["OpenVINO, bfloat16"] == "ONEDNN_MAX_CPU_ISA is AVX2"
    assert masked["OpenVINO, int8"] == "ONEDNN_MAX_CPU_ISA is AVX2"


def test_a_single_precision_is_compared_with_float32() -> None:
    assert list(list_engines(precision="bfloat16")) == [
        "ONNX Runtime, float32",
        "OpenVINO, bfloat16",
    ]
    assert "OpenVINO, float32" in list_engines(precision="bfloat16", has_onnxruntime=False)


@pytest.mark.parametrize(
    ("best", "cores", "expected"),
    [
        pytest.param(BFLOAT16, 1, [], id="one core"),
        pytest.param(BFLOAT16, 2, [1], id="two cores"),
        pytest.param(BFLOAT16, 16, [15, 8], id="16 cores"),
        pytest.param(ONNX_RUNTIME, 16, [16, 15, 8], id="ONNX Runtime takes physical cores"),
        pytest.param(replace(BFLOAT16, threads=4), 4, [3, 2], id="a quota"),
    ],
)
def test_numbers_of_threads_are_those_that_may_be_faster(
    best: Candidate, cores: int, expected: list[int]
) -> None:
    assert [candidate.threads for candidate in thread_candidates(best, cores)] == expected


@pytest.mark.parametrize(
    ("tokens_per_second", "expected"),
    [(1e6, [4096, 2048]), (30_000, [2048, 1024]), (2_641, [128, 64]), (900, [64]), (300, [])],
)
def test_batches_are_smaller_than_those_of_a_tenth_of_a_second(
    tokens_per_second: float, expected: list[int]
) -> None:
    found = batch_candidates(BFLOAT16, tokens_per_second)
    assert [candidate.max_batch_tokens for candidate in found] == expected


def result(candidate: Candidate, *rates: float, loss: Loss | None = None) -> Result:
    return Result(candidate, rates=list(rates), latencies_ms=[1.0], loss=loss)


def test_the_fastest_is_recommended_by_the_median_of_its_last_rounds() -> None:
    base = result(ONNX_RUNTIME, 100, 10, 11, 12)
    faster = result(BFLOAT16, 13, 99, 14, loss=CLOSE)
    assert choose_best([base, faster], 3) is faster
    assert choose_best([base, faster], 4) is faster
    base.rates = [50, 49, 51]
    assert choose_best([base, faster], 3) is base


def test_a_gain_within_the_noise_does_not_change_a_setting() -> None:
    base = result(ONNX_RUNTIME, 100)
    assert choose_best([base, result(BFLOAT16, 102, loss=CLOSE)], 1) is base


@pytest.mark.parametrize(
    ("candidate", "loss", "is_safe"),
    [
        (BFLOAT16, CLOSE, True),
        (BFLOAT16, FAR, False),
        (BFLOAT16, SHUFFLED, True),
        (BFLOAT16, None, False),
        (INT8, CLOSE, True),
        (INT8, FAR, False),
        (INT8, SHUFFLED, False),
    ],
)
def test_what_loses_too_much_is_not_recommended(
    candidate: Candidate, loss: Loss | None, is_safe: bool
) -> None:
    base, other = result(ONNX_RUNTIME, 1), result(candidate, 9, loss=loss)
    assert choose_best([base, other], 1) is (other if is_safe else base)


def test_a_failed_candidate_is_not_recommended() -> None:
    failed = result(BFLOAT16, 9, loss=CLOSE)
    failed.problem = "It was killed by signal 9."
    assert choose_best([failed], 1) is None


def test_a_busy_machine_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (1.9, 0.0, 0.0))
    assert "load average is 1.9 on 2 cores" in machine.load_warning(2)
    assert machine.load_warning(16) == ""


def test_fewer_texts_have_lengths_in_the_same_proportions() -> None:
    texts = mixed_texts(240)
    sample = spread_sample(texts, 24)
    assert len(sample) == len(set(sample)) == 24
    mean, expected = (np.mean([len(text) for text in some]) for some in (sample, texts))
    assert abs(mean / expected - 1) < 0.05


def test_a_slow_model_gets_fewer_texts_and_a_fast_one_more_passes() -> None:
    slow, usual, fast = (Workload.for_speed(speed, 10.0) for speed in (0.5, 12.0, 4000.0))
    assert (len(slow.texts), slow.passes) == (24, 1)
    assert (len(usual.texts), usual.passes) == (120, 1)
    assert (len(fast.texts), fast.passes) == (240, 50)


@dataclass
class FakeGateway:
    """A gateway that costs nothing, with rates by its settings; what is asked of it is recorded."""

    settings: dict[str, str]
    on_progress: Callable[[], None]
    calls: list[str] = field(default_factory=list[str])
    is_running: bool = False
    start_seconds: float = 0.0
    memory_bytes: int | None = 1 << 30

    @property
    def name(self) -> str:
        shown = ("EMBED_PRECISION", "EMBED_THREADS", "EMBED_MAX_BATCH_TOKENS")
        return " ".join(self.settings[key] for key in shown if key in self.settings)

    async def start(self) -> None:
        if self.settings["EMBED_PRECISION"] == "float32":
            raise CandidateError("OpenVINO cannot load it.")
        self.is_running = True
        self.calls.append(f"start {self.name}")

    def terminate(self) -> None:
        pass

    async def stop(self) -> None:
        if self.is_running:
            self.calls.append(f"stop {self.name}")
        self.is_running = False

    async def embed(self, texts: list[str], *, passes: int = 0) -> Pass:
        self.on_progress()
        if passes:
            self.calls.append(self.name)
        rate = 1000.0 if self.settings["EMBED_PRECISION"] == "auto" else 2000.0
        rate *= 1.5 if self.settings.get("EMBED_THREADS") == "3" else 1.0
        vectors = np.random.default_rng(0).normal(size=(len(texts), 8))
        return Pass(texts_per_second=rate, tokens_per_text=100.0, vectors=vectors)

    async def time_queries(self, count: int) -> float:
        return 5.0


@pytest.fixture(name="calls")
def _calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    monkeypatch.setattr(
        search, "CandidateGateway", lambda settings, report: FakeGateway(settings, report, calls)
    )
    return calls


def run_search(seconds: float) -> Outcome:
    engines = [Result(ONNX_RUNTIME), Result(Candidate("openvino", "float32")), Result(BFLOAT16)]
    job = Search(
        {"EMBED_MAX_LENGTH": "512"},
        seconds=seconds,
        cores=4,
        precision=None,
        on_progress=lambda activity: None,
    )
    return asyncio.run(job.run(engines))


def test_each_stage_starts_from_the_best_of_the_one_before(calls: list[str]) -> None:
    outcome = run_search(3600.0)
    assert outcome.best is not None
    assert outcome.best.candidate == replace(BFLOAT16, threads=3)
    tried = {(r.candidate.threads, r.candidate.max_batch_tokens) for r in outcome.results[3:]}
    assert tried == {(3, 8192), (2, 8192), (3, 4096), (3, 2048)}
    assert outcome.results[1].problem == "OpenVINO cannot load it."
    assert calls[2:6] == ["auto", "bfloat16", "auto", "bfloat16"]  # rounds alternate
    assert {call for call in calls if call.startswith("stop")} == {
        f"stop {call.removeprefix('start ')}" for call in calls if call.startswith("start")
    }


def test_without_time_only_the_engines_are_measured(calls: list[str]) -> None:
    outcome = run_search(1e-6)
    assert outcome.best is not None
    assert outcome.best.candidate == BFLOAT16
    assert len(outcome.results) == 3
    assert all("raise --minutes" in note for note in outcome.notes)
    assert calls.count("auto") == 1


def test_without_memory_one_gateway_runs_at_a_time(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "available_bytes", lambda held: 1 << 29)
    outcome = run_search(1e-6)
    assert outcome.best is not None
    running: set[str] = set()
    for call in calls:
        verb, _, name = call.partition(" ")
        if verb == "start":
            assert not running, calls
            running.add(name)
        elif verb == "stop":
            running.discard(name)


def test_only_a_file_that_tune_wrote_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "gateway.env"
    target.write_text("EMBED_API_KEYS=secret\n")
    done = CliRunner().invoke(main, ["tune", "--write", str(target)])
    assert done.exit_code == 1
    assert "`tune` did not write it" in done.output
    assert target.read_text() == "EMBED_API_KEYS=secret\n"


def test_nothing_is_written_if_every_candidate_fails(
    calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: FakeGateway) -> None:
        raise CandidateError("The tokenizer does not match.")

    monkeypatch.setattr(FakeGateway, "start", fail)
    done = CliRunner().invoke(main, ["tune", "--write", str(tmp_path / "gateway.env")])
    assert done.exit_code == 1
    assert "ONNX Runtime, float32 was not measured: The tokenizer does not match." in done.output
    assert "Nothing that was measured can be recommended." in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("max_isa", ["", "AVX2"])
def test_weights_are_quantized_if_that_can_be_measured(
    calls: list[str], max_isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Machine, "this", lambda: replace(MODERN, max_isa=max_isa))
    model = write_export(tmp_path / "model", weights=float_weights())
    arguments = ["--model-dir", str(model.parent), "--int8", "--minutes", "0.0001"]
    done = CliRunner().invoke(main, ["tune", *arguments])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "model-int8" / "model.onnx").exists() == (not max_isa)
    assert ("OpenVINO, int8 was not measured: ONEDNN_MAX_CPU_ISA" in done.output) == bool(max_isa)


def test_an_engine_cannot_be_chosen_for_a_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_URL", "http://gpu-box:8200")
    done = CliRunner().invoke(main, ["tune"])
    assert done.exit_code == 2
    assert "TRITON_URL is set" in done.output


def test_settings_are_written_for_a_shell_even_with_spaces_in_a_path(
    calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Machine, "this", lambda: MODERN)
    folder, target = tmp_path / "a model", tmp_path / "gateway.env"
    folder.symlink_to(qwen3_nano.model_dir())
    target.write_text(f"{FIRST_LINE} earlier.\nEMBED_ENGINE=other\n")
    arguments = ["--model-dir", str(folder), "--minutes", "0.0001", "--write", str(target)]
    done = CliRunner().invoke(main, ["tune", *arguments])
    assert done.exit_code == 0, done.output
    assert calls
    script = f". {target}; echo $EMBED_ENGINE; echo $EMBED_MODEL_DIR"
    shown = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == ["openvino", str(folder)]
    assert "Vectors in bfloat16 are an embedding space of their own" in done.output


@pytest.mark.slow
def test_a_tune_that_is_killed_leaves_no_gateway_and_no_file(tmp_path: Path) -> None:
    script = (
        "import asyncio, time; from qwen3_triton_tools.tune.gateway import CandidateGateway; "
        "gateway = CandidateGateway({}, lambda: None); asyncio.run(gateway.start()); "
        "print(gateway.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as tune:
        assert tune.stdout is not None
        gateway = Path("/proc", tune.stdout.readline().decode().strip())
        assert gateway.exists()
        tune.kill()
    wait_for(lambda: not gateway.exists(), "the gateway has ended")
    wait_for(lambda: not any(tmp_path.iterdir()), "its log is removed")
