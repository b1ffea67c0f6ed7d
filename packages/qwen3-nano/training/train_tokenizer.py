"""Train the byte-level BPE tokenizer: Qwen's pre-tokenizer, a vocabulary of 24,000.

    python train_tokenizer.py WORK

Writes WORK/model/tokenizer.json and tokenizer_config.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from articles import Article, read_articles
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import ByteLevel as ByteLevelProcessor
from tokenizers.processors import Sequence, TemplateProcessing
from tokenizers.trainers import BpeTrainer

VOCABULARY = 24_000
# The maximum in config.json; that of Qwen3 is larger.
MAX_LENGTH = 2048
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Qwen2's pre-tokenizer, from its tokenizer.json.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Maximum characters per source, so that the largest ones do not dominate the vocabulary.
MAX_CHARACTERS = 6_000_000
# Included so that the query prefix costs few tokens.
PREFIX = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
)


def new_tokenizer() -> Tokenizer:
    """Return an untrained tokenizer with the family's normalizer, pre-tokenizer and decoder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def texts(articles: Iterator[Article]) -> Iterator[str]:
    """Yield the training text, each source up to its limit."""
    used: dict[str, int] = {}
    for article in articles:
        used[article.source] = used.get(article.source, 0) + len(article.text)
        if used[article.source] < MAX_CHARACTERS:
            # Separate, so that words are also learned without a leading space, as at the start of a
            # query.
            yield article.title
            yield article.text
    yield from [PREFIX] * 1000


def train(articles: Iterator[Article]) -> Tokenizer:
    """Train a tokenizer that appends the end token to every text."""
    tokenizer = new_tokenizer()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(t, normalized=False, special=True) for t in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=3,
    )
    tokenizer.train_from_iterator(texts(articles), trainer)
    end = SPECIAL[0]
    tokenizer.post_processor = Sequence(
        [
            ByteLevelProcessor(trim_offsets=False),
            TemplateProcessing(
                single=f"$A {end}",
                pair=f"$A {end} $B {end}",
                special_tokens=[(end, tokenizer.token_to_id(end))],
            ),
        ]
    )
    return tokenizer


def tokenizer_config() -> dict[str, object]:
    """Return the settings that transformers reads in addition to tokenizer.json.

    As in Qwen3-Embedding, eos_token is not the token that ends a text.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "additional_special_tokens": list(SPECIAL[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "padding_side": "left",
        "model_max_length": MAX_LENGTH,
    }


def main() -> None:
    work = Path(sys.argv[1])
    model = work / "model"
    model.mkdir(exist_ok=True)
    tokenizer = train(read_articles(work / "train.jsonl"))
    tokenizer.save(str(model / "tokenizer.json"))
    config = json.dumps(tokenizer_config(), indent=2) + "\n"
    (model / "tokenizer_config.json").write_text(config, encoding="utf-8")
    print(tokenizer.get_vocab_size(), tokenizer.encode(PREFIX + "how do vaccines work?").tokens)


if __name__ == "__main__":
    main()
