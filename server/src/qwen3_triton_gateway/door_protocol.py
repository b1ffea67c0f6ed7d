"""The protocol's middle layer: the door in front of the application, which refuses requests."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from .admission import Limit, settle_entry
from .answer_protocol import AnswerProtocol
from .batching import Lane
from .dialects import Dialect, dialect_of
from .door import HELD_BYTES, Door
from .responses import choose_request_id

# A head that can be answered without the parser, and the fields that matter to that.
PLAIN_HEAD = re.compile(rb"POST (/[!-~]*) HTTP/1\.1\r\n((?:[!-9;-~]+:[^\r\n\0]*\r\n)+)\r\n")
FIELDS = re.compile(
    rb"^(authorization|connection|content-encoding|content-length|expect|host|origin"
    rb"|transfer-encoding|upgrade|x-request-id):[ \t]*([^\r\n]*?)[ \t]*\r\n",
    re.IGNORECASE | re.MULTILINE,
)
PLAIN_FIELDS = {
    b"authorization",
    b"connection",
    b"content-length",
    b"host",
    b"origin",
    b"x-request-id",
}
HOST = re.compile(rb"[^\x00-\x20\x7f/?#@\\]*")


class DoorProtocol(AnswerProtocol):
    """A connection whose requests meet the door before the application.

    While a lane is full, a small request waits for its body, which tells whether it is a query.
    Then it is refused, or continues as if it had just arrived.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._door: Door | None = app_state.get("door")
        self._path: str | None = None
        self._caller: str | None = ""
        self._held: bytearray | None = None
        self._is_dropping = False
        self._refused_at = 0.0

    def on_headers_complete(self) -> None:
        self._path = None
        if self._door is None or not self._is_refusable(self._door):
            super().on_headers_complete()
            return
        caller = self._caller = self._door.caller_of(self.headers)
        if caller is None or self._door.is_calm:
            super().on_headers_complete()
            return
        length = self._announced_length()
        is_bulk = length > HELD_BYTES
        limit, lane = self._door.limit_of_any(self._path or "", caller, length)
        is_judged_later = length < 0 or self._door.needs_framework(self.headers)
        if limit is None or is_judged_later:
            super().on_headers_complete()
        elif is_bulk:
            self._refuse(self._door, limit, lane, self._sent_id(), b"", is_kept=False)
            self._is_dropping = True
        elif self.expect_100_continue:  # it sends its body only when it is asked to
            super().on_headers_complete()
        else:
            self._held = bytearray()

    def on_body(self, body: bytes) -> None:
        if self._held is not None:
            self._held += body
        elif not self._is_dropping:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_dropping:
            self._is_dropping = False
            return
        if self._held is not None:
            body, self._held = bytes(self._held), None
            # As uvicorn decides after an answer.
            parser: Any = self.parser
            is_kept = parser.get_http_version() != "1.0" and parser.should_keep_alive()
            if self._is_refused(body, self._sent_id(), is_kept=is_kept and bool(body)):
                return
            super().on_headers_complete()
            super().on_body(body)
        super().on_message_complete()
        admission = self._door.admission_of(self._path) if self._door and self._path else None
        if admission is not None and not self.cycle.response_complete:
            state: dict[str, Any] = self.cycle.scope.get("state", {})
            admission.enter(state, self._caller or "")

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Start the application, whichever it is, so that its request is counted to its end."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            finally:
                settle_entry(scope.setdefault("state", {}))

        super()._start_asgi_task(cycle, counted)  # pyright: ignore[reportArgumentType]

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; refusals do not restart the timer, which would cost time."""
        idle = self.loop.time() - self._refused_at
        if idle >= self.timeout_keep_alive:
            super().timeout_keep_alive_handler()
        else:
            self._keep_alive_for(self.timeout_keep_alive - idle)

    def _keep_alive_for(self, seconds: float) -> None:
        self.timeout_keep_alive_task: asyncio.TimerHandle | None = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )

    def _refuse_at_once(self, data: bytes) -> bool:
        """Refuse a small request that arrived in one piece, if its lane is full.

        It is called between two requests. The parser would call this class a dozen times for one,
        which takes as long as the rest of a refusal. Whatever is not plain is left to it.
        """
        door = self._door
        if door is None or door.is_calm or not self._is_first_in_line:
            return False
        head = PLAIN_HEAD.match(data)
        path = door.path_of(head[1]) if head else None
        if head is None or path is None:
            return False
        fields = [(name.lower(), value) for name, value in FIELDS.findall(head[2])]
        caller = door.caller_of(fields)
        body = data[head.end() :]
        if caller is None or door.limit_of_any(path, caller, len(body))[0] is None:
            return False
        by_name = dict(fields)
        length = by_name.get(b"content-length", b"")
        is_plain = (
            len(by_name) == len(fields)
            and by_name.keys() <= PLAIN_FIELDS
            and HOST.fullmatch(by_name.get(b"host", b" "))
            and by_name.get(b"connection", b"keep-alive").lower() == b"keep-alive"
            and length.isdigit()
            and int(length) == len(body) <= HELD_BYTES
        )
        if not is_plain or not body or door.needs_framework(fields):
            return False
        self._path, self._caller = path, caller
        return self._is_refused(body, by_name.get(b"x-request-id", b""), is_kept=True)

    @property
    def _is_first_in_line(self) -> bool:
        """Whether nothing is ahead of a response on this connection."""
        return not self._is_answer_due and not self.flow.write_paused

    def _is_refusable(self, door: Door) -> bool:
        """Return whether the request embeds or reranks texts, and may be answered here."""
        parser: Any = self.parser
        if not self._is_first_in_line or parser.should_upgrade():
            return False
        if parser.get_method() == b"POST":
            self._path = door.path_of(self.url)
        return self._path is not None

    def _announced_length(self) -> int:
        """Return the body's length, -1 if it is not known."""
        return int(next((value for name, value in self.headers if name == b"content-length"), -1))

    def _sent_id(self) -> bytes:
        return next((value for name, value in self.headers if name == b"x-request-id"), b"")

    def _is_refused(self, body: bytes, sent_id: bytes, *, is_kept: bool) -> bool:
        """Refuse a small request whose body is complete, if its lane is still full."""
        assert self._door is not None, "it holds the request"
        limit, lane = self._door.limit_of_small(self._path or "", self._caller or "", body)
        if limit is not None:
            self._refuse(self._door, limit, lane, sent_id, body, is_kept=is_kept)
        return limit is not None

    def _refuse(
        self,
        door: Door,
        limit: Limit,
        lane: Lane,
        sent_id: bytes,
        body: bytes,
        *,
        is_kept: bool,
    ) -> None:
        """Answer with 429, and keep the connection or not; a body that is empty was not read."""
        path = self._path or ""
        dialect = dialect_of({"path": path})
        if path == "/embed" and b'"inputs"' in body and b'"texts"' not in body:
            dialect = Dialect.TEI
        elif path == "/rerank" and b'"documents"' in body and b'"texts"' not in body:
            dialect = Dialect.JINA
        request_id = choose_request_id(sent_id.decode("latin-1"))
        lines = [b"%b: %b\r\n" % header for header in self.server_state.default_headers]
        lines.append(b"x-request-id: %b\r\n" % request_id.encode())
        if not is_kept:
            lines.append(b"connection: close\r\n")
        self.transport.write(
            door.refuse(
                *(limit, lane), path=path, dialect=dialect, caller=self._caller or "", headers=lines
            )
        )
        self.server_state.total_requests += 1
        self._refused_at = self.loop.time()
        if not is_kept:
            self._close_soon(has_rest=not body)
        elif self.timeout_keep_alive_task is None:
            self._keep_alive_for(self.timeout_keep_alive)
