"""Where a Triton is, and how to connect to it: the same settings for HTTP and gRPC."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ..errors import StartupError

SCHEMES = ("http", "https", "grpc", "grpcs")
# Reconnect within a second of Triton's return (gRPC's default backoff grows to two minutes), and
# notice a peer that hangs. Neither protocol uses a proxy of the environment, which gRPC would do by
# default. What is received has gRPC's default bound, which is `METADATA_BYTES`.
GRPC_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.enable_http_proxy", 0),
]
# What an answer may have that describes a server or a model.
METADATA_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class TritonAddress:
    """The address of a Triton.

    Attributes:
        scheme: `http`, `https`, `grpc` or `grpcs`.
        netloc: Host and port.
        path: What a proxy expects before `/v2`; empty, or with a leading slash.
        authorization: The `Authorization` header that its requests carry; empty without
            credentials. It is in no text form of an address.
        extra_headers: Further headers; in no text form either.
        ca_file: The certificates to trust instead of the system's, for TLS.
    """

    scheme: str
    netloc: str
    path: str = ""
    authorization: str = field(default="", repr=False)
    extra_headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    ca_file: Path | None = None

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.path}"

    @property
    def is_grpc(self) -> bool:
        return self.scheme.startswith("grpc")

    @property
    def is_secure(self) -> bool:
        return self.scheme in {"https", "grpcs"}

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every request to this Triton, for HTTP and gRPC."""
        own = {"authorization": self.authorization} if self.authorization else {}
        return {**own, **self.extra_headers}

    @classmethod
    def parse(cls, url: str) -> TritonAddress:
        """Parse a URL; without a scheme it is HTTP, as in the runbook.

        Raises:
            StartupError: The scheme is unknown, or there is no host, or the URL has a part that
                cannot be used, or the password contains characters that a URL must escape. The
                message shows no credentials.
        """
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            is_valid = parts.scheme in SCHEMES and bool(parts.hostname) and parts.port != 0
        except ValueError:  # its message may quote the URL
            raise _invalid_address(url, is_shown=False) from None
        # A `/`, `?` or `#` in a password ends the address: its `@` is then in the wrong part.
        if not is_valid or "@" in f"{parts.path}{parts.query}{parts.fragment}":
            raise _invalid_address(url, is_shown="@" not in url)
        credentials, _, netloc = parts.netloc.rpartition("@")
        address = cls(
            parts.scheme, netloc, parts.path.rstrip("/"), _basic_authorization(credentials)
        )
        if parts.query or parts.fragment:
            msg = f"TRITON_URL {address} is followed by a query or a fragment. Remove it."
            raise StartupError(msg)
        if address.path and address.is_grpc:
            msg = (
                f"TRITON_URL {address} has a path, which gRPC does not support. Use "
                f"{address.scheme}://{netloc}, or http:// with the path."
            )
            raise StartupError(msg)
        return address

    def with_options(self, headers: Mapping[str, str], ca_file: Path | None) -> TritonAddress:
        """Add headers to every request, and a file of certificates to trust.

        Raises:
            StartupError: A header cannot be sent by gRPC.
        """
        if self.is_grpc:
            headers = {name.lower(): value for name, value in headers.items()}
            for name in headers:
                if name.endswith("-bin") or name.startswith("grpc-"):
                    msg = (
                        f"EMBED_TRITON_HEADERS has {name!r}, a name that gRPC keeps for itself. "
                        f"Remove it, or use http:// for {self.netloc}."
                    )
                    raise StartupError(msg)
        return replace(self, extra_headers=headers, ca_file=ca_file)

    def open_client(self, answer_bytes: int = METADATA_BYTES) -> Any:
        """Create tritonclient's client, which is bound to the running event loop.

        Args:
            answer_bytes: What gRPC accepts as an answer; over HTTP, each call has its own bound.

        Raises:
            StartupError: The file of certificates is invalid.
        """
        if self.is_grpc:
            from tritonclient.grpc import aio as grpc_client

            return grpc_client.InferenceServerClient(
                self.netloc,
                creds=self.grpc_credentials(),
                channel_args=[*GRPC_OPTIONS, ("grpc.max_receive_message_length", answer_bytes)],
            )
        from .bounded_client import BoundedClient

        # Each call has its own deadline; the client's would be the same for all calls.
        return BoundedClient(
            self.netloc + self.path,
            ssl=self.is_secure,
            ssl_context=self.ssl_context() if self.is_secure else None,
            conn_timeout=24 * 3600.0,
            metadata_bytes=METADATA_BYTES,
        )

    def ssl_context(self) -> ssl.SSLContext:
        """Create the context of TLS connections to this Triton.

        Raises:
            StartupError: The file of certificates is invalid.
        """
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except (ssl.SSLError, OSError) as error:
            msg = (
                f"EMBED_TRITON_CA_FILE '{self.ca_file}' has no certificate in PEM format: {error}."
            )
            raise StartupError(msg) from None

    def grpc_credentials(self) -> Any:
        """Create gRPC's credentials for this Triton; None without TLS.

        Raises:
            StartupError: The file of certificates is invalid.
        """
        if not self.is_secure:
            return None
        import grpc

        self.ssl_context()  # gRPC would not say what is wrong with the file
        # gRPC comes with a list of its own; the system's is what HTTP uses.
        file = self.ca_file or ssl.get_default_verify_paths().cafile
        roots = Path(file).read_bytes() if file else None
        return grpc.ssl_channel_credentials(root_certificates=roots)


def _invalid_address(url: str, *, is_shown: bool) -> StartupError:
    """Build the error; it shows the URL only where no part can belong to a password."""
    shown = f"TRITON_URL {url!r}" if is_shown else "TRITON_URL"
    msg = f"{shown} is invalid. Use http://HOST:PORT or grpc://HOST:PORT."
    if not is_shown:
        msg += " PORT is a number; in a user name or password, percent-encode special characters."
    return StartupError(msg)


def _basic_authorization(credentials: str) -> str:
    if not credentials:
        return ""
    user, _, password = credentials.partition(":")
    pair = f"{unquote(user)}:{unquote(password)}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"
