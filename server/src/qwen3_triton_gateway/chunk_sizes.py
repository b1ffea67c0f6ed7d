"""The sizes that the chunks of a request's body announce."""

from __future__ import annotations

import re

CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}")
# Digits of the largest size that the parser accepts.
MAX_CHUNK_LINE = 32


class ChunkSizes:
    """What the chunks of a body announce; the parser does not tell it.

    Where a body does not begin as expected, its sizes are not read, and its bytes are counted when
    they arrive.
    """

    def __init__(self) -> None:
        self._announced = 0
        self._line = b""
        self._left = 0
        self._is_done = False

    def read(self, data: bytes) -> int:
        """Read on, and return the size that has been announced so far."""
        start = 0
        while not self._is_done and start < len(data):
            skipped = min(self._left, len(data) - start)
            self._left -= skipped
            start += skipped
            end = data.find(b"\n", start)
            stop = len(data) if end < 0 else end + 1
            if start < stop and not self._left:
                # The parser bounds extensions.
                self._line = (self._line + data[start:stop])[:MAX_CHUNK_LINE]
                start = stop
                if end >= 0:
                    self._begin_chunk()
        return self._announced

    def _begin_chunk(self) -> None:
        digits = CHUNK_SIZE.match(self._line)
        size = int(digits[0], 16) if digits else 0
        self._announced += size
        self._left = size + len(b"\r\n")
        self._is_done = not size
        self._line = b""
