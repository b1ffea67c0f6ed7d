"""The vectors of the running product beside those of the reference implementation, live.

Runs by `make parity`, in an environment of its own with torch, transformers and
sentence-transformers; the product runs as users run it, as child processes of its own environment.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

import qwen3_nano

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "packages" / "qwen3-nano" / "training"))

import reference  # noqa: E402  (a script of the training folder, not a package)

Vectors = NDArray[np.float32]

# Equal weights in float32 on both sides; what differs is the order of summation.
FLOAT32_COSINE = 0.99999
# The committed vectors were made by the same code, perhaps by another release on another CPU.
GOLDEN_COSINE = 0.999999
START_SECONDS = 120.0
QUERY = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
)
ALPHABETS = ["abc deé", "日本語漢字", "привет ", "مرحبا ", "😀👩‍🚀🇩🇪 ", "def f(x):\n\t", "नमस्ते "]


def random_texts(count: int) -> list[str]:
    """Texts that nobody has seen: random characters of several scripts, 1 to some 900 tokens."""
    random = np.random.default_rng()
    texts: list[str] = []
    for _ in range(count):
        alphabet = ALPHABETS[random.integers(len(ALPHABETS))]
        length = int(np.exp(random.uniform(0, np.log(400))))
        texts.append("x" + "".join(random.choice(list(alphabet), size=length)))
    return texts


TEXTS = [*random_texts(40), "a", "word " * 1022, "What is tea?"]


@pytest.fixture(name="model", scope="session")
def _model() -> Any:
    return reference.load_reference(qwen3_nano.model_dir())


@pytest.fixture(name="expected", scope="session")
def _expected(model: Any) -> Vectors:
    tokenizer = Tokenizer.from_file(str(qwen3_nano.model_dir() / "tokenizer.json"))
    return reference.reference_vectors(model, tokenizer, TEXTS)


@pytest.fixture(name="url", scope="session", params=["up", "serve"])
def _url(request: pytest.FixtureRequest) -> Generator[str]:
    """`up` goes through a real Triton, `serve` runs the model in the gateway's process."""
    command = [str(ROOT / ".venv" / "bin" / "qwen3-triton"), request.param, "--port", "0"]
    if request.param == "up":
        command += ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    with tempfile.NamedTemporaryFile("w+b", suffix=".log") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield _wait_ready(process, Path(log.name))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


def _wait_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        listening = re.search(r"running on (http://[\d.]+:\d+)", log.read_text())
        if listening:
            try:
                urllib.request.urlopen(f"{listening[1]}/health/ready", timeout=5)
            except (urllib.error.URLError, OSError):
                pass
            else:
                return listening[1]
        time.sleep(0.1)
    raise AssertionError(f"The product did not start:\n{log.read_text()[-3000:]}")


def embed(url: str, texts: list[str], **fields: Any) -> Vectors:
    body = json.dumps({"texts": texts, "encoding_format": "base64", **fields}).encode()
    request = urllib.request.Request(f"{url}/embed", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        rows = json.load(response)["embeddings"]
    return np.stack([np.frombuffer(base64.b64decode(row), dtype="<f4") for row in rows])


def worst_cosine(left: Vectors, right: Vectors) -> float:
    a, b = left.astype(np.float64), right.astype(np.float64)
    cosines = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float(cosines.min())


def test_the_committed_golden_vectors_are_what_transformers_gives(model: Any) -> None:
    golden = np.load(qwen3_nano.golden_path(), allow_pickle=False)
    tokenizer = Tokenizer.from_file(str(qwen3_nano.model_dir() / "tokenizer.json"))
    live = reference.reference_vectors(model, tokenizer, golden["texts"].tolist())
    assert worst_cosine(live, golden["vectors"]) >= GOLDEN_COSINE


def test_texts_that_nobody_has_seen_get_transformers_vectors(url: str, expected: Vectors) -> None:
    got = embed(url, TEXTS, dimensions=expected.shape[1])
    assert worst_cosine(got, expected) >= FLOAT32_COSINE


def test_the_default_1024_dimensions_are_the_head_of_transformers(
    url: str, expected: Vectors
) -> None:
    assert worst_cosine(embed(url, TEXTS), expected[:, :1024]) >= FLOAT32_COSINE


def test_documents_and_queries_are_those_of_sentence_transformers(
    url: str, model: Any, tmp_path: Path
) -> None:
    encoder = sentence_transformer(model, tmp_path)
    documents = encoder.encode(TEXTS, batch_size=8, truncate_dim=1024, normalize_embeddings=True)
    queries = encoder.encode(TEXTS, prompt=QUERY, truncate_dim=1024, normalize_embeddings=True)
    assert worst_cosine(embed(url, TEXTS), documents) >= FLOAT32_COSINE
    assert worst_cosine(embed(url, TEXTS, input_type="query"), queries) >= FLOAT32_COSINE


def sentence_transformer(model: Any, folder: Path) -> Any:
    """Load the same weights by sentence-transformers, pooled at the last token."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import PreTrainedTokenizerFast

    model.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(qwen3_nano.model_dir() / "tokenizer.json"),
        pad_token="<|endoftext|>",
        padding_side="left",  # as the family's own configuration has it
    )
    tokenizer.save_pretrained(folder)
    transformer = Transformer(str(folder), max_seq_length=1024)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="lasttoken")
    return SentenceTransformer(modules=[transformer, pooling], device="cpu")
