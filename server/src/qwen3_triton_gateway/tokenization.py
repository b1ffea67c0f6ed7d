"""From texts to token IDs: the query instruction, truncation, and the end token.

Every text ends with `<|endoftext|>`, whatever the tokenizer file appends.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import orjson
from tokenizers import Tokenizer

from .errors import InvalidRequestError, StartupError
from .segments import MAX_WORD_CHARACTERS, Segmenter, create_segmenter
from .tensors import Int64Vector, TokenCount, TokenizedText
from .words import WordTokens

InputType: TypeAlias = Literal["document", "query"]
CutSide: TypeAlias = Literal["end", "start"]
TokenFields: TypeAlias = dict[str, int | str | bool | None]

# The query template of the README of QwenLM/Qwen3-Embedding, `get_detailed_instruct`: there is no
# space after `Query:`.
QUERY_TEMPLATE = "Instruct: {instruction}\nQuery:{text}"
DEFAULT_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
# Part of the fingerprint: raise it when the bytes around a text change.
PROMPT_VERSION = "qwen3-instruct-1"

# A text's vector is the model's state at this token, which is also the pad token. The `eos_token`
# of some tokenizer configs, `<|im_end|>`, is another (QwenLM/Qwen3-Embedding issues 54 and 122).
END_TOKEN = "<|endoftext|>"
# A text's tokens are counted up to a cut after this many characters per token that it may keep, or
# up to its end.
CHARACTERS_PER_TOKEN = 16
# A step tokenizes about this many characters: tens of milliseconds, and up to nine megabytes.
STEP_CHARACTERS = 32_768
# As they are listed, tokens take more.
LISTED_CHARACTERS = 4096


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
    prefix = query_prefix(instruction)
    return [prefix + text for text in texts]


def query_prefix(instruction: str | None) -> str:
    """Return what precedes a query; see `format_inputs`."""
    return QUERY_TEMPLATE.format(instruction=instruction or DEFAULT_INSTRUCTION, text="")


# Such as `<|im_end|>`, `<think>` and `</think>`: one name in angle brackets.
CONTROL_TOKEN = re.compile(r"</?[^\s<>]+>\Z")


class TextTokenizer:
    """A Qwen3-Embedding tokenizer.

    Attributes:
        path: Where it was loaded from.
        file_content: The bytes of tokenizer.json.
        digest: Their SHA-256 digest, in hexadecimal digits.
        max_length: Maximum tokens of a text, end token included.
        end_token_id: The token that ends every text, which is also the pad token.
        segmenter: Where long texts can be cut.
        appends_end_token: Whether the file itself appends the end token.
        vocabulary_size: Number of tokens, special ones included.
    """

    def __init__(self, path: Path, *, max_length: int, setting: str = "TOKENIZER_PATH") -> None:
        """Load `tokenizer.json` from a folder or a file.

        Args:
            path: The folder or the file.
            max_length: Maximum tokens of a text, end token included.
            setting: What names another path, for errors.

        Raises:
            StartupError: The file is missing, unreadable, or has no `<|endoftext|>`.
        """
        file = path / "tokenizer.json" if path.is_dir() else path
        # Kept in memory: the file may have changed by the time that a caller asks for it.
        self.file_content: bytes = _read(file, setting)
        self._use(_load(file, self.file_content))
        end_token_id = self._tokenizer.token_to_id(END_TOKEN)
        if end_token_id is None:
            msg = (
                f"{file} has no token {END_TOKEN!r}, so it is not a tokenizer of the family. Set "
                f"{setting} to the model's own."
            )
            raise StartupError(msg)
        self.path = path
        self.max_length = max_length
        self.end_token_id: int = end_token_id
        self.digest: str = hashlib.sha256(self.file_content).hexdigest()
        self.vocabulary_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.appends_end_token: bool = self._tokenizer.encode("probe").ids[-1:] == [end_token_id]

    def without_special_tokens(self) -> TextTokenizer:
        """Return a copy for which `<|im_end|>`, `<think>` and the like are plain text."""
        content = orjson.loads(self.file_content)
        # The nano reranker's file has parts of the prompt, too, such as `<Instruct>:`. In the
        # vocabulary they keep their IDs when those before them are gone.
        kept = [
            each for each in content["added_tokens"] if not CONTROL_TOKEN.match(each["content"])
        ]
        content["added_tokens"] = kept
        content["model"]["vocab"].update({each["content"]: each["id"] for each in kept})
        plain = copy.copy(self)
        plain._use(_load(self.path, orjson.dumps(content)))
        return plain

    def _use(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.segmenter: Segmenter = create_segmenter(tokenizer)
        self._words = WordTokens(tokenizer, self.segmenter)

    def encode(
        self, texts: Sequence[str], *, cut: CutSide = "end", limit: int | None = None
    ) -> list[TokenizedText]:
        """Tokenize texts in one go; see `Tokenization`."""
        tokenization = Tokenization(self, texts, cut=cut, limit=limit)
        while not tokenization.is_done:
            tokenization.step()
        return tokenization.tokenized()

    def check_words(self, text: str, index: int) -> None:
        """Check that `list_tokens` can list a text.

        Raises:
            InvalidRequestError: It contains a word that is too long; `index` is the text's.
        """
        for _ in self._segments(text, index):
            pass

    def list_tokens(self, text: str, *, add_special_tokens: bool) -> Iterator[list[TokenFields]]:
        """List the tokens of a text, without truncation, some thousand at a time.

        A token has its `id` and `text`, whether it is `special`, and its character offsets `start`
        and `stop`.

        Args:
            text: The text.
            add_special_tokens: Whether to append the end token.
        """
        for start, stop in self._segments(text):
            segment = text[start:stop]
            (encoding,) = self._tokenizer.encode_batch([segment], add_special_tokens=False)
            yield [
                _token(token_id, segment[begin:end], start + begin, start + end)
                for token_id, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True)
            ]
        if add_special_tokens:
            yield [_token(self.end_token_id, END_TOKEN, None, None)]

    def id_of(self, token: str) -> int | None:
        """Return the ID of a token; None if the vocabulary lacks it."""
        return self._tokenizer.token_to_id(token)

    def token_ids(self, pieces: Sequence[str]) -> list[Int64Vector]:
        """Tokenize pieces of texts, without an end token."""
        return self._words.encode(pieces)

    def _segments(self, text: str, index: int = 0) -> Iterator[tuple[int, int]]:
        start = 0
        while start < len(text):
            stop = self.segmenter.end_of(text, start, LISTED_CHARACTERS)
            if stop is None:
                raise _word_too_long(index)
            yield start, stop
            start = stop


@dataclass(slots=True)
class _Remaining:
    """A text that is being tokenized: `text[start:stop]` is still to do.

    Attributes:
        kept: What is kept of the tokens so far, in their order; all, while it is tokenized.
        total: How many tokens there are so far.
    """

    index: int
    text: str
    start: int
    stop: int
    kept: list[Int64Vector] = field(default_factory=list[Int64Vector])
    total: int = 0


class Tokenization:
    """The texts of one call on their way to tokens, a step at a time.

    A text is truncated to `limit - 1` tokens, and the end token is appended. The special
    tokens of the file's own template are left out, so that the end token is there exactly once and
    truncation never removes it.

    A step takes a bounded time and memory, whatever the texts are. A long text is tokenized only
    as far as its kept tokens need; then its token count is a lower bound.

    Attributes:
        is_done: Whether every text is tokenized.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        texts: Sequence[str],
        *,
        prefix: str = "",
        cut: CutSide = "end",
        limit: int | None = None,
        indices: Sequence[int] | None = None,
        after: Sequence[int] | None = None,
    ) -> None:
        """Prepare the texts; `step` does the work.

        Args:
            tokenizer: The tokenizer.
            texts: The texts.
            prefix: What precedes each, such as a query's instruction.
            cut: The side that is truncated.
            limit: Maximum tokens of a text, end token included; by default `max_length`.
            indices: The number of each text in errors, if it is not its position.
            after: What is appended instead of the end token.
        """
        self._tokenizer = tokenizer
        self._texts = texts
        self._prefix = prefix
        self._cut: CutSide = cut
        limit = limit or tokenizer.max_length
        end = [tokenizer.end_token_id] if after is None else after
        self._after = np.array(end, dtype=np.int64)
        self._room = limit - len(self._after)
        self._piece_characters = min(limit * CHARACTERS_PER_TOKEN, STEP_CHARACTERS)
        self._indices = indices or range(len(texts))
        self._begun = 0
        self._remaining: list[_Remaining] = []
        self._tokenized: dict[int, TokenizedText] = {}

    @property
    def is_done(self) -> bool:
        return len(self._tokenized) == len(self._texts)

    def tokenized(self) -> list[TokenizedText]:
        """Return the tokens of every text, in the order of the texts."""
        return [self._tokenized[index] for index in range(len(self._texts))]

    def step(self) -> None:
        """Tokenize the next texts, or the next part of a long one.

        Raises:
            InvalidRequestError: A word is so long that its text cannot be truncated at a cut;
                `index` names the text.
        """
        batch: list[_Remaining] = []
        pieces: list[str] = []
        characters = 0
        while characters < STEP_CHARACTERS and (text := self._next()):
            batch.append(text)
            pieces.append(self._take_piece(text))
            characters += len(pieces[-1])
        for text, token_ids in zip(batch, self._tokenizer.token_ids(pieces), strict=True):
            self._add(text, token_ids)

    def _next(self) -> _Remaining | None:
        if self._remaining:
            return self._remaining.pop()
        if self._begun == len(self._texts):
            return None
        index, self._begun = self._begun, self._begun + 1
        # Prompts are built one by one: many queries with a long instruction would take gigabytes.
        text = self._prefix + self._texts[index]
        return _Remaining(index, text, 0, len(text))

    def _take_piece(self, text: _Remaining) -> str:
        characters = self._piece_characters
        segmenter = self._tokenizer.segmenter
        if self._cut == "end":
            start, stop = text.start, segmenter.end_of(text.text, text.start, characters)
            text.start = stop or 0
        else:
            start, stop = segmenter.start_of(text.text, text.stop, characters), text.stop
            text.stop = start or 0
        if start is None or stop is None:
            raise _word_too_long(self._indices[text.index])
        return text.text[start:stop]

    def _add(self, text: _Remaining, token_ids: Int64Vector) -> None:
        missing = self._room - text.total
        text.total += len(token_ids)
        if self._cut == "end":
            text.kept.append(token_ids[:missing])
        else:
            text.kept.insert(0, token_ids[max(0, len(token_ids) - missing) :])
        if text.start < text.stop and text.total <= self._room:
            self._remaining.append(text)
            return
        input_ids = np.concatenate([*text.kept, self._after])
        total = text.total + len(self._after)
        count = TokenCount(len(input_ids), total, exact=text.start >= text.stop)
        self._tokenized[text.index] = TokenizedText(input_ids, count)


def _token(token_id: int, text: str, start: int | None, stop: int | None) -> TokenFields:
    # A dictionary: a record would take orjson seven times as long.
    return {"id": token_id, "text": text, "special": start is None, "start": start, "stop": stop}


def _word_too_long(index: int) -> InvalidRequestError:
    msg = (
        f"Text {index} has a word of more than {MAX_WORD_CHARACTERS} characters: no space, digit "
        "or line end divides it, so it cannot be truncated exactly. Shorten the text, or divide "
        "the word."
    )
    return InvalidRequestError(msg, index=index, code="word_too_long")


def _read(file: Path, setting: str) -> bytes:
    if not file.is_file():
        msg = (
            f"No tokenizer at {file}. Set {setting} to the folder that contains the model's "
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
