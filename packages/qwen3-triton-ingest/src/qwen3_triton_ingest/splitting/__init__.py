"""Cutting documents into chunks, measured by the served model's own tokenizer."""

from .splitter import MIN_CHUNK_TOKENS, Splitter
from .tokenizer_source import load_tokenizer

__all__ = ["MIN_CHUNK_TOKENS", "Splitter", "load_tokenizer"]
