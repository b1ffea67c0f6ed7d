"""What can go wrong with a local Triton.

LocalTritonError
├── UnsupportedMachineError   this machine cannot run it at all
├── RuntimeInstallError       its files could not be installed
├── ModelFolderError          the model folder cannot be served
└── LaunchError               the server did not start, or died
    └── PortInUseError        a port that the caller asked for is taken
"""


class LocalTritonError(Exception):
    """Base of everything that this package raises on purpose; the message says what to do."""


class UnsupportedMachineError(LocalTritonError):
    """The local Triton cannot run on this machine."""


class RuntimeInstallError(LocalTritonError):
    """The files of the local Triton could not be installed."""


class ModelFolderError(LocalTritonError):
    """The model folder has no ONNX file that Triton can serve."""


class LaunchError(LocalTritonError):
    """Triton did not become ready, or ended by itself."""


class PortInUseError(LaunchError):
    """A port that the caller asked for is taken by another process."""

    def __init__(self, port: int, purpose: str) -> None:
        self.port = port
        super().__init__(
            f"port {port} (`{purpose}`) is already in use: stop what listens there, "
            "give another number, or 0 to have a free port chosen"
        )
