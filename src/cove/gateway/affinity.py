"""Affinity: which instance a request goes to, by the session its key names.

`claim` is synchronous and serves almost every request; `arrive` waits where it could not.
Five cases, in the code's order: no affinity; an MCP session by its id; an MCP request outside
any; a known key; a new key.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from urllib.parse import parse_qsl

from cove.engine.instance import Instance
from cove.engine.pool import Pool
from cove.engine.sessions import Session, Sessions
from cove.errors import CoveError
from cove.gateway.exchange import Exchange
from cove.gateway.heads import SentHead
from cove.gateway.routes import Route
from cove.gateway.tokens import Signer
from cove.gateway.upstream import Upstream, UpstreamConnection
from cove.states import InstanceState, SessionState

_KEY = re.compile(r"[\x21-\x7e]{1,256}")


class DecideAnewError(Exception):
    """What was decided came to nothing before there was an instance. Says why."""


class Visit:
    """A request's stay on an instance, from claim to `leave`.

    `slot`: it holds a session's slot that no session owns yet. `opens`: it waits for the
    instance of a new session. `claimed`: its instance counts it among its requests.
    `learns`: its answer may open an MCP session. `remote`: the session id to send on.
    `extra`: header lines for the reply; `told`: for the instance.
    """

    instance: Instance | None = None
    session: Session | None = None
    slot = False
    opens = False
    claimed = True
    learns = False
    remote: bytes | None = None
    extra = b""
    told = b""

    def __init__(self, route: Route, principal: str) -> None:
        self.route = route
        self.pool = route.pool
        self.principal = principal

    @property
    def upstream(self) -> Upstream | None:
        """Connections to the visit's instance, once it has one."""
        return self.route.upstream(self.instance) if self.instance is not None else None

    def take(self) -> UpstreamConnection | None:
        """A kept connection to the visit's instance, where there is one."""
        instance = self.instance
        if instance is None:
            return None
        upstream = self.route.upstreams.get(instance.id)
        return upstream.take() if upstream is not None else None

    def serves(self, request: bytes) -> None:
        """Say whose what the instance prints is: this request's, if it has no other."""
        instance, session = self.instance, self.session
        if instance is not None:
            alone = self.claimed and instance.inflight == 1
            instance.serving = (
                (request, session.id if session is not None else "") if alone else None
            )


class Way:
    """What a request's head comes to: decided once for a head, valid for one `epoch`.

    `session` is the one that such a head was last seen to belong to.
    """

    __slots__ = (
        "epoch",
        "key",
        "modern",
        "prefix",
        "principal",
        "route",
        "sent",
        "session",
        "target",
    )

    def __init__(
        self,
        route: Route,
        principal: str,
        target: bytes,
        *,
        prefix: bytes,
        key: bool,
        modern: bool,
        epoch: int,
    ) -> None:
        self.route = route
        self.principal = principal
        self.target = target
        self.prefix = prefix
        self.key = key
        self.modern = modern
        self.epoch = epoch
        self.session: Session | None = None
        self.sent = SentHead()


class Affinity:
    """Decides visits, and mints the ids that sessions are found by."""

    def __init__(self, sessions: Sessions, signer: Signer) -> None:
        self._sessions = sessions
        self._closed = False
        self.signer = signer

    def close(self) -> None:
        """Nobody waits for an instance any more."""
        self._closed = True

    def claim(self, exchange: Exchange, way: Way, now: float) -> Visit:
        """A visit; its `instance` is None where it has to wait (`arrive`).

        `session_not_found` for an MCP id nobody has, `too_many_requests` for a session whose
        instance is full.
        """
        visit = Visit(way.route, way.principal)
        known = way.session
        if known is not None and known.state is SessionState.RUNNING and not known.lost:
            return self._join(visit, known, now)
        pool = visit.pool
        kind = way.route.affinity.kind
        if kind == "mcp":
            token = exchange.head.fields.get(b"mcp-session-id")
            if token is not None and not way.modern:
                way.session = self.mcp_session(way.route, way.principal, token.decode("latin-1"))
                return self._join(visit, way.session, now)
            posted = exchange.head.method == b"POST"
            visit.learns = way.route.stateful and not way.modern and posted
        if kind in ("mcp", "none"):
            visit.slot = visit.learns or pool.exclusive
            visit.instance = pool.claim(slot=visit.slot)
            return visit
        key = self._key(exchange, way.route, way.principal, visit)
        known = self._sessions.get(way.route.name, way.principal, key)
        if known is not None:
            way.session = known
            return self._join(visit, known, now)
        return self._open(visit, key, now)

    def _open(self, visit: Visit, key: str, now: float) -> Visit:
        session = self._sessions.open(visit.pool, visit.principal, key, now)
        visit.session = session
        session.inflight = 1
        instance = visit.pool.claim(slot=True)
        if instance is None:
            visit.opens = True
            session.opened = asyncio.get_running_loop().create_future()
        else:
            self._sessions.place(session, instance)
            visit.instance = instance
        return visit

    async def arrive(self, visit: Visit, timeout: float) -> None:
        """Wait until the visit has its instance. Leaves nothing claimed if it fails.

        `DecideAnewError` where what the visit waited for came to nothing.
        """
        session = visit.session
        if session is None:
            visit.instance = await self._room(visit.pool, slot=visit.slot, timeout=timeout)
        elif visit.opens:
            await self._bring(visit, session, timeout)
        else:  # another request opens the session
            assert session.opened is not None
            await asyncio.wait([session.opened], timeout=timeout)
            if session.opened.done() and (why := session.opened.result()) is not None:
                raise why
            if session.instance is None or session.lost:
                raise DecideAnewError("its session ended")
            if not visit.pool.claim_on(session.instance):
                raise _busy(visit)
            visit.instance = session.instance

    async def _bring(self, visit: Visit, session: Session, timeout: float) -> None:
        """Bring a new session to an instance, and tell those who wait for it how it went."""
        assert session.opened is not None
        why: CoveError | None = None
        try:
            instance = await self._room(visit.pool, slot=True, timeout=timeout)
            self._sessions.place(session, instance)
            if session.instance is None:  # it ended meanwhile; its slot is given back
                visit.pool.release(instance, asyncio.get_running_loop().time())
                raise DecideAnewError("its session ended")
            visit.instance = instance
        except CoveError as error:
            why = error
            raise
        finally:
            if session.instance is None:
                self._sessions.end(session, asyncio.get_running_loop().time())
            session.opened.set_result(why)

    async def _room(self, pool: Pool, *, slot: bool, timeout: float) -> Instance:
        """Wait for an instance that still serves when its turn has come."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        while True:
            if self._closed:
                raise stopping()
            if not pool.live:  # nobody may look after it any more
                raise DecideAnewError(f"version {pool.version.number} is not live any more")
            instance = await pool.wait(slot=slot, timeout=max(0.0, end - loop.time()))
            if instance.state is InstanceState.READY:
                return instance
            if slot:
                pool.free_slot(instance, loop.time())
            pool.release(instance, loop.time())

    def leave(self, visit: Visit, now: float) -> None:
        """The end of a visit."""
        instance, session = visit.instance, visit.session
        if session is not None:
            session.inflight -= 1
            session.last = now
        if instance is not None:
            visit.instance = None
            if visit.slot:
                visit.slot = False
                visit.pool.free_slot(instance, now)
            if visit.claimed:
                visit.pool.release(instance, now)

    def accompany(self, way: Way, now: float) -> Visit:
        """A visit beside the claims of a session's full instance: it asks for nothing itself."""
        visit = Visit(way.route, way.principal)
        session = way.session
        if session is None or session.instance is None:
            raise unknown_session()
        visit.session, visit.pool, visit.instance = session, session.pool, session.instance
        visit.remote = session.remote
        visit.claimed = False
        session.inflight += 1
        session.last = now
        return visit

    def peek(self, exchange: Exchange, route: Route, principal: str) -> Session | None:
        """The session that a stream belongs to, without opening one."""
        kind = route.affinity.kind
        token = exchange.fields.get(b"mcp-session-id")
        if kind == "mcp":
            if token is None:
                return None
            return self.mcp_session(route, principal, token.decode("latin-1"))
        if kind == "none":
            return None
        key = self._key(exchange, route, principal, Visit(route, principal))
        session = self._sessions.get(route.name, principal, key)
        if session is None and token is not None:
            raise unknown_session()
        return session

    # MCP sessions.

    def mcp_session(self, route: Route, principal: str, token: str) -> Session:
        """The session of an id that Cove minted; `session_not_found` for anyone else's."""
        session = self._sessions.get(route.name, principal, token)
        if session is None:
            raise unknown_session()
        return session

    def learn(self, visit: Visit, remote: bytes) -> bytes:
        """An initialize was answered with a session id: the id to give the client instead."""
        instance = visit.instance
        assert instance is not None
        name = visit.pool.version.function
        token = self.signer.seal(
            "mcp-session", name, visit.principal, instance.id, remote.decode("latin-1")
        )
        session = self.enrol(visit.pool, instance, visit.principal, token, remote.decode("latin-1"))
        session.inflight = 1
        visit.session, visit.slot, visit.learns = session, False, False
        visit.remote = remote
        return token.encode()

    def enrol(
        self, pool: Pool, instance: Instance, principal: str, token: str, remote: str = ""
    ) -> Session:
        """A session on an instance whose slot the caller holds, and which it now owns."""
        now = asyncio.get_running_loop().time()
        session = self._sessions.open(pool, principal, token, now)
        session.remote = remote.encode("latin-1")
        session.streams = not remote
        self._sessions.place(session, instance)
        if session.lost:  # before its end could be told of
            self._sessions.end(session, now)
        return session

    def get(self, route: Route, principal: str, key: str) -> Session | None:
        """That caller's running session."""
        return self._sessions.get(route.name, principal, key)

    def touch(self, session: Session) -> None:
        """Something of the session was said: its idle time begins anew."""
        self._sessions.touch(session, asyncio.get_running_loop().time())

    def end(self, session: Session) -> None:
        """The client or the server said so."""
        self._sessions.end(session, asyncio.get_running_loop().time())

    # Streams that are sessions.

    async def opening(self, route: Route) -> Instance:
        """An instance with a slot for a session to be; a claim and the slot are the caller's."""
        instance = route.pool.claim(slot=True)
        return instance or await self._room(route.pool, slot=True, timeout=route.timeout)

    def give_up(self, pool: Pool, instance: Instance) -> None:
        """The opening came to nothing."""
        now = asyncio.get_running_loop().time()
        pool.free_slot(instance, now)
        pool.release(instance, now)

    def _join(self, visit: Visit, session: Session, now: float) -> Visit:
        visit.session, visit.pool = session, session.pool
        if session.remote:
            visit.remote = session.remote
        instance = session.instance
        if instance is not None:
            if not session.pool.claim_on(instance):
                visit.session = None
                raise _busy(visit)
            visit.instance = instance
        elif session.inflight >= session.pool.version.spec.scale.concurrency:
            visit.session = None
            raise _busy(visit)  # its instance is still starting, and will be full
        session.inflight += 1
        session.last = now
        return visit

    # Keys that callers bring.

    def _key(self, exchange: Exchange, route: Route, principal: str, visit: Visit) -> str:
        policy = route.affinity
        if policy.kind == "principal":
            return principal
        if policy.kind == "header":
            value = exchange.fields.get(policy.name.lower().encode(), b"").decode("latin-1")
            if not value:
                value = secrets.token_hex(16)
                visit.extra = visit.told = f"{policy.name}: {value}".encode()
        elif policy.kind == "query":
            query = exchange.target.partition(b"?")[2].decode("latin-1")
            value = dict(parse_qsl(query)).get(policy.name, "")
            if not value:
                raise CoveError(
                    "bad_request",
                    f"{route.name} finds its session in the query parameter {policy.name}",
                    hint=f"call it with ?{policy.name}=… of your choice",
                )
        else:
            value = self._cookie(exchange, route, principal, visit)
        if not _KEY.fullmatch(value):
            raise CoveError(
                "bad_request",
                f"the session key in {policy} is not 1 to 256 visible ASCII characters",
                hint="send a shorter, plainer key, or none to be given one",
            )
        return value

    def _cookie(self, exchange: Exchange, route: Route, principal: str, visit: Visit) -> str:
        name = route.affinity.name
        for cookie in exchange.fields.get(b"cookie", b"").decode("latin-1").split(";"):
            found, _, value = cookie.strip().partition("=")
            if found == name:
                sealed = self.signer.open("cookie", value.strip('"'))
                if sealed is not None and sealed[:2] == (route.name, principal):
                    return value.strip('"')
        value = self.signer.seal("cookie", route.name, principal, secrets.token_hex(16))
        path = f"/fn/{route.name}" if exchange.target.startswith(b"/fn/") else "/"
        age = round(route.spec.session.lifetime)
        visit.extra = (
            f"Set-Cookie: {name}={value}; Max-Age={age}; Path={path}; HttpOnly; SameSite=Lax"
        ).encode()
        return value


def unknown_session() -> CoveError:
    """What an unknown, ended, lost or foreign MCP session is answered with (MCP: 404)."""
    return CoveError(
        "session_not_found", "Session not found", hint="initialize again to open a new session"
    )


def stopping() -> CoveError:
    """What is answered to whom Cove, on its way out, serves no more."""
    return CoveError("draining", "this Cove is stopping", hint="try again when it is up")


def _busy(visit: Visit) -> CoveError:
    return CoveError(
        "too_many_requests",
        f"the instance of this {visit.pool.version.function} session has no room",
        hint="retry when earlier requests are answered, or raise scale.concurrency",
    )
