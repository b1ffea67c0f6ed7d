"""The vectors of the running product compared with the reference implementation, live.

Runs by `make parity`, in an environment of its own with torch, transformers and
sentence-transformers; the product runs as users run it, as child processes of its own environment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported_models import sentence_transformer
from served_product import Vectors, embed, running, worst_cosine
from tokenizers import Tokenizer

import qwen3_nano

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "packages" / "qwen3-nano" / "training"))

import reference  # noqa: E402  (a script of the training folder, not a package)

# With equal float32 weights on both sides, only the order of summation differs.
FLOAT32_COSINE = 0.99999
# The committed vectors were computed by the same code, perhaps in another release on another CPU.
GOLDEN_COSINE = 0.999999
QUERY = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
)
ALPHABETS = ["abc deé", "日本語漢字", "привет ", "مرحبا ", "😀👩‍🚀🇩🇪 ", "def f(x):\n\t", "नमस्ते "]
# Other texts: `PARITY_SEED=7 make parity`.
SEED = int(os.environ.get("PARITY_SEED", "0"))
# An emoji is up to four tokens. The product truncates at 1,024, `reference_vectors` does not.
MAX_CHARACTERS = 250


def random_texts(count: int) -> list[str]:
    """Draw characters of one script each: texts of 1 to about 900 tokens."""
    random = np.random.default_rng(SEED)
    texts: list[str] = []
    for _ in range(count):
        alphabet = ALPHABETS[random.integers(len(ALPHABETS))]
        length = int(np.exp(random.uniform(0, np.log(MAX_CHARACTERS))))
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


@pytest.fixture(name="encoded", scope="session")
def _encoded(model: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Vectors, Vectors]:
    """What sentence-transformers makes of TEXTS as documents, and as queries."""
    tokenizer = qwen3_nano.model_dir() / "tokenizer.json"
    encoder = sentence_transformer(model, tmp_path_factory.mktemp("encoder"), tokenizer=tokenizer)
    # Of its default of 32, most tokens would be padding to the longest.
    options = {"batch_size": 4, "truncate_dim": 1024, "normalize_embeddings": True}
    return encoder.encode(TEXTS, **options), encoder.encode(TEXTS, prompt=QUERY, **options)


@pytest.fixture(name="url", scope="session", params=["up", "onnxruntime", "openvino"])
def _url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Generator[str]:
    """`up` goes through a real Triton, the others run the model in the gateway's process."""
    is_triton = request.param == "up"
    engine = "auto" if is_triton else request.param
    flags = ("--engine", engine, "--precision", "float32")
    log = tmp_path_factory.mktemp("product") / "log"
    with running("up" if is_triton else "serve", *flags, log=log) as url:
        yield url


def test_the_committed_golden_vectors_match_transformers(model: Any) -> None:
    golden = np.load(qwen3_nano.golden_path(), allow_pickle=False)
    tokenizer = Tokenizer.from_file(str(qwen3_nano.model_dir() / "tokenizer.json"))
    live = reference.reference_vectors(model, tokenizer, golden["texts"].tolist())
    assert worst_cosine(live, golden["vectors"]) >= GOLDEN_COSINE


def test_vectors_of_random_texts_match_transformers(url: str, expected: Vectors) -> None:
    got = embed(url, TEXTS, dimensions=expected.shape[1])
    assert worst_cosine(got, expected) >= FLOAT32_COSINE


def test_the_default_1024_dimensions_are_the_first_of_transformers(
    url: str, expected: Vectors
) -> None:
    assert worst_cosine(embed(url, TEXTS), expected[:, :1024]) >= FLOAT32_COSINE


def test_documents_and_queries_match_sentence_transformers(
    url: str, encoded: tuple[Vectors, Vectors]
) -> None:
    documents, queries = encoded
    assert worst_cosine(embed(url, TEXTS), documents) >= FLOAT32_COSINE
    assert worst_cosine(embed(url, TEXTS, input_type="query"), queries) >= FLOAT32_COSINE
