"""Write the trained reranker as the files of the package: model.onnx and config.json.

    python export_reranker.py WORK

Reads WORK/reranker.pt, writes to WORK/model, next to the tokenizer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from cross_encoder import CrossEncoder
from export import qwen3_config, to_weights
from onnx import TensorProto, helper, numpy_helper
from student import StudentConfig

from qwen3_nano.graph import build_graph
from qwen3_nano.weights import NanoWeights

NAME = "qwen3-nano-reranker"


def build_reranker(weights: NanoWeights, answers: list[int]) -> onnx.ModelProto:
    """Build the graph: the last token's logits of "no" and "yes", float32, (batch, 2).

    The vocabulary head is the token table itself, as in Qwen3-Reranker-0.6B, so its two rows are
    those of the answers.
    """
    model = build_graph(weights, output="sentence_embedding")
    rows = np.ascontiguousarray(weights.embed_tokens()[answers].T)
    model.graph.initializer.append(numpy_helper.from_array(rows, "answers"))
    model.graph.node.append(
        helper.make_node("MatMul", ["sentence_embedding", "answers"], ["logits"], name="logits")
    )
    del model.graph.output[:]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(answers)])
    model.graph.output.append(logits)
    model.graph.name = model.producer_name = NAME
    onnx.checker.check_model(model)
    return model


def save(model: CrossEncoder, folder: Path) -> None:
    """Write model.onnx and config.json."""
    onnx.save(build_reranker(to_weights(model), list(model.answers)), folder / "model.onnx")
    config = qwen3_config(model.config) | {"architectures": ["Qwen3ForCausalLM"]}
    text = json.dumps(config, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def main() -> None:
    work = Path(sys.argv[1])
    saved = torch.load(work / "reranker.pt", weights_only=True)
    model = CrossEncoder(StudentConfig(**saved["config"]), saved["answers"])
    model.load_state_dict(saved["state"])
    save(model, work / "model")
    print((work / "model/model.onnx").stat().st_size)


if __name__ == "__main__":
    main()
