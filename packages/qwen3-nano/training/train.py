"""Train the student to reproduce the teacher's vector of each text, widened to hidden_size.

    python train.py WORK first MINUTES     one layer, from the teacher's vectors of the tokens
    python train.py WORK more MINUTES      the same layer further, for example with more vectors
    python train.py WORK second MINUTES    a layer below it, so that tokens see their neighbors

Reads WORK/texts.jsonl, vectors.npy and model/tokenizer.json; writes WORK/student.pt.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from examples import Batch, Examples
from initialize import add_layer, first_student, widening
from student import Student, StudentConfig, slow_dimensions
from torch import Tensor
from torch.nn import functional

CUT = 1024  # the gateway's default
SMALL = 128  # so that small dimensions work too
TEMPERATURE = 0.05
RANKING = 0.3  # weight of the ranking term, relative to the cosine
LEARNING_RATES = {  # for the token table, for the rest
    "first": (6e-3, 1.5e-3),
    "more": (4e-3, 1e-3),
    "second": (2e-3, 8e-4),
}
BATCH = {"first": 512, "more": 512, "second": 384}


def loss_of(vectors: Tensor, teacher: Tensor, wide: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of (batch, hidden_size) against (batch, 384), and the mean cosine.

    The cosine to the widened target, plus the divergence of the batch's similarities from the
    teacher's, which is what a ranking depends on; both also for the first few dimensions.
    """
    targets = teacher @ wide.T
    itself = torch.eye(len(vectors), dtype=torch.bool)
    theirs = (teacher @ teacher.T / TEMPERATURE).masked_fill(itself, -1e9).softmax(-1)
    total, first = torch.zeros(()), torch.zeros(())
    for size, weight in ((CUT, 1.0), (SMALL, 0.2)):
        student = functional.normalize(vectors[:, :size], dim=-1)
        cosine = (student * functional.normalize(targets[:, :size], dim=-1)).sum(-1).mean()
        ours = (student @ student.T / TEMPERATURE).masked_fill(itself, -1e9).log_softmax(-1)
        ranking = functional.kl_div(ours, theirs, reduction="batchmean")
        total = total + weight * ((1 - cosine) + RANKING * ranking)
        first = cosine if size == CUT else first
    tail = functional.cosine_similarity(vectors[:, CUT:], targets[:, CUT:], dim=-1).mean()
    length = (vectors[:, CUT:].norm(dim=-1) / vectors.norm(dim=-1)).mean()
    wanted = (targets[:, CUT:].norm(dim=-1) / targets.norm(dim=-1)).mean()
    return total + 0.05 * (1 - tail) + (length - wanted).square(), first.detach()


def optimizer_of(student: Student, stage: str) -> torch.optim.Optimizer:
    table_rate, rate = LEARNING_RATES[stage]
    table = [student.embedding.weight]
    rest = [p for p in student.parameters() if p is not student.embedding.weight]
    # Queries do not use the fast rotary dimensions: see `Student.bags`.
    slow = slow_dimensions(student.config)
    student.layers[-1].q_norm.register_hook(lambda gradient: gradient * slow)
    groups = [{"params": table, "lr": table_rate}, {"params": rest, "lr": rate}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)


def train(student: Student, examples: Examples, wide: Tensor, stage: str, minutes: float) -> None:
    """Train for so many minutes, with cosine decay of the learning rate to zero."""
    optimizer = optimizer_of(student, stage)
    rates = [group["lr"] for group in optimizer.param_groups]
    started, step, report, shown = time.monotonic(), 0, 0.0, 0
    while (part := (time.monotonic() - started) / (minutes * 60)) < 1:
        scale = min(1.0, (step + 1) / 50) * 0.5 * (1 + np.cos(np.pi * part))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * scale
        batch = examples.batch(BATCH[stage])
        loss, cosine = loss_of(_embed(student, batch), batch.targets, wide)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        step, report, shown = step + 1, report + cosine.item(), shown + 1
        if step % 20 == 0:
            print(
                f"{part:.0%} step {step} loss {loss.item():.3f} cosine {report / shown:.4f}",
                flush=True,
            )
            report, shown = 0.0, 0


def _embed(student: Student, batch: Batch) -> Tensor:
    if len(student.layers) == 1:
        return student.bags(batch.flat, batch.offsets)
    pieces: list[Tensor] = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for piece in batch.pieces():
            pieces.append(student(piece.ids, piece.lengths).float())
    return torch.cat(pieces)


def main() -> None:
    work, stage, minutes = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    torch.set_num_threads(2)
    torch.manual_seed(7)
    examples = Examples(work)
    print(len(examples), "texts", flush=True)
    if stage == "first":
        config = replace(StudentConfig(), num_hidden_layers=1)
        wide = widening(examples.targets, config.hidden_size)
        student = first_student(config, work, wide)
    else:
        saved = torch.load(work / "student-first.pt", weights_only=True)
        wide = saved["wide"]
        if stage == "second":
            student = add_layer(saved["config"], saved["state"])
        else:
            student = Student(StudentConfig(**saved["config"]))
            student.load_state_dict(saved["state"])
    train(student, examples, wide, stage, minutes)
    result = {"config": asdict(student.config), "state": student.state_dict(), "wide": wide}
    torch.save(result, work / ("student-second.pt" if stage == "second" else "student-first.pt"))
    torch.save(result, work / "student.pt")
    print(json.dumps(asdict(student.config)))


if __name__ == "__main__":
    main()
