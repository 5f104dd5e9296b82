"""A second reading of a caller's bytes: llhttp in strict mode, then what Cove says it refuses.

Written without the front's code, plainly and slowly, so that the two can disagree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import httptools

HEAD_BYTES = 64 * 1024
HEAD_COUNT = 100
LENGTH_DIGITS = 32

SINGLE = (
    *(b"host", b"content-length", b"transfer-encoding", b"authorization"),
    *(b"mcp-session-id", b"mcp-protocol-version", b"mcp-method", b"mcp-name"),
)
NOT_HTTP = (
    *(b"SOURCE", b"DESCRIBE", b"ANNOUNCE", b"SETUP", b"PLAY", b"PAUSE", b"TEARDOWN"),
    *(b"GET_PARAMETER", b"SET_PARAMETER", b"REDIRECT", b"RECORD", b"FLUSH"),
)


@dataclass
class Message:
    """A request as llhttp read it. Names are lower case; `headers` are those before the body."""

    method: bytes = b""
    url: bytes = b""
    version: str = ""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    headed: bool = False
    whole: bool = False
    keeps: bool = True
    upgrades: bool = False

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key == name]

    @property
    def websocket(self) -> bool:
        """Whether it wishes for the one protocol that is passed through."""
        wish = b", ".join(self.all(b"upgrade")).lower()
        tokens = re.split(rb"[ \t]*,[ \t]*", b",".join(self.all(b"connection")).lower().strip())
        said = self.upgrades and b"upgrade" in tokens and wish == b"websocket"
        return said and self.version == "1.1" and self.method == b"GET"

    @property
    def size(self) -> int:
        return len(self.url) + sum(len(n) + len(v) for n, v in self.headers)


@dataclass
class Reading:
    """What the bytes of a connection come to.

    `end` is `between` messages, within a `head` or a `body`, `closed` by the last message's own
    wish, `refused` with one of `statuses`, or a `tunnel` that carries `rest`. `partial` is the
    message that was not whole when it ended there; within a head, `statuses` are those that may
    be said before its end is seen.
    """

    messages: list[Message]
    end: str
    partial: Message | None = None
    statuses: tuple[int, ...] = ()
    rest: bytes = b""


class _Listener:
    """llhttp's callbacks, written down."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.parser: Any = httptools.HttpRequestParser(self)
        self.offset: int | None = None
        self.failed = False

    def on_message_begin(self) -> None:
        self.messages.append(Message())

    def on_url(self, url: bytes) -> None:
        self.messages[-1].url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        message, name = self.messages[-1], name.lower()
        if not message.headed:
            message.headers.append((name, value))
        elif name in (b"connection", b"proxy-connection"):
            message.keeps = False  # llhttp acts on these wherever they stand; Cove then closes

    def on_headers_complete(self) -> None:
        message, parser = self.messages[-1], self.parser
        message.headed = True
        message.method = parser.get_method()
        message.version = parser.get_http_version()
        message.keeps = parser.should_keep_alive()
        message.upgrades = parser.should_upgrade()

    def on_body(self, data: bytes) -> None:
        self.messages[-1].body += data

    def on_message_complete(self) -> None:
        self.messages[-1].whole = True

    def feed(self, data: bytes) -> _Listener:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.offset = upgrade.args[0]
        except httptools.HttpParserError:
            self.failed = True
        return self


def messages_of(data: bytes) -> tuple[list[Message], bool]:
    """What llhttp reads, and whether it found a fault, with none of Cove's rules on top."""
    heard = _Listener().feed(data)
    return heard.messages, heard.failed


def read(data: bytes, *, tunnels: bool) -> Reading:
    """The whole of a connection's bytes. `tunnels`: a wish for WebSocket is granted."""
    lower = data.lower()
    if b"upgrade" not in lower and b"CONNECT" not in data:
        heard = _Listener().feed(data)
        return _judged(heard.messages, heard.failed, len(data))
    return _one_by_one(data, tunnels=tunnels)


def refusal(message: Message) -> int:
    """The status of a head that Cove says it refuses; 0 where it serves it."""
    names = [name for name, _ in message.headers]
    length, coding = message.all(b"content-length"), message.all(b"transfer-encoding")
    counted = len(names) - len(length)
    sized = message.size - sum(len(value) + 14 for value in length)
    if counted > HEAD_COUNT or sized > HEAD_BYTES:
        return 431
    host = message.all(b"host")
    wrong = (
        any(names.count(name) > 1 for name in SINGLE)
        or message.version not in ("1.0", "1.1")
        or (message.version == "1.1" and not host)
        or (coding and (coding[0].lower() != b"chunked" or message.version == "1.0"))
        or (coding and length)
        or any(len(value) > LENGTH_DIGITS for value in length)
        or not _has_path(message.method, message.url, host)
        or message.method in NOT_HTTP
        or (message.websocket and (coding or (length and int(length[0]))))
    )
    return 400 if wrong else 0


def _statuses(message: Message) -> tuple[int, ...]:
    """What a refused head may be answered with: what is wrong with a line can be said first."""
    lines = any(len(value) > LENGTH_DIGITS for value in message.all(b"content-length"))
    return (400, refusal(message)) if lines else (refusal(message),)


def _has_path(method: bytes, url: bytes, host: list[bytes]) -> bool:
    if method == b"CONNECT" or b"#" in url:
        return False
    if url.startswith(b"/"):
        return True
    absolute = re.fullmatch(rb"(?i)https?://([^/?]*)(?:[/?].*)?", url, re.DOTALL)
    if absolute:
        return absolute[1].lower() == b"".join(host).lower() and b"@" not in absolute[1]
    return url == b"*" and method == b"OPTIONS"


def target(message: Message) -> bytes:
    """Path and query."""
    if message.url == b"*":
        return b"/"
    rest = re.sub(rb"(?i)\Ahttps?://[^/?]*", b"", message.url)
    return rest if rest.startswith(b"/") else b"/" + rest


def _judged(messages: list[Message], failed: bool, size: int) -> Reading:
    """What of the messages is served, and how it ends, where nothing asks for an upgrade."""
    whole: list[Message] = []
    for message in messages:
        if not message.headed:
            # llhttp found a fault before the head's end, or there is more to come. Where so much
            # of it has come that it is too large already, either may be said first.
            if failed:
                either = (400, 431) if size > HEAD_BYTES else (400,)
                return Reading(whole, "refused", statuses=either)
            early = [431] if size > HEAD_BYTES else []
            if any(len(value) > LENGTH_DIGITS for value in message.all(b"content-length")):
                early.append(400)
            return Reading(whole, "head", message, tuple(early))
        status = refusal(message)
        if status:
            return Reading(whole, "refused", statuses=_statuses(message))
        if not message.whole:
            if failed:
                return Reading(whole, "refused", message, (400,))
            return Reading(whole, "body", message)
        whole.append(message)
        if not message.keeps or message.version == "1.0":
            return Reading(whole, "closed")
    return Reading(whole, "refused", statuses=(400,)) if failed else Reading(whole, "between")


def _one_by_one(data: bytes, *, tunnels: bool) -> Reading:
    """As `read`, where llhttp would take no body after a wish for another protocol."""
    whole: list[Message] = []
    at = 0
    while at < len(data):
        rest = data[at:]
        stop = _first_end(rest)
        heard = _Listener().feed(rest if stop is None else rest[:stop])
        if heard.offset is not None:
            first = heard.messages[0]
            if refusal(first):
                return Reading(whole, "refused", statuses=_statuses(first))
            if first.websocket:
                stop = heard.offset
                if tunnels:
                    return Reading([*whole, first], "tunnel", rest=rest[stop:])
            else:
                rest = _plain(rest[: heard.offset]) + rest[heard.offset :]
                stop = _first_end(rest)
                heard = _Listener().feed(rest if stop is None else rest[:stop])
                heard.messages[0].headers = [
                    (_wish(name), value) for name, value in heard.messages[0].headers
                ]
        one = _judged(heard.messages[:1], heard.failed, len(rest))
        whole += one.messages
        if one.end != "between" or stop is None:
            one.messages = whole
            return one
        at += stop
    return Reading(whole, "between")


def _first_end(data: bytes) -> int | None:
    """How many bytes the first message takes; None where it does not end."""

    def ends(size: int) -> bool:
        heard = _Listener().feed(data[:size])
        return bool(heard.messages) and heard.messages[0].whole

    if not ends(len(data)):
        return None
    low, high = 0, len(data)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if ends(middle) else (middle, high)
    return high


def _plain(head: bytes) -> bytes:
    """A head whose wish for another protocol llhttp does not see."""
    return re.sub(rb"(?im)^upgrade(?=:)", b"xpgrade", head)


def _wish(name: bytes) -> bytes:
    return b"upgrade" if name == b"xpgrade" else name
