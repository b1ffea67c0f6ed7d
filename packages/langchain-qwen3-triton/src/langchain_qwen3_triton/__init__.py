"""LangChain embeddings and reranking from Qwen3 models on NVIDIA Triton."""

from importlib.metadata import PackageNotFoundError, version

from .embeddings import Qwen3TritonEmbeddings
from .rerank import Qwen3TritonRerank

__all__ = ["Qwen3TritonEmbeddings", "Qwen3TritonRerank", "__version__"]

try:
    __version__ = version("langchain-qwen3-triton")
except PackageNotFoundError:  # in a source tree that was never installed
    __version__ = "0.0.0"
