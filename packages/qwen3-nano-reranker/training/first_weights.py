"""The start of training: a model that already compares the words of a document with the query's.

Learning to attend from one word to the same word elsewhere takes a transformer long. So the first
two layers begin with heads that do it, built by hand:

* Layer 0, head 0 looks for the token before the document, so that a token knows whether it is in
  the query or in the document. Head 1 adds something of the token before, for word order.
* Layer 1, heads 0 to 2 attend from each token to tokens of the query with a similar vector, or, if
  there is none, to the prompt's first sentence, and write down which of the two they found.

Everything else is random, and everything is trained.
"""

from __future__ import annotations

import math

import torch
from chat_tokenizer import DOCUMENT, QUERY, SYSTEM
from cross_encoder import CrossEncoder
from lists import Embedder
from tokenizers import Tokenizer
from torch import Tensor

CONTENT = 232  # dimensions for the token's meaning: the embedder's, rotated, without the least
WEIGHT, IMPORTANCE, CONSTANT, IS_DOCUMENT, IS_SYSTEM, IS_QUERY = range(CONTENT, CONTENT + 6)
SEGMENT = CONTENT + 6  # written by layer 0
FOUND = CONTENT + 7  # written by layer 1, one per head, and the found token's importance behind it
HEAD = 64
HALF = HEAD // 2
SLOW = 16  # rotary pairs from here on hardly turn over a text's length
MATCHING_HEADS = 3


def token_table(tokenizer: Tokenizer, embedder: Embedder) -> Tensor:
    """Return (vocabulary, 256): the embedder's token vectors, and what marks special tokens."""
    student = embedder.student
    old = student.embedding.weight.detach()
    centered = old - old.mean(dim=0)
    _, _, directions = torch.linalg.svd(centered, full_matrices=False)
    content = centered @ directions[:CONTENT].T
    norms = content.norm(dim=1, keepdim=True)
    content = content / norms.clamp_min(1e-6) * math.sqrt(CONTENT)
    with torch.inference_mode():
        logits, _ = student._weights_and_values(torch.arange(len(old)), student.layers[0])
    importance = logits.mean(dim=1)
    table = torch.zeros(tokenizer.get_vocab_size(), 256)
    table[: len(old), :CONTENT] = content
    table[: len(old), WEIGHT] = _standardize(norms[:, 0].log())
    table[: len(old), IMPORTANCE] = _standardize(importance)
    generator = torch.Generator().manual_seed(2)
    for token in (*range(3), *range(len(old), len(table))):
        table[token, :CONTENT] = torch.randn(CONTENT, generator=generator)
        table[token, WEIGHT : IMPORTANCE + 1] = -2
    table[:, CONSTANT] = 6
    for text, dimension in ((DOCUMENT, IS_DOCUMENT), (SYSTEM, IS_SYSTEM), (QUERY, IS_QUERY)):
        table[tokenizer.token_to_id(text), dimension] = 12
    return table * 0.3


def _standardize(values: Tensor) -> Tensor:
    return ((values - values.mean()) / values.std()).clamp(-3, 3)


@torch.no_grad()
def initialize(model: CrossEncoder, tokenizer: Tokenizer) -> None:
    """Set the weights of a new model."""
    torch.manual_seed(4)
    model.embedding.weight.copy_(token_table(tokenizer, Embedder()))
    model.projection.weight.copy_(torch.eye(256))
    for layer in model.layers:
        for name, gain in (("q", 1), ("k", 1), ("v", 1), ("o", 0.3), ("gate", 1), ("up", 1)):
            weight = getattr(layer, name).weight
            weight.normal_(std=gain / math.sqrt(weight.shape[1]))
        layer.down.weight.normal_(std=0.2 / math.sqrt(layer.down.weight.shape[1]))
    model.norm.fill_(0.15)
    _segments(model.layers[0])
    _previous(model.layers[0], head=1)
    for head in range(MATCHING_HEADS):
        _matches(model.layers[1], head)


def _rows(weight: Tensor, head: int) -> Tensor:
    return weight[head * HEAD : (head + 1) * HEAD]


def _segments(layer: torch.nn.Module) -> None:
    """Head 0: find the document's mark; before it, the system sentence."""
    query, key, value = (_rows(getattr(layer, name).weight, 0) for name in "qkv")
    for matrix in (query, key, value):
        matrix.zero_()
    query[SLOW, CONSTANT] = 1
    key[SLOW, IS_DOCUMENT], key[SLOW, IS_SYSTEM], key[SLOW + 1, CONSTANT] = 4, 0.5, 1
    value[0, IS_DOCUMENT] = 1
    layer.o.weight[:, :HEAD] = 0
    layer.o.weight[SEGMENT, 0] = 0.15


def _previous(layer: torch.nn.Module, head: int) -> None:
    """A head that attends to the token before, and adds a rotation of its meaning."""
    query, key, value = (_rows(getattr(layer, name).weight, head) for name in "qkv")
    query.zero_()
    key.zero_()
    for pair in range(3):  # the fastest
        angle = layer.config.rope_theta ** (-2 * pair / HEAD)
        query[pair, CONSTANT] = 1
        key[pair, CONSTANT], key[pair + HALF, CONSTANT] = math.cos(angle), math.sin(angle)
    fast = [*range(3), *range(HALF, HALF + 3)]
    layer.q_norm[fast] = 1.5
    layer.k_norm[fast] = 1.5
    mixing, _ = torch.linalg.qr(torch.randn(CONTENT, HEAD))
    value.zero_()
    value[:, :CONTENT] = mixing.T
    spread, _ = torch.linalg.qr(torch.randn(CONTENT, HEAD))
    layer.o.weight[:, head * HEAD : (head + 1) * HEAD] = 0
    layer.o.weight[:CONTENT, head * HEAD : (head + 1) * HEAD] = 0.25 * spread


def _matches(layer: torch.nn.Module, head: int) -> None:
    """A head that finds tokens of the query that are like the own one."""
    query, key, value = (_rows(getattr(layer, name).weight, head) for name in "qkv")
    slow = [*range(SLOW, HALF), *range(SLOW + HALF, HEAD)]
    content, (penalty, sink) = slow[:-2], slow[-2:]
    mixing, _ = torch.linalg.qr(torch.randn(CONTENT, len(content)))
    for matrix in (query, key, value):
        matrix.zero_()
    query[content, :CONTENT] = mixing.T
    key[content, :CONTENT] = mixing.T
    # A token's share of the random directions has this length.
    length = math.sqrt(len(content))
    query[penalty, CONSTANT] = query[sink, CONSTANT] = 0.5 * length / 6
    key[penalty, SEGMENT] = -length / 3
    key[sink, IS_SYSTEM] = 3 * length / 12
    layer.q_norm[slow] = 1.4
    layer.k_norm[slow] = 1.4
    value[0, CONSTANT], value[0, IS_SYSTEM], value[0, SEGMENT] = 1 / 6, -1 / 4, -0.3
    value[1, IMPORTANCE] = 1
    carried, _ = torch.linalg.qr(torch.randn(CONTENT, HEAD - 2))
    value[2:, :CONTENT] = carried.T
    output = layer.o.weight[:, head * HEAD : (head + 1) * HEAD]
    output.zero_()
    output[FOUND + 2 * head, 0] = output[FOUND + 2 * head + 1, 1] = 0.6
    output[:CONTENT, 2:] = 0.2 * torch.linalg.qr(torch.randn(CONTENT, HEAD - 2))[0]
