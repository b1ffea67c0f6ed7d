"""A real Triton Inference Server on this machine, without Docker.

The server is the binary that `nvidia-pytriton` ships, in an environment of its own; the model is
any ONNX file, run by Triton's Python backend with ONNX Runtime or OpenVINO on the CPU. Names,
shapes, dtypes, batching, priorities, health and errors are those of the production server.
"""

from ..errors import (
    LaunchError,
    LocalTritonError,
    ModelFolderError,
    PortInUseError,
    RuntimeInstallError,
    UnsupportedMachineError,
)
from .foreground import run_foreground
from .launch import DEFAULT_MODEL_NAME, LocalReranker, LocalTriton
from .repository import MODEL_NAME, OpenVino, needs_openvino, write_repository
from .runtime import (
    TritonRuntime,
    default_cache_dir,
    ensure_openvino,
    ensure_runtime,
    unsupported_reason,
    unused_runtimes,
)

__all__ = [
    "DEFAULT_MODEL_NAME",
    "MODEL_NAME",
    "LaunchError",
    "LocalReranker",
    "LocalTriton",
    "LocalTritonError",
    "ModelFolderError",
    "OpenVino",
    "PortInUseError",
    "RuntimeInstallError",
    "TritonRuntime",
    "UnsupportedMachineError",
    "default_cache_dir",
    "ensure_openvino",
    "ensure_runtime",
    "needs_openvino",
    "run_foreground",
    "unsupported_reason",
    "unused_runtimes",
    "write_repository",
]
