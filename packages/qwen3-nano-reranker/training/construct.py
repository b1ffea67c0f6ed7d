"""Construct the reranker: a model that ranks as the embedder does, and counts what it finds.

    python construct.py WORK

Reads what `lists.py` wrote; writes WORK/reranker.pt. A transformer takes long to learn to look up a
word elsewhere in its input, and longer to learn what words mean. So its weights are set, except for
the two maps of `maps.py`, which are fitted to the embedder:

* Layer 0: a token learns whether it is in the document, whether it is after the mark of the query,
  and what precedes it.
* Layer 1: a token of the document looks for a similar token in the query, for a similar pair of
  tokens there, and for an earlier token of the document that is the same. If it finds none, it
  attends to the prompt's first sentence.
* Layer 2, at the last token: two heads average the query's tokens, two those of the document, as
  the embedder does. One weighs what was found, once each, against the query: both by how rare a
  token is. One does so for pairs. The MLP multiplies the averages: `silu(a) * b - silu(-a) * b` is
  `a * b`, so two units are one product, and a sum of products is a cosine.

The score is the cosine plus how much of the query, and of its pairs, was found.
"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from chat_tokenizer import DOCUMENT, INSTRUCT, QUERY, SYSTEM
from cross_encoder import CrossEncoder, small_config
from lists import Embedder, Texts
from maps import RANK, fit_maps
from torch import Tensor, nn
from train_tokenizer import PREFIX

from qwen3_triton_gateway.rerank_prompt import ANSWERS, DEFAULT_INSTRUCTION

CONTENT = 256  # dimensions of a token's meaning: the embedder's, about 1 per dimension
# What else the token table has.
WEIGHT, OTHER_WEIGHT, RARITY, CONSTANT, IS_DOCUMENT, IS_SYSTEM, IS_QUERY, ANSWER = range(256, 264)
WEIGHTS = [WEIGHT, OTHER_WEIGHT]  # logarithms, for the averages of each group of heads
# What the layers write.
IN_DOCUMENT, AFTER_QUERY, FOUND, REPEATED, PAIR_FOUND, COVERED, PAIRS_COVERED = range(264, 271)
PREVIOUS = slice(271, 335)
QUERY_VECTOR = [*range(RANK)]
DOCUMENT_VECTOR = [
    *range(RANK, CONTENT),
    *range(PREVIOUS.start, PREVIOUS.start + 2 * RANK - CONTENT),
]
ONE = 4.0  # the value of CONSTANT, and of what is true of a token
MARK = 12.0  # of the three marks
NEVER = -math.sqrt(CONTENT / 3)  # logarithm of the weight of a token that is to have none
LENGTH = 60.0  # of the texts' vectors: the last token's others are small next to it
FREQUENCY_TEXTS = 20_000
# A token as similar as this counts as found as much as none does.
SIMILAR, SIMILAR_PAIR, SAME = 0.65, 0.75, 0.75
# How sharply: the logit of two equal tokens.
SHARPNESS, PAIR_SHARPNESS, SAME_SHARPNESS = 14.0, 20.0, 30.0
# What not being found, and being a repetition, takes from the logarithm of a token's weight.
NOT_FOUND, PAIR_NOT_FOUND, IS_REPEATED = 6.0, 8.0, 6.0
# Weights of the cosine and of what was found, chosen on validation lists; `weigh.py` fits others.
COMPARED = COSINE, COVERAGE, PAIR_COVERAGE = 15.0, 7.0, 13.0
BIAS = -8.5  # between the medians of right and other documents

HEAD, GROUP = 128, 3  # dimensions of a head; heads with the same keys
# Rotary dimensions that hardly turn over a text's length, and those that do not turn at all; the
# other half of the latter's pairs stays empty.
SLOW = [*range(32, 56), *range(96, 120)]
STILL = [*range(63, 55, -1)]
FAST = [0, 1, 2, 3, 4]


def token_table(embedder: Embedder, texts: Texts) -> Tensor:
    """Return (vocabulary, 264): the embedder's token vectors, their weights, and marks."""
    tokenizer, student, (layer,) = texts.tokenizer, embedder.student, embedder.student.layers
    rows, wide = student.embedding.weight, student.projection.weight
    logits, _ = student._weights_and_values(torch.arange(len(rows)), layer)
    weights = logits.unflatten(1, (len(WEIGHTS), -1)).mean(dim=2)
    rows = rows * torch.rsqrt((rows @ wide.T).square().mean(-1, keepdim=True) + 1e-6)
    rows = rows - rows.mean(dim=0)
    rows = rows / rows.square().mean().sqrt()
    table = torch.zeros(tokenizer.get_vocab_size(), ANSWER + 1)
    table[: len(rows), :CONTENT] = rows
    table[: len(rows), WEIGHTS] = weights
    table[: len(rows), RARITY] = texts.rarity(FREQUENCY_TEXTS)[: len(rows)].clamp(min=0.3).log()
    prompt = {0, 1, 2, *texts.prefix, *texts.suffix, *range(len(rows), len(table))}
    table[list(prompt)] = 0
    for dimension in (*WEIGHTS, RARITY):
        table[list(prompt), dimension] = NEVER
    table[:, CONSTANT] = ONE
    # The embedder's own prompt weighs as much as it does there.
    before, after = PREFIX.split(DEFAULT_INSTRUCTION)
    for text, stands_for in (
        (INSTRUCT, before), (f" {DEFAULT_INSTRUCTION}", DEFAULT_INSTRUCTION), (QUERY, after),
    ):  # fmt: skip
        ids = embedder.tokenizer.encode(stands_for).ids[:-1]
        token = tokenizer.token_to_id(text)
        table[token, WEIGHTS] = weights[ids].logsumexp(0)
        table[token, :CONTENT] = weights[ids].softmax(0).mean(1) @ rows[ids]
    for text, dimension in ((DOCUMENT, IS_DOCUMENT), (SYSTEM, IS_SYSTEM), (QUERY, IS_QUERY)):
        table[tokenizer.token_to_id(text), dimension] = MARK
    no, yes = (tokenizer.token_to_id(answer) for answer in ANSWERS)
    table[yes, ANSWER], table[no, ANSWER] = 1, -1
    return table


def embedder_values(embedder: Embedder) -> Tensor:
    """Return the maps from a token's vector to the values of each half of the embedder's heads."""
    student, (layer,) = embedder.student, embedder.student.layers
    values = (layer.v.weight * layer.input_norm) @ student.projection.weight
    return values.unflatten(0, (len(WEIGHTS), -1)).detach()


@torch.no_grad()
def set_weights(model: CrossEncoder, texts: Texts, embedder: Embedder) -> None:
    """Set the weights of a new model."""
    torch.manual_seed(4)
    for weight in model.parameters():
        weight.fill_(weight.ndim == 1)  # gains are 1, what is not set is 0
    table = token_table(embedder, texts)
    model.embedding.weight.copy_(table)
    model.projection.weight.copy_(torch.eye(model.config.hidden_size, table.shape[1]))
    # How much the norm before a layer divides by.
    scale = table[:24_000].square().sum(1).mean().div(model.config.hidden_size).sqrt().item()
    longer = math.sqrt(scale**2 + (CONTENT / 4) / model.config.hidden_size)
    marks = [texts.tokenizer.token_to_id(text) for text in (DOCUMENT, QUERY)]
    marks = table[marks].square().sum(1).div(model.config.hidden_size).sqrt().tolist()
    _marks_and_previous(model.layers[0], scale, marks)
    _find(model.layers[1], longer)
    values = embedder_values(embedder)
    token_values = torch.stack([table[:, :CONTENT] @ value.T for value in values])
    maps = fit_maps(token_values, table[:, WEIGHTS].T, texts, embedder)
    _averages(model.layers[2], values, maps, longer)
    _products(model.layers[2])
    model.norm.zero_()  # only the answer is read
    model.norm[ANSWER] = LENGTH * math.sqrt(2 / model.config.hidden_size) / 2


def _rows(weight: Tensor, head: int) -> Tensor:
    return weight[head * HEAD : (head + 1) * HEAD]


def _output(layer: nn.Module, head: int) -> Tensor:
    return layer.o.weight[:, head * HEAD : (head + 1) * HEAD]


def _directions(rows: int, columns: int) -> Tensor:
    """Return random orthonormal rows."""
    return torch.linalg.qr(torch.randn(columns, rows))[0].T


def _marks_and_previous(layer: nn.Module, scale: float, mark_scales: list[float]) -> None:
    """Heads 0 and 1: find the marks of document and query. Head 3: the token before."""
    document, query, constant = STILL[:3]
    key, value = _rows(layer.k.weight, 0), _rows(layer.v.weight, 0)
    key[document, IS_DOCUMENT], key[query, IS_QUERY] = 1 / MARK, 1 / MARK
    key[[document, query], IS_SYSTEM] = 0.5 / MARK
    key[constant, CONSTANT] = 0.6 / ONE
    for head, (dimension, mark, target) in enumerate(
        ((document, IS_DOCUMENT, IN_DOCUMENT), (query, IS_QUERY, AFTER_QUERY))
    ):
        finding = _rows(layer.q.weight, head)
        finding[dimension, CONSTANT] = 1
        value[head, mark] = 1 / MARK
        _output(layer, head)[target, head] = ONE * mark_scales[head]
    finding, key, value = (_rows(layer.q.weight, GROUP), _rows(layer.k.weight, 1),
                           _rows(layer.v.weight, 1))  # fmt: skip
    for pair in FAST[:3]:
        angle = layer.config.rope_theta ** (-2 * pair / HEAD)
        finding[pair, CONSTANT] = 1
        key[pair, CONSTANT], key[pair + HEAD // 2, CONSTANT] = math.cos(angle), math.sin(angle)
    size = PREVIOUS.stop - PREVIOUS.start
    value[:size, :CONTENT] = _directions(size, CONTENT)
    _output(layer, GROUP)[PREVIOUS, :size] = scale * torch.eye(size)
    layer.q_norm.fill_(1.5)
    layer.k_norm.fill_(1.5)


def _find(layer: nn.Module, scale: float) -> None:
    """Heads 0 and 3: find a token, and a pair, in the query. Head 1: the token in the document."""
    in_document, none, rest = STILL[:3]
    length = math.sqrt(len(SLOW))  # of a token in as many random directions
    half = len(SLOW) // 2
    mixes = torch.zeros(2, len(SLOW), layer.config.hidden_size)
    mixes[0, :, :CONTENT] = _directions(len(SLOW), CONTENT)
    mixes[1, :half, :CONTENT] = _directions(half, CONTENT)
    mixes[1, half:, PREVIOUS] = _directions(half, PREVIOUS.stop - PREVIOUS.start)
    turning = 1.5  # of each fast dimension of a key
    key_length = math.sqrt(length**2 + len(FAST) * turning**2)
    document_key_length = math.sqrt(key_length**2 + length**2)
    for group, mix in enumerate(mixes):
        key, value = _rows(layer.k.weight, group), _rows(layer.v.weight, group)
        key[SLOW] = mix
        key[in_document, IN_DOCUMENT] = length / ONE
        key[in_document, IS_DOCUMENT] = -length / MARK  # its mark is not in it
        key[none, IS_SYSTEM] = 10 * length / MARK
        key[FAST, CONSTANT] = turning / ONE
        value[0, AFTER_QUERY] = 1 / ONE
        value[1, IN_DOCUMENT] = 1 / ONE
    equal = length**2 / key_length  # a query's dot product with the key of an equal token
    same = length**2 / document_key_length
    document = length / document_key_length  # of a key's dimension that says so
    gain = 16.0
    layer.q_norm.fill_(math.sqrt(gain))
    layer.k_norm.fill_(math.sqrt(gain))
    for head, mix, threshold, sharpness in (
        (0, mixes[0], SIMILAR, SHARPNESS), (GROUP, mixes[1], SIMILAR_PAIR, PAIR_SHARPNESS),
    ):  # fmt: skip
        finding = _rows(layer.q.weight, head)
        finding[SLOW] = mix
        finding[in_document, CONSTANT] = -1.5 * equal / document / ONE
        # What is not in the document finds nothing.
        finding[none, CONSTANT] = (threshold + 3) * equal / ONE
        finding[none, IN_DOCUMENT] = -3 * equal / ONE
        square = length**2 + (1.5 * equal / document) ** 2 + (threshold * equal) ** 2
        _soften(finding[rest], square, equal, sharpness, gain)
    finding = _rows(layer.q.weight, 1)
    finding[SLOW] = mixes[0]
    # Only tokens of the document are compared with, and not itself: `turn` is taken from it.
    demand = 2 * equal
    finding[in_document, CONSTANT] = demand / document / ONE
    turn = (1 - SAME) * same * 1.6
    finding[FAST, CONSTANT] = -turn * document_key_length / turning / len(FAST) / ONE
    finding[none, CONSTANT] = (SAME * same + demand) / ONE
    square = (
        length**2 + (demand / document) ** 2 + (SAME * same + demand) ** 2
        + (turn * document_key_length / turning) ** 2 / len(FAST)
    )  # fmt: skip
    _soften(finding[rest], square, same, SAME_SHARPNESS, gain)
    for head, place, target in ((0, 0, FOUND), (1, 1, REPEATED), (GROUP, 0, PAIR_FOUND)):
        _output(layer, head)[target, place] = ONE * scale


def _soften(rest: Tensor, square: float, dot: float, logit: float, gain: float) -> None:
    """Make a query so long, in a dimension that no key has, that the dot product has the logit."""
    length = math.sqrt(HEAD) * gain * dot / logit
    if length**2 < square:
        raise ValueError(f"The gain of {gain} is too low: {math.sqrt(square) / length:.2f}.")
    rest[CONSTANT] = math.sqrt(length**2 - square) / ONE


def _averages(layer: nn.Module, values: Tensor, maps: tuple[Tensor, Tensor], scale: float) -> None:
    """Average the query (heads 0, 3) and the document (1, 4); weigh what was found (2, 5)."""
    weight, in_document, after_query, rarity, found, repeated, rest, constant = STILL
    steady = 80.0  # nearly the length of every key, so that the norm changes none
    room = HEAD - 4
    for group, source in enumerate((FOUND, PAIR_FOUND)):
        part = slice(group * HEAD, (group + 1) * HEAD)
        directions = torch.linalg.svd(torch.cat([m[part] for m in maps], dim=1))[0][:, :room]
        key, value = _rows(layer.k.weight, group), _rows(layer.v.weight, group)
        for place, dimension in (
            (weight, WEIGHTS[group]), (in_document, IN_DOCUMENT), (after_query, AFTER_QUERY),
            (rarity, RARITY), (found, source), (repeated, REPEATED),
        ):  # fmt: skip
            key[place, dimension] = 1
        key[constant, CONSTANT] = steady / ONE
        value[:room, :CONTENT] = directions.T @ values[group]
        value[room, CONSTANT] = 1 / ONE
        value[room + 1, IN_DOCUMENT] = 1 / ONE
        missing = (NOT_FOUND, PAIR_NOT_FOUND)[group] / ONE
        wanted = (
            {weight: 1, in_document: -30 / ONE},
            {weight: 1, in_document: 30 / ONE},
            {rarity: 1, found: missing, in_document: -missing, repeated: -IS_REPEATED / ONE,
             after_query: 30 / ONE},
        )  # fmt: skip
        gain = 80.0
        for number, coefficients in enumerate(wanted):
            head = group * GROUP + number
            query = _rows(layer.q.weight, head)
            for place, coefficient in coefficients.items():
                query[place, CONSTANT] = coefficient / ONE
            square = sum(c * c for c in coefficients.values())
            _soften(query[rest], square, 1 / steady, 1, gain)
            output = _output(layer, head)
            if number < 2:
                target, matrix = ((QUERY_VECTOR, maps[0]), (DOCUMENT_VECTOR, maps[1]))[number]
                output[target, :room] = LENGTH * scale * (directions.T @ matrix[part]).T
                if group == 0:
                    output[target, room] = LENGTH * scale * matrix[-1]
            else:
                target = (COVERED, PAIRS_COVERED)[group]
                output[target, room + 1] = scale
                output[ANSWER, room + 1] = scale * (COVERAGE, PAIR_COVERAGE)[group]
        layer.q_norm.fill_(math.sqrt(gain))
        layer.k_norm.fill_(math.sqrt(gain))
    _output(layer, 0)[ANSWER, room] = BIAS * scale


def _products(layer: nn.Module) -> None:
    """Multiply the vectors of query and document."""
    gate, up, down = layer.gate.weight, layer.up.weight, layer.down.weight
    size = layer.config.hidden_size
    for number, (query, document) in enumerate(zip(QUERY_VECTOR, DOCUMENT_VECTOR, strict=True)):
        for sign, unit in ((1, 2 * number), (-1, 2 * number + 1)):
            gate[unit, query], up[unit, document] = sign, 1
            # Two vectors of equal length have half of the squares each.
            down[ANSWER, unit] = sign * COSINE * 2 / size


def main() -> None:
    work = Path(sys.argv[1])
    torch.set_num_threads(int((*sys.argv[2:3], "1")[0]))
    texts = Texts(work)
    no, yes = (texts.tokenizer.token_to_id(answer) for answer in ANSWERS)
    model = CrossEncoder(small_config(), (no, yes))
    set_weights(model, texts, Embedder())
    state = {"config": asdict(model.config), "answers": (no, yes), "state": model.state_dict()}
    torch.save(state, work / "reranker.pt")


if __name__ == "__main__":
    main()
