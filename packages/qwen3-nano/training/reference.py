"""The reference: transformers' `Qwen3Model` in float32, with the shipped weights.

Needs torch and transformers. It uses neither the gateway nor the ONNX graph: only the arrays are
read from `model.onnx`; model code and pooling are those of the reference implementation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import Qwen3Config, Qwen3Model

from qwen3_nano.weights import NanoWeights, load_weights


def load_reference(model_dir: str | PathLike[str]) -> Qwen3Model:
    """Load the float32 model from a folder with `config.json` and `model.onnx`."""
    folder = Path(model_dir)
    config = Qwen3Config(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
    config._attn_implementation = "eager"
    model = Qwen3Model(config).to(torch.float32).eval()
    state = {
        # A copy: the initializers of an ONNX file are read-only.
        name: torch.from_numpy(np.array(array, dtype=np.float32))
        for name, array in state_arrays(load_weights(folder / "model.onnx")).items()
    }
    model.load_state_dict(state, strict=True)
    return model


def state_arrays(weights: NanoWeights) -> dict[str, NDArray[np.float32]]:
    """Return the weights by transformers' names: dequantized, with the full token table."""
    arrays = {"embed_tokens.weight": weights.embed_tokens(), "norm.weight": weights.norm}
    for index, layer in enumerate(weights.layers):
        name = f"layers.{index}"
        arrays |= {
            f"{name}.input_layernorm.weight": layer.input_norm,
            f"{name}.post_attention_layernorm.weight": layer.post_norm,
            f"{name}.self_attn.q_norm.weight": layer.q_norm,
            f"{name}.self_attn.k_norm.weight": layer.k_norm,
            f"{name}.self_attn.q_proj.weight": layer.q.dequantize(),
            f"{name}.self_attn.k_proj.weight": layer.k.dequantize(),
            f"{name}.self_attn.v_proj.weight": layer.v.dequantize(),
            f"{name}.self_attn.o_proj.weight": layer.o.dequantize(),
            f"{name}.mlp.gate_proj.weight": layer.gate.dequantize(),
            f"{name}.mlp.up_proj.weight": layer.up.dequantize(),
            f"{name}.mlp.down_proj.weight": layer.down.dequantize(),
        }
    return arrays


@torch.inference_mode()
def reference_vectors(
    model: Qwen3Model, tokenizer: Tokenizer, texts: Sequence[str]
) -> NDArray[np.float32]:
    """Embed texts one at a time, without padding: the last token's hidden state.

    Returns float32 (n, hidden_size), neither truncated nor normalized. The tokenizer must append
    the end token.
    """
    rows: list[NDArray[np.float32]] = []
    for text in texts:
        ids = torch.tensor([tokenizer.encode(text).ids])
        hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        rows.append(hidden[0, -1].numpy())
    return np.stack(rows)
