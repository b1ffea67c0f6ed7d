"""A Qwen3-architecture embedding model small enough to ship, for demos and tests."""

from importlib.metadata import version
from pathlib import Path

__all__ = ["MODEL_ID", "__version__", "golden_path", "model_dir"]

MODEL_ID = "qwen3-nano"

__version__ = version("qwen3-nano")

_PACKAGE = Path(__file__).resolve().parent


def model_dir() -> Path:
    """Return the folder of the model.

    It holds `model.onnx`, `tokenizer.json`, `tokenizer_config.json` and `config.json`.
    """
    return _PACKAGE / "model"


def golden_path() -> Path:
    """Return `golden.npz`: texts and the vectors that the reference implementation gives them.

    Its arrays are `texts` (n,) str, `token_counts` (n,) int64 with the end token, and `vectors`
    float32 (n, hidden_size): the last token's hidden state by transformers' `Qwen3Model`, neither
    cut nor normalized.
    """
    return _PACKAGE / "golden" / "golden.npz"
