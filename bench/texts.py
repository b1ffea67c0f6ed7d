"""Texts to measure with: cut from the demo's documents, with realistic lengths."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

DOCUMENTS = Path(__file__).resolve().parents[1] / "examples" / "demo" / "documents.jsonl"
# Lengths in words are log-normal around this median, like paragraphs of real corpora.
MEDIAN_WORDS, SIGMA, MAX_WORDS = 50, 0.8, 480
QUERY = "Why does bread rise?"


def mixed_texts(count: int, *, seed: int = 11) -> list[str]:
    """Cut the bundled documents' words into texts of log-normal lengths."""
    lines = DOCUMENTS.read_text(encoding="utf-8").splitlines()
    words = " ".join(json.loads(line)["text"] for line in lines).split()
    random = np.random.default_rng(seed)
    lengths = np.clip(random.lognormal(np.log(MEDIAN_WORDS), SIGMA, count), 1, MAX_WORDS)
    starts = random.integers(0, len(words) - MAX_WORDS, count)
    pairs = zip(starts.tolist(), lengths.astype(int).tolist(), strict=True)
    return [" ".join(words[start : start + length]) for start, length in pairs]


def chunks(texts: list[str], size: int) -> list[list[str]]:
    """Split texts into requests."""
    return [texts[start : start + size] for start in range(0, len(texts), size)]
