"""Heads as they are sent on: of all that a caller says, nothing becomes a line or a request."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

from cove.gateway.destination import HOP_BY_HOP, Destination
from cove.gateway.exchange import Exchange
from cove.gateway.head import Heads
from cove.gateway.heads import SentHead, request_head
from cove.metrics import FunctionStats
from fuzz import grammar, mutation
from fuzz.front import InputError
from fuzz.reading import Message, messages_of
from fuzz.wire import FaultError, Manner, play

OWN = frozenset(
    {
        *(b"host", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-request-id"),
        *(b"x-forwarded-prefix", b"mcp-session-id", b"content-length"),
    }
)
# What servers that turn header names into variables read as the gateway's own.
ALIASES = (b"x_forwarded_for", b"x_forwarded_host", b"x_forwarded_prefix", b"x_forwarded_proto")
NEVER = HOP_BY_HOP | {b"expect", b"forwarded", b"x-real-ip", *ALIASES}

DESTINATIONS = (
    Destination("web", FunctionStats(), body=1, timeout=1),
    Destination("mcp", FunctionStats(), body=1, timeout=1, port=9000, mcp=True),
    Destination("learns", FunctionStats(), body=1, timeout=1, port=9000, mcp=True, learns=True),
)


@dataclass
class Told:
    """What the gateway says of a request besides what its caller says."""

    destination: Destination
    target: bytes
    prefix: bytes
    key: bool
    remote: bytes | None


class Rewriting:
    """Cases for what is sent to instances: the front's own requests, rewritten and read again."""

    name = "rewriting"

    def __init__(self) -> None:
        self.heads = Heads()
        self.outcomes: Counter[str] = Counter()

    def case(self, rng: Random) -> int:
        """One case; how many inputs it was. `InputError` where it shows a defect."""
        data = mutation.bent(rng, grammar.series(rng))
        served = 0

        def check(exchange: Exchange) -> None:
            nonlocal served
            served += 1
            _check(exchange, _told(rng, exchange))

        peer = rng.choice(("127.0.0.1", "::1", "203.0.113.7"))
        manner = Manner(tunnels=True, peer=peer, on_serve=check)
        try:
            play(data, (), manner, self.heads)
        except Exception as error:
            raise InputError(data, (), peer, f"{type(error).__name__}: {error}") from error
        self.outcomes["rewritten" if served else "refused"] += 1
        return 1

    def settle(self) -> None:
        """Forget what may be remembered."""
        self.heads = Heads()


def _told(rng: Random, exchange: Exchange) -> Told:
    destination = rng.choice(DESTINATIONS)
    return Told(
        destination,
        exchange.target if rng.random() < 0.5 else b"/mcp",
        b"/fn/fn" if rng.random() < 0.5 else b"",
        rng.random() < 0.5,
        b"the-backends-own" if destination.learns and rng.random() < 0.5 else None,
    )


def _check(exchange: Exchange, told: Told) -> None:
    where, target = told.destination, told.target
    whole = request_head(
        exchange, where, target, prefix=told.prefix, key=told.key, remote=told.remote, length=4
    )
    sent = SentHead()
    for _ in range(2):  # the second time it is remembered
        again = sent.of(
            exchange, where, target, prefix=told.prefix, key=told.key, remote=told.remote
        )
        if again + b"content-length: 4\r\n\r\n" != whole:
            raise FaultError(f"{again!r} is not {whole!r}")
    messages, failed = messages_of(whole + (b"" if exchange.upgrade else b"body"))
    if failed or len(messages) != 1 or not messages[0].whole:
        raise FaultError(f"sent on as {messages}: {whole!r}")
    message = messages[0]
    if (message.method, message.url, message.version) != (exchange.method, target, "1.1"):
        raise FaultError(f"sent on as {message}")
    if message.body != (b"" if exchange.upgrade else b"body"):
        raise FaultError(f"the body became {message.body!r}")
    _lines(exchange, told, message)


def _lines(exchange: Exchange, told: Told, message: Message) -> None:
    """Every line is one that the caller sent and may send, or one that is the gateway's own."""
    names = Counter(name for name, _ in message.headers)
    own = OWN if told.prefix else OWN - {b"x-forwarded-prefix"}
    if told.remote is None:
        own = own - {b"mcp-session-id"}
    wrong = [name for name in own if names[name] != 1]
    wrong += [name for name in NEVER if names[name] and not _switches(name, exchange)]
    if told.destination.mcp:
        wrong += [b"origin"] * names[b"origin"]
    if told.key and names[b"authorization"]:
        wrong.append(b"authorization")
    if wrong:
        raise FaultError(f"{wrong} in {message.headers}")
    left = Counter(exchange.headers)
    for name, value in message.headers:
        if name in own or _switches(name, exchange):
            continue
        if name in OWN and name != b"mcp-session-id":
            raise FaultError(f"{name!r} is not for a caller to say")
        left[name, value] -= 1
        if left[name, value] < 0:
            raise FaultError(f"{name!r}: {value!r} is nobody's")
    _said(exchange, told, message)


def _said(exchange: Exchange, told: Told, message: Message) -> None:
    """What the gateway says of the caller is its own knowledge, but for a proxy on this machine."""
    said = dict(message.headers)
    local = exchange.connection.is_local
    host = exchange.fields.get(b"host", b"")
    proto = exchange.fields.get(b"x-forwarded-proto", b"http") if local else b"http"
    shown = told.destination.host if told.destination.mcp else host
    wanted = (shown, host, proto, exchange.id)
    given = (
        *(said[b"host"], said[b"x-forwarded-host"], said[b"x-forwarded-proto"]),
        said[b"x-request-id"],
    )
    peer = exchange.connection.peer.encode()
    chain = said[b"x-forwarded-for"].split(b", ")
    if wanted != given or chain[-1] != peer or (not local and len(chain) > 1):
        raise FaultError(f"the gateway says {given} {chain}, not {wanted}")


def _switches(name: bytes, exchange: Exchange) -> bool:
    return exchange.upgrade and name in (b"connection", b"upgrade")
