"""transformers' Qwen3 with random weights, exported by torch: the exports that people serve.

In the layer shapes of Qwen3-Embedding-0.6B, with fewer layers and the nano model's vocabulary. For
all layers and the family's own: `PARITY_LAYERS=28 PARITY_TOKENIZER=tokenizer.json make parity`.
"""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any, Literal, TypeAlias

import onnx
import torch
from tokenizers import Tokenizer
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
    Qwen3Model,
    Qwen3PreTrainedModel,
)
from transformers.cache_utils import DynamicCache

import qwen3_nano

Form: TypeAlias = Literal["plain", "past", "dynamo"]

# config.json of Qwen/Qwen3-Embedding-0.6B with fewer layers and tokens, for two cores.
HIDDEN_SIZE, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE_SIZE = 1024, 16, 8, 128, 3072
LAYERS = int(os.environ.get("PARITY_LAYERS", "2"))
TOKENIZER = Path(os.environ.get("PARITY_TOKENIZER", qwen3_nano.model_dir() / "tokenizer.json"))
VOCABULARY = Tokenizer.from_file(str(TOKENIZER)).get_vocab_size()
LENGTH, PAST_LENGTH = 7, 3
INPUTS = ["input_ids", "attention_mask", "position_ids"]


class Plain(torch.nn.Module):
    """The graph of optimum's feature-extraction task: three inputs, no cache."""

    def __init__(self, model: Qwen3Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any) -> Any:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self.model(**inputs, position_ids=position_ids, use_cache=False).last_hidden_state


class WithPast(Plain):
    """The graph of onnx-community: a past per layer as input, a present per layer as output."""

    def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, *past: Any) -> Any:
        cache = DynamicCache(config=self.model.config)
        for layer in range(LAYERS):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        answer = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        present = [part for layer in cache.layers for part in (layer.keys, layer.values)]
        return (answer.last_hidden_state, *present)


class Logits(torch.nn.Module):
    """The graph of optimum's text-generation task without a cache, or of text-classification."""

    def __init__(self, model: Qwen3PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any) -> Any:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self.model(**inputs, position_ids=position_ids, use_cache=False).logits


def make_reranker(*, tied: bool = True, seed: int = 11, **options: Any) -> Qwen3ForCausalLM:
    """Make a model of Qwen3-Reranker's kind; that of 8B has a head that is not tied.

    Its weights are numbers of float16, so that an export in float16 has the same.
    """
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(make_config(tie_word_embeddings=tied, **options)).eval()
    store_weights(model, torch.float16)
    store_weights(model, torch.float32)
    return model


def store_weights(model: Qwen3PreTrainedModel, dtype: torch.dtype) -> None:
    """Convert the weights in place, and only them, as `from_pretrained(dtype=...)` does.

    `Module.half` would round the frequencies of the positions, too.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def sentence_transformer(model: Qwen3Model, folder: Path, *, tokenizer: Path = TOKENIZER) -> Any:
    """Load the same weights with sentence-transformers, pooled at the last token."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer),
        pad_token="<|endoftext|>",
        padding_side="left",  # as the family's own configuration has it
    ).save_pretrained(folder)
    transformer = Transformer(str(folder), max_seq_length=1024)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="lasttoken")
    return SentenceTransformer(modules=[transformer, pooling], device="cpu")


def make_classifier(seed: int = 11) -> Qwen3ForSequenceClassification:
    torch.manual_seed(seed)
    pad_token_id = Tokenizer.from_file(str(TOKENIZER)).token_to_id("<|endoftext|>")
    config = make_config(num_labels=1, pad_token_id=pad_token_id)
    return Qwen3ForSequenceClassification(config).eval()


def make_config(**options: Any) -> Qwen3Config:
    few = {"vocab_size": VOCABULARY, "num_hidden_layers": LAYERS}
    return Qwen3Config(
        hidden_size=HIDDEN_SIZE,
        intermediate_size=INTERMEDIATE_SIZE,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=4096,
        rope_theta=1e6,
        attn_implementation="eager",
        **few | options,
    )


def write_export(model: Qwen3Model, folder: Path, form: Form) -> None:
    """Export a model with external weights, and put its tokenizer and configuration next to it."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "dynamo":
            _export_by_dynamo(Plain(model), folder / "model.onnx", "last_hidden_state")
        else:
            _export_by_torchscript(model, folder, past=form == "past")
    shutil.copyfile(TOKENIZER, folder / "tokenizer.json")
    model.config.save_pretrained(folder)


def write_reranker(model: Qwen3PreTrainedModel, folder: Path, form: Form) -> None:
    """Export a reranker as `write_export` does; a classifier has a row for each text."""
    folder.mkdir(parents=True)
    is_classifier = isinstance(model, Qwen3ForSequenceClassification)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "dynamo":
            _export_by_dynamo(Logits(model), folder / "model.onnx", "logits")
        else:
            tokens = {0: "batch", 1: "sequence"}
            axes = dict.fromkeys(INPUTS, tokens)
            axes["logits"] = {0: "batch"} if is_classifier else tokens
            names = {"inputs": INPUTS, "outputs": ["logits"]}
            _export_graph(Logits(model), folder, tuple(_tokens(LENGTH)), axes=axes, **names)
    shutil.copyfile(TOKENIZER, folder / "tokenizer.json")
    model.config.save_pretrained(folder)


def _export_by_dynamo(model: torch.nn.Module, path: Path, output: str) -> None:
    """Export as torch does by default since 2.9, with all metadata that it adds."""
    tokens = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        model,
        _tokens(LENGTH),
        str(path),
        input_names=INPUTS,
        output_names=[output],
        dynamic_shapes=(tokens, tokens, tokens),
        dynamo=True,
        external_data=True,
        verbose=False,
    )


def _export_by_torchscript(model: Qwen3Model, folder: Path, *, past: bool) -> None:
    """Export as optimum does."""
    tokens = {0: "batch", 1: "sequence"}
    axes = {"input_ids": tokens, "position_ids": tokens, "last_hidden_state": tokens}
    axes["attention_mask"] = {0: "batch", 1: "total"} if past else tokens
    arguments = list(_tokens(LENGTH, PAST_LENGTH if past else 0))
    inputs, outputs = list(INPUTS), ["last_hidden_state"]
    if past:
        for layer in range(LAYERS):
            for kind in ("key", "value"):
                shape = (2, KV_HEADS, PAST_LENGTH, HEAD_DIM)
                arguments.append(torch.randn(shape, dtype=model.dtype))
                inputs.append(f"past_key_values.{layer}.{kind}")
                outputs.append(f"present.{layer}.{kind}")
                axes[inputs[-1]] = {0: "batch", 2: "past"}
                axes[outputs[-1]] = {0: "batch", 2: "total"}
    graph = (WithPast if past else Plain)(model)
    _export_graph(graph, folder, tuple(arguments), inputs=inputs, outputs=outputs, axes=axes)


def _export_graph(
    graph: torch.nn.Module,
    folder: Path,
    arguments: tuple[Any, ...],
    *,
    inputs: list[str],
    outputs: list[str],
    axes: dict[str, dict[int, str]],
) -> None:
    """Export by torch's older exporter, with the weights in a file of their own."""
    torch.onnx.export(
        graph,
        arguments,
        str(folder / "whole.onnx"),
        input_names=inputs,
        output_names=outputs,
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )
    onnx.save_model(
        onnx.load(folder / "whole.onnx"),
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
    )
    (folder / "whole.onnx").unlink()


def _tokens(length: int, past_length: int = 0) -> tuple[torch.Tensor, ...]:
    """Return token ids, mask and positions of two texts."""
    total = length + past_length
    return (
        torch.randint(0, VOCABULARY, (2, length)),
        torch.ones((2, total), dtype=torch.long),
        torch.arange(past_length, total).repeat(2, 1),
    )
