"""The tokens of a text, joined from those of its words.

A tokenizer of the family merges bytes within words and not across them, so a word has the same
tokens wherever it is. The library knows that too, but takes several times as long to normalize and
split a text, since it also tracks where each character came from (`bench/README.md`).
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from .segments import FAMILY_PATTERN, SPACED_LETTERS, Segmenter
from .tensors import Int64Vector

# In running text, these are all words but the rare. They take seven megabytes, and twice as much at
# worst.
MAX_WORDS = 32_768
# Texts with longer words are left to the library, which lets other threads run.
MAX_REMEMBERED_CHARACTERS = 32

# Characters of which the tokenizer's tables and ours say the same in every version of Unicode, and
# which never combine with each other: ASCII without control characters, letters of scripts that
# separate words by spaces, quotation marks, dashes, and a few more signs.
_PLAIN = (
    rf"\t\n\r -~{SPACED_LETTERS}\xa3\xa7\xa9\xab\xae\xb0\xb7\xbb\u2010-\u201f\u2022\u2026\u20ac"
)
NOT_PLAIN = re.compile(rf"[^{_PLAIN}]")
# The tokenizer's own pattern, for these characters.
_WORD = re.compile(
    FAMILY_PATTERN.replace(r"\p{L}\p{N}", rf"{SPACED_LETTERS}0-9")
    .replace(r"\p{L}", rf"[{SPACED_LETTERS}]")
    .replace(r"\p{N}", "[0-9]")
)
# A vocabulary is written with a visible character for each byte (GPT-2's `bytes_to_unicode`): most
# of Latin-1 as it is, and what is not visible from U+0100 on.
_VISIBLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_INVISIBLE = [byte for byte in range(0x100) if byte not in _VISIBLE]
_BYTES = {byte: 0x100 + place for place, byte in enumerate(_INVISIBLE)}


class _LongWordError(Exception):
    """A word is too long to be remembered."""


class WordTokens(dict[str, bytes]):
    """The tokens of words, as int64; those of a new word are computed when they are read.

    It may be used by several threads.
    """

    def __init__(self, tokenizer: Tokenizer, segmenter: Segmenter) -> None:
        """Remember nothing yet; the tokenizer must neither truncate nor pad."""
        super().__init__()
        self._tokenizer = tokenizer
        self._merge = tokenizer.model.tokenize
        self._knows_words = segmenter.knows_words
        # The tokenizer finds these before it splits; nothing matches where there are none.
        self._whole_token = re.compile("|".join(map(re.escape, segmenter.whole_tokens)) or r"(?!)")

    def __missing__(self, word: str) -> bytes:
        if len(word) > MAX_REMEMBERED_CHARACTERS:
            raise _LongWordError
        if len(self) >= MAX_WORDS:
            self.clear()
        merged = self._merge(word.encode().decode("latin-1").translate(_BYTES))
        tokens = self[word] = array("q", [token.id for token in merged]).tobytes()
        return tokens

    def encode(self, texts: Sequence[str]) -> list[Int64Vector]:
        """Tokenize texts, without an end token."""
        tokens_of = [self._join(text) for text in texts]
        others = [text for text, tokens in zip(texts, tokens_of, strict=True) if tokens is None]
        encodings = iter(
            self._tokenizer.encode_batch_fast(others, add_special_tokens=False) if others else ()
        )
        return [
            np.array(next(encodings).ids, dtype=np.int64)
            if tokens is None
            else np.frombuffer(tokens, dtype=np.int64)
            for tokens in tokens_of
        ]

    def _join(self, text: str) -> bytes | None:
        """Join the tokens of a text's words; None if it is left to the library."""
        if not self._knows_words or NOT_PLAIN.search(text) or self._whole_token.search(text):
            return None
        try:
            return b"".join(map(self.__getitem__, _WORD.findall(text)))
        except _LongWordError:
            return None
