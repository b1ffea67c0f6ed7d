"""The name of an embedding space: vectors with different fingerprints must not be compared."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import orjson

# The version folder of a new model in Triton's repository.
FIRST_VERSION = 1
_CHUNK_BYTES = 8 * 1024 * 1024
# An entry of `TensorProto.external_data` as protobuf serializes it: the key "location" (field 1),
# then the value (field 2) with its length as a varint, one or two bytes for any path. It is found
# by a search instead of a parser, so that the gateway needs no ONNX library; 2 GB are searched in
# about the time it takes to read them.
# https://github.com/onnx/onnx/blob/v1.18.0/onnx/onnx.proto#L580-L595
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x01-\x7f]|[\x80-\xff][\x01-\x7f])")


@dataclass(frozen=True, slots=True)
class EmbeddingSpace:
    """Everything that decides a vector. Vectors are comparable if all fields are equal."""

    model_id: str
    weights_digest: str
    tokenizer_digest: str
    pooling: str
    prompt_version: str
    dtype: str

    def fingerprint(self, dimensions: int) -> str:
        """Digest the space and the number of dimensions into 16 hexadecimal digits."""
        return _digest(self, dimensions)


@lru_cache
def _digest(space: EmbeddingSpace, dimensions: int) -> str:
    fields = asdict(space) | {"dimensions": dimensions}
    canonical = orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(canonical).hexdigest()[:16]


def weights_digest(model_path: Path, on_bytes: Callable[[int], object] | None = None) -> str:
    """Compute a digest of an ONNX file and the files that hold its external weights.

    It reads every byte, which takes seconds for gigabytes.

    Args:
        model_path: The ONNX file.
        on_bytes: Called with the number of bytes read since its last call.
    """
    digest = hashlib.sha256()
    for path in weight_files(model_path):
        digest.update(_digest_file(path, on_bytes))
    return digest.hexdigest()


def digest_of_version(stated_digest: str, versions: Sequence[str]) -> str:
    """Bind the digest that Triton's config states to the version that answers, the latest.

    One config describes all versions of a model, and is rarely edited when a version is added. It
    was written for the first, whose digest is taken as it is: its fingerprints stay valid.
    """
    served = max((int(version) for version in versions), default=FIRST_VERSION)
    if served == FIRST_VERSION:
        return stated_digest
    return hashlib.sha256(f"{stated_digest} version {served}".encode()).hexdigest()


def weight_files(model_path: Path) -> list[Path]:
    """List the ONNX file, then the existing files of its external weights, sorted."""
    external = {model_path.parent / name for name in _external_locations(model_path)}
    # Weights may contain the pattern by chance: what follows is then rarely a name that a file
    # system takes, for which `Path.is_file` may raise and `os.path.isfile` does not.
    return [model_path, *(path for path in sorted(external) if os.path.isfile(path))]


def _external_locations(model_path: Path) -> Iterator[str]:
    if not model_path.stat().st_size:  # an empty file cannot be mapped
        return
    with (
        model_path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        for match in _LOCATION.finditer(content):
            length = sum((byte & 0x7F) << (7 * place) for place, byte in enumerate(match[1]))
            try:
                yield content[match.end() : match.end() + length].decode()
            except UnicodeDecodeError:  # the pattern inside weights: not a name
                continue


def _digest_file(path: Path, on_bytes: Callable[[int], object] | None) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            if on_bytes:
                on_bytes(len(chunk))
    return digest.digest()
