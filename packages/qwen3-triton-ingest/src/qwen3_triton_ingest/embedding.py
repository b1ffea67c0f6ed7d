"""The gateway as the loader and the searches use it, and vectors for prepared documents."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from functools import lru_cache
from itertools import chain, count

from qwen3_triton_client import EmbeddingClient, EmbeddingError, Vector

from .config import GatewayOptions
from .documents import BadRecord
from .errors import FingerprintError
from .ledger.tables import Space
from .preparing import PreparedDocument

_PROBE = "probe"
DEFAULT_MAX_RETRIES = 10
# With waits of up to 16 s it is the deadline that ends them.
_PATIENT_RETRIES = 100


def open_client(gateway: GatewayOptions, *, patient: bool = False) -> EmbeddingClient:
    """Make a client with these options.

    Args:
        gateway: Where it is, and how it is asked.
        patient: Whether a request is tried again until its deadline, however often it fails. A
            load of hours outlives many restarts, and one request may meet several of them.

    Raises:
        ValueError: One of them is out of range.
    """
    return EmbeddingClient(
        gateway.url,
        api_key=gateway.api_key,
        dimensions=gateway.dimensions,
        truncate=gateway.truncate,
        max_concurrency=gateway.max_concurrency,
        max_retries=_PATIENT_RETRIES if patient else DEFAULT_MAX_RETRIES,
    )


def served_space(client: EmbeddingClient, gateway: GatewayOptions) -> Space:
    """Ask the gateway for the embedding space that it serves.

    Raises:
        EmbeddingError: It does not answer.
    """
    answer = client.embed([_PROBE])
    return Space(answer.fingerprint, answer.model, answer.dimensions, gateway.instruction)


def embed_documents(
    documents: Iterable[PreparedDocument], *, gateway: GatewayOptions, fingerprint: str
) -> Generator[PreparedDocument]:
    """Give each document when all its new chunks have vectors, or when it is known to fail.

    Documents come in order, and are read on while vectors are computed. A text that the gateway
    refuses makes its own document fail, see `PreparedDocument.bad`, and no other.

    Args:
        documents: What is to be embedded; vectors that a document has already are left.
        gateway: How it is reached; it is not asked where nothing needs a vector.
        fingerprint: The embedding space that the vectors must be of.

    Raises:
        EmbeddingError: The gateway cannot be reached, or refuses everything.
        FingerprintError: It serves another embedding space.
    """
    waiting: deque[PreparedDocument] = deque()
    owners: dict[int, tuple[PreparedDocument, int]] = {}
    indices = count()

    def texts() -> Iterator[str]:
        for item in documents:
            waiting.append(item)
            for at in item.new:
                if at not in item.vectors:
                    owners[next(indices)] = (item, at)
                    yield item.chunks[at].text

    def note_failure(index: int, error: EmbeddingError) -> None:
        item, at = owners.pop(index)
        item.bad = item.bad or _refused(item, at, error)

    with closing(_vectors(texts(), gateway, fingerprint, note_failure)) as vectors:
        for index, vector in vectors:
            item, at = owners.pop(index)
            item.vectors[at] = vector
            while waiting and waiting[0].is_ready:
                yield waiting.popleft()
    yield from waiting


def _vectors(
    texts: Iterator[str],
    gateway: GatewayOptions,
    fingerprint: str,
    on_failure: Callable[[int, EmbeddingError], None],
) -> Generator[tuple[int, Vector]]:
    if (first := next(texts, None)) is None:
        return
    yield from _client_for(gateway, fingerprint).iter_embed(
        chain([first], texts),
        input_type="query" if gateway.instruction else "document",
        instruction=gateway.instruction,
        on_failure=on_failure,
    )


@lru_cache(maxsize=4)
def _client_for(gateway: GatewayOptions, fingerprint: str) -> EmbeddingClient:
    """Return the client, one a process; connections and the check of the space are shared."""
    client = open_client(gateway, patient=True)
    served = client.fingerprint()
    if served != fingerprint:
        client.close()
        msg = (
            f"the gateway at {client.settings.base_url} serves the embedding space `{served}`, "
            f"and this load began with `{fingerprint}`. Let all gateways serve the same model"
        )
        raise FingerprintError(msg)
    return client


def _refused(item: PreparedDocument, at: int, error: EmbeddingError) -> BadRecord:
    """Report a text that the gateway refuses; its document stays out, or stays as it was."""
    chunk = f"chunk {at + 1} of {len(item.chunks)}: " if len(item.chunks) > 1 else ""
    return BadRecord(item.entry.origin, f"{chunk}{error.message}", "embed", item.entry.doc_id)
