"""LangChain embeddings from Qwen3-Embedding on NVIDIA Triton."""

from importlib.metadata import PackageNotFoundError, version

from .embeddings import Qwen3TritonEmbeddings

__all__ = ["Qwen3TritonEmbeddings", "__version__"]

try:
    __version__ = version("langchain-qwen3-triton")
except PackageNotFoundError:  # in a source tree that was never installed
    __version__ = "0.0.0"
