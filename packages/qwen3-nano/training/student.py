"""The student in torch: the exported graph's model, computed as far as pooling needs.

In the last layer, pooling needs only the keys and values of all tokens and the output of the last
token, so nothing else is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

Tables = tuple[
    Tensor, Tensor
]  # cosines and sines, broadcast against (batch, heads, sequence, head_dim)
MASKED = -1e30
END = 0  # <|endoftext|>
MAX_TURN = 0.1  # maximum rotation of a slow rotary dimension over SLOW_OVER tokens, in radians
SLOW_OVER = 512


@dataclass(frozen=True, slots=True)
class StudentConfig:
    """Sizes, named as in transformers' `Qwen3Config`, except for `embedding_size`."""

    vocab_size: int = 24_000
    embedding_size: int = 256  # of the stored token table, before the projection
    hidden_size: int = 1152  # above 1024, so that truncating to 1024 has an effect
    intermediate_size: int = 384
    num_hidden_layers: int = 2
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 64
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6


def rms_norm(values: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Divide by the root mean square over the last axis and multiply by the gain."""
    return values * torch.rsqrt(values.square().mean(-1, keepdim=True) + eps) * gain


def rotate(heads: Tensor, tables: Tables) -> Tensor:
    """Apply rotary position embedding to (..., head_dim), the half-split form."""
    first, second = heads.chunk(2, dim=-1)
    return heads * tables[0] + torch.cat([-second, first], dim=-1) * tables[1]


class StudentLayer(nn.Module):
    """One decoder layer; its parameters have the names of `Qwen3DecoderLayer`, shortened."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        hidden, heads = config.hidden_size, config.num_attention_heads * config.head_dim
        kv = config.num_key_value_heads * config.head_dim
        self.config = config
        self.input_norm = nn.Parameter(torch.ones(hidden))
        self.post_norm = nn.Parameter(torch.ones(hidden))
        self.q_norm = nn.Parameter(torch.ones(config.head_dim))
        self.k_norm = nn.Parameter(torch.ones(config.head_dim))
        self.q = nn.Linear(hidden, heads, bias=False)
        self.k = nn.Linear(hidden, kv, bias=False)
        self.v = nn.Linear(hidden, kv, bias=False)
        self.o = nn.Linear(heads, hidden, bias=False)
        self.gate = nn.Linear(hidden, config.intermediate_size, bias=False)
        self.up = nn.Linear(hidden, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, hidden, bias=False)

    def forward(self, hidden: Tensor, tables: Tables, bias: Tensor) -> Tensor:
        """Run the layer for all tokens: (batch, sequence, hidden) to the same."""
        normed = rms_norm(hidden, self.input_norm, self.config.rms_norm_eps)
        key, value = self.keys_values(normed)
        return self.finish(hidden, self._attend(normed, key, value, (tables, tables), bias))

    def keys_values(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys, not yet rotated, and values: (..., kv_heads, head_dim)."""
        key = self.k(normed).unflatten(-1, (-1, self.config.head_dim))
        value = self.v(normed).unflatten(-1, (-1, self.config.head_dim))
        return rms_norm(key, self.k_norm, self.config.rms_norm_eps), value

    def last_token(
        self, hidden: Tensor, key: Tensor, value: Tensor, tables: Tables, lengths: Tensor
    ) -> Tensor:
        """Run the layer for the last token of each row only: (batch, 1, hidden) to the same."""
        normed = rms_norm(hidden, self.input_norm, self.config.rms_norm_eps)
        bias = torch.zeros(len(lengths), 1, 1, key.shape[1])
        bias.masked_fill_((torch.arange(key.shape[1]) >= lengths[:, None])[:, None, None], MASKED)
        at_last = (tables[0][lengths - 1][:, None, None], tables[1][lengths - 1][:, None, None])
        return self.finish(hidden, self._attend(normed, key, value, (at_last, tables), bias))

    def _attend(
        self,
        normed: Tensor,
        key: Tensor,
        value: Tensor,
        tables: tuple[Tables, Tables],  # at the queries, at the keys
        bias: Tensor,
    ) -> Tensor:
        query = self.q(normed).unflatten(-1, (-1, self.config.head_dim))
        query = rms_norm(query, self.q_norm, self.config.rms_norm_eps).transpose(1, 2)
        groups = self.config.num_attention_heads // self.config.num_key_value_heads
        mixed = functional.scaled_dot_product_attention(
            rotate(query, tables[0]),
            rotate(key.transpose(1, 2), tables[1]).repeat_interleave(groups, dim=1),
            value.transpose(1, 2).repeat_interleave(groups, dim=1),
            attn_mask=bias,
        )
        return self.o(mixed.transpose(1, 2).flatten(2))

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """Add the attention's output, then that of the MLP."""
        hidden = hidden + attended
        normed = rms_norm(hidden, self.post_norm, self.config.rms_norm_eps)
        return hidden + self.down(functional.silu(self.gate(normed)) * self.up(normed))


class Student(nn.Module):
    """Token ids, padded right, to the last token's hidden state."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.projection = nn.Linear(config.embedding_size, config.hidden_size, bias=False)
        self.layers = nn.ModuleList(StudentLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Embed int64 ids (batch, sequence) of the given lengths; returns (batch, hidden_size)."""
        tables, bias = self._tables(ids.shape[1]), causal_bias(ids.shape[1], lengths)
        hidden, (*lower, top) = self.projection(self.embedding(ids)), self.layers
        for layer in lower:
            hidden = layer(hidden, tables, bias)
        key, value = top.keys_values(rms_norm(hidden, top.input_norm, self.config.rms_norm_eps))
        last = hidden[torch.arange(len(ids)), lengths - 1].unsqueeze(1)
        pooled = top.last_token(last, key, value, tables, lengths)
        return rms_norm(pooled[:, 0], self.norm, self.config.rms_norm_eps)

    def bags(self, ids: Tensor, offsets: Tensor) -> Tensor:
        """Embed texts, given as one row of ids and their starts; returns (batch, hidden_size).

        For one layer whose queries use only the slow rotary dimensions (`slow_dimensions`): the
        same numbers as `forward`, except for that slow rotation, in a fraction of the time. The
        query is always that of the end token, so a token has one weight per head, whatever its
        position, and a text is a weighted bag of tokens.
        """
        config, (layer,) = self.config, self.layers
        unique, where = ids.unique(return_inverse=True)
        logits, value = self._weights_and_values(unique, layer)
        weights = logits.exp()
        groups = config.num_attention_heads // config.num_key_value_heads
        weighted = value.repeat_interleave(groups, dim=1) * weights.unsqueeze(-1)
        sums = functional.embedding_bag(
            where, torch.cat([weighted.flatten(1), weights], dim=1), offsets, mode="sum"
        )
        heads = sums[:, : -config.num_attention_heads].unflatten(
            -1, (config.num_attention_heads, -1)
        )
        mixed = heads / sums[:, -config.num_attention_heads :].unsqueeze(-1)
        end = self.projection(self.embedding.weight[END])
        pooled = layer.finish(end, layer.o(mixed.flatten(1)))
        return rms_norm(pooled, self.norm, config.rms_norm_eps)

    def _weights_and_values(self, unique: Tensor, layer: StudentLayer) -> tuple[Tensor, Tensor]:
        """Return each token's score for each head before the softmax, (n, heads), and the values.

        The projection is folded into the matrices behind it, and its root mean square comes from
        the narrow rows.
        """
        config = self.config
        end = self.projection(self.embedding.weight[END])
        end = rms_norm(end, layer.input_norm, config.rms_norm_eps)
        query = rms_norm(
            layer.q(end).unflatten(-1, (-1, config.head_dim)), layer.q_norm, config.rms_norm_eps
        )
        narrow, wide = self.embedding(unique), self.projection.weight
        square = ((narrow @ (wide.T @ wide)) * narrow).sum(-1, keepdim=True) / config.hidden_size
        narrow = narrow * torch.rsqrt(square + config.rms_norm_eps)
        key = narrow @ ((layer.k.weight * layer.input_norm) @ wide).T
        value = narrow @ ((layer.v.weight * layer.input_norm) @ wide).T
        key = rms_norm(key.unflatten(-1, (-1, config.head_dim)), layer.k_norm, config.rms_norm_eps)
        query = query.unflatten(0, (config.num_key_value_heads, -1))
        logits = torch.einsum("nkd,kgd->nkg", key, query).flatten(1) * config.head_dim**-0.5
        return logits, value.unflatten(-1, (-1, config.head_dim))

    def _tables(self, length: int) -> Tables:
        exponents = torch.arange(0, self.config.head_dim, 2).float() / self.config.head_dim
        angles = torch.arange(length).unsqueeze(1).float() * self.config.rope_theta**-exponents
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


def causal_bias(length: int, lengths: Tensor) -> Tensor:
    """Return (batch, 1, length, length): 0 where a token may attend, else very negative."""
    index = torch.arange(length)
    bias = torch.zeros(len(lengths), 1, length, length)
    bias.masked_fill_(index > index[:, None], MASKED)
    return bias.masked_fill_((index >= lengths[:, None])[:, None, None], MASKED)


def slow_dimensions(config: StudentConfig) -> Tensor:
    """Return (head_dim,): true where the rotation over a text's length is negligible."""
    exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    slow = config.rope_theta**-exponents * SLOW_OVER < MAX_TURN
    return torch.cat([slow, slow])
