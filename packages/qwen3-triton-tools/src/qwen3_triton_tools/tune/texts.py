"""Texts to measure with: cut from the bundled documents, with realistic lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..verify.loss import corpus

# Lengths in words are log-normal around this median, like paragraphs of real corpora.
MEDIAN_WORDS, SIGMA, MAX_WORDS = 50, 0.8, 480
QUERY = "Why does bread rise?"


def mixed_texts(count: int, *, seed: int = 11) -> list[str]:
    """Cut the documents' words into texts of log-normal lengths."""
    words = " ".join(corpus()).split()
    random = np.random.default_rng(seed)
    lengths = np.clip(random.lognormal(np.log(MEDIAN_WORDS), SIGMA, count), 1, MAX_WORDS)
    starts = random.integers(0, len(words) - MAX_WORDS, count)
    pairs = zip(starts.tolist(), lengths.astype(int).tolist(), strict=True)
    return [" ".join(words[start : start + length]) for start, length in pairs]


def spread_sample(texts: Sequence[str], count: int) -> list[str]:
    """Choose some of the texts, of all lengths in the same proportions, in their order."""
    by_length = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    # The middles of equal parts: neither the shortest nor the longest text weighs too much.
    middles = (np.arange(count) + 0.5) * len(texts) / count
    chosen = {by_length[int(middle)] for middle in middles}
    return [texts[index] for index in sorted(chosen)]


def chunks(texts: Sequence[str], size: int) -> list[list[str]]:
    """Split texts into requests."""
    return [list(texts[start : start + size]) for start in range(0, len(texts), size)]
