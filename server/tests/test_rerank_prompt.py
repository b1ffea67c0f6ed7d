"""The prompt against the model card's own code, copied here."""

from __future__ import annotations

from qwen3_triton_gateway.rerank_prompt import (
    ANSWERS,
    DEFAULT_INSTRUCTION,
    PREFIX,
    SUFFIX,
    render_pair,
)

# https://huggingface.co/Qwen/Qwen3-Reranker-0.6B, usage with transformers.
CARD_PREFIX = '<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'  # noqa: E501
CARD_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
CARD_PAIR = (
    "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
    "<Query>: Explain gravity\n<Document>: It pulls."
)


def test_the_prompt_is_the_card_s_to_the_letter() -> None:
    assert (PREFIX, SUFFIX) == (CARD_PREFIX, CARD_SUFFIX)
    assert ANSWERS == ("no", "yes")
    assert render_pair("Explain gravity", "It pulls.") == CARD_PAIR
    assert render_pair("Explain gravity", "It pulls.", DEFAULT_INSTRUCTION) == CARD_PAIR


def test_braces_in_a_text_are_text() -> None:
    assert render_pair("{query}", "{0} {document}", "{x}") == (
        "<Instruct>: {x}\n<Query>: {query}\n<Document>: {0} {document}"
    )
