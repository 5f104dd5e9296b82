"""Callers' bytes, however they are cut: the front agrees with a second reading of the whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from random import Random

from cove.gateway.head import Heads
from fuzz import grammar, mutation
from fuzz.reading import Message, Reading, read, target
from fuzz.wire import FaultError, Manner, Request, Seen, Table, play

SMALL, MIDDLING = 64, 120
"""Bytes up to which an input is split at every place: always, and now and then."""

REMEMBERED = 200
"""Heads that are remembered across cases: few, so that they are often forgotten."""

PROBE = b"PUT /probe HTTP/1.1\r\nHost: probe\r\nContent-Length: 5\r\n\r\nprobe"


class InputError(Exception):
    """An input on which the front and the second reading differ, or the front broke."""

    def __init__(self, data: bytes, cuts: Sequence[int], manner: object, why: str) -> None:
        super().__init__(why)
        self.data = data
        self.cuts = tuple(cuts)
        self.manner = manner
        self.why = why


class Front:
    """Cases for the callers' side. Heads are remembered across them, as the gateway does."""

    name = "front"

    def __init__(self) -> None:
        self.heads = Heads(REMEMBERED)
        self.outcomes: Counter[str] = Counter()

    def case(self, rng: Random) -> int:
        """One case; how many inputs it was. `InputError` where it shows a defect."""
        data = mutation.bent(rng, grammar.series(rng))
        tunnels = rng.random() < 0.5
        reading = read(data, tunnels=tunnels)
        count = 0
        for cuts in splits(rng, data):
            manner = _manner(rng, tunnels=tunnels)
            if count and rng.random() < 0.03:
                manner.early = True
            self.one(data, cuts, manner, reading)
            count += 1
        self.outcomes[_outcome(reading)] += count
        return count

    def one(self, data: bytes, cuts: Sequence[int], manner: Manner, reading: Reading) -> None:
        """One input."""
        try:
            table = play(data, cuts, manner, self.heads)
            if manner.early:
                table.outlast()
                _still(table)
                return
            seen = table.seen()
            agree(seen, reading)
            _go_on(table, reading, seen)
            table.outlast()
        except Exception as error:
            raise InputError(data, cuts, manner, f"{type(error).__name__}: {error}") from error

    def settle(self) -> None:
        """Forget what may be remembered, so that what is left can be measured."""
        if len(self.heads) > REMEMBERED:
            raise FaultError(f"{len(self.heads)} heads are remembered")
        self.heads = Heads(REMEMBERED)


def splits(rng: Random, data: bytes) -> Iterator[tuple[int, ...]]:
    """Where to cut an input: nowhere; everywhere in turn if it is small, else here and there."""
    yield ()
    size = len(data)
    if 1 < size <= (SMALL if rng.random() < 0.8 else MIDDLING):
        for at in range(1, size):
            yield (at,)
        yield tuple(range(1, size))
    elif size > 1:
        for count in (1, rng.randrange(2, 6)):
            yield tuple(sorted(rng.randrange(1, size) for _ in range(count)))
        ends = [at for at in range(size) if data.startswith((b"\r\n", b"\n"), at)][:200]
        if ends:
            at = rng.choice(ends) + rng.randrange(-1, 3)
            yield (min(max(at, 1), size),)
        if size < 500 and rng.random() < 0.05:
            yield tuple(range(1, size))


def _manner(rng: Random, *, tunnels: bool) -> Manner:
    return Manner(
        later=rng.choice((0, 0, 1, 3)),
        tunnels=tunnels,
        greedy=rng.random() < 0.2,
        peer="127.0.0.1" if rng.random() < 0.8 else "203.0.113.7",
    )


def _outcome(reading: Reading) -> str:
    said = "/".join(map(str, reading.statuses)) if reading.end == "refused" else ""
    return f"{reading.end} {said}".strip()


def agree(seen: Seen, reading: Reading) -> None:
    """What the application was given, and the client told, is what the reading says."""
    whole, requests = reading.messages, seen.requests
    for message, request in zip(whole, requests, strict=False):
        _same(message, request)
        if not request.whole or request.gone or request.body != message.body:
            raise FaultError(f"{request} is not whole, as {message} is")
    more, partial = requests[len(whole) :], reading.partial
    if len(requests) < len(whole):
        raise FaultError(f"{len(requests)} requests were served of {len(whole)}")
    if len(more) > 1 or (more and (partial is None or not partial.headed)):
        raise FaultError(f"more was served than there is: {more}")
    if partial is not None and more:
        _same(partial, more[0])
        if more[0].whole or not partial.body.startswith(more[0].body):
            raise FaultError(f"{more[0]} is not the beginning of {partial}")
    if reading.end == "body" and (not more or more[0].body != partial.body):  # type: ignore[union-attr]
        raise FaultError(f"what there is of a body was not passed on: {partial}")
    if seen.replies != len(whole):
        raise FaultError(f"{seen.replies} replies to {len(whole)} requests")
    _ends_alike(seen, reading)


def _same(message: Message, request: Request) -> None:
    length = message.all(b"content-length")
    wanted = (
        *(message.method, message.url, message.version, target(message), message.websocket),
        [(n, v) for n, v in message.headers if n != b"content-length"],
        int(length[0]) if length else None,
    )
    given = (
        *(request.method, request.url, request.version, request.target, request.websocket),
        request.headers,
        request.length,
    )
    if wanted != given:
        raise FaultError(f"served {given}, read {wanted}")


def _ends_alike(seen: Seen, reading: Reading) -> None:
    if reading.end == "refused":
        if seen.error not in reading.statuses:
            raise FaultError(f"refused with {seen.error}, not with one of {reading.statuses}")
        if len(seen.text) < 10:
            raise FaultError(f"a refusal in no words: {seen.text!r}")
    elif seen.error and seen.error not in reading.statuses:
        raise FaultError(f"refused with {seen.error} {seen.text!r}: {reading}")
    closes = reading.end in ("refused", "closed") or bool(seen.error)
    if seen.closes != closes:
        raise FaultError(f"closing is {seen.closes} after {reading.end}")
    if seen.tunnelled != (reading.rest if reading.end == "tunnel" else None):
        raise FaultError(f"{seen.tunnelled!r} went through the tunnel, not {reading.rest!r}")


def _go_on(table: Table, reading: Reading, seen: Seen) -> None:
    """What comes after: to a closed connection nothing, to an open one a request like any."""
    if seen.closes:
        _still(table)
        return
    count = len(seen.requests)
    if reading.end == "between":
        table.feed(PROBE, (11, 40))
        after = table.seen()
        if len(after.requests) != count + 1 or after.replies != count + 1:
            raise FaultError(f"{after.requests[count:]} and {after.replies} replies to one more")
        last = after.requests[-1]
        if (last.method, last.url, last.body) != (b"PUT", b"/probe", b"probe"):
            raise FaultError(f"a request after this was read as {last}")
        if last.headers != [(b"host", b"probe")] or last.length != 5:
            raise FaultError(f"a request after this was read as {last}")
    elif reading.end == "tunnel":
        table.feed(PROBE, (11, 40))
        if table.server.tunnelled != reading.rest + PROBE or len(table.server.requests) != count:
            raise FaultError("the tunnel takes no more")


def _still(table: Table) -> None:
    """A connection that is to close does nothing more, whatever comes."""
    if not (table.transport.ended or table.transport.closing):
        return
    before = (len(table.server.requests), len(table.transport.written))
    table.feed(PROBE, (11,))
    if before != (len(table.server.requests), len(table.transport.written)):
        raise FaultError("something was served or said after the end")
