"""WebSocket frames as they pass, unread: where one ends, and the one that closes (RFC 6455 §5)."""

from __future__ import annotations

GOING_AWAY = 1001
INTERNAL_ERROR = 1011

_CLOSE = 0x8
_REASON_BYTES = 123
_MOST = 8192  # in one read: beyond, to count them costs more than they are worth


class Frames:
    """Follows one direction of a connection from frame to frame.

    `closed`: a Close frame has begun, after which nothing may follow (§5.5.1).
    """

    __slots__ = ("_head", "_left", "_lost", "closed")

    def __init__(self) -> None:
        self._head = b""
        self._left = 0
        self._lost = False
        self.closed = False

    def feed(self, data: bytes) -> None:
        """Bytes as they come, however frames are split."""
        if self._lost:
            return
        if self._left >= len(data):
            self._left -= len(data)
            return
        if self._head:
            data, self._head = self._head + data, b""
        at, size = self._left, len(data)
        for _ in range(_MOST):
            whole = _size(data, at)
            if whole is None:
                self._head, at = data[at:], size
                break
            self.closed = self.closed or data[at] & 0x0F == _CLOSE
            at += whole
            if at >= size:
                break
        else:
            self._lost = True
        self._left = max(0, at - size)

    @property
    def between(self) -> bool:
        """Whether what has come ends with a whole frame."""
        return not (self._left or self._head or self._lost)


def _size(data: bytes, at: int) -> int | None:
    """The bytes of the frame at `at`, head and payload; None while its head is not whole."""
    head = 2
    if len(data) - at < head:
        return None
    length = data[at + 1] & 0x7F
    if length > 125:
        head = 4 if length == 126 else 10
        if len(data) - at < head:
            return None
        length = int.from_bytes(data[at + 2 : at + head], "big")
    masked = 4 if data[at + 1] & 0x80 else 0
    return head + masked + length


def close(code: int, reason: str) -> bytes:
    """A server's Close frame. `reason` is cut to what a control frame holds (§5.5)."""
    said = reason.encode()[:_REASON_BYTES].decode(errors="ignore").encode()
    return bytes((0x80 | _CLOSE, len(said) + 2)) + code.to_bytes(2, "big") + said
