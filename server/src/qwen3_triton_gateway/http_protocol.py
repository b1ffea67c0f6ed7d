"""uvicorn's HTTP protocol, whose own refusals look like every other error of the gateway."""

from __future__ import annotations

import logging
import uuid

from .door import DoorProtocol
from .errors import InvalidRequestError
from .responses import Dialect, error_response

logger = logging.getLogger(__name__)


class GatewayProtocol(DoorProtocol):
    """The protocol for `uvicorn.Config(http=...)`.

    uvicorn answers bytes that are not HTTP before the application sees a request, through a method
    that it does not document (checked on 0.54; `test_http_protocol.py` fails if it moves).
    """

    def send_400_response(self, msg: str) -> None:
        """Answer with the error's JSON and a request ID, and close the connection."""
        request_id = uuid.uuid4().hex
        logger.info("status=400 request_id=%s %s", request_id, msg)
        error = InvalidRequestError(
            "The request is not valid HTTP. Check its request line, URL and headers.",
            code="malformed_request",
        )
        # There may be no path yet, so the dialect is unknown.
        response = error_response(error, Dialect.NATIVE)
        headers = [
            *response.raw_headers,
            (b"x-request-id", request_id.encode()),
            (b"connection", b"close"),
        ]
        lines = [b"HTTP/1.1 400 Bad Request", *(b": ".join(header) for header in headers)]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(response.body)]))
        self.transport.close()
