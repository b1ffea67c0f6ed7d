"""The reference: transformers' `Qwen3ForCausalLM` in float32, with the shipped weights.

Only the arrays are read from `model.onnx`; the model's code is that of the reference, and the
logits of all tokens are computed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from reference import state_arrays
from transformers import Qwen3Config, Qwen3ForCausalLM

from qwen3_nano.weights import load_weights


def load_reference(folder: Path) -> Qwen3ForCausalLM:
    """Load the float32 model, whose vocabulary head is its token table."""
    config = Qwen3Config(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
    config._attn_implementation = "eager"
    model = Qwen3ForCausalLM(config).to(torch.float32).eval()
    arrays = state_arrays(load_weights(folder / "model.onnx"))
    state = {f"model.{name}": torch.from_numpy(np.array(a)) for name, a in arrays.items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    return model


@torch.inference_mode()
def reference_logits(
    model: Qwen3ForCausalLM, rows: Sequence[list[int]], answers: list[int]
) -> NDArray[np.float32]:
    """Compute the logits of "no" and "yes" at the last token, one pair at a time, (n, 2)."""
    found = [model(input_ids=torch.tensor([row])).logits[0, -1, answers].numpy() for row in rows]
    return np.stack(found)
