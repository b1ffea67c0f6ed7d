"""Rerankers exported by torch, pooled by the product, against the code of the model card.

The export and the reference run here; the product runs in its own environment.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from card_rerankers import FORMS, Export, Rerankers, card_inputs
from numpy.typing import NDArray
from onnx_runs import run_onnx
from served_product import product

QUERIES = ["What is the capital of China?", "Explain gravity", "渋谷はどこですか"]
DOCUMENTS = [
    "The capital of China is Beijing.",
    "Gravity is a force that attracts two bodies towards each other. It gives weight to physical "
    "objects and is responsible for the movement of planets around the sun.",
    "東京の渋谷区 😀",
    "x",
    "Москва — столица России. " * 10,
    "word " * 300,
]
PAIRS = [(query, document) for query in QUERIES[:2] for document in DOCUMENTS[:2]]
PAIRS += [(QUERIES[2], document) for document in DOCUMENTS[2:]]
BATCH = 4
SIDES = ("right", "left")


@pytest.fixture(name="form", scope="session", params=FORMS)
def _form(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(name="export", scope="session")
def _export(form: str, rerankers: Rerankers) -> Export:
    return rerankers.export(form)


def padded(rows: list[list[int]]) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Pad rows of mixed lengths on each side, some per batch."""
    batches: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
    for side, start in itertools.product(SIDES, range(0, len(rows), BATCH)):
        group = rows[start : start + BATCH]
        width = max(map(len, group))
        ids = np.zeros((len(group), width), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(group):
            part = slice(width - len(tokens), width) if side == "left" else slice(len(tokens))
            ids[row, part], mask[row, part] = tokens, 1
        batches[f"{side}-{start:03}"] = (ids, mask)
    return batches


def scores_of(logits: NDArray[Any]) -> NDArray[Any]:
    values = logits.astype(np.float64)
    margin = values[:, 0] if values.shape[1] == 1 else values[:, 1] - values[:, 0]
    return 1 / (1 + np.exp(-margin))


def test_an_export_is_inspected_as_what_it_is(export: Export) -> None:
    document = product("model", "inspect", str(export.folder), "--json")
    assert document["servable"] is True
    form = "seq-cls" if export.is_classifier else "causal"
    assert document["reranker"]["form"] == form
    assert document["reranker"]["pooled"] == export.is_classifier
    assert document["hidden_size"] == export.reference.config.hidden_size
    assert not [f for f in document["findings"] if f["severity"] in ("error", "warning")]


def test_the_pooled_scores_are_those_of_the_card_s_code(
    form: str, export: Export, rerankers: Rerankers, tmp_path: Path
) -> None:
    assert export.already_pooled == export.is_classifier
    expected = rerankers.expected(form, PAIRS)
    assert np.ptp(expected) > 0.01  # or the comparison would say nothing
    batches = padded(card_inputs(rerankers.tokenizer, PAIRS))
    found = run_onnx(export.pooled / "model.onnx", batches, tmp_path, output="logits")
    for side in SIDES:
        logits = [found[name] for name in batches if name.startswith(side)]
        assert np.abs(scores_of(np.concatenate(logits)) - expected).max() <= export.tolerance, side
