"""What an instance prints: a pipe, and its last lines kept."""

from __future__ import annotations

import asyncio
import os
from collections import deque

_LINES = 200
_LINE_BYTES = 2000


class Output:
    """Reads an instance's stdout and stderr, joined, and keeps the last lines."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._rest = b""
        self._read: int | None = None

    def open(self) -> int:
        """A descriptor for the instance to write to; the caller closes it after the start."""
        read, write = os.pipe()
        os.set_blocking(read, False)
        self._read = read
        asyncio.get_running_loop().add_reader(read, self._readable)
        return write

    def _readable(self) -> None:
        assert self._read is not None
        try:
            data = os.read(self._read, 65536)
        except BlockingIOError:
            return
        if not data:
            self.close()
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-_LINE_BYTES:]
        self._lines.extend(line[:_LINE_BYTES].decode(errors="replace") for line in lines)

    def tail(self, count: int = 20) -> list[str]:
        """The last `count` lines, an unfinished one included."""
        if self._read is not None:
            self._readable()
        rest = [self._rest.decode(errors="replace")] if self._rest else []
        return [*self._lines, *rest][-count:]

    def close(self) -> None:
        """Stop reading. What was read stays."""
        if self._read is not None:
            asyncio.get_running_loop().remove_reader(self._read)
            os.close(self._read)
            self._read = None
