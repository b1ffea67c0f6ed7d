"""Embedding and reranking behind one interface, for tests that apply to both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import numpy as np

import qwen3_nano
import qwen3_nano_reranker
from embed_call import TIMEOUT_SECONDS, cosines
from gateway_process import model_flags, triton_flags
from qwen3_triton_gateway.tensors import Float32Matrix
from qwen3_triton_tools.local_triton import LocalReranker, LocalTriton
from tolerances import FLOAT32_COSINE, FLOAT32_SCORE

TEXTS = [f"{'filler ' * (index % 9)}text {index}" for index in range(24)]
QUERY = "How do rivers carry sand?"
RERANKER = qwen3_nano_reranker.MODEL_ID
RERANK_FLAGS = (
    *("--rerank-triton-model", RERANKER),
    *("--rerank-tokenizer-path", str(qwen3_nano_reranker.model_dir())),
)
# Statuses of a request that is refused: the model is unavailable, or the deadline has passed.
UNAVAILABLE = {503, 504}


class Traffic(ABC):
    """Requests for one of a gateway's models.

    What the gateway answers at first is what it has to answer later.

    Attributes:
        path: Where the requests are sent.
        metrics: What the names of the model's metrics begin with.
        model_dir: The folder of the nano model.
        model_name: Its name.
        flags: What serves it alone, after `--triton-url`.
    """

    path: ClassVar[str]
    metrics: ClassVar[str]
    model_dir: ClassVar[Path]
    model_name: ClassVar[str]
    flags: ClassVar[tuple[str, ...]]

    def __init__(self, url: str) -> None:
        self.url = url
        first = self.send(TEXTS)
        assert first.status_code == 200, first.text
        self._expected = self.rows(first)

    @classmethod
    def triton(cls) -> LocalTriton:
        """Return a Triton with this model alone, not yet started."""
        return LocalTriton(model_dir=cls.model_dir, model_name=cls.model_name, max_batch_size=8)

    @classmethod
    @abstractmethod
    def body(cls, texts: Sequence[str]) -> dict[str, Any]:
        """Return the body of a request."""

    @classmethod
    @abstractmethod
    def rows(cls, response: httpx2.Response) -> Float32Matrix:
        """Return one row for each text, in their order."""

    @classmethod
    @abstractmethod
    def param(cls, response: httpx2.Response) -> str | None:
        """Return what an error names as its cause."""

    @classmethod
    @abstractmethod
    def agree(cls, rows: Float32Matrix, expected: Float32Matrix) -> bool:
        """Return whether two results for the same texts are equal but for rounding."""

    def send(self, texts: Sequence[str]) -> httpx2.Response:
        # To load certificates, unused here, takes longer than the call.
        return httpx2.post(
            self.url + self.path, json=self.body(texts), timeout=TIMEOUT_SECONDS, verify=False
        )

    def ask(self, texts: int = len(TEXTS)) -> int:
        """Send the first texts; return the status. An answer has to be right, an error typed."""
        response = self.send(TEXTS[:texts])
        if response.status_code == 200:
            rows, expected = self.rows(response), self._expected[:texts]
            assert rows.shape == expected.shape
            assert self.agree(rows, expected)
        else:
            assert response.json()["error"], response.text
        if response.status_code in {429, 503}:
            assert int(response.headers["Retry-After"]) >= 1
        return response.status_code


class Embedding(Traffic):
    path = "/embed"
    metrics = "qwen3_triton"
    model_dir = qwen3_nano.model_dir()
    model_name = qwen3_nano.MODEL_ID
    flags = model_flags()

    @classmethod
    def body(cls, texts: Sequence[str]) -> dict[str, Any]:
        return {"texts": texts}

    @classmethod
    def rows(cls, response: httpx2.Response) -> Float32Matrix:
        return np.array(response.json()["embeddings"], dtype=np.float32)

    @classmethod
    def param(cls, response: httpx2.Response) -> str | None:
        return response.json()["error"]["param"]

    @classmethod
    def agree(cls, rows: Float32Matrix, expected: Float32Matrix) -> bool:
        return bool(cosines(rows, expected).min() >= FLOAT32_COSINE)


class Reranking(Traffic):
    path = "/rerank"
    metrics = "qwen3_triton_rerank"
    model_dir = qwen3_nano_reranker.model_dir()
    model_name = RERANKER
    flags = RERANK_FLAGS

    @classmethod
    def body(cls, texts: Sequence[str]) -> dict[str, Any]:
        return {"query": QUERY, "texts": texts, "raw_scores": True}

    @classmethod
    def rows(cls, response: httpx2.Response) -> Float32Matrix:
        ranks = response.json()
        assert ranks == sorted(ranks, key=lambda rank: -rank["score"])
        scores = {rank["index"]: rank["score"] for rank in ranks}
        assert sorted(scores) == list(range(len(ranks)))
        return np.array([[scores[index]] for index in range(len(ranks))], dtype=np.float32)

    @classmethod
    def param(cls, response: httpx2.Response) -> str | None:
        return response.json()["param"]

    @classmethod
    def agree(cls, rows: Float32Matrix, expected: Float32Matrix) -> bool:
        return bool(np.abs(rows - expected).max() <= FLOAT32_SCORE)


def triton_of_both(*, intra_op_threads: int = 0) -> LocalTriton:
    """Return a Triton with both nano models, not yet started."""
    return LocalTriton(
        model_dir=Embedding.model_dir,
        model_name=Embedding.model_name,
        reranker=LocalReranker(model_dir=Reranking.model_dir, model_name=Reranking.model_name),
        max_batch_size=8,
        intra_op_threads=intra_op_threads,
    )


def flags_of_both(url: str) -> tuple[str, ...]:
    return (*triton_flags(url), *RERANK_FLAGS)


def traffic_of_both(url: str) -> list[Traffic]:
    return [Embedding(url), Reranking(url)]
