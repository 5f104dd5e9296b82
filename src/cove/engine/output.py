"""What an instance prints: a pipe, and its last lines kept."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque

_LINES = 200
_LINE_BYTES = 2000
_READ = 65536
_LAST_READS = 32  # a pipe holds a MiB at most, where nobody goes on writing


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
            data = os.read(self._read, _READ)
        except BlockingIOError:
            return
        if data:
            self._take(data)
        else:
            self.close()

    def _take(self, data: bytes) -> None:
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
        """Stop reading, after what the pipe still holds. What was read stays."""
        if self._read is None:
            return
        read, self._read = self._read, None
        asyncio.get_running_loop().remove_reader(read)
        with contextlib.suppress(BlockingIOError):
            for _ in range(_LAST_READS):
                if not (data := os.read(read, _READ)):
                    break
                self._take(data)
        os.close(read)
