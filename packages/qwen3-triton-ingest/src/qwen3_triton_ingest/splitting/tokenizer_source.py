"""The served model's tokenizer: from a file, or from the gateway itself."""

from __future__ import annotations

from pathlib import Path

from qwen3_triton_client import EmbeddingClient, ModelNotFoundError

from ..config import GatewayOptions, SplitOptions
from ..errors import IngestError

__all__ = ["load_tokenizer"]

FILE_NAME = "tokenizer.json"
_LFS_POINTER = b"version https://git-lfs"
_MAX_RETRIES = 100  # with waits of up to 16 s it is the deadline that ends them


def load_tokenizer(
    options: SplitOptions, gateway: GatewayOptions, *, retry_seconds: float = 60.0
) -> bytes:
    """Read the `tokenizer.json` that chunks are measured with; empty where nothing is cut.

    Args:
        options: May name a file, or the folder that it is in.
        gateway: Asked for its tokenizer where no file is named.
        retry_seconds: How long a gateway may be away.

    Raises:
        IngestError: The file is not there or none, or the gateway has no such route.
        AuthenticationError: The gateway wants another key.
        EmbeddingError: The gateway cannot be reached, or stayed away.
        ValueError: The gateway's URL or key cannot be one.
    """
    if options.tokenizer_path is not None:
        return _read(Path(options.tokenizer_path))
    if not options.chunk_tokens:
        return b""
    client = EmbeddingClient(
        gateway.url,
        api_key=gateway.api_key,
        deadline_seconds=retry_seconds,
        max_retries=_MAX_RETRIES,
    )
    try:
        with client:
            return client.tokenizer_json()
    except ModelNotFoundError as error:
        msg = f"{error.message} To cut without the gateway, name the {FILE_NAME} by `--tokenizer`."
        raise IngestError(msg) from None


def _read(path: Path) -> bytes:
    file = path / FILE_NAME if path.is_dir() else path
    try:
        content = file.read_bytes()
    except OSError as error:
        msg = (
            f"`tokenizer_path`: {file} cannot be read ({error.strerror}); name the served model's "
            f"{FILE_NAME}, or leave it out to ask the gateway"
        )
        raise IngestError(msg) from None
    if content.startswith(_LFS_POINTER):
        msg = f"`tokenizer_path`: {file} is a Git LFS pointer; fetch the file with `git lfs pull`"
        raise IngestError(msg)
    return content
