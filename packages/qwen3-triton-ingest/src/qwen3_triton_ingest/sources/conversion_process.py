"""The process that reads files for `conversion`: one after the other, within bounds."""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from importlib import import_module
from typing import Any, BinaryIO

from ..config import ReadOptions
from ..documents import BadRecord, Document
from .conversion import (
    DATA_PAGES,
    HEADER,
    RESIDENT_PAGES,
    Done,
    Request,
    Started,
    memory_bytes,
    too_much_memory,
)
from .formats import FORMATS, how_to_install, read_file
from .text_files import Extracted
from .values import UnreadableError, reader_failure

_WATCH_SECONDS = 1.0
# Records are sent in messages of about this size.
_MESSAGE_CHARACTERS = 1 << 20
_MESSAGE_RECORDS = 256
# Files in an archive may take long, and the bound of time is that of one of them.
_MESSAGE_SECONDS = 1.0
# On top of the bound of the parent, whose clock is not that of the processor.
_EXTRA_SECONDS = 10


def main() -> None:
    """Read files until the parent process ends."""
    parent, folder = int(sys.argv[1]), sys.argv[2]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(parent, folder), daemon=True).start()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # If memory runs out, this process is the one to end, not the loader.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    # What libraries print must not get between the messages.
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    _send(answers, Started())
    while header := requests.read(HEADER.size):
        request: Request = pickle.loads(requests.read(HEADER.unpack(header)[0]))
        _limit(request)
        _send(answers, Started(memory_bytes(os.getpid(), RESIDENT_PAGES)))
        done = _answer(request, answers)
        _set_soft_limit(resource.RLIMIT_DATA, resource.RLIM_INFINITY)
        _send(answers, done)
    _remove(folder)


def _watch(parent: int, folder: str) -> None:
    """End this process with its parent, in whichever way that ends."""
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    _remove(folder)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # with the converters that it has started
    os._exit(1)


def _remove(folder: str) -> None:
    """Remove the folder for temporary files, as the parent would have done."""
    shutil.rmtree(folder, ignore_errors=True)


def _answer(request: Request, answers: BinaryIO) -> Done:
    problem = encoding = None
    records = read_file(request.shard, request.file, request.options, request.dimensions)
    try:
        if request.folder is not None:
            os.chdir(request.folder)
        for message in _messages(records):
            _send(answers, message)
            _limit_time(request.options)  # as in the parent, for each message
            encoding = message[-1].encoding if isinstance(message[-1], Extracted) else None
    except UnreadableError as error:
        problem = str(error)
    except MemoryError:
        problem = too_much_memory(request.options.max_convert_bytes)
    except ImportError as error:
        install = how_to_install(request.shard.kind)
        problem = f"Reading it needs the module `{error.name}`: {install}."
    except OSError as error:
        problem = f"Cannot be read: {error.strerror or error}."
    except Exception as error:  # whatever a library raises concerns this file only
        problem = reader_failure(error)
    return Done(problem, encoding, memory_bytes(os.getpid(), RESIDENT_PAGES))


def _messages(
    records: Iterator[Document | BadRecord | Extracted],
) -> Iterator[list[Document | BadRecord | Extracted]]:
    message: list[Document | BadRecord | Extracted] = []
    characters = 0
    begin = time.monotonic()
    try:
        for record in records:
            message.append(record)
            characters += 0 if isinstance(record, BadRecord) else len(record.text)
            is_late = time.monotonic() - begin > _MESSAGE_SECONDS
            if is_late or characters >= _MESSAGE_CHARACTERS or len(message) >= _MESSAGE_RECORDS:
                yield message
                message, characters = [], 0
                begin = time.monotonic()
    except Exception:
        if message:
            yield message  # what was read before
        raise
    if message:
        yield message


def _send(answers: BinaryIO, message: Any) -> None:
    data = pickle.dumps(message)
    answers.write(HEADER.pack(len(data)))
    answers.write(data)
    answers.flush()


def _limit(request: Request) -> None:
    """Let allocations beyond the bounds fail, and the kernel end what the parent does not."""
    library = FORMATS[request.shard.kind].library
    if library:
        import_module(library)  # what it reserves is not the file's
    if data_bytes := memory_bytes(os.getpid(), DATA_PAGES):
        _set_soft_limit(resource.RLIMIT_DATA, data_bytes + request.options.max_convert_bytes)
    _limit_time(request.options)


def _limit_time(options: ReadOptions) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = used.ru_utime + used.ru_stime + options.max_convert_seconds
    _set_soft_limit(resource.RLIMIT_CPU, int(seconds) + _EXTRA_SECONDS)


def _set_soft_limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    is_above = hard != resource.RLIM_INFINITY and not 0 <= value <= hard
    resource.setrlimit(kind, (hard if is_above else value, hard))


if __name__ == "__main__":
    main()
