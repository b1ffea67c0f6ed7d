"""The prompt of Qwen3-Reranker, verbatim, and the two tokens that answer it.

Sources:
    The model card https://huggingface.co/Qwen/Qwen3-Reranker-0.6B, usage with transformers, and
    the same code in the README of https://github.com/QwenLM/Qwen3-Embedding (commit f4ad0c4,
    "Reranker Model"): `format_instruction`, `process_inputs` and `compute_logits`. The cards of 4B
    and 8B have the same.

The card tokenizes prefix, pair and suffix on their own and joins their tokens, so no token spans
two of them. It truncates the pair only. The score is the share of "yes" in the softmax over the
logits of "no" and "yes" at the last position.
"""

from __future__ import annotations

PREFIX = (
    "<|im_start|>system\n"
    "Judge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
PAIR_TEMPLATE = "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
DEFAULT_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"

# In the order of the card's `torch.stack([false_vector, true_vector], dim=1)`. They are looked up
# with `convert_tokens_to_ids`: 2152 and 9693 in Qwen's vocabulary, others in other tokenizers.
ANSWERS = ("no", "yes")


def render_pair(query: str, document: str, instruction: str | None = None) -> str:
    """Return what is between prefix and suffix, as the card's `format_instruction` does."""
    return PAIR_TEMPLATE.format(
        instruction=DEFAULT_INSTRUCTION if instruction is None else instruction,
        query=query,
        document=document,
    )
