"""Scores of the running product against the code of the model card, in every way to serve them.

Pairs of up to 4,096 tokens, through a real Triton and in the gateway's process, from the graph
that torch wrote and from the one that `model pool` made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from card_rerankers import LONG, MAX_LENGTH, PAIRS, Rerankers, card_inputs, score_differences
from served_product import running, running_triton
from transformers import PreTrainedTokenizerFast

Served: TypeAlias = tuple[str, str]

# A classifier is pooled by itself.
SERVED: list[Served] = [
    *(("tied", "pooled"), ("tied", "whole")),
    *(("float16", "pooled"), ("float16", "whole")),
    ("classifier", "whole"),
]
# Each engine, or scheme of Triton, with the forms and graphs that it may treat in its own way.
# OpenVINO is asked for float32, which it computes in whatever the weights are.
WAYS = [
    *(("tied", "pooled", engine) for engine in ("grpc", "onnxruntime", "openvino")),
    *(("tied", "whole", engine) for engine in ("http", "onnxruntime")),
    ("float16", "pooled", "onnxruntime"),
    ("float16", "whole", "grpc"),
    *(("classifier", "whole", engine) for engine in ("http", "openvino")),
]
# LONG takes longer than all others: once in each engine, graph and dtype.
LONG_WAYS = {
    *(("tied", "pooled", engine) for engine in ("grpc", "openvino")),
    ("tied", "whole", "onnxruntime"),
    ("float16", "pooled", "onnxruntime"),
}


@pytest.fixture(name="triton_urls", scope="module")
def _triton_urls(rerankers: Rerankers) -> Generator[dict[str, str]]:
    models = {"-".join(served): folder_of(rerankers, served) for served in SERVED}
    with running_triton(models) as urls:
        yield urls


def folder_of(rerankers: Rerankers, served: Served) -> Path:
    export = rerankers.export(served[0])
    return export.pooled if served[1] == "pooled" else export.folder


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_served_scores_are_those_of_the_card_s_code(
    way: tuple[str, str, str],
    rerankers: Rerankers,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
    tmp_path: Path,
) -> None:
    form, graph, engine = way
    folder = folder_of(rerankers, (form, graph))
    if engine in ("grpc", "http"):
        triton_urls: dict[str, str] = request.getfixturevalue("triton_urls")
        flags = ["--triton-url", triton_urls[engine], "--rerank-triton-model", f"{form}-{graph}"]
        flags += ["--rerank-tokenizer-path", str(folder)]
    else:
        flags = ["--rerank-model-dir", str(folder), "--engine", engine, "--precision", "float32"]
    flags += ["--rerank-max-length", str(MAX_LENGTH), "--timeout-s", "900"]
    pairs = [*PAIRS, LONG] if way in LONG_WAYS else PAIRS
    expected = rerankers.expected(form, pairs)
    with running("serve", *flags, log=tmp_path / "log") as url:
        differences = score_differences(url, pairs, expected)
    record_property("differences", differences)  # in --junitxml
    assert np.ptp(expected) > 0.01  # or the comparison would say nothing
    assert max(differences) <= rerankers.export(form).tolerance


def test_the_pairs_have_up_to_4096_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    [long] = card_inputs(tokenizer, [LONG], max_length=10 * MAX_LENGTH)
    assert len(long) > MAX_LENGTH
    assert [len(ids) for ids in card_inputs(tokenizer, [LONG])] == [MAX_LENGTH]
