"""LlamaIndex embeddings from Qwen3-Embedding on NVIDIA Triton."""

from importlib.metadata import PackageNotFoundError, version

from .base import Qwen3TritonEmbedding

__all__ = ["Qwen3TritonEmbedding", "__version__"]

try:
    __version__ = version("llama-index-embeddings-qwen3-triton")
except PackageNotFoundError:  # in a source tree that was never installed
    __version__ = "0.0.0"
