"""Start, watch and stop one tritonserver."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Self

from ..errors import LaunchError, ModelFolderError, UnreachableError
from ..http import request
from .process import (
    Ports,
    SupervisedProcess,
    bracketed,
    choose_ports,
    is_port_clash,
    server_command,
)
from .repository import OpenVino, needs_openvino, write_repository
from .runtime import TritonRuntime, ensure_openvino, ensure_runtime

DEFAULT_MODEL_NAME = "qwen3-embedding"
_PORT_ATTEMPTS = 5
_LAST_SERVICE = b"Started Metrics Service"
_READY_PATH = "/v2/health/ready"
_METRICS_PATH = "/metrics"
# The Python backend passes the paths of a repository and of its stub to a shell, without quotation
# marks. Other paths are reached through links in a folder that has a plain one.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9._/@+=-]+")
_PLAIN_TEMPORARY_FOLDER = "/tmp"
# A killed server's sockets close within milliseconds; a busy machine may take longer.
_RESTART_PATIENCE_SECONDS = 5.0
# Its log has some kilobytes when it is ready, which is known by the last of its lines.
_MIN_LOG_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalReranker:
    """A reranker next to the model of a `LocalTriton`.

    Attributes:
        model_dir: The ONNX file, or a folder with one.
        model_name: Its name in Triton.
        digest: What identifies its weights, if they are those of another file.
    """

    model_dir: Path
    model_name: str
    digest: str | None = None


@dataclass(kw_only=True)
class LocalTriton:
    """A Triton server on this machine, for as long as this object or its process lives.

    It is ready inside a `with` block; `start`, `wait_ready` and `stop` do the same step by step. It
    can be restarted.

    Attributes:
        model_dir: A folder with the ONNX file to serve.
        model_repository: A complete model repository, in place of `model_dir`.
        model_name: The name of the model in `model_dir`.
        reranker: A second model, which runs as the one in `model_dir` does.
        host: The address to bind.
        http_port: 0 chooses a free port at the first start and keeps it; likewise the others.
        intra_op_threads: Threads that run the model, 0 for one per core.
        openvino: How OpenVINO runs the model in `model_dir`; by default, ONNX Runtime does.
        pooled_output: An output of that model with hidden states, which Triton pools.
        grace_seconds: How long requests and open connections may delay a stop.
        ready_timeout_seconds: How long it may take to become ready.
        log_path: Where the log is kept; by default it is removed by `stop`.
        runtime: The installed server; by default it is installed if necessary.
    """

    model_dir: Path | None = None
    model_repository: Path | None = None
    model_name: str = DEFAULT_MODEL_NAME
    reranker: LocalReranker | None = None
    host: str = "127.0.0.1"
    http_port: int = 0
    grpc_port: int = 0
    metrics_port: int = 0
    max_batch_size: int = 32
    instance_count: int = 1
    intra_op_threads: int = 0
    openvino: OpenVino | None = None
    pooled_output: str | None = None
    grace_seconds: int = 5
    ready_timeout_seconds: float = 120.0
    log_path: Path | None = None
    runtime: TritonRuntime | None = None

    _work_dir: Path | None = field(default=None, init=False, repr=False)
    # Zeros until the first server is ready: then its ports are kept for the later ones.
    _fixed_ports: Ports = field(init=False, repr=False)
    _ports: Ports | None = field(default=None, init=False, repr=False)
    _process: SupervisedProcess | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if (self.model_dir is None) == (self.model_repository is None):
            raise ValueError("Pass exactly one of `model_dir` and `model_repository`.")
        if self.reranker and (self.model_repository or self.reranker.model_name == self.model_name):
            raise ValueError("A `reranker` needs a `model_dir` next to it, of another name.")
        self._fixed_ports = Ports(self.http_port, self.grpc_port, self.metrics_port)

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of tritonserver; LaunchError if it was not started."""
        return self._started.pid

    @property
    def model_names(self) -> str:
        """The names of the models, for people."""
        return " and ".join(
            filter(None, [self.model_name, self.reranker and self.reranker.model_name])
        )

    @property
    def http_url(self) -> str:
        """`http://host:port`, as `TRITON_URL` takes it; final once the server is ready."""
        return f"http://{self._reachable_host}:{self._started_ports.http}"

    @property
    def grpc_url(self) -> str:
        """`grpc://host:port`, as `TRITON_URL` takes it; final once the server is ready."""
        return f"grpc://{self._reachable_host}:{self._started_ports.grpc}"

    @property
    def metrics_url(self) -> str:
        """Address of the Prometheus metrics; final once the server is ready."""
        return f"http://{self._reachable_host}:{self._started_ports.metrics}{_METRICS_PATH}"

    @property
    def log_file(self) -> Path:
        """The file with Triton's log."""
        return self.log_path or self._ensure_work_dir() / "triton.log"

    def start(self) -> None:
        """Start the server and return at once; `wait_ready` waits for it.

        Raises:
            PortInUseError: A port that the caller chose is taken.
            LocalTritonError: The runtime, the model folder or an address is not usable.
        """
        if self._process is not None:
            if self._process.poll() is None:
                raise LaunchError(f"Triton is already running as process {self._process.pid}.")
            self._process.stop()
        if self.runtime is None:
            self.runtime = ensure_runtime(lambda _sentence: None)
        patience = _RESTART_PATIENCE_SECONDS if self._ports else 0.0
        try:
            repository = self._prepare_repository()
            if needs_openvino(repository):
                ensure_openvino(self.runtime, lambda _sentence: None)
            self._ports = choose_ports(self.host, self._fixed_ports, patience_seconds=patience)
            self._spawn(self.runtime, repository, self._ports)
        except BaseException:
            self.stop()
            raise

    def poll(self) -> int | None:
        """Return None before and while the server runs, else its exit status."""
        return self._process.poll() if self._process else None

    @property
    def end_reason(self) -> str:
        """Why it was killed, in a sentence; empty if it still runs, or ended on its own."""
        return self._process.end_reason() if self._process else ""

    def wait(self, timeout_seconds: float | None = None) -> int:
        """Wait for its end and return the status: 128 + n for signal n.

        Raises:
            TimeoutError: It still runs after `timeout_seconds`.
        """
        return self._started.wait(timeout_seconds)

    def wait_ready(self, timeout_seconds: float | None = None) -> None:
        """Wait until the server and all its models are ready, `ready_timeout_seconds` by default.

        If another process takes a port that was chosen here, other ports are tried.

        Raises:
            PortInUseError: Another process took a port that the caller chose.
            LaunchError: The server ended, was not ready in time, or cannot write its log.
        """
        seconds = self.ready_timeout_seconds if timeout_seconds is None else timeout_seconds
        deadline = time.monotonic() + seconds
        attempts = 1
        pause = 0.02
        while not self._is_ready():
            if self._started.poll() is not None:
                attempts += 1
                self._restart_on_other_ports(attempts)
            elif shutil.disk_usage(self.log_file.parent).free < _MIN_LOG_BYTES:
                raise LaunchError(
                    f"Triton cannot write its log: the disk of {self.log_file.parent} is full. "
                    "Free some space, or set TMPDIR to a folder on another disk."
                )
            elif time.monotonic() >= deadline:
                tail = self._started.log_tail()
                raise LaunchError(f"Triton was not ready after {seconds:g} s.\n{tail}")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.25)
        self._fixed_ports = self._started_ports

    def stop(self) -> None:
        """Stop the server and its stubs, and remove its log; does nothing if it was not started."""
        if self._process is not None:
            self._process.stop()
            self._process = None
        if self._work_dir is not None:
            shutil.rmtree(self._work_dir, ignore_errors=True)
            self._work_dir = None

    @property
    def _reachable_host(self) -> str:
        return bracketed({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host))

    @property
    def _started(self) -> SupervisedProcess:
        if self._process is None:
            raise LaunchError("Triton was not started.")
        return self._process

    @property
    def _started_ports(self) -> Ports:
        if self._ports is None:
            raise LaunchError("Triton was not started, so it has no address yet.")
        return self._ports

    def _ensure_work_dir(self) -> Path:
        if self._work_dir is None:
            parent = tempfile.gettempdir()
            parent = parent if _PLAIN_PATH.fullmatch(parent) else _PLAIN_TEMPORARY_FOLDER
            self._work_dir = Path(tempfile.mkdtemp(prefix="qwen3-triton-", dir=parent))
        return self._work_dir

    def _prepare_repository(self) -> Path:
        if self.model_repository is not None:
            if not self.model_repository.is_dir():
                raise ModelFolderError(f"There is no model repository at {self.model_repository}.")
            return self._plain(self.model_repository.absolute(), "repository")
        assert self.model_dir is not None
        repository = self._ensure_work_dir() / "repository"
        write = partial(
            write_repository,
            repository=repository,
            max_batch_size=self.max_batch_size,
            instance_count=self.instance_count,
            intra_op_threads=self.intra_op_threads,
            openvino=self.openvino,
        )
        write(self.model_dir, model_name=self.model_name, pooled_output=self.pooled_output)
        if self.reranker:
            second = self.reranker
            write(second.model_dir, model_name=second.model_name, digest=second.digest)
        return repository

    def _plain(self, folder: Path, name: str) -> Path:
        """Return a folder, or a link to it where its path needs quotation marks in a shell."""
        if _PLAIN_PATH.fullmatch(str(folder)):
            return folder
        link = self._ensure_work_dir() / name
        if not link.is_symlink():
            link.symlink_to(folder)
        return link

    def _spawn(self, runtime: TritonRuntime, repository: Path, ports: Ports) -> None:
        prefix = f"qwen3triton{os.getpid()}x{secrets.token_hex(4)}"
        runtime = TritonRuntime(self._plain(runtime.folder, "runtime"))
        command = server_command(
            runtime,
            repository=repository,
            host=self.host,
            ports=ports,
            shm_prefix=prefix,
            exit_timeout_seconds=self.grace_seconds,
            complete_config=self.model_repository is not None,
        )
        self._process = SupervisedProcess(
            command,
            environment=runtime.environment(),
            log_file=self.log_file,
            shm_prefix=prefix,
            work_dir=self._work_dir,
            # SIGKILL comes a second after Triton's own deadline.
            grace_seconds=self.grace_seconds + 1,
        )

    def _is_ready(self) -> bool:
        # Without this line in its log, it may be another server that answers at the port.
        if self._started.poll() is not None or _LAST_SERVICE not in self._started.log():
            return False
        # Triton logs that it started its metrics before it tries to, so they are requested too.
        return (
            answers_ok(self.http_url + _READY_PATH)
            and answers_ok(self.metrics_url)
            and not is_port_clash(self._started.log_tail(), self._fixed_ports)
        )

    def _restart_on_other_ports(self, attempt: int) -> None:
        """Restart if the server ended because another process took one of the chosen ports."""
        tail = self._started.log_tail()
        if not is_port_clash(tail, self._fixed_ports):
            raise LaunchError(f"Triton ended with status {self.poll()}.\n{tail}")
        if attempt > _PORT_ATTEMPTS:
            raise LaunchError(f"No free ports after {_PORT_ATTEMPTS} attempts.\n{tail}")
        self.start()


def answers_ok(url: str, *, timeout_seconds: float = 1.0) -> bool:
    """Return whether `GET url` is answered with 200."""
    try:
        return request(url, timeout_seconds=timeout_seconds).status == HTTPStatus.OK
    except UnreachableError:
        return False
