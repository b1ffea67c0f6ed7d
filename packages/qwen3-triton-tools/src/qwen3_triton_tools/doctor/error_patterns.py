"""Error messages that this stack is known to print, what each means, and what to do.

They are those of Triton (core, `onnxruntime_backend`, `http_server.cc`), ONNX Runtime, CUDA,
Docker, transformers and this gateway.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ErrorPattern:
    """A message, with its cause and remedy."""

    pattern: re.Pattern[str]
    cause: str
    remedy: str


def _pattern(pattern: str, cause: str, remedy: str) -> ErrorPattern:
    return ErrorPattern(re.compile(pattern, re.IGNORECASE), cause, remedy)


ERROR_PATTERNS = (
    _pattern(
        r"sending (FP16|BF16) data via JSON is not supported",
        "A client requests float16 as JSON, which has no float16.",
        "Request binary output (tritonclient: InferRequestedOutput(..., binary_data=True)), as the "
        "gateway does, or serve a pooled float32 output: `qwen3-triton model pool`.",
    ),
    _pattern(
        r"configuration expects datatype|unexpected datatype|unsupported datatype",
        "config.pbtxt and the ONNX file disagree about a dtype.",
        "Change config.pbtxt to the type that the model provides according to the message (often "
        "TYPE_FP16), or let `qwen3-triton model repository` write it; then restart Triton.",
    ),
    _pattern(
        r"(model|configuration) expects (the )?(shape|dims|\d+ dim)|unexpected shape for",
        "config.pbtxt and the ONNX file disagree about the shape of a tensor.",
        "Use the dims of the file, without the batch: [ -1 ] for inputs, [ -1, hidden size ] for "
        "last_hidden_state.",
    ),
    _pattern(
        r"symlink|escapes (the )?model dir|outside (of )?the (model )?dir",
        "The weights are a symbolic link, which ONNX Runtime 1.24 (Triton 26.02 to 26.06) refuses.",
        "Put a real file or a hard link next to model.onnx: cp -L, or cp -l.",
    ),
    _pattern(
        r"external data|model\.onnx_data|\.onnx\.data|file_size: No such file",
        "The external weights are missing next to model.onnx, or truncated.",
        "Copy model.onnx_data into the folder of model.onnx; a Git clone needs `git lfs pull`.",
    ),
    _pattern(
        r"CUDA driver version is insufficient|requires a newer NVIDIA driver|CUDA (error|failure) "
        r"(35|803|804)\b|forward compatibility was attempted",
        "The NVIDIA driver is too old for the image's CUDA.",
        "Install a newer driver (sudo ubuntu-drivers install; sudo reboot), or use an older image.",
    ),
    _pattern(
        r"no CUDA-capable device|could not select device driver",
        "The container has no GPU.",
        "Install nvidia-container-toolkit, then: sudo nvidia-ctk runtime configure "
        "--runtime=docker; sudo systemctl restart docker; and start it with --gpus all.",
    ),
    _pattern(
        r"out of memory|Failed to allocate memory|bad_alloc|CUDA (error|failure) 2\b|OOM-?killed",
        "Memory ran out.",
        "Lower max_batch_size in config.pbtxt and EMBED_MAX_BATCH_TOKENS of the gateway, keep one "
        "instance of the model, and remove unused models from the repository.",
    ),
    _pattern(
        r"Protobuf parsing failed|is not an ONNX model|INVALID_PROTOBUF",
        "model.onnx is not an ONNX file, but a Git LFS pointer or an incomplete download.",
        "Fetch it again: `git lfs pull` in the clone, or `qwen3-triton model pull`.",
    ),
    _pattern(
        r"opset \d+ is under development|only \*?guarantees|Unsupported model IR version|is not a "
        r"registered function/op|till opset",
        "The export is newer than this Triton's ONNX Runtime.",
        "Use a newer Triton image, or export with an older opset (all of them support 17).",
    ),
    _pattern(
        r"unexpected directory name|directory name must equal",
        "The folder in the repository does not have the name of the model.",
        "Rename the folder, or change `name` in its config.pbtxt.",
    ),
    _pattern(
        r"at least one version must be available|no version is available",
        "The model's folder has no version folder with model.onnx.",
        "Move model.onnx and its weights to <repository>/<model>/1/.",
    ),
    _pattern(
        r"Error parsing text-format|failed to read text proto|unable to parse config",
        "config.pbtxt is not a valid model configuration.",
        "Correct it at the line and column in the message.",
    ),
    _pattern(
        r"unable to find backend library|unable to find '?libtriton_",
        "Triton lacks the backend: the slim, vLLM and TensorRT-LLM images have no ONNX Runtime.",
        "Use the image nvcr.io/nvidia/tritonserver:<release>-py3.",
    ),
    _pattern(
        r"Permission denied|failed to open .*for reading",
        "Triton's user (uid 1000) cannot read the files.",
        "Run `sudo chown -R $USER:$USER` and `chmod -R a+rX` on the model folder.",
    ),
    _pattern(
        r"initialize shared memory key|No space left on device: '/dev/shm",
        "The container's shared memory is too small for the Python backend.",
        "Start it with --shm-size=1g.",
    ),
    _pattern(
        r"already in use|address already|port is already allocated|Failed to bind",
        "A port is taken by another program.",
        "Stop that program or choose another port.",
    ),
    _pattern(
        r"No tokenizer at|Can't load tokenizer|Incorrect path_or_model_id|Repo id must",
        "There is no tokenizer at TOKENIZER_PATH inside the container.",
        "Mount the folder with tokenizer.json, and set TOKENIZER_PATH to its path in there.",
    ),
    _pattern(
        r"Failed to fetch model metadata|unknown model",
        "Triton does not serve the model in TRITON_MODEL.",
        "Set TRITON_MODEL to a model in Triton's repository, and check that it is READY.",
    ),
    _pattern(
        r"EMBED_OUTPUT_DIM.*(exceeds|hidden size)",
        "EMBED_OUTPUT_DIM is larger than the model's hidden size.",
        "Lower EMBED_OUTPUT_DIM, or serve a larger model.",
    ),
    _pattern(
        r"SyntaxError|ModuleNotFoundError|ImportError|IndentationError|Traceback \(most recent",
        "The program ends with a Python error.",
        "Fix the error in the last line of `docker logs`, then build the image and create the "
        "container again.",
    ),
)


def find_known_error(text: str) -> tuple[str, ErrorPattern] | None:
    """Find the first pattern that matches a message or a log, and the line that matches."""
    lines = text.splitlines()
    for pattern in ERROR_PATTERNS:
        for line in reversed(lines):
            if pattern.pattern.search(line):
                return " ".join(line.split())[:240], pattern
    return None
