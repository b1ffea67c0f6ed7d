"""The start of training: a model that already ranks as well as an embedder, and compares words.

A transformer takes long to learn to look up a word elsewhere in its input, and longer to learn what
words mean. So the weights begin as a construction:

* Layer 0: a token learns whether it is before the query, in it, or in the document, and what
  precedes it.
* Layer 1: two heads attend from a token of the document to tokens of the query with a similar
  vector, and two to pairs of tokens; if there are none, they attend to the prompt's first
  sentence. They write down what they found.
* Layer 2, at the last token: one head averages the query's tokens, one the document's, one those
  of the document that were found in the query, and one what was found. The MLP multiplies the
  averages: `silu(a) * b - silu(-a) * b` is `a * b`, so two units are one product, and a sum of
  products is a cosine. That is the bi-encoder of `bi_encoder.py`.

Everything else begins small, and everything is trained.
"""

from __future__ import annotations

import math

import torch
from bi_encoder import CONTENT, RANK, BiEncoder
from chat_tokenizer import DOCUMENT, QUERY, SYSTEM
from cross_encoder import CrossEncoder
from tokenizers import Tokenizer
from torch import Tensor

from qwen3_triton_gateway.rerank_prompt import ANSWERS, SUFFIX

FOUND_RANK = 64  # of the average of what was found
(
    IN_QUERY_WEIGHT, IN_DOCUMENT_WEIGHT, CONSTANT, IS_DOCUMENT, IS_SYSTEM, IS_QUERY, READ,
    SEGMENT, AFTER_QUERY,
) = range(CONTENT, CONTENT + 9)  # fmt: skip
FOUND = CONTENT + 9  # of each head, and the found token's weight behind it
PREVIOUS = 256  # a mix of the previous token's meaning
SPARE = 64
SCALE = 0.3  # of the token table
HEAD = 128
SLOW = 32  # rotary pairs from here on hardly turn over a text's length
SLOW_DIMENSIONS = [*range(SLOW, HEAD // 2), *range(SLOW + HEAD // 2, HEAD)]
# In the keys of the averages: the tokens' weights, whether one was found, and the length.
WEIGHTS, FOUND_WEIGHT, SINK, GAIN = 0.08, 1.5, 0.8, 1.2
VECTORS, FOUND_VECTOR = 16.0, 5.0  # about the lengths of the averages at the last token
# Weights of the products and of what was found, fitted to lists.
COSINE, OVERLAP = 0.066, 0.07
FOUND_SHARES, FOUND_MASS, BIAS = (0.8, 0.0, 5.0, 0.0), 5.5, -4.0


def token_table(tokenizer: Tokenizer, bi_encoder: BiEncoder) -> Tensor:
    """Return (vocabulary, 256): the bi-encoder's token vectors, and what marks special tokens."""
    table = torch.zeros(tokenizer.get_vocab_size(), 256)
    table[:, :CONTENT] = bi_encoder.content
    table[:, IN_QUERY_WEIGHT : IN_DOCUMENT_WEIGHT + 1] = 3 * bi_encoder.weights.clamp(
        -4, 3
    )  # well above the noise
    prompt = tokenizer.encode(SUFFIX).ids
    for token in {0, 1, 2, *prompt, *range(24_000, len(table))}:
        table[token] = 0
        table[token, IN_QUERY_WEIGHT : IN_DOCUMENT_WEIGHT + 1] = -18
    table[:, CONSTANT] = 6
    for text, dimension in ((DOCUMENT, IS_DOCUMENT), (SYSTEM, IS_SYSTEM), (QUERY, IS_QUERY)):
        table[tokenizer.token_to_id(text), dimension] = 12
    no, yes = (tokenizer.token_to_id(answer) for answer in ANSWERS)
    table[yes, READ], table[no, READ] = 1 / SCALE, -1 / SCALE
    return table * SCALE


@torch.no_grad()
def initialize(model: CrossEncoder, tokenizer: Tokenizer, bi_encoder: BiEncoder) -> None:
    """Set the weights of a new model."""
    torch.manual_seed(4)
    model.embedding.weight.copy_(token_table(tokenizer, bi_encoder))
    model.projection.weight.copy_(torch.eye(model.config.hidden_size, 256))
    for layer in model.layers:
        for name, gain in (("q", 1), ("k", 1), ("v", 1), ("o", 0.02), ("gate", 1), ("up", 1)):
            weight = getattr(layer, name).weight
            weight.normal_(std=gain / math.sqrt(weight.shape[1]))
        layer.down.weight.normal_(std=0.02 / math.sqrt(layer.down.weight.shape[1]))
    _segments(model.layers[0])
    _previous(model.layers[0])
    _matches(model.layers[1])
    _averages(model.layers[2], bi_encoder)
    _products(model.layers[2])
    # Only the answer is read.
    model.norm.zero_()
    model.norm[READ] = 4


def _rows(weight: Tensor, head: int) -> Tensor:
    return weight[head * HEAD : (head + 1) * HEAD]


def _segments(layer: torch.nn.Module) -> None:
    """Heads 0 and 1: find the document's mark and the query's; before them, the first sentence."""
    first, second = (_rows(layer.q.weight, head) for head in (0, 1))
    key, value = _rows(layer.k.weight, 0), _rows(layer.v.weight, 0)
    document, sentence, query = SLOW_DIMENSIONS[:3]
    for matrix in (first, second, key):
        matrix.zero_()
    value[:2] = 0
    first[document, CONSTANT] = second[query, CONSTANT] = 1
    key[document, IS_DOCUMENT], key[query, IS_QUERY] = 4, 4
    key[document, IS_SYSTEM] = key[query, IS_SYSTEM] = 0.5
    key[sentence, CONSTANT] = 1
    value[0, IS_DOCUMENT], value[1, IS_QUERY] = 1, 1
    layer.o.weight[[SEGMENT, AFTER_QUERY], : 2 * HEAD] = 0
    layer.o.weight[SEGMENT, 0] = layer.o.weight[AFTER_QUERY, HEAD + 1] = 6 * SCALE / 16


def _previous(layer: torch.nn.Module) -> None:
    """Head 2: attend to the token before, and add a mix of its meaning."""
    query, key, value = _rows(layer.q.weight, 2), _rows(layer.k.weight, 1), layer.v.weight[HEAD:]
    query.zero_()
    key.zero_()
    for pair in range(3):  # the fastest
        angle = layer.config.rope_theta ** (-2 * pair / HEAD)
        query[pair, CONSTANT] = 1
        key[pair, CONSTANT] = math.cos(angle)
        key[pair + HEAD // 2, CONSTANT] = math.sin(angle)
    fast = [*range(3), *range(HEAD // 2, HEAD // 2 + 3)]
    layer.q_norm[fast] = 1.5
    layer.k_norm[fast] = 1.5
    value[:SPARE] = 0
    value[:SPARE, :CONTENT] = torch.linalg.qr(torch.randn(CONTENT, SPARE))[0].T
    output = layer.o.weight[:, 2 * HEAD : 3 * HEAD]
    output.zero_()
    output[PREVIOUS : PREVIOUS + SPARE, :SPARE] = SCALE * torch.eye(SPARE)


def _matches(layer: torch.nn.Module) -> None:
    """Find tokens of the query that are like the own one (0, 1), or the own pair (2, 3)."""
    content, (penalty, sink) = SLOW_DIMENSIONS[:-2], SLOW_DIMENSIONS[-2:]
    # The length of a token's share of the random directions.
    length = math.sqrt(len(content))
    half = len(content) // 2
    mixes = torch.zeros(2, len(content), layer.config.hidden_size)
    mixes[0, :, :CONTENT] = torch.linalg.qr(torch.randn(CONTENT, len(content)))[0].T
    mixes[1, :half, :CONTENT] = torch.linalg.qr(torch.randn(CONTENT, half))[0].T
    own = torch.linalg.qr(torch.randn(SPARE, half))[0].T
    mixes[1, half:, PREVIOUS : PREVIOUS + SPARE] = own
    for group in range(2):
        key, value = _rows(layer.k.weight, group), _rows(layer.v.weight, group)
        key.zero_()
        key[content] = mixes[group]
        # Tokens of the document are not to be found, nor those without a meaning.
        key[penalty, SEGMENT], key[penalty, CONSTANT] = -length / 2, -0.15 * length / 6
        key[sink, IS_SYSTEM] = length / 4
        value[:2] = 0
        value[0, CONSTANT], value[0, IS_SYSTEM] = 1 / 6, -1 / 12
        value[1, IN_QUERY_WEIGHT], value[1, IS_SYSTEM] = 1 / 3, 1.5 / 3
    # A token as similar as this counts as found as much as none does.
    for head, threshold in enumerate((0.8, 0.5, 0.75, 0.45)):
        query = _rows(layer.q.weight, head)
        query.zero_()
        query[content] = mixes[head // 2]
        query[penalty, CONSTANT] = 0.5 * length / 6
        query[sink, CONSTANT] = threshold * length / 6
        output = layer.o.weight[:, head * HEAD : (head + 1) * HEAD]
        output[FOUND : FOUND + 8] = 0
        output[FOUND + 2 * head, 0] = output[FOUND + 2 * head + 1, 1] = 2 * SCALE
    layer.q_norm[SLOW_DIMENSIONS] = 1.4
    layer.k_norm[SLOW_DIMENSIONS] = 1.4


def _averages(layer: torch.nn.Module, bi_encoder: BiEncoder) -> None:
    """Average the query (head 0), the document (1), what was found of it (2), and how much (3)."""
    in_document, in_query, query_weight, document_weight, constant, sink, *found = SLOW_DIMENSIONS
    for group in range(2):
        key = _rows(layer.k.weight, group)
        key.zero_()
        key[in_document, SEGMENT], key[in_document, CONSTANT] = 2 / 6, -1 / 6
        key[in_query, AFTER_QUERY], key[in_query, SEGMENT] = 2 / 6, -2 / 6
        key[in_query, CONSTANT] = -1 / 6
        key[query_weight, IN_QUERY_WEIGHT] = key[document_weight, IN_DOCUMENT_WEIGHT] = WEIGHTS
        key[constant, CONSTANT] = 1 / 6
        key[sink, IS_SYSTEM] = 1 / 4
        for number in range(4):
            key[found[number], FOUND + 2 * number] = 0.5
    queries = [_rows(layer.q.weight, head) for head in range(4)]
    masks = (in_query, in_document, in_document, in_document)
    weights = (query_weight, document_weight, document_weight, document_weight)
    for query, mask, weight in zip(queries, masks, weights, strict=True):
        query.zero_()
        query[mask, CONSTANT], query[weight, CONSTANT] = 1.5, 1
    queries[2][found[0], CONSTANT] = queries[2][found[1], CONSTANT] = FOUND_WEIGHT
    queries[2][sink, CONSTANT] = SINK
    layer.q_norm.fill_(GAIN)
    layer.k_norm.fill_(GAIN)
    # The two maps together, through the directions that a group's values have room for.
    both = torch.cat([*bi_encoder.maps], dim=1)
    room = HEAD - 10
    directions = torch.linalg.svd(both[:-1], full_matrices=False)[0][:, :room]  # (CONTENT, room)
    for group in range(2):
        value = _rows(layer.v.weight, group)
        value.zero_()
        value[:room, :CONTENT] = directions.T
        value[room, CONSTANT] = 1 / 6
        for number in range(8):
            value[room + 2 + number, FOUND + number] = 0.5
        value[room + 1, SEGMENT] = 1 / 6  # not of the sentence
    layer.o.weight[:, : 3 * HEAD] = 0
    layer.o.weight[READ] = 0
    targets = (slice(0, RANK), slice(RANK, 2 * RANK), slice(PREVIOUS, PREVIOUS + FOUND_RANK))
    maps = (bi_encoder.maps[0], bi_encoder.maps[1], bi_encoder.maps[0, :, :FOUND_RANK])
    lengths = (VECTORS, VECTORS, FOUND_VECTOR)
    for head, (target, matrix, length) in enumerate(zip(targets, maps, lengths, strict=True)):
        output = layer.o.weight[:, head * HEAD : (head + 1) * HEAD]
        output[target, :room] = length * (directions.T @ matrix[:-1]).T
        output[target, room] = length * matrix[-1]
    for number, share in enumerate(FOUND_SHARES):
        layer.o.weight[READ, 3 * HEAD + room + 2 + 2 * number] = share
    layer.o.weight[READ, 2 * HEAD + room + 1] = FOUND_MASS
    layer.o.weight[READ, 3 * HEAD + room] = BIAS


def _products(layer: torch.nn.Module) -> None:
    """Multiply query and document, and query and what was found."""
    gate, up, down = layer.gate.weight, layer.up.weight, layer.down.weight
    gate[: 2 * (RANK + FOUND_RANK)] = 0
    up[: 2 * (RANK + FOUND_RANK)] = 0
    down[READ] = 0
    for number in range(RANK):
        for sign, unit in ((1, 2 * number), (-1, 2 * number + 1)):
            gate[unit, number] = sign
            up[unit, RANK + number] = 1
            down[READ, unit] = sign * COSINE
    for number in range(FOUND_RANK):  # 2qm - mm: how close the two averages are
        for sign, unit in ((1, 2 * (RANK + number)), (-1, 2 * (RANK + number) + 1)):
            gate[unit, PREVIOUS + number] = sign
            up[unit, number] = 2 * FOUND_VECTOR / VECTORS
            up[unit, PREVIOUS + number] = -1
            down[READ, unit] = sign * OVERLAP
