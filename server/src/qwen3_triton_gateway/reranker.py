"""The reranker: what it accepts, and the order of the stages from pairs of texts to scores."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .backends.base import Backend, ModelSpec, Probe
from .batching import BatchLimits, Lane
from .canary import rerank_canary_batch
from .errors import (
    BadVectorError,
    EmbeddingServerError,
    InvalidRequestError,
    StartupError,
)
from .fingerprint import EmbeddingSpace
from .memory import REQUEST_BYTES, Reservation
from .metrics import RerankMetrics
from .model_files import (
    ModelFileError,
    export_name,
    find_model,
    find_tokenizer,
    reranker_name,
)
from .pairs import PairTokenization, name_query
from .pooling import Float64Vector, logits_of, raw_scores
from .rerank_behavior import find_answers, scores_batches
from .served import (
    QUEUED_TEXT_BYTES,
    QUEUED_TOKEN_BYTES,
    ServedModel,
    Timings,
    queue_and_infer_seconds,
)
from .settings import Settings
from .tensors import (
    Float32Matrix,
    Float32Vector,
    HiddenStates,
    PooledStates,
    TokenBatch,
    TokenizedText,
)
from .text_errors import TextErrors
from .tokenization import TextTokenizer
from .tracing import current_origin, stage_span
from .turns import QueuedText

logger: logging.Logger = logging.getLogger(__name__)

# Part of the fingerprint: raise it when the bytes around a pair change.
PROMPT_VERSION = "qwen3-rerank-1"
# The tokens that divide the prompt; without them, a tokenizer is not of the family.
PROMPT_TOKENS = ("<|im_start|>", "<|im_end|>")
# Without a cut head, a token has the logits of the whole vocabulary, 600 kB. A batch has at most
# this many bytes of them, unless one pair alone has more.
MAX_LOGITS_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class RerankCall:
    """A request for scores, independent of its dialect.

    Attributes:
        queries: The query of each document.
        documents: The documents.
        instruction: What makes a document relevant; by default RERANK_INSTRUCTION.
        truncate: Whether a document that is too long is truncated; if not, it is refused.
        max_tokens: Maximum tokens of a pair, if the request allows fewer than the gateway.
        max_document_tokens: Maximum tokens of a document, if there is room for more.
        priority: Lower goes first among the requests of a key; only its sign counts.
        queries_field: What this dialect calls the query or queries, for errors.
        documents_field: What it calls the documents.
        truncate_hint: How a caller of this dialect asks for truncation.
    """

    queries: Sequence[str]
    documents: Sequence[str]
    instruction: str | None = None
    truncate: bool = True
    max_tokens: int | None = None
    max_document_tokens: int | None = None
    priority: int = 0
    queries_field: str = "query"
    documents_field: str = "texts"
    truncate_hint: str = "send `truncate: true`"

    @property
    def errors(self) -> TextErrors:
        """How errors name the documents."""
        return TextErrors("document", "scored", "score", self.documents_field)


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of n documents, in their order.

    Attributes:
        raw: The logit of "yes" minus that of "no", or the one logit of a classifier.
        prompt_tokens: Tokens that the model saw, prompt included.
        truncated: Indices of the documents that were truncated.
    """

    raw: Float64Vector
    prompt_tokens: int
    truncated: tuple[int, ...]

    @property
    def probabilities(self) -> Float64Vector:
        """The scores of the model card, from 0 to 1: the share of "yes" in the softmax.

        With two classes, that is the sigmoid of the difference of their logits. It is also what a
        classifier (`seq-cls`) returns, whose one logit is that difference.
        """
        # Without overflow, whatever the logits are.
        return np.exp(-np.logaddexp(0.0, -self.raw))


class Reranker(ServedModel):
    """A reranker, and the stages from pairs to scores."""

    kind: ClassVar[str] = "reranker"

    def __init__(self, backend: Backend, settings: Settings, metrics: RerankMetrics) -> None:
        """Load the tokenizer; `connect` reaches the model.

        Raises:
            StartupError: The tokenizer is missing, invalid, or not one of the family.
        """
        path = find_tokenizer(settings.rerank_tokenizer_path, settings.rerank_model_dir)
        path = path or settings.tokenizer_path
        if path is None:
            msg = (
                "RERANK_TOKENIZER_PATH is not set. Set it to the folder that contains the "
                "reranker's tokenizer.json."
            )
            raise StartupError(msg)
        tokenizer = TextTokenizer(
            path, max_length=settings.rerank_max_length, setting="RERANK_TOKENIZER_PATH"
        )
        missing = [token for token in PROMPT_TOKENS if tokenizer.id_of(token) is None]
        if missing:
            msg = (
                f"{path} has no token {' and no token '.join(map(repr, missing))}, which the "
                "prompt of Qwen3-Reranker needs. Set RERANK_TOKENIZER_PATH to the model's own."
            )
            raise StartupError(msg)
        super().__init__(
            backend,
            tokenizer,
            settings,
            metrics,
            model_id=settings.rerank_model_id or _default_id(settings, _served_name(settings)),
            aliases={},
            names_setting="RERANK_MODEL_ID",
        )
        self.metrics: RerankMetrics = metrics
        self._text_tokenizer = (
            tokenizer.without_special_tokens()
            if settings.rerank_split_special_tokens
            else tokenizer
        )
        self._space: EmbeddingSpace | None = None
        self._answer_ids: list[int] | None = None  # where the model has not chosen them itself
        self.shares_batches: bool = True
        self._has_warned_of_prompts = False
        metrics.observe_state(self.state)

    @property
    def fingerprint(self) -> str:
        """What names everything that decides a score, but for the instruction."""
        assert self._space is not None, "connect() comes first"
        return self._space.fingerprint(1)

    @property
    def max_length(self) -> int:
        """Maximum tokens of a pair: RERANK_MAX_LENGTH, unless their logits are too large."""
        return self.tokenizer.max_length

    def _build_canary(self, spec: ModelSpec) -> Probe:
        self._answer_ids = find_answers(spec, self.tokenizer)
        return Probe(rerank_canary_batch(self.tokenizer, self.max_length), self._answer_ids)

    async def _accept(self, spec: ModelSpec) -> BatchLimits:
        self.model_id: str = self.settings.rerank_model_id or _default_id(self.settings, spec.name)
        self.tokenizer.max_length = self._longest_pair(spec)
        self.shares_batches = await scores_batches(self.backend, self.tokenizer, self._answer_ids)
        self._space = EmbeddingSpace(
            model_id=self.model_id,
            weights_digest=spec.weights_digest,
            tokenizer_digest=self.tokenizer.digest,
            pooling="logit" if spec.hidden_size == 1 else "yes_no",
            prompt_version=PROMPT_VERSION + "-split" * self.settings.rerank_split_special_tokens,
            dtype=spec.output.dtype.name,
            precision=spec.precision,
        )
        tokens = self.settings.max_batch_tokens
        if spec.pooling != "in_graph":
            tokens = min(tokens, max(1, MAX_LOGITS_BYTES // _bytes_per_token(spec)))
        return BatchLimits(
            spec.max_batch_size if self.shares_batches else 1, tokens, self.max_length
        )

    def _describe(self, spec: ModelSpec) -> str:
        return (
            f"{'one logit' if spec.hidden_size == 1 else 'the logits of no and yes'} for each "
            f"pair, up to {spec.max_batch_size} pairs per batch."
        )

    def _rows(self, states: HiddenStates | PooledStates, batch: TokenBatch) -> Float32Matrix:
        return logits_of(states, batch.attention_mask, self._answer_ids)

    def _unusable(self, rows: Float32Matrix) -> list[int]:
        # Zeros are what some releases make of a row that overflows; see `pooling.MIN_NORM`.
        is_usable = np.isfinite(rows).all(axis=1) & (rows != 0).any(axis=1)
        return np.flatnonzero(~is_usable).tolist()

    def _forget_answers(self) -> None:
        """Nothing is kept."""

    async def score(
        self,
        call: RerankCall,
        *,
        deadline: float,
        memory: Reservation | None = None,
        caller: str = "",
    ) -> tuple[Scores, Timings]:
        """Score documents, in their order.

        Args:
            call: The pairs and how to score them.
            deadline: When the request times out, in the event loop's time.
            memory: What the request is charged, which grows with what it takes.
            caller: The name of the API key whose turn it takes.

        Raises:
            BackendUnavailableError: The model is unavailable, or has changed since startup.
            InvalidRequestError: A text is blank, a query leaves no room for a document, or a
                document is too long and the call refuses such documents.
            QueueFullError: The pairs do not fit into memory, or into the queue.
            EmbeddingServerError: A document could not be scored.
        """
        scheduler = self.require_ready()
        _check_call(call)
        self._warn_of_prompts(call)
        if memory is not None:
            memory.resize(_bytes_of(call))
        began = time.perf_counter()
        with stage_span("tokenize"):
            tokenized = await self._tokenize(call, deadline, memory)
        tokenize_seconds = time.perf_counter() - began
        self._refuse_long(call, tokenized)
        prompt_tokens = sum(text.length for text in tokenized)
        with stage_span("queue and infer"):
            entries = await scheduler.submit(
                tokenized,
                lane=Lane.QUERY,  # a caller is waiting for the answer to a question
                deadline=deadline,
                caller=caller,
                priority=call.priority,
                origin=current_origin(),
            )
        logits = np.stack(self._collect(call, entries))
        counts = [text.count for text in tokenized]
        truncated = tuple(index for index, count in enumerate(counts) if count.truncated)
        self.metrics.pairs.inc(len(tokenized))
        self.metrics.tokens.inc(prompt_tokens)
        self.metrics.truncated_documents.inc(len(truncated))
        scores = Scores(raw_scores(logits), prompt_tokens, truncated)
        return scores, Timings(tokenize_seconds, *queue_and_infer_seconds(entries))

    async def _tokenize(
        self, call: RerankCall, deadline: float, memory: Reservation | None = None
    ) -> list[TokenizedText]:
        pairs = self._pairs(call)
        texts = sum(map(len, call.documents)) + sum(map(len, set(call.queries)))
        try:
            await self._finish(pairs, characters=texts, deadline=deadline)
        except InvalidRequestError as error:
            if error.index is not None:
                error.param = call.errors.param_of(error.index)
            raise
        if memory is not None:
            # Before they exist: a long query is repeated in each pair.
            memory.resize(memory.size_bytes + QUEUED_TOKEN_BYTES * pairs.tokens)
        return pairs.tokenized()

    def _pairs(self, call: RerankCall) -> PairTokenization:
        return PairTokenization(
            self.tokenizer,
            call.queries,
            call.documents,
            instruction=self._instruction_of(call),
            limit=self._limit_of(call),
            limit_name="`truncate_prompt_tokens`" if call.max_tokens else "RERANK_MAX_LENGTH",
            queries_field=call.queries_field,
            max_document_tokens=call.max_document_tokens,
            text_tokenizer=self._text_tokenizer,
        )

    def _instruction_of(self, call: RerankCall) -> str:
        # An empty one is that of a form that was not filled in.
        return call.instruction or self.settings.rerank_instruction

    def _limit_of(self, call: RerankCall) -> int:
        return min(self.max_length, call.max_tokens or self.max_length)

    def _warn_of_prompts(self, call: RerankCall) -> None:
        """Warn once of a client that writes the prompt itself, as those made for vLLM do."""
        begins_alike = call.queries[0].lstrip().startswith(PROMPT_TOKENS[0])
        if begins_alike and not self._has_warned_of_prompts:
            self._has_warned_of_prompts = True
            logger.warning(
                "A query begins with the reranker's prompt, which the gateway adds by itself: its "
                "scores are those of a prompt within the prompt. Let the client send queries and "
                "documents as they are, and the instruction as `instruction`."
            )

    def _refuse_long(self, call: RerankCall, tokenized: Sequence[TokenizedText]) -> None:
        if not call.truncate:
            limit = self._limit_of(call)
            # Those that only `max_document_tokens` cut are shorter: their cut was asked for.
            call.errors.refuse_long(
                ((i, text.count) for i, text in enumerate(tokenized) if text.length == limit),
                limit=limit,
                hint=call.truncate_hint,
                counted_with=" with the query and the prompt",
            )

    def _collect(self, call: RerankCall, entries: Sequence[QueuedText]) -> list[Float32Vector]:
        """Collect the logits of finished pairs, or raise the first error with its document."""
        rows: list[Float32Vector] = []
        for index, entry in enumerate(entries):
            result = entry.result
            if isinstance(result, BadVectorError):
                self.metrics.refused_scores.inc()
                raise call.errors.unusable(index, "Its logits are not finite, or zero.")
            if isinstance(result, EmbeddingServerError):
                raise call.errors.failed(index, result)
            rows.append(result)
        return rows

    def _longest_pair(self, spec: ModelSpec) -> int:
        """Return the maximum tokens of a pair whose logits the backend can return."""
        wanted, bound = self.settings.rerank_max_length, self.backend.max_output_bytes
        if spec.pooling == "in_graph" or bound is None:
            return wanted
        longest = min(wanted, bound // _bytes_per_token(spec))
        if longest < wanted:
            logger.warning(
                "Pairs have at most %s tokens here instead of RERANK_MAX_LENGTH (%s): the logits "
                "of more exceed what gRPC can send. After `qwen3-triton model pool`, any fit.",
                f"{longest:,}",
                f"{wanted:,}",
            )
        return longest


def _bytes_per_token(spec: ModelSpec) -> int:
    return spec.hidden_size * spec.output.dtype.itemsize


def _served_name(settings: Settings) -> str:
    """Return what the model is called until it has been reached."""
    folder = settings.rerank_model_dir
    return folder.name if folder else settings.rerank_triton_model or "reranker"


def _default_id(settings: Settings, name: str) -> str:
    """Return the reranker's ID, which is not that of an embedding model in a folder named alike."""
    if settings.model_dir is None:
        return name
    try:
        other = export_name(find_model(settings.model_dir))
    except ModelFileError:  # reported where the model is loaded
        other = settings.model_dir.name
    return reranker_name(name, other)


def _check_call(call: RerankCall) -> None:
    for query in dict.fromkeys(call.queries):
        if not query or query.isspace():
            subject, param = name_query(call.queries, query, call.queries_field)
            msg = f"{subject} is blank, so nothing was scored. Send a question or keywords."
            raise InvalidRequestError(msg, param=param, code="blank_text")
    call.errors.refuse_blank(call.documents)


def _bytes_of(call: RerankCall) -> int:
    """Estimate what a call takes: its texts, and a queue entry for each pair."""
    texts_bytes = sum(map(sys.getsizeof, call.documents)) + sum(
        map(sys.getsizeof, set(call.queries))
    )
    return REQUEST_BYTES + texts_bytes + QUEUED_TEXT_BYTES * len(call.documents)
