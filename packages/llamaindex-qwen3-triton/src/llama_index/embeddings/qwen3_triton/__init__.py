"""LlamaIndex embeddings from Qwen3-Embedding on NVIDIA Triton."""

from ._version import __version__
from .base import Qwen3TritonEmbedding

__all__ = ["Qwen3TritonEmbedding", "__version__"]
