import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from qwen3_triton_tools.errors import UnreachableError
from qwen3_triton_tools.http import request


class Handler(BaseHTTPRequestHandler):
    """Echo a posted body, and answer 418 to everything else."""

    def do_GET(self) -> None:
        self._answer(418, b"I'm a teapot,\nshort and stout")

    def do_POST(self) -> None:
        self._answer(200, self.rfile.read(int(self.headers["content-length"])))

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Keep the output of the tests clean."""


@pytest.fixture(name="url")
def _url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_answer_of_any_status_is_a_reply(url: str) -> None:
    reply = request(url, timeout_seconds=60)
    assert (reply.status, reply.document) == (418, {})
    assert reply.excerpt == "I'm a teapot, short and stout"


def test_a_body_is_posted_as_json(url: str) -> None:
    assert request(url, body={"a": [1]}, timeout_seconds=60).document == {"a": [1]}


def test_proxies_of_the_environment_are_ignored(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert request(url, timeout_seconds=60).status == 418


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:1", "Nothing listens at 127.0.0.1:1."),
        ("http://no.such.host.invalid", "'no.such.host.invalid' cannot be resolved."),
        ("ftp://127.0.0.1", "cannot be reached"),
    ],
)
def test_a_server_that_cannot_be_reached_is_explained(url: str, words: str) -> None:
    with pytest.raises(UnreachableError, match=words):
        request(url, timeout_seconds=60)


@pytest.mark.parametrize(
    ("greeting", "words"),
    [(b"220 mail ready\r\n\r\n", "does not speak HTTP"), (b"", "did not answer within 0.3 s")],
)
def test_a_server_without_http_is_explained(greeting: bytes, words: str) -> None:
    def greet() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(greeting)
            connection.recv(1 << 16)
            connection.recv(1)  # until the caller gives up

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(UnreachableError, match=words):
            request(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_seconds=0.3)
        thread.join()
