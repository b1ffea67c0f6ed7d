"""What `EMBED_ENGINE` and `EMBED_PRECISION` mean on each kind of machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qwen3_triton_gateway.backends.engines import Machine, choose_engine
from qwen3_triton_gateway.errors import StartupError

MODERN = Machine(
    architecture="x86_64",
    instructions=frozenset({"avx2", "avx512f", "avx512_vnni", "avx512_bf16"}),
    max_isa="",
    has_openvino=True,
)
SAPPHIRE_RAPIDS = replace(MODERN, instructions=frozenset({"amx_bf16", "amx_int8"}))
OLD = replace(MODERN, instructions=frozenset({"avx2"}))
ALDER_LAKE = replace(MODERN, instructions=frozenset({"avx2", "avx_vnni"}))
ARM = replace(OLD, architecture="aarch64", instructions=frozenset())
BARE = replace(MODERN, has_openvino=False)


@pytest.mark.parametrize(
    ("machine", "engine", "precision", "expected"),
    [
        (MODERN, "auto", "auto", ("openvino", "bfloat16")),
        (MODERN, "auto", "float32", ("openvino", "float32")),
        (MODERN, "auto", "int8", ("openvino", "int8")),
        (MODERN, "openvino", "auto", ("openvino", "bfloat16")),
        (MODERN, "onnxruntime", "auto", ("onnxruntime", "graph")),
        (MODERN, "onnxruntime", "float32", ("onnxruntime", "graph")),
        (SAPPHIRE_RAPIDS, "auto", "auto", ("openvino", "bfloat16")),
        (SAPPHIRE_RAPIDS, "auto", "int8", ("openvino", "int8")),
        (OLD, "auto", "auto", ("openvino", "float32")),
        (ALDER_LAKE, "auto", "auto", ("openvino", "float32")),
        (ALDER_LAKE, "auto", "int8", ("openvino", "int8")),
        (ARM, "auto", "auto", ("onnxruntime", "graph")),
        (ARM, "openvino", "auto", ("openvino", "float32")),
        (BARE, "auto", "auto", ("onnxruntime", "graph")),
        (BARE, "auto", "float32", ("onnxruntime", "graph")),
    ],
)
def test_auto_is_the_fastest_that_is_safe(
    machine: Machine, engine: Any, precision: Any, expected: tuple[str, str]
) -> None:
    choice = choose_engine(engine, precision, machine)
    assert (choice.engine, choice.precision) == expected
    assert choice.reason


@pytest.mark.parametrize(
    ("machine", "engine", "precision", "words"),
    [
        (MODERN, "onnxruntime", "bfloat16", "ONNX Runtime computes in what the graph states"),
        (MODERN, "onnxruntime", "int8", "Set EMBED_ENGINE to openvino"),
        (BARE, "openvino", "auto", r"EMBED_ENGINE is 'openvino'.*gateway\[openvino\]"),
        (BARE, "auto", "bfloat16", r"EMBED_PRECISION is 'bfloat16'.*gateway\[openvino\]"),
        (OLD, "auto", "bfloat16", "none of avx512_bf16, amx_bf16"),
        (OLD, "openvino", "int8", "none of avx512_vnni, avx_vnni, amx_int8"),
        (ARM, "openvino", "int8", "none of avx512_vnni"),
    ],
)
def test_what_a_machine_cannot_do_is_refused(
    machine: Machine, engine: Any, precision: Any, words: str
) -> None:
    with pytest.raises(StartupError, match=words):
        choose_engine(engine, precision, machine)


@pytest.mark.parametrize("max_isa", ["AVX2", "AVX512_CORE", "AVX512_CORE_VNNI"])
def test_forbidden_instructions_are_not_used(max_isa: str) -> None:
    choice = choose_engine("auto", "auto", replace(MODERN, max_isa=max_isa))
    assert (choice.engine, choice.precision) == ("openvino", "float32")
    assert f"ONEDNN_MAX_CPU_ISA is {max_isa}" in choice.reason


def test_forbidden_instructions_are_not_promised() -> None:
    with pytest.raises(StartupError, match="ONEDNN_MAX_CPU_ISA is AVX2"):
        choose_engine("auto", "int8", replace(MODERN, max_isa="AVX2"))
    choice = choose_engine("auto", "int8", replace(MODERN, max_isa="AVX512_CORE_VNNI"))
    assert choice.precision == "int8"


def test_this_machine_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx2")
    machine = Machine.this()
    assert machine.max_isa == "AVX2"
    assert machine.architecture
