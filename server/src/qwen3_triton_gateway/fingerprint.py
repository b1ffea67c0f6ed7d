"""The name of an embedding space: vectors with different fingerprints must not be compared."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import orjson

from .model_files import ModelFileError, describe_os_error
from .onnx_file import external_locations

# In these, an engine returns the vectors of every other, up to the order of summation: cosine
# 0.99999. In others, it rounds where its kernels do.
SAME_PRECISIONS = ("graph", "float32")
# The version folder of a new model in Triton's repository.
FIRST_VERSION = 1
_CHUNK_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class EmbeddingSpace:
    """Everything that decides a vector. Vectors are comparable if all fields are equal."""

    model_id: str
    weights_digest: str
    tokenizer_digest: str
    pooling: str
    prompt_version: str
    dtype: str
    precision: str = "graph"

    def fingerprint(self, dimensions: int) -> str:
        """Digest the space and the number of dimensions into 16 hexadecimal digits."""
        return _digest(self, dimensions)


@lru_cache
def _digest(space: EmbeddingSpace, dimensions: int) -> str:
    fields = asdict(space) | {"dimensions": dimensions}
    if space.precision in SAME_PRECISIONS:
        # As in fingerprints from before there was a choice.
        del fields["precision"]
    canonical = orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(canonical).hexdigest()[:16]


def weights_digest(model_path: Path, on_bytes: Callable[[int], object] | None = None) -> str:
    """Compute a digest of an ONNX file and the files that hold its external weights.

    It reads every byte, which takes seconds for gigabytes.

    Args:
        model_path: The ONNX file.
        on_bytes: Called with the number of bytes read since its last call.

    Raises:
        ModelFileError: A file is missing, or cannot be read to its end.
    """
    digest = hashlib.sha256()
    for path in weight_files(model_path):
        digest.update(_digest_file(path, on_bytes))
    return digest.hexdigest()


def served_version(versions: Sequence[str]) -> int:
    """Return the version that answers requests that name none: the latest."""
    return max((int(version) for version in versions), default=FIRST_VERSION)


def digest_of_version(stated_digest: str, versions: Sequence[str]) -> str:
    """Bind the digest that Triton's config states to the version that answers, the latest.

    One config describes all versions of a model, and is rarely edited when a version is added. It
    was written for the first, whose digest is taken as it is: its fingerprints stay valid.
    """
    served = served_version(versions)
    if served == FIRST_VERSION:
        return stated_digest
    return hashlib.sha256(f"{stated_digest} version {served}".encode()).hexdigest()


def weight_files(model_path: Path) -> list[Path]:
    """List the ONNX file, then the files of its external weights, sorted.

    Raises:
        ModelFileError: The ONNX file cannot be read, or a file of weights is missing: a digest
            without it would be that of every other model with the same graph.
    """
    external = sorted(model_path.parent / name for name in external_locations(model_path))
    for path in external:
        # A name that no file system takes makes `Path.is_file` raise, and this return False.
        if not os.path.isfile(path):
            msg = (
                f"{model_path} has weights in {str(path)!r}, which is missing. Put the file there, "
                "or fetch the model again."
            )
            raise ModelFileError(msg)
    return [model_path, *external]


def _digest_file(path: Path, on_bytes: Callable[[int], object] | None) -> bytes:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                if on_bytes:
                    on_bytes(len(chunk))
    except OSError as error:
        raise ModelFileError(describe_os_error(error, path)) from error
    return digest.digest()
