"""The door: under overload, a request is refused before the framework sees it.

When more requests come than can be answered, the time of refusals is taken from the answers. The
framework and a log line take 220 microseconds for one. The door takes 35 to 50: it needs no task
and no validation, renders the response once, and writes one log line for all refusals of a second.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from prometheus_client import Counter, Histogram

from .admission import Admission, Limit, is_bulk_request
from .auth import ApiKeys
from .batching import Lane
from .dialects import Dialect, error_response
from .errors import QueueFullError
from .paths import canonical_path
from .responses import raw_head
from .service import EmbeddingService

logger: logging.Logger = logging.getLogger(__name__)

EMBEDDING_PATHS = {
    "/",
    "/embed",
    "/v1/embeddings",
    "/v2/embed",
    "/api/embed",
    "/api/embeddings",
}
RERANK_PATHS = {"/rerank", "/v1/rerank", "/v2/rerank", "/v1/ranking", "/score", "/v1/score"}
# Smaller bodies are read to choose a lane. A larger one is taken as bulk documents, unread.
HELD_BYTES = 16 * 1024
# Fields and model names that make a request one of queries, as JSON; so do aliases. A match costs
# no more than the framework's own parsing of the request.
QUERY_MARKERS = (rb'"query"', rb'[-_]query"')
# A pair to rerank has the prompt's tokens too; these are Qwen3's, with the default instruction.
PROMPT_TOKENS = 72
BYTES_PER_TOKEN = 4  # of a text, about
LOG_SECONDS = 1.0
MAX_LOGGED = 20


class RefusalLog:
    """A log line per second for all requests that were refused with 429."""

    def __init__(self) -> None:
        self._counts: collections.Counter[str] = collections.Counter()

    def count(self, path: str, caller: str = "") -> None:
        """Count a refusal of a path; `caller` is the name of the API key, if there is one."""
        if not self._counts:
            asyncio.get_running_loop().call_later(LOG_SECONDS, self._write)
        self._counts[f"{path} (key {caller})" if caller else path] += 1

    def _write(self) -> None:
        paths = ", ".join(f"{path} {count}" for path, count in self._counts.most_common(MAX_LOGGED))
        logger.info("status=429 for %d requests: %s", self._counts.total(), paths)
        self._counts.clear()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A response that is complete but for the headers that differ from request to request."""

    head: bytes
    body: bytes

    @classmethod
    def render(cls, message: str, dialect: Dialect) -> Refusal:
        response = error_response(QueueFullError(message), dialect)
        return cls(raw_head(response), bytes(response.body))


class Door:
    """What decides about a request by its head, and the log of what is refused."""

    def __init__(self, service: EmbeddingService, keys: ApiKeys) -> None:
        self._service = service
        self._keys = keys
        self._timeout_seconds = service.settings.timeout_seconds
        self._has_origins = bool(service.settings.cors_origins)
        names = [
            re.escape(f'"{name}"'.encode())
            for name, alias in service.settings.model_aliases.items()
            if alias.input_type == "query"
        ]
        self._query_marker = re.compile(b"|".join([*QUERY_MARKERS, *names]))
        self.log: RefusalLog = RefusalLog()
        self.path_of: Callable[[bytes], str | None] = lru_cache(256)(self._path_of)
        self._render = lru_cache(64)(Refusal.render)
        self._counters = lru_cache(64)(self._find_counters)

    @property
    def is_calm(self) -> bool:
        """Whether no request would be refused, whoever sends it, and for whichever model."""
        for model in self._service.models:
            admission = model.admission
            if admission is not None and not admission.is_calm:
                return False
        return True

    def admission_of(self, path: str) -> Admission | None:
        """Return the bounds of the queue behind a path, while requests are answered."""
        service = self._service
        return service.rerank_admission if path in RERANK_PATHS else service.admission

    def limit(
        self, path: str, lane: Lane, caller: str, body_bytes: int, *, pairs: int = 0
    ) -> Limit | None:
        """Return the limit that a request would hit now.

        Args:
            path: Its path.
            lane: Its lane.
            caller: The name of its API key.
            body_bytes: The length of its body; -1 if it is not known.
            pairs: How many pairs it may have to rerank, if its body has arrived.
        """
        admission = self.admission_of(path)
        if admission is None:
            return None
        prompts = pairs * PROMPT_TOKENS
        return admission.limit_at_the_door(
            lane,
            is_bulk=body_bytes > HELD_BYTES
            or (pairs > 0 and is_bulk_request(prompts + body_bytes // BYTES_PER_TOKEN)),
            timeout_seconds=self._timeout_seconds,
            caller=caller,
            body_bytes=body_bytes + prompts,
        )

    def limit_of_small(self, path: str, caller: str, body: bytes) -> tuple[Limit | None, Lane]:
        """Return the limit that a small request would hit, and its lane, inferred from its body."""
        if path in RERANK_PATHS:
            # As many as it has strings: whoever is taken as larger than it is gets through to the
            # framework, which counts exactly.
            pairs = body.count(b'"') // 2
            return self.limit(path, Lane.QUERY, caller, len(body), pairs=pairs), Lane.QUERY
        lane = Lane.QUERY if self._query_marker.search(body) else Lane.DOCUMENT
        return self.limit(path, lane, caller, len(body)), lane

    def limit_of_any(self, path: str, caller: str, body_bytes: int) -> tuple[Limit | None, Lane]:
        """Return the limit that a request would hit whose body is not known, and its lane."""
        if path in RERANK_PATHS:
            return self.limit(path, Lane.QUERY, caller, body_bytes), Lane.QUERY
        limit = self.limit(path, Lane.DOCUMENT, caller, body_bytes)
        if limit is None and body_bytes <= HELD_BYTES:
            return self.limit(path, Lane.QUERY, caller, body_bytes), Lane.QUERY
        return limit, Lane.DOCUMENT

    def caller_of(self, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
        """Return the name of a request's API key, as `ApiKeys.name_of` does."""
        if not self._keys.is_required:
            return ""
        sent = next((value for name, value in headers if name == b"authorization"), b"")
        return self._keys.name_of(sent.decode("latin-1"))

    def needs_framework(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """Return whether a refusal would not be a plain 429, or the body cannot be read here."""
        names = {name for name, _ in headers}
        return b"content-encoding" in names or (self._has_origins and b"origin" in names)

    def refuse(
        self,
        limit: Limit,
        lane: Lane,
        *,
        path: str,
        dialect: Dialect,
        caller: str,
        headers: list[bytes],
    ) -> bytes:
        """Count a refusal, and build its response.

        Args:
            limit: The limit that the request hit.
            lane: Its lane.
            caller: The name of its API key.
            path: Its path.
            dialect: The API of its error.
            headers: Lines to add, each with its line end.
        """
        admission = self.admission_of(path)
        assert admission is not None, "limit() comes first"
        requests, seconds = self._counters(path, dialect)
        requests.inc()
        seconds.observe(0.0)
        if caller:
            self._service.metrics.key_requests.labels(caller, 429).inc()
        self.log.count(path, caller)
        error = admission.refuse(limit, lane, caller=caller)
        refusal = self._render(error.message, dialect)
        retry_after = b"retry-after: %d\r\n" % (error.retry_after_seconds or 1)
        return b"".join([refusal.head, retry_after, *headers, b"\r\n", refusal.body])

    def count(self, path: str, dialect: Dialect, status: int) -> None:
        """Count a request that the protocol answers for another reason."""
        self._service.metrics.requests.labels(path, dialect.value, status).inc()

    def _find_counters(self, path: str, dialect: Dialect) -> tuple[Counter, Histogram]:
        metrics = self._service.metrics
        requests = metrics.requests.labels(path, dialect.value, 429)
        return requests, metrics.request_seconds.labels(path)

    def _path_of(self, url: bytes) -> str | None:
        """Return the route that embeds or reranks what is sent to a URL; None if there is none."""
        raw = url.partition(b"?")[0].decode("ascii", "replace")
        path = canonical_path(raw, self._service.settings.root_path)
        return path if path in EMBEDDING_PATHS or path in RERANK_PATHS else None
