"""A small HTTP server that answers with JSON, in place of a gateway or Triton."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Request:
    """A GET or POST request; `body` is empty if none was sent."""

    path: str
    body: dict[str, Any]
    authorization: str | None


@contextmanager
def answering(
    reply: Callable[[Request], tuple[int, Any]], *, certificate: tuple[Path, Path] | None = None
) -> Generator[str]:
    """Serve on a free port for the length of a `with` block and yield the URL.

    Args:
        reply: Returns the status and the content of the answer to a request.
        certificate: The certificate for HTTPS and its key; without them, HTTP.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(size)) if size else {}
            status, content = reply(Request(self.path, body, self.headers["Authorization"]))
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer((HOST, 0), Handler) as server:
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http{'s' if certificate else ''}://{HOST}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
