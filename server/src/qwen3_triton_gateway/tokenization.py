"""From texts to token IDs: the query instruction, truncation, and the end token.

Every text ends with `<|endoftext|>`, whatever the tokenizer file appends.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from tokenizers import Tokenizer

from .errors import StartupError
from .tensors import TokenCount, TokenizedText

InputType: TypeAlias = Literal["document", "query"]
CutSide: TypeAlias = Literal["end", "start"]

# The query template of the README of QwenLM/Qwen3-Embedding, `get_detailed_instruct`: there is no
# space after `Query:`.
QUERY_TEMPLATE = "Instruct: {instruction}\nQuery:{text}"
DEFAULT_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
# Part of the fingerprint: raise it when the bytes around a text change.
PROMPT_VERSION = "qwen3-instruct-1"

# A text's vector is the model's state at this token, which is also the pad token. The `eos_token`
# of some tokenizer configs, `<|im_end|>`, is another (QwenLM/Qwen3-Embedding issues 54 and 122).
END_TOKEN = "<|endoftext|>"
# Eight megabytes take seconds to tokenize, only to be truncated. A text with more than this many
# characters per token is tokenized up to there; if that yields too few tokens, the whole text is.
CHARACTERS_PER_TOKEN = 16
# Where a separator between two letters begins, the family's pre-tokenizer always splits, without
# looking further back or ahead. So the tokens of the two parts are those of the whole.
_SPLIT = re.compile(r"(?<=[^\W\d_])(?=[ ,.;:!?，。、；：？！][^\W\d_])")


def format_inputs(
    texts: Sequence[str], *, input_type: InputType, instruction: str | None = None
) -> list[str]:
    """Wrap queries in the instruction template, and leave documents unchanged.

    Args:
        texts: The texts.
        input_type: What they are.
        instruction: The task of the queries; by default `DEFAULT_INSTRUCTION`.
    """
    if input_type == "document":
        return list(texts)
    prefix = QUERY_TEMPLATE.format(instruction=instruction or DEFAULT_INSTRUCTION, text="")
    return [prefix + text for text in texts]


@dataclass(frozen=True, slots=True)
class Token:
    """One token, as `POST /tokenize` returns it; `start` and `stop` are character offsets."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class TextTokenizer:
    """A Qwen3-Embedding tokenizer.

    Attributes:
        path: Where it was loaded from.
        file_content: The bytes of tokenizer.json.
        digest: Their SHA-256 digest, in hexadecimal digits.
        max_length: Maximum tokens of a text, end token included.
        end_token_id: The token that ends every text, which is also the pad token.
        appends_end_token: Whether the file itself appends the end token.
        vocabulary_size: Number of tokens, special ones included.
    """

    def __init__(self, path: Path, *, max_length: int) -> None:
        """Load `tokenizer.json` from a folder or a file.

        Raises:
            StartupError: The file is missing, unreadable, or has no `<|endoftext|>`.
        """
        file = path / "tokenizer.json" if path.is_dir() else path
        # Kept in memory: the file may have changed by the time that a caller asks for it.
        self.file_content = _read(file)
        self._tokenizer = _load(file, self.file_content)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        end_token_id = self._tokenizer.token_to_id(END_TOKEN)
        if end_token_id is None:
            msg = (
                f"{file} has no token {END_TOKEN!r}, so it is not a Qwen3-Embedding tokenizer. Set "
                "TOKENIZER_PATH to the model's own."
            )
            raise StartupError(msg)
        self.path = path
        self.max_length = max_length
        self.end_token_id: int = end_token_id
        self.digest = hashlib.sha256(self.file_content).hexdigest()
        self.vocabulary_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.appends_end_token = self._tokenizer.encode("probe").ids[-1:] == [end_token_id]

    def encode(
        self, texts: Sequence[str], *, cut: CutSide = "end", limit: int | None = None
    ) -> list[TokenizedText]:
        """Tokenize, truncate to `limit - 1` tokens and append the end token.

        The special tokens of the file's own template are left out, so that the end token is there
        exactly once and truncation never removes it.

        Args:
            texts: The texts, queries already wrapped.
            cut: The side that is truncated.
            limit: Maximum tokens of a text, end token included; by default `max_length`.
        """
        limit = limit or self.max_length
        heads = [self._head(text) for text in texts] if cut == "end" else list(texts)
        tokenized = self._encode_batch(heads, cut, limit)
        for index, (text, head) in enumerate(zip(texts, heads, strict=True)):
            if len(head) == len(text):
                continue
            tokenized_head = tokenized[index]
            count = tokenized_head.count
            if count.truncated:
                bound = TokenCount(count.kept, count.total, exact=False)
                tokenized[index] = TokenizedText(tokenized_head.input_ids, bound)
            else:
                tokenized[index] = self._encode_batch([text], cut, limit)[0]
        return tokenized

    def list_tokens(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[Token]]:
        """List the tokens of texts, without truncation.

        Args:
            texts: The texts.
            add_special_tokens: Whether to append the end token.
        """
        end = [Token(self.end_token_id, END_TOKEN, special=True, start=None, stop=None)]
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [
            [
                Token(token_id, text[start:stop], special=False, start=start, stop=stop)
                for token_id, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
            ]
            + (end if add_special_tokens else [])
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def _head(self, text: str) -> str:
        """Shorten a huge text to what very likely has `max_length` tokens, at a safe split."""
        enough = self.max_length * CHARACTERS_PER_TOKEN
        if len(text) <= enough:
            return text
        split = _SPLIT.search(text, enough)
        return text[: split.start()] if split else text

    def _encode_batch(self, texts: list[str], cut: CutSide, limit: int) -> list[TokenizedText]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [self._close(encoding.ids, cut, limit) for encoding in encodings]

    def _close(self, token_ids: list[int], cut: CutSide, limit: int) -> TokenizedText:
        room = limit - 1
        text_ids = token_ids[:room] if cut == "end" else token_ids[-room:]
        input_ids = np.empty(len(text_ids) + 1, dtype=np.int64)
        input_ids[:-1] = text_ids
        input_ids[-1] = self.end_token_id
        return TokenizedText(input_ids, TokenCount(len(input_ids), len(token_ids) + 1))


def _read(file: Path) -> bytes:
    if not file.is_file():
        msg = (
            f"No tokenizer at {file}. Set TOKENIZER_PATH to the folder that contains the model's "
            "tokenizer.json."
        )
        raise StartupError(msg)
    try:
        return file.read_bytes()
    except OSError as error:
        msg = f"{file} cannot be read ({error.strerror}). Give the gateway's user read access."
        raise StartupError(msg) from error


def _load(file: Path, content: bytes) -> Tokenizer:
    try:
        return Tokenizer.from_buffer(content)
    except Exception as error:  # tokenizers raises plain Exception
        msg = (
            f"{file} is not a tokenizer file ({error}). Download the model's tokenizer.json again."
        )
        raise StartupError(msg) from error
