"""The files of the nano reranker, opened once, and run the way a gateway would run them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from onnx_session import open_session
from padding import padded_inputs
from qwen3_nano_reranker import golden_path, model_dir

# The prompt of https://huggingface.co/Qwen/Qwen3-Reranker-0.6B. This distribution knows nothing of
# the gateway, so its tests have a copy of their own.
PREFIX = (
    "<|im_start|>system\n"
    "Judge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
PAIR = (
    "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
    "<Query>: {}\n<Document>: {}"
)
PAD_ID = 0

Pair = tuple[str, str]


class Golden(NamedTuple):
    """Pairs with the reference's logits."""

    pairs: list[Pair]
    token_counts: list[int]
    logits: NDArray[np.float32]


class Reranker:
    """The shipped files."""

    def __init__(self) -> None:
        self.tokenizer = Tokenizer.from_file(str(model_dir() / "tokenizer.json"))
        self.session: Any = open_session(model_dir() / "model.onnx")

    def token_ids(self, pair: Pair) -> list[int]:
        """Tokenize prefix, pair and suffix on their own, as the model card does."""
        texts = (PREFIX, PAIR.format(*pair), SUFFIX)
        return [token for text in texts for token in self.tokenizer.encode(text).ids]

    def run(self, rows: Sequence[list[int]], *, left: bool = False) -> NDArray[np.float32]:
        """Compute the logits of rows of tokens in one batch, padded right or left, (n, 2)."""
        (logits,) = self.session.run(["logits"], padded_inputs(rows, pad_id=PAD_ID, left=left))
        return logits

    def score(self, query: str, documents: Sequence[str]) -> NDArray[np.float32]:
        """Return the logit of "yes" minus that of "no" for each document."""
        logits = self.run([self.token_ids((query, document)) for document in documents])
        return logits[:, 1] - logits[:, 0]

    @staticmethod
    def golden() -> Golden:
        with np.load(golden_path()) as file:
            pairs = list(zip(file["queries"].tolist(), file["documents"].tolist(), strict=True))
            return Golden(pairs, file["token_counts"].tolist(), file["logits"])


@pytest.fixture(scope="session")
def reranker() -> Any:
    return Reranker()
