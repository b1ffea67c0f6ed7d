"""Extend the nano embedder's tokenizer to the reranker's prompt.

    python chat_tokenizer.py FOLDER

Writes FOLDER/tokenizer.json and tokenizer_config.json. The vocabulary stays, so that the embedder's
token vectors can be used. Added are `<think>` and `</think>`, and the constant sentences of the
prompt, each as one token: with the rest of the prompt they cost 23 tokens instead of 85.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import ByteLevel

import qwen3_nano
from qwen3_triton_gateway.rerank_prompt import DEFAULT_INSTRUCTION, PREFIX, SUFFIX, render_pair

SYSTEM = PREFIX.split("<|im_start|>")[1].removesuffix("<|im_end|>\n")
INSTRUCT, QUERY, DOCUMENT = "<Instruct>:", "\n<Query>:", "\n<Document>:"
THINK = ("<think>", "</think>")
# A space belongs to the word that follows it, so it begins a token and never ends one.
SENTENCES = (SYSTEM, INSTRUCT, f" {DEFAULT_INSTRUCTION}", QUERY, DOCUMENT)


def chat_tokenizer() -> Tokenizer:
    """Return the embedder's tokenizer with the tokens of the prompt."""
    tokenizer = Tokenizer.from_file(str(qwen3_nano.model_dir() / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (*THINK, *SENTENCES)])
    tokenizer.post_processor = ByteLevel(trim_offsets=False)  # no end token, as in Qwen3-Reranker
    return tokenizer


def head_text(query: str, instruction: str | None = None) -> str:
    """Return what precedes a document in its pair, up to the space that begins the document."""
    return render_pair(query, "", instruction).removesuffix(" ")


def prompt_ids(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the tokens of the prompt's prefix and suffix."""
    prefix, suffix = (tokenizer.encode(t, add_special_tokens=False).ids for t in (PREFIX, SUFFIX))
    return prefix, suffix


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = chat_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = (qwen3_nano.model_dir() / "tokenizer_config.json").read_text(encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")
    text = PREFIX + render_pair("what is a cat?", "A small animal.") + SUFFIX
    print(tokenizer.get_vocab_size(), tokenizer.encode(text, add_special_tokens=False).tokens)
    print(json.dumps([len(ids) for ids in prompt_ids(tokenizer)]))


if __name__ == "__main__":
    main()
