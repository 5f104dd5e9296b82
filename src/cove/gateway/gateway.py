"""The gateway: every exchange comes in here, and is answered, forwarded or streamed."""

from __future__ import annotations

import asyncio
import contextlib
import difflib

import structlog

from cove.errors import CoveError
from cove.gateway import held, sse_backend, sse_bridge, streamable_bridge
from cove.gateway.affinity import Affinity, Visit, Way
from cove.gateway.call import Call
from cove.gateway.destination import Destination
from cove.gateway.exchange import Exchange
from cove.gateway.farewell import Farewells
from cove.gateway.forward import Forward, too_large
from cove.gateway.head import Heads
from cove.gateway.heads import SentHead
from cove.gateway.http import Connection
from cove.gateway.policy import Policy
from cove.gateway.replies import error_reply, simple_reply
from cove.gateway.routes import Route, RouteTable
from cove.gateway.upstream import Upstream
from cove.mcp import messages
from cove.mcp.classify import Era, era, listens
from cove.metrics import FunctionStats, Metrics

log = structlog.get_logger("cove.gateway")

_CHECK_SECONDS = 0.25
_LAST_BYTES_SECONDS = 2.0
_API_BODY = 512 * 1024 * 1024
_API_SECONDS = 3600.0
MESSAGES = b"/messages/"


class Gateway:
    """Routes, policy, affinity and the connections of one listener."""

    def __init__(
        self,
        *,
        routes: RouteTable,
        policy: Policy,
        affinity: Affinity,
        metrics: Metrics,
        api: Upstream,
        most_connections: int = 10_000,
    ) -> None:
        self.routes = routes
        self.policy = policy
        self.affinity = affinity
        self.farewells = Farewells(self.keep)
        self.draining = False
        self.heads = Heads()
        self._metrics = metrics
        self._api = api
        self._control = Destination(
            "the control API", FunctionStats(), body=_API_BODY, timeout=_API_SECONDS
        )
        self._most = most_connections
        self._connections: set[Connection] = set()
        self._emptied = asyncio.Event()
        self._emptied.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    # Connections.

    def accept(self) -> Connection:
        return Connection(self, self._loop)

    def opened(self, connection: Connection) -> bool:
        self._connections.add(connection)
        self._emptied.clear()
        return len(self._connections) <= self._most

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._emptied.set()

    async def run(self) -> None:
        """Bounds on every phase of every connection."""
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            now = self._loop.time()
            for connection in list(self._connections):
                connection.check(now)

    async def drain(self, seconds: float) -> None:
        """Let requests finish, at most so long; then end what is left, streams last."""
        self.draining = True
        for connection in list(self._connections):
            connection.close_idle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while busy := [c.idle() for c in self._connections if c.busy]:
                    await asyncio.wait(busy)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)
        for connection in list(self._connections):
            connection.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_BYTES_SECONDS):
                await self._emptied.wait()
        for connection in list(self._connections):
            connection.abort()

    def keep(self, task: asyncio.Task[None]) -> None:
        """Hold a task to its end; what it raises is a defect and is logged."""
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task failed", error=repr(error), exc_info=error)

    # Exchanges.

    @property
    def _epoch(self) -> int:
        """What was decided on a head holds as long as this stays as it is."""
        return self.routes.epoch + self.policy.epoch

    def serve(self, exchange: Exchange) -> None:
        way: Way | None = exchange.head.way
        rpc = False
        try:
            if way is not None and way.epoch == self._epoch:
                rpc = way.route.mcp
                self._go(exchange, way)
                return
            host = exchange.fields.get(b"host", b"")
            if not self.policy.check_host(host):
                raise CoveError(
                    "misdirected",
                    "Invalid Host header: this Cove serves loopback names and its own domain",
                    hint="call it by 127.0.0.1, localhost or a name under --domain",
                )
            found = self.routes.match(host, exchange.target)
            if found is None:
                self._own(exchange, host)
                return
            route, prefix, rest = found
            rpc = route.mcp
            principal, by_key = self.policy.principal(exchange)
            self.policy.admit(exchange, route, by_key)
            if route.mcp:
                self._serve_mcp(exchange, route, prefix, rest, principal, by_key)
            else:
                self.forward(exchange, route, principal, rest, prefix=prefix, key=by_key)
        except CoveError as error:
            self.refuse(exchange, error, rpc=rpc)
            if found_route := self._route_of(exchange):
                found_route.stats.answered(error.status, self._loop.time() - exchange.started_at)
        except Exception:
            log.exception("request failed", request_id=exchange.id.decode())
            self.refuse(exchange, CoveError("internal", "Cove failed on this request"), rpc=rpc)

    def _route_of(self, exchange: Exchange) -> Route | None:
        found = self.routes.match(exchange.fields.get(b"host", b""), exchange.target)
        return found[0] if found else None

    def _serve_mcp(
        self,
        exchange: Exchange,
        route: Route,
        prefix: bytes,
        rest: bytes,
        principal: str,
        by_key: bool,
    ) -> None:
        path, _, query = rest.partition(b"?")
        sse_only = route.pool.version.facts.transport == "sse"
        call = Call(self, exchange, route, principal, prefix, by_key)
        if path == b"/mcp" and sse_only:
            call.run(streamable_bridge.serve(call), cancels=exchange.method == b"GET")
        elif path == b"/sse" or (sse_only and path == route.path):
            if exchange.method != b"GET":
                raise CoveError(
                    "method_not_allowed",
                    "HTTP+SSE begins with a GET",
                    hint="GET this URL for the stream, or POST to …/mcp",
                )
            call.run(sse_backend.stream(call) if sse_only else sse_bridge.stream(call))
        elif path == MESSAGES and exchange.method == b"POST":
            post = sse_backend.post if sse_only else sse_bridge.post
            call.run(post(call), cancels=False)
        elif path in (b"/mcp", route.path) and not sse_only:
            self._streamable(call, query)
        else:
            self.forward(exchange, route, principal, rest, prefix=prefix, key=by_key)

    def _streamable(self, call: Call, query: bytes) -> None:
        exchange, route = call.exchange, call.route
        version = exchange.fields.get(b"mcp-protocol-version")
        modern = era(version) is Era.MODERN
        target = route.path + (b"?" + query if query else b"")
        if exchange.method == b"GET" and not modern and not exchange.upgrade:
            call.run(held.serve_get(call, target))
        elif exchange.method == b"POST" and listens(version, exchange.fields.get(b"mcp-method")):
            call.run(held.serve_listen(call, target))
        elif exchange.method in (b"POST", b"GET", b"DELETE", b"OPTIONS", b"HEAD"):
            self.forward(
                exchange,
                route,
                call.principal,
                target,
                prefix=call.prefix,
                key=call.by_key,
                cancels=modern,
            )
        else:
            raise CoveError("method_not_allowed", "MCP is spoken by POST, GET and DELETE")

    def forward(
        self,
        exchange: Exchange,
        route: Route,
        principal: str,
        target: bytes,
        *,
        prefix: bytes,
        key: bool,
        cancels: bool = True,
    ) -> None:
        """Pass an exchange on, and remember for its like where to."""
        way = exchange.head.way = Way(
            route,
            principal,
            target,
            prefix=prefix,
            key=key,
            modern=cancels,
            epoch=self._epoch,
        )
        self._go(exchange, way)

    def _go(self, exchange: Exchange, way: Way) -> None:
        """Claim an instance, now or as soon as there is one, and forward."""
        if (exchange.length or exchange.received) > way.route.body:
            raise too_large(way.route)
        try:
            visit = self.affinity.claim(exchange, way, exchange.started_at)
        except CoveError as error:
            if error.code != "too_many_requests" or not way.route.learns:
                raise
            call = Call(self, exchange, way.route, way.principal, way.prefix, way.key)
            call.run(self._when_full(exchange, way, error), cancels=False, counts=False)
            return
        Forward(self, exchange, way, visit).start()

    async def _when_full(self, exchange: Exchange, way: Way, error: CoveError) -> None:
        """A session's answers, notifications and end reach a full instance: it waits for them."""
        if exchange.method == b"POST":
            body = await exchange.read_body(way.route.body)
            if body is None:
                raise too_large(way.route)
            if messages.asks(body):
                raise error
            exchange.put_back(body)
        elif exchange.method != b"DELETE":
            raise error
        visit = self.affinity.accompany(way, self._loop.time())
        Forward(self, exchange, way, visit).start()

    def leave(self, exchange: Exchange, route: Destination, visit: Visit, status: int) -> None:
        """The end of a forwarded exchange: its instance has room again, its numbers count."""
        now = self._loop.time()
        session = visit.session
        self.affinity.leave(visit, now)
        if session is not None and session.remote and _ends_session(exchange, status):
            self.affinity.end(session)
        if status:
            route.stats.answered(status, now - exchange.started_at)

    def refuse(self, exchange: Exchange, error: CoveError, *, rpc: bool) -> None:
        """Answer with an error, in the protocol of the route."""
        if exchange.started or exchange.gone:
            exchange.abort()
            return
        if error.status >= 500:
            log.warning("refused", request_id=exchange.id.decode(), reason=error.message)
        keep = exchange.body_done and exchange.keep_alive
        exchange.answer(error_reply(error, exchange.id, rpc=rpc, keep_alive=keep), keep_alive=keep)

    # Cove's own paths.

    def _own(self, exchange: Exchange, host: bytes) -> None:
        path = exchange.path
        if path == b"/v1" or path.startswith(b"/v1/"):
            self._to_api(exchange)
        elif path == b"/healthz":
            self._say(exchange, 200, b"ok\n")
        elif path == b"/readyz":
            self._say(
                exchange,
                503 if self.draining else 200,
                b"draining\n" if self.draining else b"ready\n",
            )
        elif path == b"/metrics":
            if not self.policy.loopback and not self.policy.principal(exchange)[1]:
                raise CoveError("unauthorized", "/metrics needs a project key on this listener")
            self._say(exchange, 200, self._metrics.render(), b"text/plain; version=0.0.4")
        else:
            raise self._no_route(path, host)

    def _no_route(self, path: bytes, host: bytes) -> CoveError:
        name = self.routes.hosted(host) or (
            path.split(b"/")[2] if path.startswith(b"/fn/") else b""
        )
        if not name:
            return CoveError(
                "not_found",
                f"nothing is served at {path.decode('latin-1')}",
                hint="functions are at /fn/NAME/…; `cove list` shows their URLs",
            )
        text = name.decode("latin-1")
        near = difflib.get_close_matches(text, [route.name for route in self.routes.all()], 1)
        return CoveError(
            "not_found",
            f"there is no function {text}",
            hint=f"did you mean {near[0]}?" if near else "`cove list` shows what is deployed",
        )

    def _say(
        self, exchange: Exchange, status: int, body: bytes, kind: bytes = b"text/plain"
    ) -> None:
        extra = b"X-Request-Id: " + exchange.id
        exchange.answer(simple_reply(status, body, content_type=kind, extra=extra))

    def _to_api(self, exchange: Exchange) -> None:
        Forward(
            self, exchange, ControlWay(self._control, exchange), ControlVisit(self._api)
        ).start()


class ControlWay:
    """The way of a request to the control API, which authenticates by itself."""

    prefix = b""
    key = False
    modern = True

    def __init__(self, route: Destination, exchange: Exchange) -> None:
        self.route = route
        self.target = exchange.target
        self.sent = SentHead()


class ControlVisit(Visit):
    """A stay at the control API, which always has room and keeps no sessions."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    @property
    def upstream(self) -> Upstream:
        return self._upstream


def _ends_session(exchange: Exchange, status: int) -> bool:
    """The client's DELETE was granted, or the program knows its own session no more."""
    return status == 404 or (exchange.method == b"DELETE" and 200 <= status < 300)
