"""Texts to token ids that end with `<|endoftext|>`, whatever the tokenizer file says."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from .errors import StartupError
from .tensors import TokenizedText

# The family pools the state of this token, which is its pad token too. The `eos_token` of some
# tokenizer configs, `<|im_end|>`, is another one and not what is appended (QwenLM/Qwen3-Embedding
# issues 54 and 122).
END_TOKEN = "<|endoftext|>"


class TextTokenizer:
    """Turn texts into `TokenizedText`s of at most `max_length` tokens, the end token included."""

    def __init__(self, path: Path, *, max_length: int) -> None:
        """Load `tokenizer.json` from a folder or a file.

        Raises:
            StartupError: the file is missing or unreadable, or does not know `<|endoftext|>`.
        """
        file = path / "tokenizer.json" if path.is_dir() else path
        self._tokenizer = _load(file)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        end_token_id = self._tokenizer.token_to_id(END_TOKEN)
        if end_token_id is None:
            msg = f"{file} has no token {END_TOKEN!r}: it is not a Qwen3-Embedding tokenizer."
            raise StartupError(msg)
        self.path = path
        self.max_length = max_length
        self.end_token_id: int = end_token_id
        self.digest = hashlib.sha256(file.read_bytes()).hexdigest()
        self.appends_end_token = self._tokenizer.encode("probe").ids[-1:] == [end_token_id]

    def encode(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Tokenize without padding, cut to `max_length - 1` and append the end token.

        Special tokens of the file's own template are left out, so that the end token stands there
        exactly once and is never what truncation removes.
        """
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._close(encoding.ids) for encoding in encodings]

    def _close(self, token_ids: list[int]) -> TokenizedText:
        kept = token_ids[: self.max_length - 1]
        input_ids = np.empty(len(kept) + 1, dtype=np.int64)
        input_ids[:-1] = kept
        input_ids[-1] = self.end_token_id
        return TokenizedText(input_ids, total_tokens=len(token_ids) + 1)


def _load(file: Path) -> Tokenizer:
    if not file.is_file():
        msg = (
            f"No tokenizer at {file}. Set TOKENIZER_PATH to the folder that holds the model's "
            "tokenizer.json."
        )
        raise StartupError(msg)
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises plain Exception
        msg = f"{file} is not a tokenizer file ({error}). Fetch the model's tokenizer.json again."
        raise StartupError(msg) from error
