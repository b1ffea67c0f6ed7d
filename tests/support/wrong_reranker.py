"""A minimal server of `POST /v1/rerank`, correct unless one of its stages is replaced.

It shares no code with the product: http.server, ONNX Runtime and a tokenizer. Each replacement
below is a mistake that somebody's deployment has made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from json_server import Request, answering
from onnx_session import open_session
from padding import padded_inputs

MAX_LENGTH = 320
PAD_ID = 0
TASK = "Given a web search query, retrieve relevant passages that answer the query"
# https://huggingface.co/Qwen/Qwen3-Reranker-0.6B, usage with transformers.
HEAD = '<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'  # noqa: E501
TAIL = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"

Ids = list[int]


@dataclass(frozen=True, slots=True)
class RerankStack:
    """The stages of a server.

    Attributes:
        prompt: The pieces of a prompt, which are tokenized on their own.
        shorten: Cuts the tokens of these pieces.
        finish: Makes scores of logits.
        arrange: Returns the results in an order, each with its index.
        pads_left: Whether a batch is padded on the left.
        reads_last: Whether the last position is read, padded or not.
    """

    prompt: Callable[[str, str, str], tuple[str, str, str]]
    shorten: Callable[[Ids, Ids, Ids], Ids]
    finish: Callable[[float], float | None]
    arrange: Callable[[Sequence[float | None]], list[tuple[int, float | None]]]
    pads_left: bool = False
    reads_last: bool = False


def pair(instruction: str, query: str, document: str) -> str:
    return f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"


def card_prompt(instruction: str, query: str, document: str) -> tuple[str, str, str]:
    return HEAD, pair(instruction, query, document), TAIL


def keep_the_tail(head: Ids, body: Ids, tail: Ids) -> Ids:
    return [*head, *body[: MAX_LENGTH - len(head) - len(tail)], *tail]


def cut_the_end(head: Ids, body: Ids, tail: Ids) -> Ids:
    return [*head, *body, *tail][:MAX_LENGTH]


def sigmoid(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))


def by_score(scores: Sequence[float | None]) -> list[tuple[int, float | None]]:
    return sorted(enumerate(scores), key=lambda entry: -(entry[1] or 0.0))


def renumbered(scores: Sequence[float | None]) -> list[tuple[int, float | None]]:
    return list(enumerate(score for _, score in by_score(scores)))


RIGHT = RerankStack(card_prompt, keep_the_tail, sigmoid, by_score)


def prompts(stack: Callable[[str, str, str], tuple[str, str, str]]) -> RerankStack:
    return RerankStack(stack, keep_the_tail, sigmoid, by_score)


# The stack, the check that should fail, and words of its cause.
WRONG: dict[str, tuple[RerankStack, str, str]] = {
    "swapped": (
        RerankStack(card_prompt, keep_the_tail, lambda logit: sigmoid(-logit), by_score),
        "card examples",
        "two logits are swapped",
    ),
    "logits": (
        RerankStack(card_prompt, keep_the_tail, lambda logit: 40 * logit, by_score),
        "score range",
        "Scores are logits",
    ),
    "nan": (
        RerankStack(card_prompt, keep_the_tail, lambda _: None, by_score),
        "score range",
        "overflows",
    ),
    "renumbered": (
        RerankStack(card_prompt, keep_the_tail, sigmoid, renumbered),
        "order",
        "counts what comes back",
    ),
    "reads-a-pad": (
        RerankStack(card_prompt, keep_the_tail, sigmoid, by_score, reads_last=True),
        "batch invariance",
        "Padding changes the score",
    ),
    "no-system-message": (
        prompts(lambda i, q, d: ("<|im_start|>user\n", pair(i, q, d), TAIL)),
        "prompt",
        "The system message is missing",
    ),
    "no-think-block": (
        prompts(lambda i, q, d: (HEAD, pair(i, q, d), TAIL[: TAIL.index("<think>")])),
        "prompt",
        "The empty think block",
    ),
    "no-end": (
        prompts(lambda i, q, d: (HEAD, pair(i, q, d), "")),
        "prompt",
        "The prompt's end",
    ),
    "bare-pair": (
        prompts(lambda i, q, d: ("", pair(i, q, d), "")),
        "prompt",
        "The whole prompt around the pair is missing",
    ),
    "no-instruction": (
        prompts(lambda i, q, d: (HEAD, pair(i, q, d).partition("\n")[2], TAIL)),
        "prompt parts",
        "lacks the instruction",
    ),
    "own-instruction-ignored": (
        prompts(lambda i, q, d: card_prompt(TASK, q, d)),
        "prompt parts",
        "lacks the instruction",
    ),
    "empty-lines": (
        prompts(lambda i, q, d: (HEAD, pair(i, q, d).replace("\n<", "\n\n<"), TAIL)),
        "prompt",
        "empty lines between",
    ),
    "end-cut-off": (
        RerankStack(card_prompt, cut_the_end, sigmoid, by_score),
        "long document",
        "The prompt's end is cut off",
    ),
}


class _Model:
    """A seq-cls graph that reads the last token before the pads."""

    def __init__(self, folder: Path) -> None:
        self._session = open_session(folder / "model.onnx")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def scores(self, stack: RerankStack, texts: Sequence[tuple[str, str, str]]) -> list[Any]:
        rows = [stack.shorten(*map(self._ids, stack.prompt(*text))) for text in texts]
        # The graph looks for pads by their id: another one is read like text.
        feed = padded_inputs(rows, pad_id=5 if stack.reads_last else PAD_ID, left=stack.pads_left)
        [logits] = self._session.run(["logits"], feed)
        return [stack.finish(float(logit)) for logit in np.asarray(logits)[:, 0]]

    def _ids(self, text: str) -> Ids:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


@cache
def _open_model(folder: Path) -> _Model:
    return _Model(folder)


def serving(folder: Path, stack: RerankStack, *, talks: bool = True) -> AbstractContextManager[str]:
    """Serve a folder with a seq-cls model; `talks` is whether `/info` reports its limit."""
    model = _open_model(folder)

    def reply(request: Request) -> tuple[int, Any]:
        if request.path == "/info" and talks:
            return 200, {"model": "embedder", "reranker": {"max_length": MAX_LENGTH}}
        if request.path != "/v1/rerank":
            return 404, {"error": "not found"}
        body = request.body
        instruction = body.get("instruction", TASK)
        texts = [(instruction, body["query"], text) for text in body["documents"]]
        results = stack.arrange(model.scores(stack, texts))
        return 200, {"results": [{"index": i, "relevance_score": score} for i, score in results]}

    return answering(reply)
