"""LlamaIndex embeddings and reranking from Qwen3 models on NVIDIA Triton."""

from importlib.metadata import PackageNotFoundError, version

from .base import Qwen3TritonEmbedding
from .rerank import Qwen3TritonRerank

__all__ = ["Qwen3TritonEmbedding", "Qwen3TritonRerank", "__version__"]

try:
    __version__ = version("llama-index-embeddings-qwen3-triton")
except PackageNotFoundError:  # in a source tree that was never installed
    __version__ = "0.0.0"
