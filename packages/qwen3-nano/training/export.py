"""Write the student as the files of the package: model.onnx and config.json.

    python export.py WORK

Reads WORK/student.pt, writes to WORK/model, next to the tokenizer.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from student import Student, StudentConfig, StudentLayer
from torch import Tensor, nn
from train_tokenizer import MAX_LENGTH

from qwen3_nano.graph import build_graph
from qwen3_nano.weights import NanoLayer, NanoWeights, Quantized


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().to(torch.float32).numpy()


def _quantized(linear: nn.Module) -> Quantized:
    return Quantized.of(_array(cast(Tensor, linear.weight)))


def _layer(layer: StudentLayer) -> NanoLayer:
    return NanoLayer(
        input_norm=_array(layer.input_norm),
        q=_quantized(layer.q),
        k=_quantized(layer.k),
        v=_quantized(layer.v),
        q_norm=_array(layer.q_norm),
        k_norm=_array(layer.k_norm),
        o=_quantized(layer.o),
        post_norm=_array(layer.post_norm),
        gate=_quantized(layer.gate),
        up=_quantized(layer.up),
        down=_quantized(layer.down),
    )


def to_weights(student: Student) -> NanoWeights:
    """Quantize the student's parameters."""
    return NanoWeights(
        embedding=_quantized(student.embedding),
        projection=_quantized(student.projection),
        layers=tuple(_layer(cast(StudentLayer, layer)) for layer in student.layers),
        norm=_array(student.norm),
        head_dim=student.config.head_dim,
        rope_theta=student.config.rope_theta,
        rms_norm_eps=student.config.rms_norm_eps,
    )


def qwen3_config(config: StudentConfig) -> dict[str, object]:
    """Return config.json in the format of Qwen3."""
    sizes = asdict(config)
    del sizes["embedding_size"], sizes["rope_theta"]
    return {
        "architectures": ["Qwen3Model"],
        "model_type": "qwen3",
        **sizes,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_LENGTH,
        "max_window_layers": config.num_hidden_layers,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": False,
        "use_sliding_window": False,
    }


def save(student: Student, folder: Path) -> None:
    """Write model.onnx and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(build_graph(to_weights(student)), folder / "model.onnx")
    config = json.dumps(qwen3_config(student.config), indent=2) + "\n"
    (folder / "config.json").write_text(config, encoding="utf-8")


def main() -> None:
    work = Path(sys.argv[1])
    saved = torch.load(work / "student.pt", weights_only=True)
    student = Student(StudentConfig(**saved["config"]))
    student.load_state_dict(saved["state"])
    save(student, work / "model")
    print((work / "model/model.onnx").stat().st_size)


if __name__ == "__main__":
    main()
