"""What tritonclient, aiohttp and gRPC raise, as the gateway's errors.

Between the gateway and Triton there may be a proxy, whose answers are not Triton's: whatever their
status, Triton has not refused anything, so another replica may be asked, or the same one later.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any

import aiohttp
from tritonclient.utils import InferenceServerException

from ..errors import (
    AnswerTooLargeError,
    BackendError,
    BackendUnavailableError,
    DeadlineExceededError,
    EmbeddingServerError,
    InsufficientMemoryError,
    StartupError,
)
from ..run_memory import SHORTAGE
from .address import TritonAddress

# Statuses that say nothing about the request, whoever sends them.
AWAY = {"401", "403", "404", "407", "408", "429", "502", "503", "504"} | {
    *("UNAVAILABLE", "CANCELLED", "UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"),
    *("RESOURCE_EXHAUSTED", "ABORTED"),
}
HTTP_NAMES = {str(status.value): f"{status.value} {status.phrase}" for status in HTTPStatus}
HEADERS_NEEDED = {"401", "403", "407", "UNAUTHENTICATED", "PERMISSION_DENIED"}
# tritonclient's words for a body that is not Triton's JSON (checked on 2.73).
NOT_TRITON = "an exception occurred in the client while decoding"
# gRPC's words for an HTTP response that is not gRPC (checked on grpcio 1.85).
NOT_GRPC = re.compile(r"http2 header with status: (\d+)")
HTTP_1 = "http1.x server"
# Words of Triton's Python backend whose own process for the model was paused or has ended
# (checked on 24.10).
PROCESS_LOST = re.compile(r"Stub process .*is not healthy|Failed to obtain the health mutex")
# gRPC's words for an answer beyond `grpc.max_receive_message_length` (checked on grpcio 1.85).
TOO_LARGE = re.compile(r"larger than max \(\d+ vs\. (\d+)\)")


def translate(error: Exception, address: TritonAddress) -> EmbeddingServerError:
    """Map an error of a call to the gateway's own."""
    if isinstance(error, EmbeddingServerError):
        return error
    if isinstance(error, (aiohttp.ClientError, OSError)):
        msg = f"Triton at {address} does not answer ({type(error).__name__})."
        if isinstance(error, aiohttp.ClientSSLError):
            msg = _describe_tls(error, address)
        return BackendUnavailableError(msg)
    if isinstance(error, InferenceServerException):
        return _translate_reply(*_status_and_message(error), address)
    return BackendError(f"Triton's response cannot be read: {error!r}.")


def _translate_reply(status: str, message: str, address: TritonAddress) -> EmbeddingServerError:
    if status == "DEADLINE_EXCEEDED" or "timeout expired" in message.lower():
        return DeadlineExceededError(f"Triton at {address} dropped the batch: {message}")
    too_large = TOO_LARGE.search(message)
    if status == "RESOURCE_EXHAUSTED" and too_large:
        return AnswerTooLargeError(int(too_large[1]))
    foreign = NOT_GRPC.search(message)
    status = foreign[1] if foreign else status
    is_foreign = bool(foreign) or message.startswith(NOT_TRITON)
    if status in AWAY or is_foreign:
        return BackendUnavailableError(_describe_away(status, message, address, is_foreign))
    if PROCESS_LOST.search(message):
        msg = f"Triton at {address} has lost the process that runs the model: {message}"
        return BackendUnavailableError(msg)
    if "not at ready state" in message or "unknown model" in message:
        return BackendUnavailableError(f"Triton at {address} is not ready: {message}")
    return _describe_refusal(message)


def translate_at_start(error: Exception, address: TritonAddress) -> EmbeddingServerError:
    """Map an error of the first calls: what waiting cannot fix ends the start."""
    if isinstance(error, aiohttp.ClientResponseError) and "status line" in error.message:
        msg = (
            f"TRITON_URL {address} does not speak HTTP. If it is Triton's gRPC port, use "
            f"grpc{'s' if address.is_secure else ''}://{address.netloc}."
        )
        return StartupError(msg)
    if isinstance(error, InferenceServerException) and HTTP_1 in _status_and_message(error)[1]:
        msg = (
            f"TRITON_URL {address} does not speak gRPC. If it is Triton's HTTP port, use "
            f"http{'s' if address.is_secure else ''}://{address.netloc}."
        )
        return StartupError(msg)
    translated = translate(error, address)
    if isinstance(translated, DeadlineExceededError):
        return BackendUnavailableError(translated.message)
    if isinstance(translated, BackendError):
        message = translated.message.removeprefix("Triton refused the batch: ")
        return StartupError(f"Triton at {address} does not describe the model: {message}")
    return translated


def _status_and_message(error: InferenceServerException) -> tuple[str, str]:
    reply: Any = error
    return str(reply.status()).removeprefix("StatusCode."), str(reply.message())


def _describe_refusal(message: str) -> BackendError:
    shortage = SHORTAGE.search(message)
    if shortage is None:
        return BackendError(f"Triton refused the batch: {message}")
    msg = (  # of the local Triton
        f"{shortage[0]} Send shorter texts, lower EMBED_MAX_LENGTH or RERANK_MAX_LENGTH so that "
        "they are truncated, or give Triton more memory."
    )
    return InsufficientMemoryError(msg)


def _describe_away(status: str, message: str, address: TritonAddress, is_foreign: bool) -> str:
    shown = HTTP_NAMES.get(status, status)
    if is_foreign:
        text = f"A proxy in front of Triton at {address} answered {shown}."
    elif status in HEADERS_NEEDED or "restricted" in message:
        text = f"Triton at {address} answered {shown}: {message}."
    else:
        text = f"Triton at {address} is not ready: {message}"
    if status in HEADERS_NEEDED or "restricted" in message:
        text += " Set what it asks for in EMBED_TRITON_HEADERS."
    return text


def _describe_tls(error: aiohttp.ClientSSLError, address: TritonAddress) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause: Any = error.certificate_error
        reason = getattr(cause, "verify_message", "") or cause
        return (
            f"The certificate of Triton at {address} is not trusted: {reason}. Set "
            "EMBED_TRITON_CA_FILE to the certificate of its authority."
        )
    return f"Triton at {address} does not speak TLS. Use http:// or grpc:// if it is not meant to."
