"""Compare the shipped model's retrieval with the teacher's on held-out pairs.

    python evaluate.py WORK MODEL_FOLDER DEMO_DOCUMENTS SCORES

Reads WORK/held_out.jsonl and the demo's documents; writes the scores as JSON and prints a Markdown
table.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from retrieval import Kind, Nano, Vectors, kinds
from teacher import Teacher
from train_tokenizer import PREFIX

RANKS = 10


def ndcg(queries: Vectors, documents: Vectors) -> float:
    """Return nDCG@10 where document i is the only one that answers query i."""
    similarity = queries @ documents.T
    own = np.diagonal(similarity)[:, None]
    rank = (similarity > own).sum(axis=1)
    return float(np.where(rank < RANKS, 1 / np.log2(rank + 2), 0.0).mean())


def score(kind: Kind, nano: Nano, teacher: Teacher) -> dict[str, object]:
    """Return one row of the table."""
    own = ndcg(nano.embed([PREFIX + query for query in kind.queries]), nano.embed(kind.documents))
    best = ndcg(teacher.embed(kind.queries), teacher.embed(kind.documents))
    return {
        "kind": kind.name,
        "pairs": len(kind.queries),
        "nano": round(own, 4),
        "teacher": round(best, 4),
        "ratio": round(own / best, 4),
    }


def main() -> None:
    work, folder, demo, target = map(Path, sys.argv[1:5])
    torch.set_num_threads(2)
    nano, teacher = Nano(folder), Teacher(torch.float32)
    rows = [score(kind, nano, teacher) for kind in kinds(work, demo)]
    target.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print("| pairs | number | nano | teacher | ratio |\n|---|---|---|---|---|")
    for row in rows:
        print("| {kind} | {pairs} | {nano:.3f} | {teacher:.3f} | {ratio:.3f} |".format(**row))


if __name__ == "__main__":
    main()
