"""A Qwen3-architecture reranker small enough to ship, for demos and tests."""

from importlib.metadata import version
from pathlib import Path

__all__ = ["MODEL_ID", "__version__", "golden_path", "model_dir"]

MODEL_ID = "qwen3-nano-reranker"

__version__ = version("qwen3-nano-reranker")

_PACKAGE = Path(__file__).resolve().parent


def model_dir() -> Path:
    """Return the folder with `model.onnx`, `config.json` and the tokenizer's files."""
    return _PACKAGE / "model"


def golden_path() -> Path:
    """Return the path of `golden.npz`: pairs with logits computed by the reference implementation.

    Its arrays are `queries` and `documents`, str, (n,); `token_counts`, int64, (n,), prompt
    included; and `logits`, float32, (n, 2): those of "no" and "yes" at the last token, from
    transformers' `Qwen3ForCausalLM`, in the prompt of the model card with its default instruction.
    """
    return _PACKAGE / "golden" / "golden.npz"
