"""Where a head leads: host, path, caller and era, decided for whatever bytes they are."""

from __future__ import annotations

import re
from collections import Counter
from hashlib import sha256
from random import Random
from types import SimpleNamespace
from typing import Any, cast

from cove.engine.pool import Pool
from cove.engine.sessions import Sessions
from cove.errors import CODES, CoveError
from cove.gateway.affinity import Affinity
from cove.gateway.exchange import Exchange
from cove.gateway.head import Head, Headers, RefusedError
from cove.gateway.http import Connection
from cove.gateway.policy import Policy
from cove.gateway.routes import Route, RouteTable
from cove.gateway.tokens import Signer
from cove.mcp.classify import Era, era, listens
from cove.metrics import FunctionStats
from cove.model import Affinity as AffinitySpec
from cove.model import AffinityKind, Facts, FunctionSpec, Key, Kind, Plan, SessionPolicy, Version
from cove.states import VersionState
from fuzz import grammar, mutation
from fuzz.front import InputError
from fuzz.wire import FaultError

KEY = b"cove_project_key"
VERSIONS = (
    *(b"2024-11-05", b"2025-03-26", b"2025-06-18", b"2025-11-25", b"2026-07-28", b"2027-01-01"),
    *(b"", b"2025-06-18 ", b"draft", b"2025-06-18, 2025-06-18", b"2024-11-0", b"DRAFT-2026"),
)
LEGACY = {b"2024-11-05", b"2025-03-26", b"2025-06-18", b"2025-11-25"}
HOSTS = (
    *(b"localhost", b"127.0.0.1:7070", b"[::1]:80", b"[::1", b"web.localhost", b"MCP.localhost:9"),
    *(
        b"a.web.localhost",
        b".localhost",
        b"localhost.evil",
        b"evil",
        b"127.0.0.1.evil",
        b"127.evil",
    ),
    *(b"web.localhost.", b"localhost:", b":80", b"", b"127...", b"127.1", b"mcp.localhost evil"),
)
TARGETS = (
    *(
        b"/fn/web",
        b"/fn/web/",
        b"/fn/web?x",
        b"/fn/web/a/b?c=d",
        b"/fn/",
        b"/fn",
        b"/fn//",
        b"/fn/?",
    ),
    *(b"/fn/mcp/mcp", b"/fn/mcp?sessionId=1", b"/fn/nobody/x", b"/", b"/v1/functions", b"//fn/web"),
    *(b"/fn/key/?k=v", b"/fn/key/?k=" + b"v" * 300, b"/fn/key/?k=%00&k=b", b"/fn/key/?k=a;b=c&&="),
)
VALUES = (b"Bearer " + KEY, b"bearer  " + KEY, b"Basic x", b"Bearer", b"Bearer " + KEY + b"x", b"")


def _route(name: str, kind: Kind, affinity: AffinityKind, named: str = "") -> Route:
    spec = FunctionSpec(
        name=name, kind=kind, session=SessionPolicy(affinity=AffinitySpec(affinity, named))
    )
    version = Version(
        function=name,
        number=1,
        spec=spec,
        plan=Plan((), {}, "", None, None),
        facts=Facts(),
        isolation="process",
        driver="fake",
        state=VersionState.READY,
        created_at=0.0,
    )
    return Route(Pool(version, lambda pool: None), FunctionStats(), key_by_default=False)


class Ways:
    """Cases for the classifier, and for what is decided on a head before any instance is."""

    name = "ways"

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self._routes = RouteTable("localhost")
        for route in (
            _route("web", "web", "none"),
            _route("mcp", "mcp", "mcp"),
            _route("key", "web", "query", "k"),
            _route("cookie", "web", "cookie", "c"),
            _route("header", "web", "header", "X-Key"),
        ):
            self._routes.put(route)
        self._policies = [Policy(loopback=each, domain="localhost") for each in (True, False)]
        for policy in self._policies:
            policy.trust([Key("1", "project", sha256(KEY).hexdigest(), 0.0)])
        self._affinity = Affinity(Sessions(), Signer(b"s" * 32))

    def case(self, rng: Random) -> int:
        """One case; how many inputs it was. `InputError` where it shows a defect."""
        host, target = _odd(rng, rng.choice(HOSTS)), _odd(rng, rng.choice(TARGETS))
        if rng.random() < 0.3:
            target = (
                b"/fn/" + rng.choice((b"key", b"cookie", b"header")) + rng.choice((b"/", b"?k=1"))
            )
        headers: Headers = [(b"host", host)]
        for name, values in (
            *((b"authorization", VALUES), (b"mcp-protocol-version", VERSIONS), (b"origin", HOSTS)),
            *((b"mcp-method", (b"subscriptions/listen", b"tools/call")), (b"cookie", (b"c=x; d",))),
            *((b"mcp-session-id", (b"x", b"\xff")), (b"x-key", (b"k", b" ", b"\xe9" * 300))),
        ):
            if rng.random() < 0.4:
                value = _odd(rng, rng.choice(values))
                headers.append((name, b"http://" + value if name == b"origin" else value))
        method = rng.choice(grammar.METHODS)
        data = b"%b %b\r\n" % (method, target) + b"".join(b"%b: %b\r\n" % each for each in headers)
        try:
            self._one(rng, method, target, headers)
        except Exception as error:
            raise InputError(data, (), None, f"{type(error).__name__}: {error}") from error
        return 1

    def settle(self) -> None:
        """What policies remember is bounded."""
        for policy in self._policies:
            for remembered in (policy._hosts, policy._known):
                if len(remembered) > 1000:
                    raise FaultError(f"{len(remembered)} decisions are remembered")
                remembered.clear()  # type: ignore[attr-defined]

    def _one(self, rng: Random, method: bytes, target: bytes, headers: Headers) -> None:
        policy = rng.choice(self._policies)
        try:
            head = Head(method, target, "1.1", headers, keep_alive=True, wishes=False)
        except RefusedError:
            self.outcomes["refused"] += 1
            return
        _eras(head)
        connection = cast(Connection, SimpleNamespace(peer="127.0.0.1", is_local=True))
        exchange = Exchange(connection, head, None, 0.0)
        decided = self._decide(policy, exchange)
        if decided != self._decide(policy, exchange):
            raise FaultError(f"{decided} is decided otherwise the second time")
        host = exchange.fields[b"host"]
        if decided[0] is not (not policy.loopback or _is_local(host)):
            raise FaultError(f"the host {host!r} is judged otherwise")
        if decided[1:4] != self._wanted(host, head.target):
            raise FaultError(f"{decided} is not the way of {host!r} {head.target!r}")
        value = exchange.fields.get(b"authorization", b"")
        space = rb"[ \t\r\n\x0b\x0c]*"
        if decided[4] is not bool(re.fullmatch(rb"(?i:bearer) " + space + KEY + space, value)):
            raise FaultError(f"{value!r} is a key or none")
        self.outcomes[str(decided[5])] += 1

    def _decide(self, policy: Policy, exchange: Exchange) -> tuple[Any, ...]:
        """Welcome, route, prefix, rest, by key; and the session's key or an error's code."""
        host = exchange.fields[b"host"]
        found = self._routes.match(host, exchange.target)
        principal, by_key = policy.principal(exchange)
        end = "no route"
        if found is not None:
            try:
                policy.admit(exchange, found[0], by_key)
                self._affinity.peek(exchange, found[0], principal)
                end = "served"
            except CoveError as error:
                end = error.code
                if not (error.message and 400 <= CODES[end].status < 500):
                    raise FaultError(f"{error!r} is for nobody") from None
        name, *place = (found[0].name, *found[1:]) if found else (None, None, None)
        return policy.check_host(host), name, *place, by_key, end

    def _wanted(self, host: bytes, target: bytes) -> tuple[Any, ...]:
        """Name, prefix and rest, read off with patterns."""
        path = re.match(rb"/fn/([^/?]*)", target)
        bare = host.lower().split(b":")[0]
        named = re.fullmatch(rb"([^.]+)\.localhost", bare, re.DOTALL)
        name = path[1] if path else named[1] if named else b""
        if name not in {route.name.encode() for route in self._routes.all()}:
            return None, None, None
        if not path:
            return name.decode(), b"", target
        rest = target[path.end() :]
        return name.decode(), path[0], rest if rest.startswith(b"/") else b"/" + rest


def _odd(rng: Random, value: bytes) -> bytes:
    """A value as it is, or with something in it that a parser may have let through."""
    if rng.random() < 0.7 or not value:
        return value
    bend = rng.choice((mutation.flip, mutation.insert, mutation.delete, mutation.duplicate))
    return bend(rng, value)


def _is_local(host: bytes) -> bool:
    host = host.lower()
    if host.startswith(b"["):
        return host.split(b"]")[0] == b"[::1"
    pattern = rb"(.*\.)?localhost|127\.[\d.]*"
    return bool(re.fullmatch(pattern, host.split(b":")[0], re.DOTALL))


def _eras(head: Head) -> None:
    version, method = (head.fields.get(name) for name in (b"mcp-protocol-version", b"mcp-method"))
    legacy = version is None or version in LEGACY
    if era(version) is not (Era.LEGACY if legacy else Era.MODERN):
        raise FaultError(f"the era of {version!r} is {era(version)}")
    if listens(version, method) is not (method == b"subscriptions/listen" and not legacy):
        raise FaultError(f"{version!r} {method!r} listens, or does not")
