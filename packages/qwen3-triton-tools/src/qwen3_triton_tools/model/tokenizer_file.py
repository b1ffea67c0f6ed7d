"""What a `tokenizer.json` says about its end token and its vocabulary, without building it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import orjson

from qwen3_triton_gateway.model_files import describe_os_error
from qwen3_triton_gateway.rerank_prompt import ANSWERS
from qwen3_triton_gateway.tokenization import END_TOKEN

from ..errors import ModelError
from ..findings import Finding, failure, note, ok
from ..onnx_model import is_lfs_pointer

NAME = "tokenizer"


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """A tokenizer file.

    Attributes:
        appends: What its template puts at the end of a text, or None.
        answer_ids: The tokens of a reranker's `ANSWERS`, None for those that it does not have.
        special_tokens: What it never splits.
    """

    path: str
    appends: str | None
    end_token_id: int | None
    vocabulary_size: int
    answer_ids: tuple[int | None, ...]
    special_tokens: tuple[str, ...]


def inspect_tokenizer(
    path: Path, embedding_rows: int | None
) -> tuple[TokenizerFile | None, list[Finding]]:
    """Read a tokenizer file, and check it against the embedding table of the model."""
    try:
        tokenizer = read_tokenizer_file(path)
    except ModelError as error:
        return None, [failure(NAME, str(error))]
    return tokenizer, check_tokenizer_file(tokenizer, embedding_rows)


def read_tokenizer_file(path: Path) -> TokenizerFile:
    """Read a `tokenizer.json`.

    Raises:
        ModelError: It is not one, for example a Git LFS pointer.
    """
    if is_lfs_pointer(path):
        msg = (
            f"{path} is not a tokenizer file but a Git LFS pointer. Run `git lfs install && git "
            "lfs pull` in the clone, or `qwen3-triton model pull`."
        )
        raise ModelError(msg)
    try:
        return replace(_parse(path.read_bytes()), path=str(path))
    except OSError as error:
        raise ModelError(describe_os_error(error, path)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{path} is not a tokenizer file ({type(error).__name__}: {error}). Fetch it again."
        raise ModelError(msg) from error


# A command inspects a model and each file that it makes of it, all with the same tokenizer.
@lru_cache(maxsize=2)
def _parse(content: bytes) -> TokenizerFile:
    document: dict[str, Any] = orjson.loads(content)
    added: list[dict[str, Any]] = document.get("added_tokens") or []
    vocabulary: Any = document["model"].get("vocab") or {}
    by_added = {str(token.get("content")): int(token["id"]) for token in added}
    by_token: dict[str, int] = {}
    ids = list(by_added.values())
    if isinstance(vocabulary, dict):
        by_token = cast("dict[str, int]", vocabulary)
        ids += by_token.values()
    else:
        ids.append(len(vocabulary) - 1)
    return TokenizerFile(
        path="",
        appends=_appended_token(document.get("post_processor")),
        end_token_id=by_added.get(END_TOKEN),
        vocabulary_size=max(ids, default=-1) + 1,
        # The library looks a token up among the added ones first.
        answer_ids=tuple(by_added.get(answer, by_token.get(answer)) for answer in ANSWERS),
        special_tokens=tuple(by_added),
    )


def check_tokenizer_file(
    file: TokenizerFile, embedding_rows: int | None, *, embeds: bool = True
) -> list[Finding]:
    """Report an end token that the gateway adds or misses, and a vocabulary of another model.

    Where the model does not embed texts but scores pairs, the end token is the pad token only.
    """
    findings: list[Finding] = []
    if file.end_token_id is None:
        findings.append(
            failure(
                NAME,
                f"{file.path} has no token {END_TOKEN!r}: it is not a tokenizer of the family.",
                "Use the tokenizer.json of the model that was exported.",
            )
        )
    elif embeds and file.appends != END_TOKEN:
        # Some files of the family append <|im_end|>: QwenLM/Qwen3-Embedding issues 54 and 122.
        what = f"appends {file.appends!r} instead" if file.appends else "does not append it"
        findings.append(
            note(
                NAME,
                f"The family pools {END_TOKEN} at the end of a text; this tokenizer {what}.",
                "Nothing to do here, the gateway appends it. Other programs must do the same to "
                "get the same vectors.",
            )
        )
    if embedding_rows is not None and file.vocabulary_size > embedding_rows:
        findings.append(
            failure(
                NAME,
                f"The tokenizer has {file.vocabulary_size:,} tokens, the model's embedding table "
                f"{embedding_rows:,} rows: they belong to different models.",
                "Use the tokenizer.json of the model that was exported.",
            )
        )
    if embeds and all(finding.severity == "note" for finding in findings):
        who = "the file" if file.appends == END_TOKEN else "the gateway"
        findings.append(ok(NAME, f"{file.path}, {END_TOKEN} appended by {who}"))
    return findings


def _appended_token(processor: dict[str, Any] | None) -> str | None:
    """Return the special token at the end of the template for a single text."""
    if not processor:
        return None
    if processor.get("type") == "Sequence":
        for part in reversed(processor.get("processors") or []):
            if token := _appended_token(part):
                return token
        return None
    pieces: list[dict[str, Any]] = processor.get("single") or [{}]
    return pieces[-1].get("SpecialToken", {}).get("id")
