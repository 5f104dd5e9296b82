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
_BUDGET = 1024**2
_EVERY = 0.1


class Output:
    """Reads an instance's stdout and stderr, joined, and keeps the last lines.

    At most `_BUDGET` bytes are read in `_EVERY` seconds: one that prints more waits at its full
    pipe, and does not keep the loop that serves everybody.
    """

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._rest = b""
        self._read: int | None = None
        self._left = _BUDGET
        self._refill: asyncio.TimerHandle | None = None

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
        if not data:
            self.close()
            return
        self._take(data)
        self._spend(self._read, len(data))

    def _spend(self, read: int, count: int) -> None:
        self._left -= count
        loop = asyncio.get_running_loop()
        if self._refill is None:
            self._refill = loop.call_later(_EVERY, self._again)
        if self._left <= 0:
            loop.remove_reader(read)

    def _again(self) -> None:
        self._refill = None
        paused, self._left = self._left <= 0, _BUDGET
        if paused and self._read is not None:
            asyncio.get_running_loop().add_reader(self._read, self._readable)

    def _take(self, data: bytes) -> None:
        # Lines that would be pushed out at once are never made.
        *lines, self._rest = (self._rest + data).rsplit(b"\n", _LINES + 1)
        if len(lines) > _LINES:
            del lines[0]
        self._rest = self._rest[-_LINE_BYTES:]
        self._lines.extend(line[:_LINE_BYTES].decode(errors="replace") for line in lines)

    def tail(self, count: int = 20) -> list[str]:
        """The last `count` lines, an unfinished one included."""
        if self._read is not None and self._left > 0:
            self._readable()
        rest = [self._rest.decode(errors="replace")] if self._rest else []
        return [*self._lines, *rest][-count:]

    def close(self) -> None:
        """Stop reading, after what the pipe still holds. What was read stays."""
        if self._read is None:
            return
        read, self._read = self._read, None
        asyncio.get_running_loop().remove_reader(read)
        if self._refill is not None:
            self._refill.cancel()
        with contextlib.suppress(BlockingIOError):
            for _ in range(_LAST_READS):
                if not (data := os.read(read, _READ)):
                    break
                self._take(data)
        os.close(read)
