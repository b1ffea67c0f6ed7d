"""What is known beforehand of a model: the size of its vectors, its tokens, its golden values."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from qwen3_triton_gateway.backends import NANO_MODEL_ID
from qwen3_triton_gateway.tokenization import TextTokenizer

from .gateway_client import Float64Matrix, ServedModel
from .golden import QWEN_END_TOKEN_ID, QWEN_PROBE_IDS, SCORES, TOKEN_PROBE

CardName: TypeAlias = Literal["0.6b", "4b", "8b", "nano"]

# Model cards of Qwen3-Embedding, and `config.json` of the nano model. Of the models that are served
# as an embedding of this family, no other has these sizes.
HIDDEN_SIZES: dict[CardName, int] = {"0.6b": 1024, "4b": 2560, "8b": 4096, "nano": 1152}
# `Qwen/Qwen3-Embedding-4B`, `zhiqing/Qwen3-Embedding-4B-ONNX`, the runbook's `qwen3_embed_4b_onnx`.
_QWEN_NAME = re.compile(r"qwen3.embed\w*.(0\.6b|4b|8b)")
_NAMES: dict[str, CardName] = {
    "0.6b": "0.6b",
    "4b": "4b",
    "8b": "8b",
    "nano": "nano",
    NANO_MODEL_ID: "nano",
}
PROBE_LENGTH = 512


@dataclass(frozen=True, slots=True)
class GoldenVectors:
    """Texts with the vectors of the reference implementation, float64 `(n, hidden_size)`."""

    texts: tuple[str, ...]
    token_counts: tuple[int, ...]
    vectors: Float64Matrix


@dataclass(frozen=True, slots=True)
class Card:
    """One model's golden values; `missing` says why there are none where there could be."""

    name: CardName
    hidden_size: int
    probe_ids: tuple[int, ...] | None
    scores: tuple[tuple[float, ...], ...] | None = None
    vectors: GoldenVectors | None = None
    missing: str = ""


def choose_card(name: str | None, served: ServedModel) -> Card | None:
    """Take the named card, else the one of the model's id, else the one of its hidden size.

    None where neither is known: an export that nobody measured.
    """
    card_name = _by_name(name or served.model_id or "") or (
        None if name else _by_size(served.hidden_size)
    )
    if card_name is None:
        return None
    return nano_card() if card_name == "nano" else qwen_card(card_name)


def qwen_card(name: CardName) -> Card:
    """Give the card of one of the family's three sizes."""
    probe_ids = (*QWEN_PROBE_IDS, QWEN_END_TOKEN_ID)
    return Card(name, HIDDEN_SIZES[name], probe_ids, scores=SCORES[name])


def nano_card() -> Card:
    """Give the nano model's card, from its own package where that is installed."""
    hidden_size = HIDDEN_SIZES["nano"]
    try:
        # By name: the gateway depends on no distribution of this project.
        nano: Any = importlib.import_module("qwen3_nano")
    except ImportError:
        missing = "the package qwen3-nano, which holds the nano model's golden vectors, is not here"
        return Card("nano", hidden_size, None, missing=missing)
    tokenizer = TextTokenizer(nano.model_dir(), max_length=PROBE_LENGTH)
    (probe,) = tokenizer.encode([TOKEN_PROBE])
    with np.load(nano.golden_path(), allow_pickle=False) as file:
        golden = GoldenVectors(
            tuple(file["texts"].tolist()),
            tuple(file["token_counts"].tolist()),
            file["vectors"].astype(np.float64),
        )
    return Card("nano", hidden_size, tuple(probe.input_ids.tolist()), vectors=golden)


def _by_name(name: str) -> CardName | None:
    found = _QWEN_NAME.search(name.lower())
    return _NAMES.get(found[1] if found else name.lower())


def _by_size(hidden_size: int | None) -> CardName | None:
    found: list[CardName] = [name for name, size in HIDDEN_SIZES.items() if size == hidden_size]
    return found[0] if found else None
