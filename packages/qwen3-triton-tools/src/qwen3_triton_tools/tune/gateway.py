"""A gateway in a child process with the settings of a candidate, and the load that measures it."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from qwen3_triton_gateway.settings import Settings

from ..errors import ToolError
from ..local_triton.process import SupervisedProcess
from ..verify.cards import Float64Matrix
from .machine import resident_bytes
from .texts import QUERY, chunks

CALLERS, TEXTS_PER_REQUEST = 8, 8
# A model of many gigabytes from a cold disk; Ctrl-C ends it earlier.
START_SECONDS = 900.0
STOP_SECONDS = 10.0
SIGNALED = 128  # exit statuses above are of processes that a signal ended
POLL_SECONDS = 0.05
# The slowest candidate has 64 texts of up to 600 tokens in the queue.
REQUEST_SECONDS = 900.0
LISTENING = re.compile(r"running on (http://[\d.]+:\d+)")
ERROR_LINE = re.compile(r"^Error: (.*)", re.MULTILINE)
SETTINGS = {str(field.validation_alias) for field in Settings.model_fields.values()}
# On a free port, without what a gateway does for a load balancer.
OWN_SETTINGS = {
    "EMBED_HOST": "127.0.0.1",
    "EMBED_PORT": "0",
    "EMBED_SHUTDOWN_DELAY_S": "0",
    "EMBED_TIMEOUT_S": f"{REQUEST_SECONDS:g}",
}


class CandidateError(ToolError):
    """A candidate does not start, or ends or fails while it is measured."""


@dataclass(frozen=True, slots=True)
class Pass:
    """All texts, once or several times, through a gateway."""

    texts_per_second: float
    tokens_per_text: float
    vectors: Float64Matrix


class CandidateGateway:
    """`qwen3-triton serve` in a process of its own: its memory is counted, and freed at the end.

    It ends with this process, even if that is killed.

    Attributes:
        start_seconds: From the start of the process until it answers.
    """

    def __init__(self, settings: Mapping[str, str], on_progress: Callable[[], None]) -> None:
        """Prepare to start.

        Args:
            settings: The variables; those of this process's environment do not count.
            on_progress: Called often.
        """
        self._settings = settings
        self._on_progress = on_progress
        self._process: SupervisedProcess | None = None
        self._url = ""
        self._client: httpx2.AsyncClient | None = None
        self.start_seconds = 0.0

    @property
    def is_running(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def memory_bytes(self) -> int | None:
        return resident_bytes(self._process.pid) if self._process else None

    async def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            CandidateError: It ends instead, with its own reason.
        """
        began = time.monotonic()
        self._process = self._spawn()
        # The certificates, which take longer to load than a request, are not used for http.
        self._client = httpx2.AsyncClient(trust_env=False, verify=False, timeout=REQUEST_SECONDS)
        while not await self._is_ready():
            if time.monotonic() - began > START_SECONDS:
                raise CandidateError(f"It did not start within {START_SECONDS:g} s.")
            self._check_alive()
            self._on_progress()
            await asyncio.sleep(POLL_SECONDS)
        self.start_seconds: float = time.monotonic() - began

    def terminate(self) -> None:
        """Ask the process to end; `stop` waits for it."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)

    async def stop(self) -> None:
        """End the process, by force if it does not end by itself."""
        client, self._client = self._client, None
        process, self._process = self._process, None
        try:
            if client is not None:
                await client.aclose()
        finally:
            if process is not None:
                process.stop()
                shutil.rmtree(process.log_file.parent, ignore_errors=True)

    async def embed(self, texts: Sequence[str], *, passes: int = 1) -> Pass:
        """Embed all texts as several callers do, each with its next request after an answer.

        Raises:
            CandidateError: A request is not answered.
        """
        parts = list(enumerate(chunks(texts, TEXTS_PER_REQUEST)))
        left = iter(parts * passes)
        answers: dict[int, dict[str, Any]] = {}

        async def caller() -> None:
            for number, part in left:
                answers[number] = await self._post({"texts": part})

        began = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(CALLERS):
                    group.create_task(caller())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        seconds = time.perf_counter() - began
        ordered = [answers[number] for number, _ in parts]
        vectors = [_decode(vector) for answer in ordered for vector in answer["embeddings"]]
        tokens = sum(answer["usage"]["prompt_tokens"] for answer in ordered)
        return Pass(
            texts_per_second=len(texts) * passes / seconds,
            tokens_per_text=tokens / len(texts),
            vectors=np.array(vectors, dtype=np.float64),
        )

    async def time_queries(self, count: int) -> float:
        """Return the median milliseconds of short queries, one after the other.

        Raises:
            CandidateError: One is not answered.
        """
        seconds: list[float] = []
        for number in range(count):
            began = time.perf_counter()
            await self._post({"texts": [f"{QUERY} {number}"], "input_type": "query"})
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds) * 1000

    async def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        assert self._client is not None, "start() comes first"
        try:
            answer = await self._client.post(
                f"{self._url}/embed", json=body | {"encoding_format": "base64"}
            )
        except httpx2.HTTPError as error:
            self._check_alive()
            reason = str(error) or type(error).__name__
            raise CandidateError(f"A request was not answered: {reason}.") from None
        self._on_progress()
        if answer.status_code != HTTPStatus.OK:
            raise CandidateError(f"HTTP {answer.status_code}: {answer.text[:200]}")
        return answer.json()

    def _spawn(self) -> SupervisedProcess:
        if sys.platform == "win32":
            raise CandidateError("`tune` runs on Linux and macOS. On Windows, use WSL.")
        folder = Path(tempfile.mkdtemp(prefix="qwen3-triton-tune-"))
        environment = {key: value for key, value in os.environ.items() if key not in SETTINGS}
        return SupervisedProcess(
            [sys.executable, "-m", "qwen3_triton_gateway", "serve"],
            environment=environment | dict(self._settings) | OWN_SETTINGS,
            log_file=folder / "gateway.log",
            shm_prefix=folder.name,
            work_dir=folder,
            grace_seconds=STOP_SECONDS,
        )

    async def _is_ready(self) -> bool:
        assert self._client is not None
        found = LISTENING.search(self._read_log())
        if not found:
            return False
        self._url = found[1]
        with suppress(httpx2.HTTPError):
            answer = await self._client.get(f"{self._url}/health/ready")
            return answer.status_code == HTTPStatus.OK
        return False

    def _check_alive(self) -> None:
        """Raise an error with the gateway's own reason if it has ended."""
        assert self._process is not None
        status = self._process.poll()
        if status is None:
            return
        if reasons := ERROR_LINE.findall(self._read_log()):
            raise CandidateError(reasons[-1])
        if status > SIGNALED:
            number = status - SIGNALED
            raise CandidateError(f"It was killed by signal {number}; was there enough memory?")
        raise CandidateError(f"It ended with status {status}: {self._read_log().strip()[-200:]}")

    def _read_log(self) -> str:
        return self._process.log().decode(errors="replace") if self._process else ""


def _decode(text: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.frombuffer(base64.b64decode(text), dtype="<f4")
