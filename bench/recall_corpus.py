"""Real text, and questions that do not occur in it: docstrings of installed Python modules."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import random
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.progress import track

from gateway_process import running_gateway
from qwen3_triton_client import EmbeddingClient

__all__ = ["Corpus", "embedded_corpus"]

MIN_CHARACTERS, MAX_CHARACTERS = 120, 1500
SEED = 11
INSTRUCTION = "Given a summary, retrieve the documentation that it belongs to"

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents and questions with their vectors, float32 of norm 1."""

    texts: list[str]
    vectors: Matrix
    """Shape (documents, dimensions)."""
    questions: Matrix
    """Shape (questions, dimensions); no document contains the text or summary of one."""


def embedded_corpus(documents: int, questions: int, cache: Path) -> Corpus:
    """Return docstrings as documents, and the summaries of other docstrings as questions.

    The nano model computes the vectors, which are cached in `cache`.
    """
    held_out, texts = _divide(docstrings(cache), documents, questions)
    with running_gateway() as gateway, EmbeddingClient(gateway.url) as client:
        name = hashlib.sha256("\0".join([client.fingerprint(), *held_out, *texts]).encode())
        path = cache / f"recall-{name.hexdigest()[:16]}.npz"
        if not path.exists():
            asked = client.embed(held_out, input_type="query", instruction=INSTRUCTION).to_numpy()
            np.savez(path, questions=asked, vectors=_embed(client, texts))
    with np.load(path) as saved:
        return Corpus(texts, saved["vectors"], saved["questions"])


def docstrings(cache: Path) -> list[str]:
    """Return the distinct docstrings of all installed modules, in the order of their files."""
    roots = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    files = sorted({path for root in roots for path in root.rglob("*.py")})
    sizes = "\n".join(f"{path} {path.stat().st_size}" for path in files)
    saved = cache / f"docstrings-{hashlib.sha256(sizes.encode()).hexdigest()[:16]}.json"
    if not saved.exists():
        found: dict[str, None] = {}
        for path in track(files, "Reading docstrings"):
            found.update(dict.fromkeys(_docstrings_of(path)))
        # A docstring may contain a lone surrogate, which UTF-8 cannot encode.
        clean = [text.encode("utf-8", "replace").decode() for text in found]
        saved.write_text(json.dumps(clean), encoding="utf-8")
    return json.loads(saved.read_text(encoding="utf-8"))


def summary(text: str) -> str:
    """Return the first paragraph of a docstring."""
    return " ".join(text.partition("\n\n")[0].split())


def _docstrings_of(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid escape sequences in their code
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")[:MAX_CHARACTERS]
            if len(text) >= MIN_CHARACTERS:
                yield text


def _divide(texts: list[str], documents: int, questions: int) -> tuple[list[str], list[str]]:
    """Split off the questions, and drop every text that begins like one of them."""
    shuffled = list(texts)
    random.Random(SEED).shuffle(shuffled)
    held_out: dict[str, None] = {}
    for text in shuffled:
        if len(held_out) == questions:
            break
        if 30 <= len(summary(text)) <= 200:
            held_out.setdefault(summary(text))
    rest = [text for text in shuffled if summary(text) not in held_out][:documents]
    if len(rest) < documents:
        raise SystemExit(f"There are only {len(rest)} texts: use --documents {len(rest)} or fewer.")
    return list(held_out), rest


def _embed(client: EmbeddingClient, texts: list[str]) -> Matrix:
    vectors = np.empty((len(texts), 0), dtype=np.float32)
    for index, vector in client.iter_embed(texts, in_order=False, progress=True):
        if not vectors.size:
            vectors = np.empty((len(texts), len(vector)), dtype=np.float32)
        vectors[index] = np.frombuffer(vector, dtype=np.float32)
    return vectors
