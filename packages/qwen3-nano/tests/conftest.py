"""The files of the nano model, opened once, and run the way a gateway would run them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from onnx_session import open_session
from padding import padded_inputs
from qwen3_nano import golden_path, model_dir
from qwen3_nano.graph import build_graph
from qwen3_nano.weights import NanoWeights, load_weights

Feeds = dict[str, NDArray[Any]]
PAD_ID = 0


class Nano:
    """The shipped files."""

    def __init__(self) -> None:
        self.tokenizer = Tokenizer.from_file(str(model_dir() / "tokenizer.json"))
        self.weights: NanoWeights = load_weights(model_dir() / "model.onnx")
        self.plain = open_session(model_dir() / "model.onnx")
        self.variant = cache(self._variant)

    def _variant(self, **options: Any) -> onnxruntime.InferenceSession:
        return open_session(build_graph(self.weights, **options).SerializeToString())

    def feeds(self, texts: list[str], *, left: bool = False) -> Feeds:
        """Return the three inputs, padded right or left, with positions counted from the mask."""
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        return padded_inputs(rows, pad_id=PAD_ID, left=left)

    def embed(self, texts: list[str], *, left: bool = False) -> NDArray[np.float32]:
        """Compute the last token's hidden states, float32, (n, hidden_size)."""
        inputs = self.feeds(texts, left=left)
        (hidden,) = self.plain.run(["last_hidden_state"], inputs)
        return pool(hidden, inputs["attention_mask"])

    @staticmethod
    def golden() -> tuple[list[str], NDArray[np.int64], NDArray[np.float32]]:
        """Return the golden texts, their token counts and their vectors."""
        with np.load(golden_path()) as file:
            return file["texts"].tolist(), file["token_counts"], file["vectors"]


def pool(hidden: NDArray[Any], mask: NDArray[np.int64]) -> NDArray[np.float32]:
    last = (mask * np.arange(mask.shape[1])).max(axis=1)
    return hidden[np.arange(len(mask)), last].astype(np.float32)


@pytest.fixture(scope="session")
def nano() -> Nano:
    return Nano()
