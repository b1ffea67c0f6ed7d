"""Golden values of known models: hidden size, token ids, similarities, vectors.

Sources:
    Queries, documents, scores of 0.6B: https://huggingface.co/Qwen/Qwen3-Embedding-0.6B, usage
    with transformers; scores of 4B and 8B: the cards of those models, same texts.
    The vector of 0.6B: huggingface/text-embeddings-inference,
    `backends/candle/tests/snapshots/test_qwen3__qwen3_cpu_single.snap`, float32 on a CPU.
    Token ids: computed from Qwen's published vocabulary of 151,643 byte pairs (`qwen.tiktoken` and
    the family's split expression), which the three sizes share.
    Overflowing texts: QwenLM/Qwen3-Embedding issues 164 and 186, ollama issue 12921.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from qwen3_triton_gateway.backends import NANO_MODEL_ID
from qwen3_triton_gateway.tokenization import TextTokenizer

Float64Matrix: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.float64]]
CardName: TypeAlias = Literal["0.6b", "4b", "8b", "nano"]

# Model cards of Qwen3-Embedding, and `config.json` of the nano model. No other embedding model of
# this family has these sizes.
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

QUERIES = ("What is the capital of China?", "Explain gravity")
DOCUMENTS = (
    "The capital of China is Beijing.",
    "Gravity is a force that attracts two bodies towards each other. It gives weight to physical "
    "objects and is responsible for the movement of planets around the sun.",
)
# A row per query, a column per document, over all of the model's dimensions.
SCORES = {
    "0.6b": ((0.7646, 0.1414), (0.1355, 0.6000)),
    "4b": ((0.7534, 0.1147), (0.0320, 0.6258)),
    "8b": ((0.7493, 0.0751), (0.0880, 0.6318)),
}

TEI_TEXT, TEI_NEIGHBOR = "What is Deep Learning?", "Deep Learning is..."
TEI_HEAD = (-0.015721, -0.03191, -0.010947, -0.066955, -0.017525, 0.064638, -0.062125, 0.003443)
TEI_COSINE = 0.902887

# Letters, digits, Chinese, punctuation, accents: each is split by another rule.
TOKEN_PROBE = "In 2025, 北京 — naïve café!"
# fmt: off
QWEN_PROBE_IDS = (
    641, 220, 17, 15, 17, 20, 11, 94305, 245, 46553, 1959, 94880, 586, 51950, 0,
)
# fmt: on
QWEN_END_TOKEN_ID = 151643

OVERFLOWING_TEXTS = (
    "importance of life",
    "importance",
    "import",
    "import numpy as np",
    "important dates in the history of imports",
    "import os\nimport sys\n\nprint(sys.version)",
)


@dataclass(frozen=True, slots=True)
class GoldenVectors:
    """Texts with their vectors by the reference implementation, float64 `(n, hidden_size)`."""

    texts: tuple[str, ...]
    token_counts: tuple[int, ...]
    vectors: Float64Matrix


@dataclass(frozen=True, slots=True)
class Card:
    """The golden values of one model; `missing` says why there are none."""

    name: CardName
    hidden_size: int
    probe_ids: tuple[int, ...] | None
    scores: tuple[tuple[float, ...], ...] | None = None
    vectors: GoldenVectors | None = None
    missing: str = ""


def choose_card(name: str | None, model_id: str | None, hidden_size: int | None) -> Card | None:
    """Return the named card, else the one of the model's id, else the one of its hidden size.

    None if neither is known: an export without published values.
    """
    card_name = _by_name(name or model_id or "") or (None if name else _by_size(hidden_size))
    if card_name is None:
        return None
    return nano_card() if card_name == "nano" else qwen_card(card_name)


def qwen_card(name: CardName) -> Card:
    """Return the card of one of the family's three sizes."""
    probe_ids = (*QWEN_PROBE_IDS, QWEN_END_TOKEN_ID)
    return Card(name, HIDDEN_SIZES[name], probe_ids, scores=SCORES[name])


def nano_card() -> Card:
    """Return the nano model's card; its vectors are in its own package, if that is installed."""
    hidden_size = HIDDEN_SIZES["nano"]
    try:
        # By name: the tools do not depend on the nano model.
        nano: Any = importlib.import_module("qwen3_nano")
    except ImportError:
        missing = "the package qwen3-nano with the nano model's golden vectors is not installed"
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
