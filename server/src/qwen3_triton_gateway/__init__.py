"""Serve Qwen3-Embedding behind NVIDIA Triton: text in, unit vectors out."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("qwen3-triton-gateway")
