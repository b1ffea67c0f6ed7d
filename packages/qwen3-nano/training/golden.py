"""Compute the golden vectors with the reference, and check ONNX Runtime against them.

python golden.py MODEL_FOLDER GOLDEN_FILE
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from golden_texts import golden_texts
from numpy.typing import NDArray
from reference import load_reference, reference_vectors
from tokenizers import Tokenizer

# Both compute in float32, in a different order, which makes a far smaller difference than 1e-5.
MIN_COSINE = 0.99999


def run_onnx(session: onnxruntime.InferenceSession, rows: list[list[int]]) -> NDArray[np.float32]:
    """Embed rows of ids as one right-padded batch: float32 (n, hidden_size)."""
    feeds = right_padded(rows)
    (hidden,) = session.run(["last_hidden_state"], feeds)
    return hidden[np.arange(len(rows)), feeds["attention_mask"].sum(axis=1) - 1]


def right_padded(rows: list[list[int]]) -> dict[str, NDArray[np.int64]]:
    """Return the three inputs of a batch."""
    ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape).astype(np.int64)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine of each pair of rows."""
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    return (a64 * b64).sum(1) / np.linalg.norm(a64, axis=1) / np.linalg.norm(b64, axis=1)


def main() -> None:
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = golden_texts(tokenizer)
    rows = [tokenizer.encode(text).ids for text in texts]
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", providers=["CPUExecutionProvider"]
    )
    vectors = reference_vectors(load_reference(folder), tokenizer, texts)
    single = cosines(np.concatenate([run_onnx(session, [row]) for row in rows]), vectors).min()
    batch = cosines(run_onnx(session, rows), vectors).min()
    print(
        f"{len(texts)} texts; lowest cosine alone 1-{1 - single:.1e}, in a batch 1-{1 - batch:.1e}"
    )
    if min(single, batch) < MIN_COSINE:
        raise SystemExit("ONNX Runtime and the reference disagree")
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        target,
        texts=np.array(texts, dtype=np.str_),
        token_counts=np.array([len(row) for row in rows], dtype=np.int64),
        vectors=vectors,
    )


if __name__ == "__main__":
    main()
