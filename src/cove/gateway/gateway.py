"""The gateway: every exchange comes in here, and is answered, forwarded or streamed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from cove.engine.instance import Instance
from cove.engine.sessions import Session
from cove.errors import CoveError
from cove.gateway import held, sse_backend, sse_bridge, streamable_bridge
from cove.gateway.access import Access, unheard
from cove.gateway.affinity import Affinity, Visit, Way, stopping
from cove.gateway.call import Call
from cove.gateway.destination import too_large
from cove.gateway.exchange import CLIENT_LEFT, Exchange
from cove.gateway.farewell import Farewells
from cove.gateway.forward import Forward
from cove.gateway.head import Heads
from cove.gateway.http import Connection
from cove.gateway.own import ControlWay, Own
from cove.gateway.policy import Policy
from cove.gateway.replies import error_reply
from cove.gateway.routes import Route, RouteTable
from cove.gateway.upstream import Upstream
from cove.mcp import messages
from cove.mcp.classify import Era, era, listens
from cove.metrics import Metrics

log = structlog.get_logger("cove.gateway")

_CHECK_SECONDS = 0.25
_FAREWELL_SECONDS = 1.0
_LAST_BYTES_SECONDS = 2.0
_STRANGERS = (401, 403)  # whose bodies are nobody's to look into
MESSAGES = b"/messages/"


class Gateway:
    """Routes, policy, affinity and the connections of one listener.

    `draining`: nothing new is begun that has to wait; `closing`: what is left is cut short.
    """

    def __init__(
        self,
        *,
        routes: RouteTable,
        policy: Policy,
        affinity: Affinity,
        metrics: Metrics,
        api: Upstream,
        most_connections: int = 10_000,
        access: Access = unheard,
    ) -> None:
        self.routes = routes
        self.policy = policy
        self.affinity = affinity
        self.farewells = Farewells(self.keep)
        self.draining = False
        self.closing = False
        self.heads = Heads()
        self._access = access
        self._own = Own(self, api, metrics)
        self._most = most_connections
        self._connections: set[Connection] = set()
        self._emptied = asyncio.Event()
        self._emptied.set()
        self._unattended: dict[Callable[[], None], asyncio.Future[None]] = {}
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
        """Let requests finish, at most so long; then end what is left, streams last.

        Who waits for an instance is told so at once. Who is connected may still ask, and is
        told to close, until half of the time is left for the answer.
        """
        self.draining = True
        self.affinity.close()
        for route in self.routes.all():
            route.pool.fail_waiting(stopping())
        for connection in self._connections:
            connection.last_reply()
        end = self._loop.time() + seconds
        await self._quiet(end - seconds / 2)
        for connection in list(self._connections):
            connection.close_idle()
        await self._quiet(end)
        self.closing = True
        await self._cut()
        await self._close()

    async def _quiet(self, end: float) -> None:
        """Until no request is being served, `end` at the latest."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                while busy := [
                    *(c.idle() for c in self._connections if c.busy),
                    *self._unattended.values(),
                ]:
                    await asyncio.wait(busy)

    async def _cut(self) -> None:
        """Tell everybody that their time has passed, in the words of their protocol."""
        for connection in sorted(self._connections, key=lambda c: not c.busy):
            connection.cut()
        for cut in list(self._unattended):
            cut()
        for task in list(self._tasks):
            task.cancel()
        # sessions that end with their streams are ended at their servers too
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_SECONDS):
                while self._tasks:
                    await asyncio.wait(self._tasks)
        for task in self._tasks:
            task.cancel()

    async def _close(self) -> None:
        for connection in list(self._connections):
            connection.leave()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_BYTES_SECONDS):
                await self._emptied.wait()
        for connection in list(self._connections):
            connection.abort()

    def unattended(self, cut: Callable[[], None]) -> None:
        """A request goes on whose client has left; `cut` ends it."""
        self._unattended[cut] = self._loop.create_future()

    def attended(self, cut: Callable[[], None]) -> None:
        """It has ended, if it was one."""
        if (ended := self._unattended.pop(cut, None)) is not None:
            ended.set_result(None)

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
    def epoch(self) -> int:
        """What was decided on a head holds as long as this stays as it is."""
        return self.routes.epoch + self.policy.epoch

    def serve(self, exchange: Exchange) -> None:
        way: Way | None = exchange.head.way
        if self.draining:
            exchange.keep_alive = False
        try:
            if way is not None and way.epoch == self.routes.epoch + self.policy.epoch:
                self._go(exchange, way)
            else:
                self._route(exchange)
        except CoveError as error:
            self._refused(exchange, error)
        except Exception:
            log.exception("request failed", request_id=exchange.id.decode())
            self._refused(exchange, CoveError("internal", "Cove failed on this request"))

    def _route(self, exchange: Exchange) -> None:
        """Decide what a head comes to, and do it."""
        host = exchange.fields.get(b"host", b"")
        if not self.policy.check_host(host):
            raise CoveError(
                "misdirected",
                "Invalid Host header: this Cove serves loopback names and its own domain",
                hint="call it by 127.0.0.1, localhost or a name under --domain",
            )
        found = self.routes.match(host, exchange.target)
        if found is None:
            self._own.serve(exchange, host)
            return
        route, prefix, rest = found
        principal, by_key = self.policy.principal(exchange)
        self.policy.admit(exchange, route, by_key)
        if route.mcp:
            self._serve_mcp(exchange, route, prefix, rest, principal, by_key)
        else:
            self.forward(exchange, route, principal, rest, prefix=prefix, key=by_key)

    def _refused(self, exchange: Exchange, error: CoveError) -> None:
        """A request has met no instance, and may have been for no function."""
        found = None
        if error.code != "misdirected":
            found = self.routes.match(exchange.fields.get(b"host", b""), exchange.target)
        route = found[0] if found is not None else None
        self.refuse(exchange, error, rpc=route is not None and route.mcp)
        if route is not None:
            seconds = self._loop.time() - exchange.started_at
            route.stats.answered(error.status, seconds)
            principal = self.policy.principal(exchange)[0]
            version = route.pool.version.number
            self._tell(exchange, route.name, version, None, None, principal, error.status, seconds)

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
            epoch=self.epoch,
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
            call.run(self._when_full(call, way, error), cancels=False)
            return
        Forward(self, exchange, way, visit).start()

    async def _when_full(self, call: Call, way: Way, error: CoveError) -> None:
        """A session's answers, notifications and end reach a full instance: it waits for them."""
        exchange = call.exchange
        if exchange.method == b"POST":
            body = await call.read()
            if messages.asks(body):
                raise error
            exchange.put_back(body)
        elif exchange.method != b"DELETE":
            raise error
        visit = self.affinity.accompany(way, self._loop.time())
        call.handed_on = True
        Forward(self, exchange, way, visit).start()

    def leave(self, exchange: Exchange, way: Way | ControlWay, visit: Visit, status: int) -> None:
        """The end of a forwarded exchange: its instance has room again, its numbers count."""
        now = self._loop.time()
        session, instance = visit.session, visit.instance
        self.affinity.leave(visit, now)
        if session is not None and session.remote and _ends_session(exchange, status):
            self.affinity.end(session)
        route, seconds = way.route, now - exchange.started_at
        if status:
            route.stats.answered(status, seconds)
        if (principal := way.principal) is not None:
            head = exchange.head
            self._access(
                route.name,
                visit.pool.version.number,
                instance.id if instance is not None else "",
                session.id if session is not None else "",
                exchange.id,
                principal,
                head.method,
                head.target,
                exchange.left or status or CLIENT_LEFT,
                seconds,
            )

    def served(self, call: Call) -> None:
        """The end of an exchange that a coroutine served.

        Streams are counted; how long they were open says nothing of how fast they are.
        """
        exchange, route, session = call.exchange, call.route, call.session
        seconds = self._loop.time() - exchange.started_at
        if exchange.is_stream:
            route.stats.requests[call.status] = route.stats.requests.get(call.status, 0) + 1
        elif not exchange.left:
            route.stats.answered(call.status, seconds)
        pool = session.pool if session is not None else route.pool
        instance = call.instance or (session.instance if session is not None else None)
        self._tell(
            exchange,
            route.name,
            pool.version.number,
            instance,
            session,
            call.principal,
            call.status,
            seconds,
        )

    def _tell(
        self,
        exchange: Exchange,
        function: str,
        version: int,
        instance: Instance | None,
        session: Session | None,
        principal: str,
        status: int,
        seconds: float,
    ) -> None:
        head = exchange.head
        self._access(
            function,
            version,
            instance.id if instance is not None else "",
            session.id if session is not None else "",
            exchange.id,
            principal,
            head.method,
            head.target,
            exchange.left or status,
            seconds,
        )

    def refuse(
        self, exchange: Exchange, error: CoveError, *, rpc: bool, asked: bytes = b""
    ) -> None:
        """Answer with an error, in the protocol of the route.

        `asked` is the request's body, if it is not with the exchange any more.
        """
        if exchange.started or exchange.gone:
            exchange.abort()
            return
        if error.status >= 500:
            log.warning("refused", request_id=exchange.id.decode(), reason=error.message)
        ident = None
        if rpc and error.status not in _STRANGERS:
            ids = messages.request_ids(asked or exchange.at_hand())
            ident = ids[0] if len(ids) == 1 else None
        keep = exchange.body_done and exchange.keep_alive
        exchange.answer(
            error_reply(error, exchange.id, rpc=rpc, ident=ident, keep_alive=keep),
            keep_alive=keep,
        )


def _ends_session(exchange: Exchange, status: int) -> bool:
    """The client's DELETE was granted, or the program knows its own session no more."""
    return status == 404 or (exchange.method == b"DELETE" and 200 <= status < 300)
