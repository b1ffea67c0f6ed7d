"""Read and extend ONNX files without loading their weights.

Only the few fields of `onnx.proto` that matter here are decoded, through a memory map: a file with
gigabytes of weights takes milliseconds, and neither numpy, `onnx` nor ONNX Runtime is imported.
"""

from . import proto
from .errors import OnnxFileError
from .model import ExternalData, Node, OnnxModel, Weight, read_model
from .rewrite import rewrite_graph
from .signature import OnnxSignature, TensorSignature, read_signature

__all__ = [
    "ExternalData",
    "Node",
    "OnnxFileError",
    "OnnxModel",
    "OnnxSignature",
    "TensorSignature",
    "Weight",
    "proto",
    "read_model",
    "read_signature",
    "rewrite_graph",
]
