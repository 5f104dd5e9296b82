"""Server-sent events: bytes to events and back (WHATWG HTML §9.2)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

COMMENT = b": keep-alive\n\n"
"""What keeps a held stream open; every client skips it."""

RETRY = b"retry: 1000\n\n"
"""Asks a client whose stream ends to come back in a second."""

_LAST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `event` is empty where the stream named none; `raw` is its bytes as received."""

    data: bytes
    event: bytes = b""
    id: bytes = b""
    raw: bytes = b""

    @property
    def is_comment(self) -> bool:
        """Carries nothing for the client's application: a comment, a lone id or retry."""
        return not self.data


class EventTooLargeError(ConnectionError):
    """An event grew past the parser's bound before it ended: its stream is given up."""


class EventParser:
    """Cuts a byte stream into events, however it was split. Comments come out as empty events.

    Lines end with CR, LF or both. A CR that is the last of what has come ends its line at
    once: nobody waits for the LF that may belong to it.
    """

    def __init__(self, limit: int = 16 * 1024 * 1024) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._after_cr = False
        self._limit = limit

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that `data` completes. Raises `EventTooLargeError` past the bound."""
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        buffer = self._buffer
        buffer += data
        while (found := _EMPTY_LINE.search(buffer, self._searched)) is not None:
            block = bytes(buffer[: found.end()])
            del found  # it holds the buffer, which could not shrink
            del buffer[: len(block)]
            self._searched = 0
            self._after_cr = not buffer and block.endswith(b"\r")
            yield _parse(block)
        self._searched = max(0, len(buffer) - 2)
        if len(buffer) > self._limit:
            raise EventTooLargeError(f"an event of more than {self._limit} bytes")


class Boundary:
    """Where a stream stands that is passed on unread: between two events, or within one.

    `last` is what came last, a little of it where that is much.
    """

    last = b"\n\n"

    def feed(self, data: bytes) -> None:
        size = len(data)
        if size > _LAST_BYTES:
            data = data[-_LAST_BYTES:]
        elif size < 4:  # the longest end of an event
            data = (self.last + data)[-_LAST_BYTES:]
        self.last = data

    @property
    def reached(self) -> bool:
        """Whether what has come is whole events, so that another can follow."""
        return _ENDS.search(self.last, max(0, len(self.last) - 4)) is not None


_ENDS = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)\Z")
_EMPTY_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")


def _parse(block: bytes) -> Event:
    data: list[bytes] = []
    name = ident = b""
    for line in block.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
        elif field == b"id":
            ident = value
    return Event(b"\n".join(data), name, ident, block)


def encode(data: bytes, event: bytes = b"message") -> bytes:
    """One event as bytes. Line ends inside `data` become lines of their own."""
    lines = b"".join(b"data: " + line + b"\n" for line in data.split(b"\n"))
    return b"event: " + event + b"\n" + lines + b"\n"


def retry(raw: bytes) -> float:
    """The seconds that an event's `retry:` line asks to wait before the next try; 0 for none."""
    for line in raw.splitlines():
        name, _, value = line.partition(b":")
        if name == b"retry" and value.strip().isdigit():
            return int(value.strip()) / 1000
    return 0.0
