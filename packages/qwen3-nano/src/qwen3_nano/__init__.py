"""A Qwen3-architecture embedding model small enough to ship, for demos and tests."""

from importlib.metadata import version
from pathlib import Path

__all__ = ["MODEL_ID", "__version__", "golden_path", "model_dir"]

MODEL_ID = "qwen3-nano"

__version__ = version("qwen3-nano")

_PACKAGE = Path(__file__).resolve().parent


def model_dir() -> Path:
    """Return the folder with `model.onnx`, `config.json` and the tokenizer's files."""
    return _PACKAGE / "model"


def golden_path() -> Path:
    """Return the path of `golden.npz`: texts with vectors computed by the reference implementation.

    Its arrays are `texts`, str, (n,); `token_counts`, int64, (n,), end token included; and
    `vectors`, float32, (n, hidden_size): the last token's hidden state from transformers'
    `Qwen3Model`, neither truncated nor normalized.
    """
    return _PACKAGE / "golden" / "golden.npz"
