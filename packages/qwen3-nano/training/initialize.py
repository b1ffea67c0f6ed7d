"""The start of training: a student that is already a sensible bag of words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from student import Student, StudentConfig, StudentLayer, slow_dimensions
from teacher import Teacher
from tokenizers import Tokenizer
from torch import Tensor

# The repeated dimensions' weight: less than the first, so that a small cut loses little.
ECHO = 0.5
# Soft attention at the start, close to an even average.
QUERY_GAIN = 0.5


def widening(vectors: Tensor, hidden_size: int) -> Tensor:
    """Return the map from the teacher's space to hidden_size, (hidden_size, 384).

    First the teacher's principal directions in descending order, so that the first dimensions carry
    the most; then rotations of all of them at a lower weight, which preserve every cosine and leave
    no dimension empty.
    """
    sample = vectors[:: max(1, len(vectors) // 50_000)]
    _, _, directions = torch.linalg.svd(sample, full_matrices=False)
    generator = torch.Generator().manual_seed(1)
    blocks = [directions]
    while sum(len(block) for block in blocks) < hidden_size:
        rotation, _ = torch.linalg.qr(torch.randn(384, 384, generator=generator))
        blocks.append(ECHO * rotation @ directions)
    return torch.cat(blocks)[:hidden_size].contiguous()


def token_vectors(work: Path, vocab_size: int) -> Tensor:
    """Return the teacher's vector of each token's text, (vocab_size, 384)."""
    path = work / "token-vectors.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    tokenizer = Tokenizer.from_file(str(work / "model/tokenizer.json"))
    texts = [tokenizer.decode([i], skip_special_tokens=False).strip() for i in range(vocab_size)]
    vectors = torch.from_numpy(Teacher().embed(texts))
    torch.save(vectors, path)
    return vectors


def first_student(config: StudentConfig, work: Path, wide: Tensor) -> Student:
    """Return one layer that averages the tokens' vectors, in the teacher's first 256 directions."""
    student = Student(config)
    width, kv = config.embedding_size, config.num_key_value_heads * config.head_dim
    if kv != width:
        raise ValueError(f"the values of all heads, {kv}, must hold the table's width, {width}")
    vectors = token_vectors(work, config.vocab_size)
    table = (vectors - vectors.mean(dim=0)) @ wide[:width].T * 8
    table[:3] = torch.randn(3, width) * 0.05  # the end token adds nothing of its own
    groups = config.num_attention_heads // config.num_key_value_heads
    layer = cast(StudentLayer, student.layers[0])
    with torch.no_grad():
        student.embedding.weight.copy_(table)
        spread, _ = torch.linalg.qr(torch.randn(config.hidden_size, width))
        student.projection.weight.copy_(spread)
        layer.v.weight.copy_(spread.T)
        # Each pair of query heads shares a value head and gets half of it.
        expand = (wide @ wide[:width].T).unflatten(1, (config.num_key_value_heads, 1, -1))
        layer.o.weight.copy_(expand.expand(-1, -1, groups, -1).flatten(1) / groups)
        layer.down.weight.mul_(0.1)
        layer.q_norm.copy_(QUERY_GAIN * slow_dimensions(config))
    return student


def add_layer(config: dict[str, Any], state: dict[str, Tensor]) -> Student:
    """Return the trained layer above a new one that changes nothing yet."""
    deeper = replace(StudentConfig(**config), num_hidden_layers=2)
    student = Student(deeper)
    renamed = {name.replace("layers.0.", "layers.1."): value for name, value in state.items()}
    student.load_state_dict(renamed, strict=False)
    layer = cast(StudentLayer, student.layers[0])
    with torch.no_grad():
        layer.o.weight.zero_()
        layer.down.weight.zero_()
    return student
