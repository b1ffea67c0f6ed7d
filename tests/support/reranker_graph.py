"""Rerankers with random weights in every form of export: the nano model with another head."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer

import qwen3_nano
from onnx_session import open_session
from qwen3_nano.graph import build_graph
from qwen3_nano.weights import NanoWeights, load_weights
from qwen3_triton_gateway.rerank_prompt import ANSWERS, PREFIX, SUFFIX, render_pair

# `causal` has logits for the vocabulary at every token, `pooled` those of "no" and "yes" at the
# last, `seq-cls` their difference. `last-column` takes the two where only left padding has the
# last token, which the gateway cannot serve.
Form: TypeAlias = Literal["causal", "pooled", "seq-cls", "last-column"]
SEED = 17
# The head is a product of two matrices, which keeps the file small.
RANK = 8


def write_reranker(
    folder: Path, form: Form = "pooled", *, trunk: NanoWeights | None = None
) -> Path:
    """Write `model.onnx` and the nano model's tokenizer, and return the folder.

    The weights are the same in every form, so that the scores are.

    Args:
        folder: Where they are written.
        form: The form of the export.
        trunk: The embedding model that gets another head, by default the nano model.
    """
    nano_dir = qwen3_nano.model_dir()
    weights = trunk or load_weights(nano_dir / "model.onnx")
    tokenizer = nano_tokenizer()
    random = np.random.default_rng(SEED)
    # Scores of an ordinary size: about 1 in either direction.
    narrow = random.normal(scale=0.1, size=(weights.hidden_size, RANK)).astype(np.float32)
    head = random.normal(size=(RANK, tokenizer.get_vocab_size())).astype(np.float32)
    if form != "causal":
        head = head[:, answer_ids()]
    if form == "seq-cls":
        head = head[:, 1:] - head[:, :1]
    in_graph = form in ("pooled", "seq-cls")
    model = build_graph(weights, output="sentence_embedding" if in_graph else "last_hidden_state")
    graph, states = model.graph, model.graph.output[0].name
    graph.initializer.append(numpy_helper.from_array(narrow, "narrow"))
    graph.initializer.append(numpy_helper.from_array(head, "answers"))
    if form == "last-column":
        graph.initializer.append(numpy_helper.from_array(np.array(-1, dtype=np.int64), "last"))
        graph.node.append(helper.make_node("Gather", [states, "last"], ["state"], axis=1))
        states = "state"
    graph.node.append(helper.make_node("MatMul", [states, "narrow"], ["narrowed"]))
    graph.node.append(helper.make_node("MatMul", ["narrowed", "answers"], ["logits"]))
    tokens = ["batch", "sequence"] if form == "causal" else ["batch"]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*tokens, head.shape[1]])
    del graph.output[:]
    graph.output.append(output)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    shutil.copyfile(nano_dir / "tokenizer.json", folder / "tokenizer.json")
    return folder


def reference_logits(
    folder: Path, query: str, documents: Sequence[str]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Compute the logits of "no" and "yes" of each pair by itself, without padding.

    Args:
        folder: A `pooled` or `causal` reranker.
        query: The query.
        documents: The documents.
    """
    session: Any = open_session(folder / "model.onnx")
    rows: list[Any] = []
    for document in documents:
        ids = np.array([tokenize_as_the_card(query, document)], dtype=np.int64)
        feed = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.arange(ids.shape[1], dtype=np.int64)[None],
        }
        [logits] = session.run(["logits"], feed)
        row = logits[0] if logits.ndim == 2 else logits[0, -1, answer_ids()]
        rows.append(row.astype(np.float64))
    return np.array(rows)


@cache
def nano_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(qwen3_nano.model_dir() / "tokenizer.json"))


def answer_ids() -> list[int]:
    """Return the tokens of "no" and "yes"."""
    vocabulary = nano_tokenizer().get_vocab()
    return [vocabulary[answer] for answer in ANSWERS]


def tokenize_as_the_card(query: str, document: str, limit: int = 8192) -> list[int]:
    """Copy `process_inputs` of https://huggingface.co/Qwen/Qwen3-Reranker-0.6B for one pair."""
    tokenizer = nano_tokenizer()
    prefix, pair, suffix = (
        tokenizer.encode(text, add_special_tokens=False).ids
        for text in (PREFIX, render_pair(query, document), SUFFIX)
    )
    return prefix + pair[: limit - len(prefix) - len(suffix)] + suffix


if __name__ == "__main__":
    write_reranker(Path(sys.argv[1]))
