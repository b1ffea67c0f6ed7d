"""What routes share: the service, and one request from its body to its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from inspect import signature
from typing import Annotated, Any, Self, TypeVar

from fastapi import Depends, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from ..admission import Admission, settle_entry
from ..dialects import Dialect
from ..embedder import EmbedCall
from ..errors import BackendUnavailableError, InvalidRequestError, shorten
from ..memory import Reservation, in_worker, request_bytes
from ..reranker import RerankCall, Scores
from ..schemas import parse_json
from ..served import ServedModel, Timings
from ..service import EmbeddingService
from ..settings import ModelAlias
from ..tensors import Embeddings
from ..tokenization import InputType
from ..tracing import describe_embeddings
from .answers import EmbedAnswer, RerankAnswer

Result = TypeVar("Result")

# An answer that takes longer is not computed to its end for a caller that is gone.
WATCH_AFTER_SECONDS = 0.02
# Below this, a thread costs more than parsing does.
PARSE_INLINE_BYTES = 1 << 18
ERROR_STATUSES = {400, 401, 404, 408, 413, 415, 429, 502, 503, 504}


# FastAPI would run a plain function in a thread, which costs a third of a millisecond.
async def _service(request: Request) -> EmbeddingService:
    return request.app.state.service


ServiceDep = Annotated[EmbeddingService, Depends(_service)]


class ServiceRoute(APIRoute):
    """A route that calls `function(request, service) -> Response` without resolving arguments.

    FastAPI would look for parameters and dependencies in each request, build a response to add
    headers to, and prepare to close what dependencies open. Functions with other parameters are
    called in its own way.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        self._options = dict(options)
        takes_service = [*signature(endpoint).parameters] == ["request", "service"]
        if takes_service:
            # FastAPI would build a schema for each status, which only `described` needs: a sixth
            # of what a start imports.
            options.update(responses=None, response_model=None)
        super().__init__(path, endpoint, **options)
        if takes_service:
            self.app: ASGIApp = self._answer

    def described(self) -> APIRoute:
        """Build the route as FastAPI's own, for the OpenAPI document."""
        return APIRoute(self.path, self.endpoint, **self._options)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        response = await self.endpoint(request, scope["app"].state.service)
        await response(scope, receive, send)


def is_trusted(request: Request) -> bool:
    """Return whether the caller of an open route has a key, or no key is required."""
    return request.state.is_trusted


def describe_call(
    *bodies: type[BaseModel], errors: Any, example: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Build the route arguments that describe a call in the OpenAPI document.

    Routes read the body as bytes and validate it with pydantic's own JSON parser, so FastAPI
    cannot infer the schema from the signature.

    Args:
        *bodies: The schemas that the call accepts.
        errors: The schema of its errors, or a union of several.
        example: A body that works with any model, which `/docs` offers to send.
    """
    # `describe` builds the schemas: few gateways are asked for them, and each would start later.
    content: dict[str, Any] = {"schema": bodies} | ({"example": example} if example else {})
    body = {"required": True, "content": {"application/json": content}}
    return {
        "responses": describe_errors(ERROR_STATUSES, errors),
        "openapi_extra": {"requestBody": body},
    }


def describe_errors(statuses: set[int], errors: Any) -> dict[int | str, dict[str, Any]]:
    """Build the route argument that describes errors of one shape, or of a union of several."""
    return {status: {"model": errors} for status in sorted(statuses)}


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request for vectors or scores, in progress while it is entered.

    Attributes:
        body: The parsed JSON object.
        deadline: When the request times out, in the event loop's time.
        admission: The bounds of the queue that it counts towards.
    """

    request: Request
    service: EmbeddingService
    body: dict[str, Any]
    deadline: float
    admission: Admission

    def __enter__(self) -> Self:
        """Count the request.

        Raises:
            QueueFullError: Too many requests are in progress.
        """
        self.admission.begin_request()
        return self

    def __exit__(self, *_: object) -> None:
        self.admission.end_request()

    @property
    def memory(self) -> Reservation:
        """What this request is charged; the middleware releases it after the response."""
        return self.request.scope["state"]["memory"]

    @property
    def caller(self) -> str:
        """The name of the caller's API key; empty if none is required."""
        return self.request.scope["state"].get("key", "")

    def use_dialect(self, dialect: Dialect) -> None:
        """Answer in this dialect from now on, errors included."""
        self.request.scope["state"]["dialect"] = dialect

    async def embed(self, call: EmbedCall) -> EmbedAnswer:
        """Embed, unless the caller disconnects first.

        Raises:
            EmbeddingServerError: See `Embedder.embed`.
            ClientDisconnect: The caller is gone.
        """
        embedder = self.service.embedder
        work = embedder.embed(call, deadline=self.deadline, memory=self.memory, caller=self.caller)
        embeddings, timings = await self._answered(embedder, work)
        asked = {"input_type": call.input_type, "texts": len(call.texts)}
        self._log(asked, embeddings, timings)
        if self.caller:
            self.service.metrics.key_texts.labels(self.caller).inc(len(call.texts))
            self.service.metrics.key_tokens.labels(self.caller).inc(embeddings.prompt_tokens)
        fingerprint = embedder.fingerprint(embeddings.dimensions)
        answer = EmbedAnswer(self.service, self.memory, embeddings, timings, fingerprint)
        describe_embeddings(
            requested=self.body.get("model"),
            served=embedder.model_id,
            dimensions=answer.dimensions,
            tokens=embeddings.prompt_tokens,
        )
        return answer

    async def rerank(self, call: RerankCall) -> RerankAnswer:
        """Score documents, unless the caller disconnects first.

        Raises:
            EmbeddingServerError: See `Reranker.score`.
            ClientDisconnect: The caller is gone.
        """
        reranker = self.service.reranker
        work = reranker.score(call, deadline=self.deadline, memory=self.memory, caller=self.caller)
        scores, timings = await self._answered(reranker, work)
        self._log({"documents": len(call.documents)}, scores, timings)
        if self.caller:
            reranker.metrics.key_pairs.labels(self.caller).inc(len(scores.raw))
            reranker.metrics.key_tokens.labels(self.caller).inc(scores.prompt_tokens)
        return RerankAnswer(reranker, scores, timings)

    def _log(self, asked: dict[str, Any], result: Embeddings | Scores, timings: Timings) -> None:
        """Note what the request's log line says."""
        self.request.scope["state"]["log"] = asked | {
            "tokens": result.prompt_tokens,
            "truncated": len(result.truncated),
            "queue_ms": round(timings.queue_seconds * 1000, 1),
            "infer_ms": round(timings.infer_seconds * 1000, 1),
        }

    async def _answered(self, model: ServedModel, work: Coroutine[Any, Any, Result]) -> Result:
        """Await a model's answer; if it is unavailable, see to it that others know."""

        async def confirmed() -> Result:
            settle_entry(self.request.scope["state"])
            answer = await work
            await model.confirm(self.deadline)
            return answer

        try:
            return await while_connected(self.request, confirmed())
        except BackendUnavailableError:
            # Readiness is updated first, so that the next caller and load balancers see it.
            await model.check_soon()
            raise


async def open_exchange(
    request: Request, service: EmbeddingService, model: ServedModel | None = None
) -> Exchange:
    """Read the body of a request for a model, by default the embedder.

    A body may take long to arrive, and may never be complete. Until it is, and the exchange is
    entered, it takes no place from others.

    Raises:
        BackendUnavailableError: The model is unavailable.
        BodyTooLargeError: The body exceeds the limit.
        RequestTimeoutError: The body did not arrive in time.
        InvalidRequestError: The body is not a JSON object.
    """
    deadline = request.scope["state"]["began"] + service.settings.timeout_seconds
    scheduler = (model or service.embedder).require_ready()
    body = await read_json(request)
    return Exchange(request, service, body, deadline, scheduler.admission)


def choose_input_type(sent: InputType | None, alias: ModelAlias, model: str | None) -> InputType:
    """Return the input type of a request, from its field or from its name of the model.

    Raises:
        InvalidRequestError: The two contradict each other.
    """
    if sent is not None and alias.input_type not in (None, sent):
        msg = (
            f"`model` {shorten(model or '')!r} means `input_type: {alias.input_type}`, which "
            f"contradicts `input_type` {sent!r}. Send one of them, or make them agree."
        )
        raise InvalidRequestError(msg, param="input_type")
    return sent or alias.input_type or "document"


def choose_instruction(sent: str | None, alias: ModelAlias, input_type: InputType) -> str | None:
    """Return the instruction of a request; its own overrides that of its name of the model."""
    return alias.instruction if sent is None and input_type == "query" else sent


async def read_json(request: Request) -> dict[str, Any]:
    """Read and parse the body of a request, and keep nothing of its bytes.

    Raises:
        BodyTooLargeError: The body exceeds the limit.
        RequestTimeoutError: The body did not arrive in time.
        InvalidRequestError: The body is not a JSON object.
        QueueFullError: The memory for requests does not suffice for the body.
        ClientDisconnect: The caller is gone.
    """
    memory: Reservation = request.scope["state"]["memory"]
    body, more_body = bytearray(), True
    while more_body:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        memory.resize(request_bytes(len(body) + len(chunk)))
        body += chunk
        more_body = message.get("more_body", False)
    if len(body) <= PARSE_INLINE_BYTES:
        return parse_json(body)
    return await in_worker(parse_json, body)


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Await `work`, or cancel it when the caller disconnects.

    The work runs in the current task, and what waits for a disconnect begins late: most answers are
    there by then, and each task takes time of the event loop.

    Raises:
        ClientDisconnect: The caller disconnected.
    """
    task = asyncio.current_task()
    assert task is not None, "it is called in one"
    watches: list[asyncio.Task[None]] = []

    async def cancel_on_disconnect() -> None:
        await request.receive()  # after the body, only a disconnect can come
        task.cancel()

    def watch() -> None:
        watches.append(asyncio.create_task(cancel_on_disconnect()))

    timer = asyncio.get_running_loop().call_later(WATCH_AFTER_SECONDS, watch)
    try:
        return await work
    except asyncio.CancelledError:
        is_gone = any(watch.done() for watch in watches)
        if not is_gone or task.uncancel():  # something else cancels it
            raise
        raise ClientDisconnect from None
    finally:
        timer.cancel()
        for started in watches:
            started.cancel()
