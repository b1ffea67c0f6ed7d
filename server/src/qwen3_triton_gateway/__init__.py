"""Serve Qwen3-Embedding behind NVIDIA Triton: text in, unit vectors out."""

from ._version import __version__

__all__ = ["__version__"]
