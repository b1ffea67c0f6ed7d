"""The reranker in torch: the exported graph's model, computed for many documents of one query.

Attention is causal, so what precedes the documents of a query is the same for all of them: it is
computed once for each query. In the last layer, only the last token is computed.
"""

from __future__ import annotations

import torch
from student import MASKED, StudentConfig, StudentLayer, rms_norm, rotate
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 24_007


def small_config() -> StudentConfig:
    """Return the sizes of the reranker."""
    return StudentConfig(
        vocab_size=VOCABULARY,
        embedding_size=264,
        hidden_size=368,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=128,
    )


class CrossEncoder(nn.Module):
    """Queries, each with the same number of documents, to the logits of "no" and "yes"."""

    def __init__(self, config: StudentConfig, answers: tuple[int, int]) -> None:
        super().__init__()
        self.config = config
        self.answers = answers  # the tokens "no" and "yes"
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.projection = nn.Linear(config.embedding_size, config.hidden_size, bias=False)
        self.layers = nn.ModuleList(StudentLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.Parameter(torch.ones(config.hidden_size))
        exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
        angles = torch.arange(2048).unsqueeze(1).float() * config.rope_theta**-exponents
        angles = torch.cat([angles, angles], dim=-1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(
        self, heads: Tensor, head_lengths: Tensor, tails: Tensor, lengths: Tensor
    ) -> Tensor:
        """Return logits, (queries, documents, 2), of what `last_states` takes."""
        return self.logits(self.last_states(heads, head_lengths, tails, lengths))

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits of states from `last_states`, (..., 2)."""
        normed = rms_norm(states, self.norm, self.config.rms_norm_eps)
        return normed @ self._embed(torch.tensor(self.answers)).T

    def last_states(
        self, heads: Tensor, head_lengths: Tensor, tails: Tensor, lengths: Tensor
    ) -> Tensor:
        """Return the last token's state behind the last layer, (queries, documents, hidden_size).

        Args:
            heads: Tokens up to the document, int64 (queries, longest), padded right.
            head_lengths: Their lengths, (queries,).
            tails: Tokens of the document and the suffix, (queries, documents, longest).
            lengths: Their lengths, (queries, documents).
        """
        queries, documents, longest = tails.shape
        width = heads.shape[1]
        flat_lengths = lengths.flatten()
        head_tables = (self.cos[:width], self.sin[:width])
        places = head_lengths[:, None] + torch.arange(longest)
        tail_tables = tuple(
            t[places].repeat_interleave(documents, 0)[:, None] for t in (self.cos, self.sin)
        )
        index = torch.arange(width)
        head_mask = (index <= index[:, None])[None, None]
        index = torch.arange(longest)
        real = (torch.arange(width) < head_lengths[:, None]).repeat_interleave(documents, 0)
        tail_mask = torch.cat(
            [
                real[:, None, :].expand(-1, longest, -1),
                (index <= index[:, None])[None].expand(len(real), -1, -1),
            ],
            dim=2,
        )[:, None]
        head, tail = self._embed(heads), self._embed(tails.flatten(0, 1))
        last_rows = torch.arange(len(flat_lengths))
        for number, layer in enumerate(self.layers):
            is_last = number == len(self.layers) - 1
            normed = rms_norm(head, layer.input_norm, self.config.rms_norm_eps)
            head_key, head_value = _keys_values(layer, normed, head_tables)
            if not is_last:
                head = _finish(layer, head, normed, head_tables, head_key, head_value, head_mask)
            normed = rms_norm(tail, layer.input_norm, self.config.rms_norm_eps)
            key, value = _keys_values(layer, normed, tail_tables)
            key = torch.cat([head_key.repeat_interleave(documents, 0), key], dim=2)
            value = torch.cat([head_value.repeat_interleave(documents, 0), value], dim=2)
            if is_last:
                at = flat_lengths - 1
                tail, normed = tail[last_rows, at][:, None], normed[last_rows, at][:, None]
                tail_tables = tuple(t[last_rows, :, at][:, :, None] for t in tail_tables)
                tail_mask = tail_mask[last_rows, :, at][:, :, None]
            tail = _finish(layer, tail, normed, tail_tables, key, value, tail_mask)
        return tail[:, 0].unflatten(0, (queries, documents))

    def _embed(self, ids: Tensor) -> Tensor:
        """Look up tokens. The projection stays what it begins as: it appends zeros."""
        spare = self.config.hidden_size - self.config.embedding_size
        return functional.pad(self.embedding(ids), (0, spare))


def _keys_values(
    layer: StudentLayer, normed: Tensor, tables: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    key, value = layer.keys_values(normed)
    return rotate(key.transpose(1, 2), tables), value.transpose(1, 2)


def _finish(
    layer: StudentLayer,
    hidden: Tensor,
    normed: Tensor,
    tables: tuple[Tensor, ...],
    key: Tensor,
    value: Tensor,
    mask: Tensor,
) -> Tensor:
    query = layer.q(normed).unflatten(-1, (-1, layer.config.head_dim))
    query = rms_norm(query, layer.q_norm, layer.config.rms_norm_eps).transpose(1, 2)
    query = rotate(query, tables)
    # The query heads of a group are further rows for the same keys.
    groups, length = query.shape[1] // key.shape[1], query.shape[2]
    query = query.unflatten(1, (key.shape[1], groups)).flatten(2, 3)
    # Written out: for such short rows, the backward pass is faster than the fused one's.
    scores = (query * layer.config.head_dim**-0.5) @ key.transpose(-1, -2)
    attention = scores.masked_fill(~mask.repeat(1, 1, groups, 1), MASKED).softmax(-1)
    mixed = (attention @ value).unflatten(2, (groups, length)).flatten(1, 2)
    return layer.finish(hidden, layer.o(mixed.transpose(1, 2).flatten(2)))
