"""What is tried, in which order, and what of it is recommended: pure functions.

First engines and precisions, then threads, then tokens per batch, each with the best so far. Of
results within `MIN_GAIN` of each other, the earlier one is recommended: it is closer to float32, or
to the defaults.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from qwen3_triton_gateway.backends.engines import Machine
from qwen3_triton_gateway.batching import token_budget
from qwen3_triton_gateway.settings import Settings, WantedPrecision

from ..verify.loss import MIN_COSINE, Loss

EngineName: TypeAlias = Literal["onnxruntime", "openvino"]

TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
DEFAULT_BATCH_TOKENS = int(Settings.model_fields["max_batch_tokens"].default)
# Smaller gains are within the noise of a few rounds, and not worth a setting.
MIN_GAIN = 1.03
# A batch of fewer tokens is smaller than most texts.
MIN_BATCH_TOKENS = 64
INSTALL_OPENVINO = 'not installed. Run `pip install "qwen3-triton-gateway[openvino]"`.'
INSTALL_ONNX_RUNTIME = 'not installed. Run `pip install "qwen3-triton-gateway[onnx]"`.'


@dataclass(frozen=True, slots=True)
class Candidate:
    """Settings to measure.

    Attributes:
        precision: Of OpenVINO; ONNX Runtime computes in that of the graph.
        model_dir: None for the folder that the other settings name.
        threads: 0 for the engine's default.
    """

    engine: EngineName
    precision: WantedPrecision
    model_dir: Path | None = None
    threads: int = 0
    max_batch_tokens: int = DEFAULT_BATCH_TOKENS

    @property
    def name(self) -> str:
        """The engine and the precision."""
        return f"{TITLES[self.engine]}, {self.precision}"

    @property
    def changes(self) -> str:
        """What else differs from the defaults."""
        tokens = self.max_batch_tokens
        parts = [
            f"{self.threads} thread{'s' if self.threads > 1 else ''}" if self.threads else "",
            f"{tokens} tokens per batch" if tokens != DEFAULT_BATCH_TOKENS else "",
        ]
        return ", ".join(filter(None, parts))

    def settings(self) -> dict[str, str]:
        """Return the variables that differ from the gateway's defaults, engine and precision."""
        precision = "auto" if self.engine == "onnxruntime" else self.precision
        values = {"EMBED_ENGINE": self.engine, "EMBED_PRECISION": precision}
        if self.model_dir is not None:
            values["EMBED_MODEL_DIR"] = str(self.model_dir)
        if self.threads:
            values["EMBED_THREADS"] = str(self.threads)
        if self.max_batch_tokens != DEFAULT_BATCH_TOKENS:
            values["EMBED_MAX_BATCH_TOKENS"] = str(self.max_batch_tokens)
        return values


@dataclass
class Result:
    """A candidate, and what was measured of it.

    Attributes:
        problem: Why it was not measured, or not to its end; empty if it was.
        rates: Texts per second of each round.
        latencies_ms: Of each round: the median time of a lone query.
        tokens_per_text: The same for every candidate.
        memory_bytes: The most that was resident after a round; None where the system does not tell.
        loss: Against the first result in float32; None for this one.
    """

    candidate: Candidate
    problem: str = ""
    rates: list[float] = field(default_factory=list[float])
    latencies_ms: list[float] = field(default_factory=list[float])
    tokens_per_text: float = 0.0
    memory_bytes: int | None = None
    loss: Loss | None = None

    @property
    def precision(self) -> WantedPrecision:
        return self.candidate.precision

    @property
    def is_measured(self) -> bool:
        return bool(self.rates) and not self.problem

    @property
    def texts_per_second(self) -> float:
        return statistics.median(self.rates)

    @property
    def tokens_per_second(self) -> float:
        return self.texts_per_second * self.tokens_per_text

    @property
    def latency_ms(self) -> float:
        return statistics.median(self.latencies_ms)

    @property
    def is_safe(self) -> bool:
        """Whether its vectors are close enough to float32 to be recommended.

        int8 must also keep the neighbors, as `model quantize` demands; bfloat16, in which the
        family was trained, keeps them within what near ties allow.
        """
        if self.loss is None:
            return self.precision == "float32"
        if self.precision == "int8":
            return self.loss.is_safe
        return self.loss.lowest_cosine >= MIN_COSINE

    def document(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        candidate = self.candidate
        row: dict[str, Any] = {
            "engine": candidate.engine,
            "precision": candidate.precision,
            "threads": candidate.threads,
            "max_batch_tokens": candidate.max_batch_tokens,
            "problem": self.problem or None,
        }
        if not self.is_measured:
            return row
        return row | {
            "texts_per_second": self.texts_per_second,
            "tokens_per_second": self.tokens_per_second,
            "rounds": self.rates,
            "lone_query_ms": self.latency_ms,
            "memory_bytes": self.memory_bytes,
            "loss": asdict(self.loss) | {"safe": self.is_safe} if self.loss else None,
        }


def engine_candidates(
    machine: Machine,
    *,
    has_onnxruntime: bool,
    precision: WantedPrecision | None,
    int8_dir: Path | None,
    tries_int8: bool,
) -> list[Result]:
    """List engines and precisions, those that cannot run here with the reason.

    Args:
        machine: The processor, and what is installed.
        has_onnxruntime: Whether ONNX Runtime is installed.
        precision: The only one to try, next to float32, with which it is compared; None for all.
        int8_dir: The folder with weights in int8, if it is not that of the model.
        tries_int8: Whether int8 activations are tried.
    """
    results: list[Result] = []
    problem = "" if has_onnxruntime else INSTALL_ONNX_RUNTIME
    results.append(Result(Candidate("onnxruntime", "float32"), problem))
    wanted: tuple[Literal["float32", "bfloat16", "int8"], ...] = ("float32", "bfloat16", "int8")
    for name in wanted:
        is_reference = name == "float32" and not has_onnxruntime
        if precision not in (None, name) and not is_reference:
            continue
        if name == "int8" and not tries_int8:
            continue
        problem = "" if machine.has_openvino else INSTALL_OPENVINO
        if not problem and name != "float32":
            problem = machine.why_not(name)
        folder = int8_dir if name == "int8" else None
        results.append(Result(Candidate("openvino", name, folder), problem))
    return results


def thread_candidates(best: Candidate, cores: int) -> list[Candidate]:
    """List other numbers of threads: all cores, one fewer for the gateway's own work, and half.

    Half is one per physical core where two share one.
    """
    tried = best.threads
    if not tried and best.engine == "openvino":  # by default one per core, as for `cores`
        tried = cores
    numbers = dict.fromkeys((cores, cores - 1, cores // 2))
    return [replace(best, threads=n) for n in numbers if n >= 1 and n != tried]


def batch_candidates(best: Candidate, tokens_per_second: float) -> list[Candidate]:
    """List smaller batches: two powers of two below what the gateway's own limit allows.

    The gateway keeps batches to a tenth of a second, so larger ones cannot be had.
    """
    limit = token_budget(best.max_batch_tokens, tokens_per_second)
    largest = 1 << max(0, int(limit * 0.75).bit_length() - 1)
    sizes = [size for size in (largest, largest // 2) if MIN_BATCH_TOKENS <= size < limit]
    return [replace(best, max_batch_tokens=size) for size in sizes]


def choose_best(results: Sequence[Result], rounds: int) -> Result | None:
    """Return the fastest whose vectors are close enough, the earlier of nearly equal ones.

    Args:
        results: In the order of preference.
        rounds: How many of the last rounds they have in common.
    """
    rates = {
        index: statistics.median(result.rates[-rounds:])
        for index, result in enumerate(results)
        if result.is_measured and result.is_safe
    }
    if not rates:
        return None
    fastest = max(rates.values())
    return next(results[index] for index, rate in rates.items() if rate * MIN_GAIN >= fastest)
