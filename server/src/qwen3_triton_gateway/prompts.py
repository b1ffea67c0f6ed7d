"""What Qwen3-Embedding expects around a text: queries carry an instruction, documents nothing.

Source: README of QwenLM/Qwen3-Embedding, `get_detailed_instruct`. There is no space after `Query:`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

InputType: TypeAlias = Literal["document", "query"]

DEFAULT_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
# Part of the fingerprint: raise it when the bytes around a text change.
PROMPT_VERSION = "qwen3-instruct-1"


def format_inputs(
    texts: Sequence[str], *, input_type: InputType, instruction: str | None = None
) -> list[str]:
    """Wrap queries in the instruction template and leave documents as they are."""
    if input_type == "document":
        return list(texts)
    prefix = f"Instruct: {instruction or DEFAULT_INSTRUCTION}\nQuery:"
    return [prefix + text for text in texts]
