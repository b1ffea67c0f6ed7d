"""A hub on this machine: the part of the Hugging Face hub's interface that its library asks.

A repository is a folder of files in memory. Files above a size are in large storage, as the hub's
are: their digest is sha256, and their URL redirects to another path.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c96cc9c8" + "0" * 32
LARGE_BYTES = 1000


@dataclass
class FakeHub:
    """Repositories by name; `cuts` is after how many bytes the next downloads are interrupted.

    A download that is requested after the last cut is answered with 500 if `down` is set.
    `ranges` are the Range headers of the downloads, in their order.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict[str, dict[str, bytes]])
    gated: dict[str, int] = field(default_factory=dict[str, int])
    cuts: list[int] = field(default_factory=list[int])
    down: bool = False
    corrupt: set[str] = field(default_factory=set[str])
    ranges: list[str] = field(default_factory=list[str])
    downloads: list[str] = field(default_factory=list[str])
    url: str = ""

    def describe(self, repo: str) -> dict[str, Any]:
        siblings = [_sibling(path, content) for path, content in self.repos[repo].items()]
        return {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}


def _sibling(path: str, content: bytes) -> dict[str, Any]:
    sibling: dict[str, Any] = {"rfilename": path, "size": len(content)}
    if len(content) >= LARGE_BYTES:
        digest = hashlib.sha256(content).hexdigest()
        sibling["lfs"] = {"size": len(content), "sha256": digest, "pointerSize": 134}
    else:
        blob = b"blob %d\0" % len(content) + content
        sibling["blobId"] = hashlib.sha1(blob).hexdigest()
    return sibling


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/models/"):
            self._describe(path.removeprefix("/api/models/"))
        elif "/resolve/" in path:
            repo, _, rest = path[1:].partition("/resolve/")
            self._download(repo, rest.partition("/")[2])
        elif path.startswith("/large/"):
            owner, name, rest = path.removeprefix("/large/").split("/", 2)
            self._send(f"{owner}/{name}", rest)
        else:
            self._refuse(404, "EntryNotFound")

    def _describe(self, rest: str) -> None:
        repo, _, revision = rest.partition("/revision/")
        if repo not in self.hub.repos:
            self._refuse(404, "RepoNotFound")
        elif revision not in ("", "main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        else:
            self._answer(200, json.dumps(self.hub.describe(repo)).encode())

    def _download(self, repo: str, path: str) -> None:
        if repo in self.hub.gated:
            self._refuse(self.hub.gated[repo], "GatedRepo")
        elif len(self.hub.repos[repo][path]) >= LARGE_BYTES:
            self.send_response(302)
            self.send_header("location", f"{self.hub.url}/large/{repo}/{path}")
            self.send_header("content-length", "0")
            self.end_headers()
        else:
            self._send(repo, path)

    def _send(self, repo: str, path: str) -> None:
        content = self.hub.repos[repo][path]
        self.hub.downloads.append(path)
        byte_range = self.headers.get("range", "")
        self.hub.ranges.append(byte_range)
        if path in self.hub.corrupt:
            content = bytes(len(content))
        start = int(byte_range.removeprefix("bytes=").rstrip("-")) if byte_range else 0
        headers = {"etag": '"x"', "x-repo-commit": COMMIT, "accept-ranges": "bytes"}
        if byte_range:
            headers["content-range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if len(content) >= LARGE_BYTES and self.hub.cuts:
            self._answer(
                206 if byte_range else 200, content[start:], headers, cut=self.hub.cuts.pop(0)
            )
        elif len(content) >= LARGE_BYTES and self.hub.down:
            self._refuse(500, "")
        else:
            self._answer(206 if byte_range else 200, content[start:], headers)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, b"{}", {"x-error-code": code} if code else {})

    def _answer(
        self,
        status: int,
        content: bytes,
        headers: dict[str, str] | None = None,
        *,
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:cut])
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Keep the tests' output clean."""


@contextmanager
def serving_hub() -> Generator[FakeHub]:
    """Serve an empty hub on a free port."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
