"""Train the reranker on lists: a query's own article against others that the embedder retrieves.

    python train_reranker.py WORK MINUTES [first|more] [MAX_TOKENS]

Reads WORK/lists.npz, texts.json and model/tokenizer.json; writes WORK/reranker.pt. `first` begins
with the weights of `first_weights.py`, `more` continues. Documents are truncated to MAX_TOKENS.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from bi_encoder import BiEncoder
from chat_tokenizer import head_text, prompt_ids
from cross_encoder import CrossEncoder, small_config
from examples import OTHER_INSTRUCTIONS
from first_weights import initialize
from lists import GROUPS, token_rows
from numpy.typing import NDArray
from student import StudentConfig
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from word_order import held_out_lists, training_lists

from qwen3_triton_gateway.rerank_prompt import ANSWERS

NEGATIVES = 5
QUERIES = {"first": 16, "more": 16}  # lists per step
ORDER_SHARE = 0.06  # lists about word order
OTHER_INSTRUCTION_SHARE = 0.05
# The embedder ranks its own first ones highest, so they are drawn more often.
FRONT, FRONT_SHARE = 15, 0.6
# The share of each group, in the order of `GROUPS`; `more` has what is learned more slowly.
SHARES = {"first": (0.16, 0.05, 0.19, 0.3, 0.3), "more": (0.14, 0.04, 0.2, 0.34, 0.28)}
# Of the token table, of the rest.
LEARNING_RATES = {"first": (1.5e-4, 3e-4), "more": (1.2e-4, 2.5e-4)}
WARMUP = {"first": 100, "more": 30}  # steps
CALIBRATION = 0.2  # weight of each pair's own yes or no, relative to the list's ranking
VALIDATION_QUERIES = 50
VALIDATION_PARTS = 5
# Documents are truncated to one of these at random, but to MAX_TOKENS at most.
LENGTHS = (64, 112, 224)

Row = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class List:
    """Tokens of what precedes the documents, and those of each document; the first is right."""

    head: list[int]
    documents: list[list[int]]


class Lists:
    """All lists, tokenized."""

    def __init__(self, work: Path, max_tokens: int, stage: str) -> None:
        self.shares = list(SHARES[stage])
        self.tokenizer = Tokenizer.from_file(str(work / "model/tokenizer.json"))
        arrays = np.load(work / "lists.npz")
        self.candidates, self.answers = arrays["candidates"], arrays["answers"]
        self.queries, self.groups = arrays["queries"], arrays["groups"]
        self.validation = arrays["validation"].astype(bool)
        texts: list[str] = json.loads((work / "texts.json").read_text(encoding="utf-8"))
        self.texts = texts
        self.ids = [row[:max_tokens] for row in token_rows(work)]
        self.prefix, self.suffix = prompt_ids(self.tokenizer)
        self.rng = np.random.default_rng(9 if stage == "first" else 10)
        self.by_group = [
            np.flatnonzero((self.groups == number) & ~self.validation)
            for number in range(len(GROUPS))
        ]
        self.order = training_lists(random.Random(6), 40_000, NEGATIVES)

    def head(self, query: str, instruction: str | None = None) -> list[int]:
        """Tokenize prefix, instruction and query."""
        return self.prefix + self.tokenizer.encode(head_text(query, instruction)).ids

    def document(self, text: str, limit: int = 10_000) -> list[int]:
        return self.tokenizer.encode(f" {text}").ids[:limit] + self.suffix

    def draw(self, limit: int) -> List:
        """Draw a list at random."""
        instruction = None
        if self.rng.random() < OTHER_INSTRUCTION_SHARE:
            instruction = OTHER_INSTRUCTIONS[self.rng.integers(len(OTHER_INSTRUCTIONS))]
        if self.rng.random() < ORDER_SHARE:
            order = self.order[self.rng.integers(len(self.order))]
            texts = [order.positive, *order.negatives]
            return List(self.head(order.query, instruction), [self.document(t) for t in texts])
        group = self.rng.choice(len(GROUPS), p=self.shares)
        row = self.rng.choice(self.by_group[group])
        others = self.candidates[row]
        others = others[others != self.answers[row]]
        front = round(NEGATIVES * FRONT_SHARE)
        chosen = [
            *self.rng.choice(others[:FRONT], front, replace=False),
            *self.rng.choice(others[FRONT:], NEGATIVES - front, replace=False),
        ]
        rows = [self.answers[row], *chosen]
        limit = min(limit, int(self.rng.choice(LENGTHS)))
        documents = [[*self.ids[i][:limit].tolist(), *self.suffix] for i in rows]
        return List(self.head(self.texts[self.queries[row]], instruction), documents)

    def batches(self, limit: int, size: int) -> list[list[List]]:
        """Draw lists for several steps, and put those of similar lengths together."""
        drawn = [self.draw(limit) for _ in range(size * 24)]
        drawn.sort(key=lambda item: max(map(len, item.documents)))
        parts = [drawn[i : i + size] for i in range(0, len(drawn), size)]
        self.rng.shuffle(parts)
        return parts


def tensors(lists: Sequence[List]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pad lists of equally many documents to the inputs of `CrossEncoder`."""
    heads = np.zeros((len(lists), max(len(item.head) for item in lists)), dtype=np.int64)
    longest = max(len(d) for item in lists for d in item.documents)
    tails = np.zeros((len(lists), len(lists[0].documents), longest), dtype=np.int64)
    for index, item in enumerate(lists):
        heads[index, : len(item.head)] = item.head
        for number, document in enumerate(item.documents):
            tails[index, number, : len(document)] = document
    lengths = torch.tensor([[len(d) for d in item.documents] for item in lists])
    head_lengths = torch.tensor([len(item.head) for item in lists])
    return torch.from_numpy(heads), head_lengths, torch.from_numpy(tails), lengths


def loss_of(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of (queries, documents, 2), and how often the first document wins."""
    scores = logits[..., 1] - logits[..., 0]
    right = torch.zeros(len(scores), dtype=torch.int64)
    ranking = functional.cross_entropy(scores, right)
    labels = functional.one_hot(right, scores.shape[1]).float()
    weights = 1 + labels * (scores.shape[1] - 2)
    own = functional.binary_cross_entropy_with_logits(scores, labels, weights)
    return ranking + CALIBRATION * own, (scores.argmax(1) == 0).float().mean().detach()


def run(model: CrossEncoder, lists: Sequence[List]) -> Tensor:
    """Return the logits, (lists, documents, 2).

    The shorter half of each list's documents is run apart from the longer, for less padding.
    """
    lengths = torch.tensor([[len(document) for document in item.documents] for item in lists])
    order = lengths.argsort(dim=1)
    parts = [
        [
            List(item.head, [item.documents[i] for i in row])
            for item, row in zip(lists, rows, strict=True)
        ]
        for rows in order.tensor_split(2, dim=1)
        if rows.shape[1]
    ]
    logits = torch.cat([model(*tensors(part)) for part in parts], dim=1)
    return logits.gather(1, order.argsort(dim=1)[:, :, None].expand(-1, -1, 2))


@torch.inference_mode()
def validate(model: CrossEncoder, lists: Lists, limit: int) -> Iterator[str]:
    """Yield nDCG@10 of the embedder and of the reranked first 50 for each group."""
    for number, name in enumerate(GROUPS):
        rows = np.flatnonzero((lists.groups == number) & lists.validation)[:VALIDATION_QUERIES]
        gains: list[tuple[float, float]] = []
        for row in rows:
            found = np.flatnonzero(lists.candidates[row] == lists.answers[row])
            if not len(found):
                gains.append((0.0, 0.0))
                continue
            documents = [
                [*lists.ids[i][:limit].tolist(), *lists.suffix] for i in lists.candidates[row]
            ]
            scores = _score(model, lists.head(lists.texts[lists.queries[row]]), documents)
            rank = int((scores > scores[found[0]]).sum())
            gains.append((_gain(int(found[0])), _gain(rank)))
        before, after = np.mean(gains, axis=0)
        yield f"{name} {before:.3f}>{after:.3f} ({after / before - 1:+.1%})"
    order = held_out_lists()
    right = 0
    for item in order:
        documents = [lists.document(text) for text in (item.positive, *item.negatives)]
        logits = run(model, [List(lists.head(item.query), documents)])[0]
        scores = logits[:, 1] - logits[:, 0]
        right += bool(scores[0] > scores[1:].max())
    yield f"order {right / len(order):.3f}"


def _score(model: CrossEncoder, head: list[int], documents: list[list[int]]) -> NDArray[np.float32]:
    """Score the documents of one query, those of similar lengths together."""
    scores = np.zeros(len(documents), dtype=np.float32)
    order = np.argsort([len(document) for document in documents])
    for rows in np.array_split(order, VALIDATION_PARTS):
        logits = run(model, [List(head, [documents[i] for i in rows])])[0]
        scores[rows] = (logits[:, 1] - logits[:, 0]).numpy()
    return scores


def _gain(rank: int) -> float:
    return 1 / np.log2(rank + 2) if rank < 10 else 0.0


def train(
    model: CrossEncoder, lists: Lists, work: Path, stage: str, minutes: float, limit: int
) -> None:
    """Train for so many minutes, with cosine decay of the learning rate to zero."""
    table_rate, rate = LEARNING_RATES[stage]
    table = [model.embedding.weight]
    fixed = {model.embedding.weight, model.projection.weight}
    rest = [p for p in model.parameters() if p not in fixed]
    groups = [{"params": table, "lr": table_rate}, {"params": rest, "lr": rate}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    started, step, tokens = time.monotonic(), 0, 0
    report: list[tuple[float, float]] = []
    batches: list[list[List]] = []
    while (part := (time.monotonic() - started) / (minutes * 60)) < 1:
        batches = batches or lists.batches(limit, QUERIES[stage])
        scale = min(1.0, (step + 1) / WARMUP[stage]) * 0.5 * (1 + np.cos(np.pi * part))
        for group, base in zip(optimizer.param_groups, (table_rate, rate), strict=True):
            group["lr"] = base * scale
        batch = batches.pop()
        loss, right = loss_of(run(model, batch))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        tokens += sum(len(item.head) + sum(map(len, item.documents)) for item in batch)
        report.append((loss.item(), right.item()))
        if step % 50 == 0:
            loss_mean, right_mean = np.mean(report, axis=0)
            speed = tokens / (time.monotonic() - started)
            print(
                f"{part:.0%} step {step} loss {loss_mean:.3f} first {right_mean:.3f} "
                f"{speed:.0f} tokens/s",
                flush=True,
            )
            report = []
            save(model, work)
        if step % 1200 == 0:
            print(" | ".join(validate(model, lists, limit)), flush=True)


def save(model: CrossEncoder, work: Path) -> None:
    """Write the weights, also before the end: a model is usable at any time."""
    torch.save({"config": asdict(model.config), "state": model.state_dict()}, work / "reranker.pt")


def main() -> None:
    work, minutes, stage = Path(sys.argv[1]), float(sys.argv[2]), (*sys.argv[3:4], "first")[0]
    limit = int((*sys.argv[4:5], "160")[0])
    torch.set_num_threads(1)
    lists = Lists(work, limit, stage)
    print(len(lists.queries), "lists", flush=True)
    no, yes = (lists.tokenizer.token_to_id(answer) for answer in ANSWERS)
    if stage == "first":
        model = CrossEncoder(small_config(), (no, yes))
        bi_encoder = BiEncoder()
        bi_encoder.load_state_dict(torch.load(work / "bi-encoder.pt", weights_only=True))
        initialize(model, lists.tokenizer, bi_encoder)
    else:
        saved = torch.load(work / "reranker.pt", weights_only=True)
        model = CrossEncoder(StudentConfig(**saved["config"]), (no, yes))
        model.load_state_dict(saved["state"])
    train(model, lists, work, stage, minutes, limit)
    save(model, work)
    print(" | ".join(validate(model, lists, limit)), flush=True)


if __name__ == "__main__":
    main()
