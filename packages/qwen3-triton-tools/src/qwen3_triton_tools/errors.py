"""Errors of the tools.

ToolError
├── ModelError                    a model cannot be read, fetched, written or served
├── HttpError                     a server did not give a usable answer
│   ├── UnreachableError          it cannot be reached, or does not speak HTTP
│   ├── RefusedError              it answered with a status of 400 or above
│   └── InvalidAnswerError        its answer is not what was requested
└── LocalTritonError              the local Triton does not run
    ├── UnsupportedMachineError   this machine cannot run it at all
    ├── RuntimeInstallError       its files could not be installed
    ├── ModelFolderError          the model folder cannot be served
    └── LaunchError               the server did not start, or died
        └── PortInUseError        a port that the caller chose is taken
"""


class ToolError(Exception):
    """Base of every error that the tools raise on purpose; the message says what to do."""


class ModelError(ToolError):
    """A model cannot be read, fetched, written or served."""


class HttpError(ToolError):
    """A server did not give a usable answer."""


class UnreachableError(HttpError):
    """A server cannot be reached, or does not speak HTTP."""


class RefusedError(HttpError):
    """A server answered with a status of 400 or above."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status


class InvalidAnswerError(HttpError):
    """A server's answer is not what was requested."""


class LocalTritonError(ToolError):
    """The local Triton does not run."""


class UnsupportedMachineError(LocalTritonError):
    """The local Triton cannot run on this machine."""


class RuntimeInstallError(LocalTritonError):
    """The files of the local Triton could not be installed."""


class ModelFolderError(LocalTritonError):
    """The model folder has no ONNX file that Triton can serve."""


class LaunchError(LocalTritonError):
    """Triton did not become ready, or ended on its own."""


class PortInUseError(LaunchError):
    """A port that the caller chose is taken by another process."""

    def __init__(self, port: int, purpose: str) -> None:
        self.port = port
        super().__init__(
            f"Port {port} (`{purpose}`) is already in use. Stop the program that listens there, "
            "choose another port, or pass 0 to have a free one chosen."
        )
