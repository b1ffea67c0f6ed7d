"""What a `tokenizer.json` says about its end token and its vocabulary, without building it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson

from qwen3_triton_gateway.tokenization import END_TOKEN

from .errors import ModelToolError
from .findings import Finding

# What some files of the family append instead: QwenLM/Qwen3-Embedding issues 54 and 122.
OTHER_END_TOKEN = "<|im_end|>"


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """`appends` is what the file's own template puts at the end of a text, or None."""

    path: str
    appends: str | None
    end_token_id: int | None
    vocabulary_size: int


def read_tokenizer_file(path: Path) -> TokenizerFile:
    """Read a `tokenizer.json`.

    Raises:
        ModelToolError: it is no JSON, such as a Git LFS pointer.
    """
    try:
        document: dict[str, Any] = orjson.loads(path.read_bytes())
        appends = _appended(document.get("post_processor"))
        added: list[dict[str, Any]] = document.get("added_tokens") or []
        vocabulary: Any = document["model"].get("vocab") or {}
        ids = [int(token["id"]) for token in added]
        if isinstance(vocabulary, dict):
            ids += cast("dict[str, int]", vocabulary).values()
        else:
            ids.append(len(vocabulary) - 1)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        msg = (
            f"{path} is not a tokenizer file ({type(error).__name__}: {error}): fetch it again; "
            "after a `git clone`, run `git lfs pull`."
        )
        raise ModelToolError(msg) from error
    end_ids = [int(token["id"]) for token in added if token.get("content") == END_TOKEN]
    return TokenizerFile(
        path=str(path),
        appends=appends,
        end_token_id=end_ids[0] if end_ids else None,
        vocabulary_size=max(ids, default=-1) + 1,
    )


def _appended(processor: dict[str, Any] | None) -> str | None:
    """Find the special token at the end of the template for a single text."""
    if not processor:
        return None
    if processor.get("type") == "Sequence":
        for part in reversed(processor.get("processors") or []):
            if token := _appended(part):
                return token
        return None
    pieces: list[dict[str, Any]] = processor.get("single") or [{}]
    return pieces[-1].get("SpecialToken", {}).get("id")


def check_tokenizer_file(file: TokenizerFile, embedding_rows: int | None) -> list[Finding]:
    """Report what the gateway mends or refuses, and a vocabulary that the model does not have."""
    findings: list[Finding] = []
    if file.end_token_id is None:
        findings.append(
            Finding(
                "error",
                f"{file.path} has no token {END_TOKEN!r}: it is no Qwen3-Embedding tokenizer.",
                "Take tokenizer.json of the model that was exported.",
            )
        )
    elif file.appends != END_TOKEN:
        what = f"appends {file.appends!r}, which is another token" if file.appends else "does not"
        findings.append(
            Finding(
                "note",
                f"The family pools {END_TOKEN} at the end of a text; this tokenizer {what}.",
                "Nothing to do here, the gateway appends it. Other programs must do the same to "
                "get the same vectors.",
            )
        )
    if embedding_rows is not None and file.vocabulary_size > embedding_rows:
        findings.append(
            Finding(
                "error",
                f"The tokenizer knows {file.vocabulary_size:,} tokens, the model's embedding "
                f"table {embedding_rows:,}: they belong to different models.",
                "Take tokenizer.json of the model that was exported.",
            )
        )
    return findings
