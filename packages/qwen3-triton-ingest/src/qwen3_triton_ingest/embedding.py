"""The gateway as the loader and the searches use it, and vectors for prepared documents."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from functools import lru_cache
from itertools import chain, count

from qwen3_triton_client import EmbeddingClient, EmbeddingError, ModelNotFoundError, Vector

from .config import GatewayOptions
from .documents import BadRecord
from .errors import FingerprintError, IngestError
from .ledger.tables import Space
from .preparing import PreparedDocument

DEFAULT_MAX_RETRIES = 10
# A slow model refuses requests for as long as it has others, for which it asks to wait a minute or
# less. A gateway that is away is given up after half as many waits of up to 16 s.
_PATIENT_RETRIES, _PATIENT_SECONDS = 100, 7200.0


def open_client(gateway: GatewayOptions, *, patient: bool = False) -> EmbeddingClient:
    """Create a client with these options.

    Args:
        gateway: Where the gateway is, and what to ask it for.
        patient: Whether a request is retried until its deadline, however often it fails. A load of
            hours outlives many restarts, and one request may meet several of them.

    Raises:
        ValueError: An option is out of range.
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
    """Return the embedding space that the gateway serves.

    Raises:
        EmbeddingError: It does not answer.
    """
    answer = client.embed(["probe"])
    return Space(answer.fingerprint, answer.model, answer.dimensions, gateway.instruction)


def check_chunk_tokens(client: EmbeddingClient, gateway: GatewayOptions, chunk_tokens: int) -> None:
    """Check that the gateway takes chunks of this length.

    Raises:
        IngestError: It does not.
        EmbeddingError: It does not answer.
    """
    if not chunk_tokens or gateway.truncate:
        return
    try:
        limit = client.info().get("max_length")
    except ModelNotFoundError:  # another server, with the same API to embed
        return
    prompt_tokens = _prompt_tokens(client, gateway.instruction)
    if not isinstance(limit, int) or chunk_tokens + prompt_tokens <= limit:
        return
    room = f"{prompt_tokens:,} of them for the instruction, " if prompt_tokens else ""
    msg = (
        f"`--chunk-tokens` is {chunk_tokens:,}, but the gateway at {client.settings.base_url} "
        f"takes {limit:,} tokens, {room}so longer chunks would be skipped. Set `--chunk-tokens` to "
        f"at most {limit - prompt_tokens:,}, serve the model with a longer `--max-length`, or pass "
        "`--truncate`."
    )
    raise IngestError(msg)


def _prompt_tokens(client: EmbeddingClient, instruction: str | None) -> int:
    """Return how many tokens the instruction adds to a text."""
    if instruction is None:
        return 0
    query = client.embed(["probe"], input_type="query", instruction=instruction)
    return query.prompt_tokens - client.embed(["probe"]).prompt_tokens


def embed_documents(
    documents: Iterable[PreparedDocument], *, gateway: GatewayOptions, fingerprint: str
) -> Generator[PreparedDocument]:
    """Yield each document once all its new chunks have vectors, or once it has failed.

    Documents are yielded in order, and further ones are read while vectors are computed. A text
    that the gateway refuses fails its own document, see `PreparedDocument.failure`, and no other.

    Args:
        documents: What to embed. Vectors that a document has already are kept.
        gateway: How to reach the gateway, which is not asked if nothing needs a vector.
        fingerprint: The embedding space that the vectors must be from.

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
                    yield item.chunks[at].embedded_text

    def record_failure(index: int, error: EmbeddingError) -> None:
        item, at = owners.pop(index)
        item.failure = item.failure or _bad_record(item, at, error)

    with closing(_vectors(texts(), gateway, fingerprint, record_failure)) as vectors:
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
    """Return the client of this process, whose connections and checked space are shared."""
    client = open_client(gateway, patient=True)
    served = client.fingerprint()
    if served != fingerprint:
        client.close()
        msg = (
            f"The gateway at {client.settings.base_url} serves the embedding space `{served}`, "
            f"and this load began with `{fingerprint}`. Let all gateways serve the same model."
        )
        raise FingerprintError(msg)
    return client


def _bad_record(item: PreparedDocument, at: int, error: EmbeddingError) -> BadRecord:
    chunk = f"Chunk {at + 1} of {len(item.chunks)}: " if len(item.chunks) > 1 else ""
    return BadRecord(item.entry.origin, f"{chunk}{error.message}", "embed", item.entry.doc_id)
