"""`python -m demo`: from nothing to search hits, through a real Triton and a real PostgreSQL."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from demo.embedded_postgres import EmbeddedPostgresError
from demo.run import DemoError, run_demo
from demo.screen import Screen
from demo.stack import StackError
from qwen3_triton_tools.local_triton import LocalTritonError

_DESCRIPTION = (
    "Start Triton with the nano models, the gateway and PostgreSQL with pgvector, index 312 "
    "paragraphs with LangChain and LlamaIndex, ask questions, rerank what is found, and stop "
    "everything."
)
_EXPECTED_ERRORS = (DemoError, StackError, EmbeddedPostgresError, LocalTritonError)
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return 0 if it found enough, 1 if not, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="demo", description=_DESCRIPTION)
    parser.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C")
    parser.add_argument("--picture", metavar="FILE", help="save the output as an SVG picture")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(arguments)
    _stay_on_this_machine()
    for number in _STOP_SIGNALS:
        signal.signal(number, _interrupt_once)
    screen = Screen(record=options.picture is not None)
    try:
        run_demo(screen, keep=options.keep)
        if options.picture:
            screen.save_picture(Path(options.picture))
    except KeyboardInterrupt:
        print("Interrupted. Everything is stopped.", file=sys.stderr)
        return _EXIT_INTERRUPTED
    except Exception as error:
        if options.debug:
            raise
        print(f"\nThe demo failed. {_describe(error)}", file=sys.stderr)
        return 1
    return 0


def _stay_on_this_machine() -> None:
    """Turn off all telemetry, and keep proxies away from local addresses."""
    os.environ |= {
        "LANGSMITH_TRACING": "false",
        "LANGCHAIN_TRACING_V2": "false",
        "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime 1.31 sends events to its vendor
    }
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))


def _interrupt_once(_number: int, _frame: FrameType | None) -> None:
    # The first Ctrl-C stops everything in order; a second one would only disturb that.
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _describe(error: Exception) -> str:
    notes: list[str] = getattr(error, "__notes__", [])
    if isinstance(error, _EXPECTED_ERRORS):
        return "\n".join([str(error), *notes])
    hint = "Run it with --debug for the traceback."
    return "\n".join([f"{type(error).__name__}: {error}", *notes, hint])


if __name__ == "__main__":
    sys.exit(main())
