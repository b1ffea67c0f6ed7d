"""A fixed input whose answer must stay what it was at startup, to notice a model that changed.

For an embedding model, that is a sentence and its vector; for a reranker, a few pairs and their raw
scores.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging
from collections.abc import Callable

import numpy as np

from .backends.base import CANARY_PARAMETER, Backend, Probe
from .backends.probe import (
    FIRST_SECONDS,
    SAME_MODEL,
    SAME_WEIGHTS,
    Pace,
    run_probe,
    startup_failure,
)
from .batching import pad_batch
from .errors import (
    BackendError,
    BackendUnavailableError,
    BadVectorError,
    DeadlineExceededError,
    InvalidRequestError,
    StartupError,
)
from .pairs import PairTokenization
from .pooling import l2_normalize
from .rerank_prompt import DEFAULT_INSTRUCTION
from .settings import Task
from .tensors import Float32Vector, TokenBatch, TokenizedText
from .tokenization import InputType, TextTokenizer, format_inputs

logger: logging.Logger = logging.getLogger(__name__)

TEXT = "The importance of a canary: it notices bad air before the miners do."
INPUT_TYPE: InputType = "query"
# The examples of the reranker's model card: each query with its document and with the other one's.
QUERIES = ("What is the capital of China?", "Explain gravity")
DOCUMENTS = (
    "The capital of China is Beijing.",
    "Gravity is a force that attracts two bodies towards each other. It gives weight to physical "
    "objects and is responsible for the movement of planets around the sun.",
)
CANARY_PAIRS = tuple((query, document) for query in QUERIES for document in DOCUMENTS)
# How much of the vector a config.pbtxt states: other weights show in any part, and the file stays
# readable.
STATED_DIMENSIONS = 128


def canary_batch(tokenizer: TextTokenizer) -> TokenBatch:
    """Build the canary sentence as a batch of its own."""
    prompts = format_inputs([TEXT], input_type=INPUT_TYPE, instruction=None)
    return pad_batch(
        tokenizer.encode(prompts),
        pad_token_id=tokenizer.end_token_id,
        max_length=tokenizer.max_length,
    )


def canary_pairs(tokenizer: TextTokenizer, max_length: int) -> list[TokenizedText]:
    """Tokenize the canary's pairs.

    Raises:
        StartupError: `max_length` has no room for them.
    """
    queries, documents = zip(*CANARY_PAIRS, strict=True)
    pairs = PairTokenization(
        tokenizer, queries, documents, instruction=DEFAULT_INSTRUCTION, limit=max_length
    )
    try:
        while not pairs.is_done:
            pairs.step()
    except InvalidRequestError as error:
        msg = f"RERANK_MAX_LENGTH has no room for a plain pair. {error.message}"
        raise StartupError(msg) from error
    return pairs.tokenized()


def rerank_canary_batch(tokenizer: TextTokenizer, max_length: int) -> TokenBatch:
    """Build the canary's pairs as a batch.

    Raises:
        StartupError: `max_length` has no room for them.
    """
    return pad_batch(
        canary_pairs(tokenizer, max_length),
        pad_token_id=tokenizer.end_token_id,
        max_length=tokenizer.max_length,
    )


def state_canary(batch: TokenBatch, answer: Float32Vector) -> str:
    """Write what `check_stated_canary` reads: which tokens were sent, and the answer.

    Args:
        batch: The canary.
        answer: Its unit vector, or the raw scores of its pairs.
    """
    encoded = base64.b64encode(_stated(answer).astype("<f2").tobytes()).decode()
    return f"{_tokens_digest(batch)}:{encoded}"


def check_stated_canary(
    stated: str, batch: TokenBatch, answer: Float32Vector, *, task: Task
) -> None:
    """Compare the canary's answer with the one that the model's configuration states.

    One of other tokens, from another release or tokenizer, says nothing about the weights.

    Raises:
        StartupError: The model has other weights than its configuration was written for.
    """
    digest, _, encoded = stated.partition(":")
    if digest != _tokens_digest(batch):
        return
    try:
        expected = np.frombuffer(base64.b64decode(encoded), dtype="<f2").astype(np.float32)
    except (ValueError, binascii.Error):
        expected = np.zeros(0, dtype=np.float32)
    difference = SAME_WEIGHTS.find_difference(_stated(answer), expected, task)
    if difference:
        msg = (
            f"The answer to the canary {difference} `{CANARY_PARAMETER}` in the model's "
            "config.pbtxt: the weights were replaced since it was written. Run `qwen3-triton model "
            "repository --force` with these weights"
        )
        is_stored = task == "embed"
        raise StartupError(
            f"{msg}, and embed again what the old ones embedded." if is_stored else f"{msg}."
        )


def _stated(answer: Float32Vector) -> Float32Vector:
    """Return the part of an answer that is stated; the beginning of a vector has length 1 again."""
    if len(answer) <= STATED_DIMENSIONS:
        return answer
    return l2_normalize(answer[None, :STATED_DIMENSIONS])[0]


def _tokens_digest(batch: TokenBatch) -> str:
    tokens = batch.input_ids[batch.attention_mask == 1].astype("<i8").tobytes()
    return hashlib.sha256(tokens).hexdigest()[:16]


class Canary:
    """A batch that is run regularly, and its answer compared with that at startup.

    It goes to the model without passing through the queue, so that load does not delay it.

    Attributes:
        problem: What the last run found wrong; empty if nothing.
        is_pending: Whether the model may be another one than the last answered run met.
        has_changed: Whether that run found other weights.
    """

    def __init__(
        self,
        backend: Backend,
        probe: Probe,
        *,
        last_answer: Callable[[], float],
        is_at_work: Callable[[], bool],
    ) -> None:
        """Prepare the first run.

        Args:
            backend: The model.
            probe: The canary sentence, or the canary's pairs.
            last_answer: When another batch was last answered, in the event loop's time.
            is_at_work: Whether another batch may still take its time.
        """
        self._backend = backend
        self._probe = probe
        self._last_answer = last_answer
        self._is_at_work = is_at_work
        self._first: Float32Vector | None = None
        self._pace = Pace()
        self._due = 0.0
        self._run: asyncio.Task[str] | None = None
        self.problem: str = ""
        self.is_pending: bool = False
        self.has_changed: bool = False

    async def start(self) -> Float32Vector:
        """Run the batch for the first time, and return its answer; see `run_probe`.

        Raises:
            BackendUnavailableError: The model is unavailable or too busy.
            StartupError: The model cannot answer it.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            self._first = await run_probe(self._backend, self._probe, timeout_seconds=FIRST_SECONDS)
        except (BadVectorError, BackendError) as error:
            raise startup_failure(self._backend.spec.task, error) from error
        except DeadlineExceededError as error:
            raise BackendUnavailableError(error.message) from error
        self._pace = Pace(loop.time() - began)
        self._due = loop.time() + self._pace.interval
        return self._first

    def distrust(self) -> None:
        """Trust nothing until the next run: a model that returns may have other weights."""
        self._forget_run()
        self.problem = "the canary has not been answered since the model came back"

    def suspect(self) -> None:
        """Let the next run decide: a model that was reloaded is usually the same.

        Unlike after an absence, requests are accepted until then, and their answers wait for it.
        """
        self._forget_run()

    def hasten(self) -> None:
        """Run now, or again after the run in progress: the model may have been reloaded.

        Unlike `suspect`, it lets answers pass until then.
        """
        self._due = 0.0

    async def settle(self, timeout_seconds: float) -> None:
        """Wait until the run in progress ends, or for this long."""
        if self._run is None:
            await asyncio.sleep(timeout_seconds)
            return
        done, _ = await asyncio.wait({self._run}, timeout=timeout_seconds)
        if done:
            self.check()

    def check(self) -> str:
        """Start a run if one is due, and return what the last one found wrong, if anything."""
        now = asyncio.get_running_loop().time()
        if self._run is not None and self._run.done():
            self.problem, self._run = self._run.result(), None
            if self.problem or self.is_pending:
                self._due = now
        if self._run is None and now >= self._due:
            # From its start, so that `hasten` counts while it runs.
            self._due = now + self._pace.interval
            self._run = asyncio.create_task(self._compare())
        return self.problem

    def _forget_run(self) -> None:
        if self._run is not None:
            self._run.cancel()
            self._run = None
        self._due = 0.0
        self.is_pending = True

    async def _compare(self) -> str:
        began = asyncio.get_running_loop().time()
        try:
            timeout = self._pace.timeout
            answer = await run_probe(self._backend, self._probe, timeout_seconds=timeout)
        except (BadVectorError, BackendError, BackendUnavailableError) as error:
            return error.message.removesuffix(".")
        except DeadlineExceededError as error:
            # A missed deadline means load, as long as other requests succeed. One long text may
            # take a CPU a minute, in which nothing else is answered.
            if self._last_answer() >= began or self._is_at_work():
                logger.warning("The canary was not answered: %s", error.message)
                return self.problem
            return f"the model has not answered for {self._pace.timeout:.0f} s"
        assert self._first is not None, "start() comes first"
        difference = SAME_MODEL.find_difference(answer, self._first, self._backend.spec.task)
        self.has_changed, self.is_pending = bool(difference), False
        self.problem = (
            f"the answer to the canary {difference} that at startup: the model behind the gateway "
            "has changed; restart the gateway to serve it"
            if difference
            else ""
        )
        return self.problem
