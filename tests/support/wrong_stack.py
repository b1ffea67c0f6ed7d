"""A minimal gateway around the nano model, correct unless one of its stages is replaced.

It shares no code with the product: http.server, ONNX Runtime and a tokenizer. Each replacement
below is a mistake that somebody's deployment has made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

import qwen3_nano
from json_server import Request, answering
from padding import padded_inputs

END_ID = 0  # `<|endoftext|>` in the nano model's vocabulary, its pad token too
IMPORT_ID = 7644  # `import`
DEFAULT_DIMENSIONS = 1024
DEFAULT_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
# Short, so that texts of that length, and the golden texts below it, cost little.
MAX_LENGTH = 56
SHIFT = 1000

Ids = list[int]
Array = np.ndarray[Any, np.dtype[Any]]


@cache
def session() -> onnxruntime.InferenceSession:
    path = qwen3_nano.model_dir() / "model.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # texts of a few tokens: a second thread only spins
    options.enable_mem_pattern = False  # it would keep memory for every shape
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(qwen3_nano.model_dir() / "tokenizer.json"))


def token_ids(text: str) -> Ids:
    return tokenizer().encode(text, add_special_tokens=False).ids


def shifted_token_ids(text: str) -> Ids:
    """Tokenize with another vocabulary: the same tokens under other ids."""
    size = tokenizer().get_vocab_size()
    return [(token - 1 + SHIFT) % (size - 1) + 1 if token else token for token in token_ids(text)]


def with_end_token(ids: Ids) -> Ids:
    return [*ids[: MAX_LENGTH - 1], END_ID]


def without_end_token(ids: Ids) -> Ids:
    return ids[:MAX_LENGTH]


def with_end_token_cut_off(ids: Ids) -> Ids:
    return [*ids, END_ID][:MAX_LENGTH]


def pool_right(rows: Sequence[Ids]) -> Array:
    return _pool(rows, left=False)


def pool_left_as_if_right(rows: Sequence[Ids]) -> Array:
    """Pool as the runbook does: padded left, at the number of tokens minus one."""
    return _pool(rows, left=True)


def _pool(rows: Sequence[Ids], *, left: bool) -> Array:
    return _states(tuple(map(tuple, rows)), left)


@cache
def _states(rows: tuple[tuple[int, ...], ...], left: bool) -> Array:
    """Run the model; most stacks are given the same rows."""
    feed = padded_inputs(rows, pad_id=END_ID, left=left)
    hidden = np.asarray(session().run(["last_hidden_state"], feed)[0])
    return hidden[np.arange(len(rows)), feed["attention_mask"].sum(axis=1) - 1]


def pool_first(rows: Sequence[Ids]) -> Array:
    return _pool([row[:1] for row in rows], left=False)


def overflow(pooled: Array, rows: Sequence[Ids]) -> Array:
    """Overflow float16 for texts that begin with `import`, as the 8B model does."""
    huge = np.array([[1e6 if row[:1] == [IMPORT_ID] else 1.0] for row in rows])
    with np.errstate(over="ignore", invalid="ignore"):
        return (pooled * huge).astype(np.float16).astype(np.float32)


def pool_with_nan(rows: Sequence[Ids]) -> Array:
    values = overflow(pool_right(rows), rows)
    return np.where(np.isfinite(values), values, np.nan)


def pool_with_zeros(rows: Sequence[Ids]) -> Array:
    values = overflow(pool_right(rows), rows)
    return np.where(np.isfinite(values).all(axis=1, keepdims=True), values, 0.0)


def instructed(text: str, instruction: str) -> str:
    return f"Instruct: {instruction}\nQuery:{text}"


def instructed_with_a_space(text: str, instruction: str) -> str:
    return f"Instruct: {instruction}\nQuery: {text}"


def not_instructed(text: str, instruction: str) -> str:
    del instruction
    return text


def by_default_instructed(text: str, instruction: str) -> str:
    del instruction
    return instructed(text, DEFAULT_INSTRUCTION)


def normalized(vectors: Array, dimensions: int) -> Array:
    cut = vectors[:, :dimensions]
    norms = np.linalg.norm(cut, axis=1, keepdims=True)
    return cut / np.where(norms > 0, norms, 1.0)


def not_normalized(vectors: Array, dimensions: int) -> Array:
    return vectors[:, :dimensions]


def cut_after_normalizing(vectors: Array, dimensions: int) -> Array:
    return normalized(vectors, DEFAULT_DIMENSIONS)[:, :dimensions]


def in_order(vectors: Array, rows: Sequence[Ids]) -> Array:
    del rows
    return vectors


def sorted_by_length(vectors: Array, rows: Sequence[Ids]) -> Array:
    return vectors[np.argsort([len(row) for row in rows], kind="stable")]


def without_the_last(vectors: Array, rows: Sequence[Ids]) -> Array:
    return vectors[:-1] if len(rows) > 1 else vectors


@dataclass(frozen=True)
class Stack:
    """The stages of a gateway; `talks` says whether it lists and counts tokens at all."""

    tokenize: Callable[[str], Ids] = token_ids
    close: Callable[[Ids], Ids] = with_end_token
    pool: Callable[[Sequence[Ids]], Array] = pool_right
    prompt: Callable[[str, str], str] = instructed
    finish: Callable[[Array, int], Array] = normalized
    arrange: Callable[[Array, Sequence[Ids]], Array] = in_order
    talks: bool = True
    knows_its_length: bool = True
    reports_cuts: bool = True

    def embed(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        texts: list[str] = body["texts"]
        if body.get("input_type") == "query":
            instruction = body.get("instruction") or DEFAULT_INSTRUCTION
            texts = [self.prompt(text, instruction) for text in texts]
        tokens = [self.tokenize(text) for text in texts]
        rows = [self.close(ids) for ids in tokens]
        long = [index for index, ids in enumerate(tokens) if len(ids) > MAX_LENGTH - 1]
        if long and body.get("truncate") is False:
            return 400, {"detail": f"Text {long[0]} is too long."}
        dimensions = body.get("dimensions", DEFAULT_DIMENSIONS)
        vectors = self.arrange(self.finish(self.pool(rows), dimensions), rows)
        answer: dict[str, Any] = {"embeddings": vectors.tolist(), "model": qwen3_nano.MODEL_ID}
        if self.reports_cuts:
            answer["truncated"] = long
        if self.talks:
            answer["usage"] = {"prompt_tokens": sum(map(len, rows))}
        return 200, answer

    def list_tokens(self, body: dict[str, Any]) -> tuple[int, Any]:
        # It lists the correct tokens, like servers that list tokens and embed in separate code.
        return 200, [
            [{"id": token} for token in with_end_token(self.tokenize(text))]
            for text in body["inputs"]
        ]

    def info(self) -> dict[str, Any]:
        known = {"max_length": MAX_LENGTH} if self.knows_its_length else {}
        return {"model": qwen3_nano.MODEL_ID, "hidden_size": 1152, "dimensions": 1024} | known


RIGHT = Stack()
# Each with the check that must fail, and words that its cause must contain.
WRONG: dict[str, tuple[Stack, str, str]] = {
    "left-padding": (replace(RIGHT, pool=pool_left_as_if_right), "batch invariance", "padded left"),
    "first-token": (replace(RIGHT, pool=pool_first), "pooling", "The first token is pooled"),
    "no-end-token": (replace(RIGHT, close=without_end_token), "end token", "<|endoftext|>"),
    "end-token-cut-off": (replace(RIGHT, close=with_end_token_cut_off), "long text", "end token"),
    "other-tokenizer": (
        replace(RIGHT, tokenize=shifted_token_ids),
        "tokenizer",
        "another model",
    ),
    "nan": (replace(RIGHT, pool=pool_with_nan), "float16 overflow", "float16"),
    "zeros": (replace(RIGHT, pool=pool_with_zeros), "float16 overflow", "float16"),
    "not-normalized": (replace(RIGHT, finish=not_normalized), "norm", "not normalized"),
    "cut-after-normalizing": (
        replace(RIGHT, finish=cut_after_normalizing),
        "dimensions",
        "not normalized after",
    ),
    "sorted": (replace(RIGHT, arrange=sorted_by_length), "order", "sorted by length"),
    "one-vector-short": (replace(RIGHT, arrange=without_the_last), "order", "dropped"),
    "no-instruction": (replace(RIGHT, prompt=not_instructed), "instruction", "without"),
    "space-after-query": (
        replace(RIGHT, prompt=instructed_with_a_space),
        "instruction",
        "space after",
    ),
    "own-instruction-ignored": (
        replace(RIGHT, prompt=by_default_instructed),
        "own instruction",
        "`instruction` is ignored",
    ),
    "silent-cut": (replace(RIGHT, reports_cuts=False), "long text", "truncated silently"),
}


def serving(stack: Stack, *, api_key: str = "") -> AbstractContextManager[str]:
    """Serve a stack on a free port for the length of a `with` block and yield its URL."""

    def reply(request: Request) -> tuple[int, Any]:
        if request.path == "/info":
            return 200, stack.info()
        if api_key and request.authorization != f"Bearer {api_key}":
            return 401, {"error": {"message": "A key is needed."}}
        if request.path == "/embed":
            return stack.embed(request.body)
        if request.path == "/tokenize" and stack.talks:
            return stack.list_tokens(request.body)
        return 404, {"detail": "Not Found"}

    return answering(reply)
