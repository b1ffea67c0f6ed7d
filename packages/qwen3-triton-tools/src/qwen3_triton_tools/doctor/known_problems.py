"""The errors that this stack is known to print, what each means, and how to mend it.

Messages are those of Triton (core, `onnxruntime_backend`, `http_server.cc`), ONNX Runtime, CUDA,
Docker, transformers and this gateway.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """A cause, by the message that it leaves."""

    pattern: re.Pattern[str]
    cause: str
    remedy: str


def _problem(pattern: str, cause: str, remedy: str) -> Problem:
    return Problem(re.compile(pattern, re.IGNORECASE), cause, remedy)


PROBLEMS = (
    _problem(
        r"sending (FP16|BF16) data via JSON is not supported",
        "a client asks Triton for float16 as JSON, which has no float16",
        "ask for binary output (tritonclient: InferRequestedOutput(..., binary_data=True)), as the "
        "gateway does, or serve a pooled float32 output: `qwen3-triton model pool`",
    ),
    _problem(
        r"configuration expects datatype|unexpected datatype|unsupported datatype",
        "config.pbtxt and the ONNX file disagree about a dtype",
        "write into config.pbtxt the type that the message says the model provides (often "
        "TYPE_FP16), or let `qwen3-triton model repository` write it; then restart Triton",
    ),
    _problem(
        r"(model|configuration) expects (the )?(shape|dims|\d+ dim)|unexpected shape for",
        "config.pbtxt and the ONNX file disagree about the shape of a tensor",
        "write the file's own dims, without the batch: [ -1 ] for inputs, [ -1, hidden size ] for "
        "last_hidden_state",
    ),
    _problem(
        r"symlink|escapes (the )?model dir|outside (of )?the (model )?dir",
        "external data is a symbolic link, which ONNX Runtime 1.24 (Triton 26.02 to 26.06) refuses",
        "put a real file or a hard link beside model.onnx: cp -L, or cp -l",
    ),
    _problem(
        r"external data|model\.onnx_data|\.onnx\.data|file_size: No such file",
        "external data, the file with the weights, is missing beside model.onnx or incomplete",
        "copy model.onnx_data into the same folder as model.onnx; a Git clone needs `git lfs pull`",
    ),
    _problem(
        r"CUDA driver version is insufficient|requires a newer NVIDIA driver|CUDA (error|failure) "
        r"(35|803|804)\b|forward compatibility was attempted",
        "the NVIDIA driver is too old for the image's CUDA",
        "install driver 580 or newer (sudo ubuntu-drivers install; sudo reboot), or take an image "
        "before 25.11",
    ),
    _problem(
        r"no CUDA-capable device|could not select device driver",
        "the container sees no GPU",
        "install nvidia-container-toolkit, then: sudo nvidia-ctk runtime configure "
        "--runtime=docker; sudo systemctl restart docker; and start with --gpus all",
    ),
    _problem(
        r"out of memory|Failed to allocate memory|bad_alloc|CUDA (error|failure) 2\b|OOM-?killed",
        "memory ran out",
        "lower max_batch_size in config.pbtxt and EMBED_MAX_BATCH_TOKENS of the gateway, keep one "
        "instance of the model, and remove models that nobody uses from the repository",
    ),
    _problem(
        r"Protobuf parsing failed|is not an ONNX model|INVALID_PROTOBUF",
        "model.onnx is no ONNX file: a Git LFS pointer or a broken download",
        "fetch it again: `git lfs pull` in the clone, or `qwen3-triton model pull`",
    ),
    _problem(
        r"opset \d+ is under development|only \*?guarantees|Unsupported model IR version|is not a "
        r"registered function/op|till opset",
        "the export is newer than this Triton's ONNX Runtime",
        "take a newer Triton image, or export with an older opset (17 suits all of them)",
    ),
    _problem(
        r"unexpected directory name|directory name must equal",
        "the folder in the repository is not called like the model",
        "rename the folder, or `name` in its config.pbtxt, so that they are the same",
    ),
    _problem(
        r"at least one version must be available|no version is available",
        "the model's folder holds no version folder with model.onnx",
        "put model.onnx and its data into <repository>/<model>/1/",
    ),
    _problem(
        r"Error parsing text-format|failed to read text proto|unable to parse config",
        "config.pbtxt is no valid model configuration",
        "mend the line and column that the message names",
    ),
    _problem(
        r"unable to find backend library|unable to find '?libtriton_",
        "this Triton has no such backend: the slim, vLLM and TensorRT-LLM images lack ONNX Runtime",
        "use the image nvcr.io/nvidia/tritonserver:<release>-py3",
    ),
    _problem(
        r"Permission denied|failed to open .*for reading",
        "Triton's user (uid 1000) cannot read the files",
        "sudo chown -R $USER:$USER on the model folder, and chmod -R a+rX",
    ),
    _problem(
        r"initialize shared memory key|No space left on device: '/dev/shm",
        "the container's shared memory is too small for the Python backend",
        "start it with --shm-size=1g",
    ),
    _problem(
        r"already in use|address already|port is already allocated|Failed to bind",
        "a port that it wants is taken",
        "stop the other program or choose another port",
    ),
    _problem(
        r"No tokenizer at|Can't load tokenizer|Incorrect path_or_model_id|Repo id must",
        "TOKENIZER_PATH names no tokenizer inside the container",
        "set TOKENIZER_PATH to the folder with tokenizer.json as the container sees it, and mount "
        "that folder",
    ),
    _problem(
        r"Failed to fetch model metadata|unknown model",
        "Triton does not serve the model that TRITON_MODEL names",
        "set TRITON_MODEL to a name of Triton's repository, and see that the model is READY",
    ),
    _problem(
        r"EMBED_OUTPUT_DIM.*(exceeds|hidden size)",
        "EMBED_OUTPUT_DIM is larger than the model's hidden size",
        "lower EMBED_OUTPUT_DIM, or serve a larger model",
    ),
    _problem(
        r"SyntaxError|ModuleNotFoundError|ImportError|IndentationError|Traceback \(most recent",
        "the program ends with a Python error",
        "mend what the last line of `docker logs` names, then build the image and create the "
        "container again",
    ),
)


def explain(text: str) -> tuple[str, Problem] | None:
    """Find the first known problem in a message or a log, and the line that tells it."""
    lines = text.splitlines()
    for problem in PROBLEMS:
        for line in reversed(lines):
            if problem.pattern.search(line):
                return " ".join(line.split())[:240], problem
    return None
