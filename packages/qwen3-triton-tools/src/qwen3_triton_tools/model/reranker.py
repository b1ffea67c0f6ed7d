"""Rerankers: how an export is recognized as one, and in which form it gives its logits.

Two forms are in use. Qwen3-Reranker itself is a causal language model that answers its prompt with
"yes" or "no" (https://huggingface.co/Qwen/Qwen3-Reranker-0.6B): its logits are those of the whole
vocabulary at every position, (batch, length, vocabulary), or those of "no" and "yes" at the last
one, (batch, 2), once it is pooled. As a model for sequence classification (`seq-cls`, such as
https://huggingface.co/tomaarsen/Qwen3-Reranker-0.6B-seq-cls) it returns the difference of the two,
(batch, 1). Some exports have those one or two at every position.

A causal language model looks the same whether it is a reranker, a chat model, or an embedding model
that was exported for text generation. So it needs a name with "rerank", or the user's word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from qwen3_triton_gateway.backends.behavior import VOCABULARY_PADDING, VOCABULARY_STEP
from qwen3_triton_gateway.backends.interface import HIDDEN_RANK, LOGITS_OUTPUT, POOLED_RANK
from qwen3_triton_gateway.rerank_prompt import ANSWERS

from ..findings import Finding, failure, note, ok, warning
from ..onnx_model import OnnxModel, TensorInfo
from .tokenizer_file import NAME as TOKENIZER
from .tokenizer_file import TokenizerFile

RerankerForm: TypeAlias = Literal["causal", "seq-cls"]

# The tokens of the prompt that a tokenizer of the family keeps whole.
PROMPT_TOKENS = ("<|im_start|>", "<|im_end|>")
REASONING_TOKENS = ("<think>", "</think>")
NAME_HINT = (
    "If it is a reranker, such as Qwen3-Reranker, pass `--rerank`, or put it in a folder with "
    "`rerank` in its name."
)
_NAME = re.compile("rerank", re.IGNORECASE)
_NAME_OF_FORM = "reranker"
_EXPORT = (
    "Export it again with the task text-generation, or text-classification for a `seq-cls` model."
)
_FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Reranker:
    """An export that scores pairs.

    Attributes:
        form: `causal` has logits of tokens, `seq-cls` the one of a classifier.
        output: Its logits, with the last size filled in.
    """

    form: RerankerForm
    output: TensorInfo

    @property
    def is_pooled(self) -> bool:
        """Whether it returns a row of logits for each pair, and not for each token."""
        return len(self.output.shape or ()) == POOLED_RANK

    @property
    def width(self) -> int:
        """The logits of a position: 2 for "no" and "yes", 1, or those of the vocabulary."""
        return (self.output.shape or (0,))[-1]

    @property
    def selects_answers(self) -> bool:
        """Whether it returns the logits of its answers only, and not those of the vocabulary."""
        return self.width <= len(ANSWERS)


def recognize_reranker(
    model: OnnxModel, config: dict[str, Any], vocabulary_size: int | None, *, is_named: bool
) -> Reranker | None:
    """Return what kind of reranker a model is, None if it is not one.

    Args:
        model: The graph.
        config: Its config.json.
        vocabulary_size: Rows of its token table, or tokens of its tokenizer.
        is_named: Whether its name, or the user, says that it is one.
    """
    output = _find_logits(model, vocabulary_size)
    if output is None or output.shape is None or output.dtype.name not in _FLOATS:
        return None
    width = output.shape[-1] if output.shape else 0
    if len(output.shape) not in (POOLED_RANK, HIDDEN_RANK):
        return None
    form: RerankerForm | None = {1: "seq-cls", len(ANSWERS): "causal"}.get(width)  # pyright: ignore[reportAssignmentType]
    if form:
        return Reranker(form, output)
    if len(output.shape) == POOLED_RANK or not is_named:
        return None
    if width <= 0:
        width = int(config.get("vocab_size") or vocabulary_size or 0)
    return Reranker("causal", _with_width(output, width)) if width > len(ANSWERS) else None


def _find_logits(model: OnnxModel, vocabulary_size: int | None) -> TensorInfo | None:
    """Return `logits`, or the only output if its size says that it is that of a head.

    The gateway does not ask for its name then, and exports by hand have others, such as `scores`.
    """
    named = next((t for t in model.outputs if t.name == LOGITS_OUTPUT), None)
    if named or len(model.outputs) > 1:
        return named
    only = next(iter(model.outputs), None)
    is_narrow = only is not None and (only.shape or (0,))[-1] in (1, len(ANSWERS))
    return only if is_narrow or has_vocabulary_head(only, vocabulary_size) else None


def check_form(model: OnnxModel, *, is_asked: bool) -> list[Finding]:
    """Report a model that is named a reranker, but does not return what one returns.

    Args:
        model: The graph.
        is_asked: Whether the user says so, and not only a name.
    """
    logits = next((t for t in model.outputs if t.name == LOGITS_OUTPUT), None)
    if logits is None:
        found = ", ".join(f"`{tensor.name}`" for tensor in model.outputs) or "nothing"
    else:
        found = f"`{LOGITS_OUTPUT}` as {logits.dtype.name} ({', '.join(logits.dimensions)})"
    message = (
        f"It is not a reranker: it returns {found}. A reranker returns `{LOGITS_OUTPUT}` of the "
        'vocabulary at every position, or those of "no" and "yes", or the one of a classifier.'
    )
    if logits is None and not is_asked:
        message += " It is taken for an embedding model, although its name says that it reranks."
        return [warning(_NAME_OF_FORM, message, _EXPORT)]
    return [failure(_NAME_OF_FORM, message, _EXPORT)]


def check_positions(reranker: Reranker) -> list[Finding]:
    """Report logits of one position only."""
    if (reranker.output.shape or ())[1:2] != (1,) or reranker.is_pooled:
        return []
    message = (
        "It returns the logits of one position only, the last one, which is a pad where a batch is "
        "padded on the right."
    )
    return [failure(_NAME_OF_FORM, message, f"{_EXPORT} Those of all positions are needed.")]


def has_vocabulary_head(output: TensorInfo | None, vocabulary_size: int | None) -> bool:
    """Return whether an output has logits for the vocabulary at every position."""
    if output is None or len(output.shape or ()) != HIDDEN_RANK:
        return False
    width = (output.shape or (0,))[-1]
    size = vocabulary_size or 0
    return size <= width <= size * (1 + VOCABULARY_PADDING) + VOCABULARY_STEP and size > 0


def says_reranker(path: Path, config: dict[str, Any], repo: str | None) -> bool:
    """Return whether a model is named a reranker, by its files or by the repository it is from."""
    folder = path.parent
    if folder.name == "onnx" or folder.name.isdecimal():  # of the hub; a version in Triton
        folder = folder.parent
    names = (path.stem, folder.name, str(config.get("_name_or_path", "")), repo or "")
    return any(map(is_reranker_name, names))


def is_reranker_name(name: str) -> bool:
    """Return whether a model, file or folder is called a reranker."""
    return _NAME.search(name) is not None


def check_answers(reranker: Reranker, tokenizer: TokenizerFile) -> list[Finding]:
    """Report a tokenizer that cannot write the prompt, or has no tokens for the answers."""
    findings: list[Finding] = []
    if not reranker.selects_answers:
        findings += _check_ids(reranker, tokenizer)
    lost = [token for token in PROMPT_TOKENS if token not in tokenizer.special_tokens]
    if lost:
        findings.append(
            failure(
                TOKENIZER,
                f"{tokenizer.path} has no token {' and no token '.join(map(repr, lost))}: it "
                "cannot write the prompt of Qwen3-Reranker.",
                "Use the tokenizer.json of the model that was exported.",
            )
        )
    split = [token for token in REASONING_TOKENS if token not in tokenizer.special_tokens]
    if split:
        findings.append(
            note(
                TOKENIZER,
                f"{' and '.join(map(repr, split))} are several tokens each, unlike in Qwen3's "
                "vocabulary, where the prompt ends with one of each.",
                "Correct for a model that was trained so; else use the model's own tokenizer.json.",
            )
        )
    return findings


def describe_form(reranker: Reranker, tokenizer: TokenizerFile | None) -> list[str]:
    """Describe what was found, for `model inspect`."""
    if reranker.form == "seq-cls" and reranker.is_pooled:
        return ["seq-cls: one logit for each pair; its sigmoid is the score"]
    if reranker.form == "seq-cls":
        return ["seq-cls: one logit at every position; the sigmoid of the last one is the score"]
    ids = tokenizer.answer_ids if tokenizer else (None, None)
    answers = " and ".join(
        f'"{answer}" ({"not in the tokenizer" if token_id is None else token_id})'
        for answer, token_id in zip(ANSWERS, ids, strict=True)
    )
    if reranker.is_pooled:
        return [f"causal, pooled: the logits of {answers} for each pair; their softmax scores it"]
    if reranker.selects_answers:
        return [
            f"causal: the logits of {answers} at every position;",
            "the softmax of the last ones is the score",
        ]
    return [
        f"causal: logits of {reranker.width:,} tokens at every position; the score is the softmax",
        f"of those of {answers} at the last one",
    ]


def _check_ids(reranker: Reranker, tokenizer: TokenizerFile) -> list[Finding]:
    ids: dict[str, int | None] = dict(zip(ANSWERS, tokenizer.answer_ids, strict=True))
    missing = [answer for answer, token_id in ids.items() if token_id is None]
    if missing:
        return [
            failure(
                TOKENIZER,
                f"{tokenizer.path} has no token for {' and '.join(map(repr, missing))}, whose "
                "logits are the score.",
                "Use the tokenizer.json of the model that was exported.",
            )
        ]
    limit = reranker.width
    if any(token_id >= limit for token_id in ids.values() if token_id is not None):
        return [
            failure(
                TOKENIZER,
                f"The model has {limit:,} logits, too few for the tokens "
                f"{' and '.join(f'{name!r} ({token_id})' for name, token_id in ids.items())}.",
                "Use the tokenizer.json of the model that was exported.",
            )
        ]
    answers = " and ".join(f"{name!r} is {token_id}" for name, token_id in ids.items())
    return [ok(TOKENIZER, f"{tokenizer.path}, {answers}")]


def _with_width(output: TensorInfo, width: int) -> TensorInfo:
    shape = output.shape or ()
    return replace(
        output, shape=(*shape[:-1], width), dimensions=(*output.dimensions[:-1], str(width))
    )
