"""Instances' bytes, however they are cut: one answer or none is made of them, and no more."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, cast

import httptools

from cove.gateway.head import Headers
from cove.gateway.upstream import Upstream, UpstreamConnection
from fuzz import grammar, mutation
from fuzz.front import InputError, splits
from fuzz.wire import FaultError, Loop, Transport

HEAD_BYTES = 64 * 1024

STATUSES = (b"200 OK", b"200", b"404 Not Found", b"204 No Content", b"304 Not Modified", b"500 x")
ODD_STATUSES = (
    b"101 Switching",
    b"099 x",
    b"000 x",
    b"600 x",
    b"1000 x",
    b"-1 x",
    b"20 OK",
    b"2 0",
)
FIELDS = (
    *(b"Content-Type: text/plain", b"X-A: b", b"Set-Cookie: a=1", b"Set-Cookie: b=2", b"X-Empty:"),
    *(b"Connection: close", b"Connection: keep-alive", b"Upgrade: h2c", b"Mcp-Session-Id: x"),
    *(b"Location: /x", b"x-high: \xff", b"Trailer: x", b"Proxy-Connection: close"),
)
INTERIM = (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
UPGRADE = b"HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
AFTER = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 2",
    b"x",
    b"\0",
    b"\r\n",
    b"0\r\n\r\n",
)
BENDS = (
    *(mutation.flip, mutation.insert, mutation.overwrite, mutation.delete, mutation.duplicate),
    *(mutation.cut_off, mutation.bare_end, mutation.fold, mutation.odd_name, mutation.repeat),
    *(mutation.another_length, mutation.another_coding, mutation.long_head),
)


def answer(rng: Random) -> bytes:
    """An answer in the shapes that servers give it."""
    chance = rng.random()
    before = rng.choice(INTERIM) * rng.choice((1, 1, 3)) if chance < 0.15 else b""
    after = rng.choice(AFTER) if 0.15 < chance < 0.25 else b""
    if rng.random() < 0.05:
        return before + UPGRADE + rng.choice((b"", b"hello", AFTER[0]))
    status = rng.choice(STATUSES if rng.random() < 0.95 else ODD_STATUSES)
    lines = rng.choices(FIELDS, k=rng.randrange(4))
    body, kind = grammar.body(rng), rng.random()
    if kind < 0.5:
        lines.append(b"Content-Length: %d" % len(body))
    elif kind < 0.8:
        lines.append(rng.choice((b"Transfer-Encoding: chunked", b"Transfer-Encoding: Chunked")))
        body = grammar.chunked(rng, body)
    rng.shuffle(lines)
    if rng.random() < 0.002:
        lines.append(b"X-Long: " + b"v" * (HEAD_BYTES + rng.randrange(-100, 100)))
    version = b"1.1" if rng.random() < 0.95 else b"1.0"
    head = grammar.CRLF.join((b"HTTP/%b %b" % (version, status), *lines, b"", b""))
    return before + head + body + after


@dataclass
class Answer:
    """One message as llhttp read it."""

    status: int = 0
    headers: Headers = field(default_factory=list)
    body: bytes = b""
    headed: bool = False
    whole: bool = False
    keeps: bool = False

    @property
    def interim(self) -> bool:
        return self.headed and 100 <= self.status < 200 and self.status != 101


class _Listener:
    """llhttp's callbacks, written down. `offset`: where another protocol begins."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.parser: Any = httptools.HttpResponseParser(self)
        self.offset: int | None = None
        self.failed = False

    def on_message_begin(self) -> None:
        self.answers.append(Answer())

    def on_header(self, name: bytes, value: bytes) -> None:
        last, name = self.answers[-1], name.lower()
        if not last.headed:
            last.headers.append((name, value))
        elif name == b"connection":
            last.keeps = False

    def on_headers_complete(self) -> None:
        last = self.answers[-1]
        last.headed = True
        last.status = self.parser.get_status_code()
        last.keeps = self.parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        self.answers[-1].body += data

    def on_message_complete(self) -> None:
        self.answers[-1].whole = True

    def feed(self, data: bytes) -> _Listener:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.offset = upgrade.args[0]
        except httptools.HttpParserError:
            self.failed = True
        return self


@dataclass
class Reading:
    """What an instance's bytes come to: `done`, `lost`, `tunnel`, or `open` where more is due.

    `answer` is what there is of it; `kept`: the connection can carry another request, None where
    either is well.
    """

    end: str
    answer: Answer | None = None
    kept: bool | None = False
    rest: bytes = b""


def read(data: bytes, *, head: bool, switches: bool, eof: bool) -> Reading:
    """The answer to a request, of method HEAD or not, that asks to switch or not."""
    heard = _Listener().feed(data)
    found = next((each for each in heard.answers if not each.interim), None)
    upto = heard.answers.index(found) + 1 if found is not None else len(heard.answers)
    countable = all(map(_countable, heard.answers[:upto]))
    if found is None or not found.headed:
        return Reading("lost" if heard.failed or eof or not countable else "open")
    lengths = [value for name, value in found.headers if name == b"content-length"]
    codings = [value.lower() for name, value in found.headers if name == b"transfer-encoding"]
    bodyless = head or found.status in (204, 304)
    if found.status < 100 or not countable or _size(found) > HEAD_BYTES:
        return Reading("lost")
    if found.status == 101:
        if not switches or heard.offset is None:
            return Reading("lost")
        return Reading("tunnel", found, rest=data[heard.offset :])
    if not bodyless and not lengths and codings not in ([], [b"chunked"]):
        return Reading("lost")
    if bodyless:
        found.body = b""
        found.keeps = found.keeps and not codings
        tail = data[_head_end(data, heard.answers.index(found)) :]
        return Reading("done", found, _kept(found, tail, eof))
    if found.whole:
        later = heard.answers[-1] is not found or heard.failed
        # what is left of line ends between messages is nothing, or a reason to close
        kept = None if data.endswith((b"\r", b"\n")) and not later else not later
        return Reading("done", found, found.keeps and not eof and kept)
    if heard.failed:
        return Reading("lost", found)
    if not eof:
        return Reading("open", found)
    return Reading("done" if not lengths and not codings else "lost", found)


def _kept(found: Answer, tail: bytes, eof: bool) -> bool | None:
    if eof or tail.strip(b"\r\n") or not found.keeps:
        return False
    return None if tail else True


def _countable(found: Answer) -> bool:
    """Whether Python reads the length it says: llhttp takes any number of zeroes before it."""
    return all(len(v) < 4000 for n, v in found.headers if n == b"content-length")


def _size(found: Answer) -> int:
    return sum(len(n) + len(v) for n, v in found.headers if n != b"content-length")


def _head_end(data: bytes, index: int) -> int:
    """Where the head of the message of this number ends."""

    def headed(size: int) -> bool:
        answers = _Listener().feed(data[:size]).answers
        return len(answers) > index and answers[index].headed

    low, high = 0, len(data)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if headed(middle) else (middle, high)
    return high


class _Home:
    """Where connections are kept."""

    def __init__(self) -> None:
        self.kept: list[UpstreamConnection] = []

    def keep(self, connection: UpstreamConnection) -> None:
        self.kept.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        if connection in self.kept:
            self.kept.remove(connection)


class _Sink:
    """Writes an answer down, and sees that it comes in order."""

    def __init__(self) -> None:
        self.connection: UpstreamConnection | None = None
        self.answer: Answer | None = None
        self.length: int | None = None
        self.end = "open"
        self.tunnelled: bytes | None = None

    def _still(self) -> None:
        if self.end != "open":
            raise FaultError(f"an answer goes on after it was {self.end}")

    def head(self, status: int, headers: Headers, length: int | None) -> None:
        self._still()
        if self.answer is not None:
            raise FaultError("an answer has two heads")
        self.answer, self.length = Answer(status, headers), length

    def body(self, data: bytes) -> None:
        self._still()
        if self.answer is None:
            raise FaultError("a body comes before its head")
        self.answer.body += data

    def done(self) -> None:
        self._still()
        if self.answer is None:
            raise FaultError("done, without a head")
        self.end = "done"

    def lost(self, reason: str) -> None:
        self._still()
        if len(reason) < 10:
            raise FaultError(f"lost for {reason!r}")
        self.end = "lost"

    def flush(self) -> None:
        if self.answer is not None and self.answer.status == 101 and self.end == "open":
            assert self.connection is not None
            self.end, self.tunnelled = "tunnel", b""
            self.connection.tunnel(self._receive, self.pause)

    def _receive(self, data: bytes | None) -> None:
        assert self.tunnelled is not None
        self.tunnelled += data or b""

    def pause(self, paused: bool) -> None:
        pass


@dataclass
class Asked:
    """What was asked for, and how the connection goes on."""

    head: bool
    switches: bool
    eof: bool


class Answers:
    """Cases for the instances' side."""

    name = "answers"

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()

    def case(self, rng: Random) -> int:
        """One case; how many inputs it was. `InputError` where it shows a defect."""
        data = answer(rng)
        for _ in range(rng.choice((0, 0, 1, 1, 2))):
            if data:
                data = rng.choice(BENDS)(rng, data)
        chance = rng.random()  # what asks to switch is a GET
        asked = Asked(chance < 0.15, chance > 0.7, rng.random() < 0.5)
        reading = read(data, head=asked.head, switches=asked.switches, eof=asked.eof)
        count = 0
        for cuts in splits(rng, data):
            try:
                self._one(data, cuts, asked, reading)
            except Exception as error:
                raise InputError(data, cuts, asked, f"{type(error).__name__}: {error}") from error
            count += 1
        self.outcomes[reading.end] += count
        return count

    def settle(self) -> None:
        """Nothing is remembered."""

    def _one(self, data: bytes, cuts: Sequence[int], asked: Asked, reading: Reading) -> None:
        loop, home, sink = Loop(), _Home(), _Sink()
        connection = UpstreamConnection(cast(Upstream, home), cast(asyncio.AbstractEventLoop, loop))
        transport = Transport(loop, connection)
        connection.connection_made(cast(asyncio.Transport, transport))
        sink.connection = connection
        connection.begin(sink, b"request", head=asked.head, last=True, switches=asked.switches)
        start = 0
        for stop in (*cuts, len(data)):
            if start < stop and not transport.closing:
                connection.data_received(data[start:stop])
                loop.run()
            start = stop
        if asked.eof and not transport.closing:
            connection.eof_received()
            transport.close()
            loop.run()
        _compare(sink, reading)
        kept = home.kept == [connection] and not transport.closing
        if reading.kept is not None and kept != reading.kept:
            raise FaultError(f"kept: {kept}, {reading}")
        if kept:
            _again(connection)


def _compare(sink: _Sink, reading: Reading) -> None:
    if sink.end != reading.end:
        raise FaultError(f"{sink.end} with {sink.answer}, {reading}")
    given, wanted = sink.answer, reading.answer
    if reading.end == "lost" and given is None:
        return
    if wanted is None or given is None:
        if wanted is not given:
            raise FaultError(f"given {given}, {reading}")
        return
    lengths = [int(value) for name, value in wanted.headers if name == b"content-length"]
    headers = [(n, v) for n, v in wanted.headers if n != b"content-length"]
    if (given.status, given.headers, sink.length) != (
        *(wanted.status, headers),
        lengths[0] if lengths else None,
    ):
        raise FaultError(f"given {given}, {reading}")
    if reading.end == "lost":
        if not wanted.body.startswith(given.body):
            raise FaultError(f"given {given}, {reading}")
    elif given.body != wanted.body:
        raise FaultError(f"given {given}, {reading}")
    if reading.end == "tunnel" and sink.tunnelled != reading.rest:
        raise FaultError(f"{sink.tunnelled!r} went through the tunnel, not {reading.rest!r}")


def _again(connection: UpstreamConnection) -> None:
    """A connection that was kept carries another answer like any."""
    sink = _Sink()
    connection.begin(sink, b"request", head=False, last=True)
    connection.data_received(b"HTTP/1.1 201 Made\r\nX: y\r\nContent-Length: 5\r\n\r\nagain")
    given = sink.answer
    if sink.end != "done" or given is None:
        raise FaultError(f"the next answer was {sink.end}")
    if (given.status, given.headers, given.body) != (201, [(b"x", b"y")], b"again"):
        raise FaultError(f"the next answer was read as {given}")
