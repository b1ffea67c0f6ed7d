"""LangChain embeddings from Qwen3-Embedding on NVIDIA Triton."""

from ._version import __version__
from .embeddings import Qwen3TritonEmbeddings

__all__ = ["Qwen3TritonEmbeddings", "__version__"]
