"""Write the tokenizer.json of Qwen3 from the vocabulary that Qwen published, without a model hub.

    pip download --no-deps dashscope==2.0.2
    .venv-parity/bin/python tests/parity/qwen_tokenizer.py dashscope-*.whl tokenizer.json

Qwen's own package has the byte pairs in tiktoken's format: each with its rank, but not with the two
parts that it is merged from.
"""

from __future__ import annotations

import base64
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers.convert_slow_tokenizer import bytes_to_unicode

# tokenizer_config.json of Qwen/Qwen3-Reranker-0.6B, from 151,643. Those without bars are not
# special: they are kept in decoded text.
ADDED_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>"),
    *("<think>", "</think>"),
)
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_ranks(wheel: Path) -> dict[bytes, int]:
    """Read the byte pairs of Qwen's package, each with its rank."""
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read("dashscope/resources/qwen.tiktoken").splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}


def make_tokenizer(ranks: Mapping[bytes, int]) -> Tokenizer:
    """Build the tokenizer of the family from its byte pairs."""
    letters = bytes_to_unicode()
    names = {token: "".join(letters[byte] for byte in token) for token in ranks}
    pairs = (_parts(token, ranks) for token in sorted(ranks, key=ranks.__getitem__))
    merges = [(names[left], names[right]) for left, right in filter(None, pairs)]
    tokenizer = Tokenizer(BPE({names[token]: rank for token, rank in ranks.items()}, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [AddedToken(token, special="|" in token, normalized=False) for token in ADDED_TOKENS]
    )
    return tokenizer


def _parts(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """Return the two tokens that are merged last into this one; a single byte has none."""
    parts = [token[place : place + 1] for place in range(len(token))]
    while len(parts) > 2:
        merged = [ranks.get(parts[i] + parts[i + 1], len(ranks)) for i in range(len(parts) - 1)]
        place = min(range(len(merged)), key=merged.__getitem__)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None


if __name__ == "__main__":
    made = make_tokenizer(read_ranks(Path(sys.argv[1])))
    assert made.get_vocab_size() == 151_669
    made.save(sys.argv[2])
