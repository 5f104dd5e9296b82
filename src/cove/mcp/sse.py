"""Server-sent events: bytes to events and back (WHATWG HTML §9.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

COMMENT = b": keep-alive\n\n"
"""What keeps a held stream open; every client skips it."""


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


class EventTooLargeError(Exception):
    """An event grew past the parser's bound before it ended."""


class EventParser:
    """Cuts a byte stream into events, however it was split. Comments come out as empty events."""

    def __init__(self, limit: int = 16 * 1024 * 1024) -> None:
        self._buffer = b""
        self._limit = limit

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that `data` completes. Raises `EventTooLargeError` past the bound."""
        buffer = self._buffer + data
        while True:
            end, skip = _boundary(buffer)
            if end < 0:
                break
            block, buffer = buffer[: end + skip], buffer[end + skip :]
            yield _parse(block)
        self._buffer = buffer
        if len(buffer) > self._limit:
            raise EventTooLargeError


def _boundary(buffer: bytes) -> tuple[int, int]:
    """Where the first empty line begins and how long its line ends are; (-1, 0) for none."""
    best, skip = -1, 0
    for mark in (b"\n\n", b"\r\n\r\n", b"\r\r"):
        at = buffer.find(mark)
        if at >= 0 and (best < 0 or at < best):
            best, skip = at, len(mark)
    return best, skip


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
