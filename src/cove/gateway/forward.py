"""Forwarding: one request to an instance and its answer back, bytes as they come.

No body is parsed and none is held beyond its bounds: whichever side is slow pauses the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING

from cove.errors import CoveError
from cove.gateway.affinity import SessionGoneError, Visit, Way
from cove.gateway.destination import HOP_BY_HOP, Destination
from cove.gateway.exchange import Exchange
from cove.gateway.head import Headers
from cove.gateway.heads import listed
from cove.gateway.replies import status_line
from cove.gateway.tunnel import Tunnel
from cove.gateway.upstream import UpstreamConnection
from cove.mcp import messages
from cove.states import InstanceState

if TYPE_CHECKING:
    from cove.gateway.gateway import ControlWay, Gateway

_FIRST_BODY = 256 * 1024

_QUEUE_MARGIN = 1.0
_EXIT_NOTICED = 0.25
_NO_BODY = (204, 304)
_SAFE = (b"GET", b"HEAD", b"OPTIONS")
_NOT_SHOWN = HOP_BY_HOP | {b"x-request-id"}


class Forward:
    """One request's way through. Sink of the request's body and of the response."""

    status = 0
    _connection: UpstreamConnection | None = None
    _task: asyncio.Task[None] | None = None
    _chunked = False
    _over = False
    _left = False
    _first: list[bytes] | None = None
    _timer: asyncio.TimerHandle | None = None

    def __init__(
        self, gateway: Gateway, exchange: Exchange, way: Way | ControlWay, visit: Visit
    ) -> None:
        self._gateway = gateway
        self._exchange = exchange
        self._way = way
        self._route: Destination = way.route
        self._visit = visit
        self._out: list[bytes] = []

    def start(self) -> None:
        """Go on at once where an instance and a connection are at hand, else as a task."""
        exchange = self._exchange
        exchange.on_gone = self._client_gone
        exchange.on_deadline = self._timed_out
        if self._visit.instance is None:
            # the queue has a bound of its own, and words for it
            exchange.deadline = exchange.started_at + self._route.timeout + _QUEUE_MARGIN
        else:
            exchange.deadline = exchange.started_at + self._route.timeout
        connection = self._kept()
        if connection is not None:
            self._send(connection)
        else:
            self._begin(self._reach())

    def _kept(self) -> UpstreamConnection | None:
        try:
            upstream = self._visit.upstream
        except ConnectionRefusedError:
            return None
        return upstream.take() if upstream is not None else None

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        self._task = asyncio.create_task(work)
        self._gateway.keep(self._task)

    async def _reach(self) -> None:
        """Wait for an instance, and connect. What never reached one is tried on another."""
        try:
            for last in (False, False, True):
                try:
                    await self._arrive()
                    upstream = self._visit.upstream
                    assert upstream is not None
                    connection = await upstream.connect()
                    break
                except (OSError, TimeoutError, SessionGoneError) as error:
                    ended = await self._ended()
                    if last or not ended or not self._again():
                        self._fail(self._unreachable(str(error) or type(error).__name__))
                        return
        except CoveError as error:
            self._fail(error)
        except asyncio.CancelledError:
            self._end()
            raise
        else:
            if self._over:
                connection.close()
            else:
                self._send(connection)

    async def _arrive(self) -> None:
        if self._visit.instance is not None or self._visit.upstream is not None:
            return
        loop, exchange = asyncio.get_running_loop(), self._exchange
        await self._gateway.affinity.arrive(self._visit, self._route.timeout)
        self._route.stats.queued.observe(loop.time() - exchange.started_at)
        exchange.deadline = exchange.started_at + self._route.timeout

    async def _ended(self) -> bool:
        """Whether the instance is gone; its exit is noticed a moment after its sockets close."""
        instance = self._visit.instance
        if instance is None:
            return True
        if instance.running is not None:
            await asyncio.wait([instance.running.exited], timeout=_EXIT_NOTICED)
        return instance.state is not InstanceState.READY

    def _again(self) -> bool:
        """Claim another instance. An MCP session cannot: `session_not_found`."""
        way = self._way
        if not isinstance(way, Way):
            return False
        now = asyncio.get_running_loop().time()
        self._gateway.affinity.leave(self._visit, now)
        self._visit = Visit(way.route, way.principal)
        self._visit = self._gateway.affinity.claim(self._exchange, way, now)
        return True

    # The request.

    def _send(self, connection: UpstreamConnection) -> None:
        exchange = self._exchange
        self._connection = connection
        self._task = None
        if exchange.received > self._route.body:
            connection.close()
            self._fail(too_large(self._route))
            return
        body = exchange.take_buffered()
        done = exchange.body_done
        if self._visit.learns:
            self._first = [body]
        way = self._way
        head = way.sent.of(
            exchange,
            self._route,
            way.target,
            prefix=way.prefix,
            key=way.key,
            remote=self._visit.remote,
        )
        if self._visit.told:
            head += self._visit.told + b"\r\n"
        if done:
            head += b"content-length: %d\r\n\r\n" % len(body) if body else self._no_body()
        else:
            head += self._framing()
        if not done:
            exchange.take_body(_Upload(self))
            if exchange.chunked and body:
                body = _chunk(body)
        connection.begin(
            self,
            head + body,
            head=exchange.method == b"HEAD",
            last=done,
            switches=exchange.upgrade,
        )
        exchange.on_pause = self._client_pauses

    def _no_body(self) -> bytes:
        length = self._exchange.length
        return b"\r\n" if length is None else b"content-length: 0\r\n\r\n"

    def _framing(self) -> bytes:
        length = self._exchange.length
        if length is not None:
            return b"content-length: %d\r\n\r\n" % length
        return b"transfer-encoding: chunked\r\n\r\n"

    def upload(self, data: bytes) -> None:
        """More of the request's body."""
        exchange, connection = self._exchange, self._connection
        if self._over or connection is None:
            return
        if exchange.received > self._route.body:
            self._fail(too_large(self._route))
            return
        if self._first is not None and exchange.received <= _FIRST_BODY:
            self._first.append(data)
        connection.send(_chunk(data) if exchange.chunked else data)

    def upload_done(self) -> None:
        """The request's body is whole."""
        if not self._over and self._connection is not None:
            self._connection.send(b"0\r\n\r\n" if self._exchange.chunked else b"", last=True)

    # The response: ResponseSink.

    def head(self, status: int, headers: Headers, length: int | None) -> None:
        self.status = status
        exchange, connection = self._exchange, self._connection
        assert connection is not None
        block = connection.shown.get(status, headers)
        if block is None:
            block = self._shown(status, headers, connection)
        # MCP answers calls by streams that end with them; others are bound by their lifetime.
        if not self._route.mcp and _is_stream(headers):
            exchange.is_stream = True
            exchange.deadline = exchange.started_at + self._route.lifetime
        out = self._out
        out += (block, exchange.id, b"\r\n")
        if self._visit.extra:
            out += (self._visit.extra, b"\r\n")
        if status == 101:
            out.append(b"connection: upgrade\r\nupgrade: websocket\r\n\r\n")
            return
        if length is not None:
            out.append(b"content-length: %d\r\n" % length)
        elif status not in _NO_BODY and exchange.method != b"HEAD":
            self._chunked = exchange.version == b"1.1"
            if self._chunked:
                out.append(b"transfer-encoding: chunked\r\n")
            else:
                exchange.keep_alive = False
        out.append(b"\r\n" if exchange.keep_alive else b"connection: close\r\n\r\n")

    def _shown(self, status: int, headers: Headers, connection: UpstreamConnection) -> bytes:
        """The response's head as the client gets it, up to its request id."""
        out = [status_line(status)]
        own = True
        dropped = _NOT_SHOWN.union(*(listed(v) for n, v in headers if n == b"connection"))
        for name, value in headers:
            if name in dropped:
                continue
            if name == b"location" and value.startswith(inner := b"http://" + self._route.host):
                own = False
                value = self._way.prefix + value.removeprefix(inner) or b"/"
            if name == b"mcp-session-id" and self._route.mcp:
                own = False
                token = self._session_id(status, value)
                if token is None:
                    continue
                value = token
            out += (name, b": ", value, b"\r\n")
        out.append(b"x-request-id: ")
        block = b"".join(out)
        if own:
            connection.shown.put(status, headers, block)
        return block

    def _session_id(self, status: int, value: bytes) -> bytes | None:
        """The id to show the client: its own, a new one where initialize brought one, or none."""
        visit = self._visit
        if not self._route.learns:
            return value
        if visit.session is not None:
            return visit.session.key.encode() if value == visit.remote else None
        if not visit.learns or not 200 <= status < 300 or self._first is None:
            return None
        if not messages.is_initialize(b"".join(self._first)):
            return None
        token = self._gateway.affinity.learn(visit, value)
        if visit.session is not None:
            self._gateway.farewells.expect(visit.route, visit.session)
        return token

    def body(self, data: bytes) -> None:
        self._out.append(_chunk(data) if self._chunked else data)

    def done(self) -> None:
        if self._chunked:
            self._out.append(b"0\r\n\r\n")
        self._over = True

    def flush(self) -> None:
        out = self._out
        exchange = self._exchange
        if out:
            exchange.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()
        if self._over:
            self._end()
            exchange.finish()
        elif self.status == 101:
            self._open_tunnel()

    def lost(self, reason: str) -> None:
        connection, self._connection = self._connection, None
        exchange = self._exchange
        if exchange.started or self._out:
            self._end()
            exchange.abort()
        elif connection is not None and connection.reused and self._may_repeat():
            self._begin(self._reach())  # it was closed as we wrote: nobody has seen the request
        else:
            self._begin(self._explain(reason))

    def _may_repeat(self) -> bool:
        """RFC 9110 §9.2.2: without asking, only what changes nothing."""
        exchange = self._exchange
        return exchange.method in _SAFE and exchange.body_done and not exchange.received

    async def _explain(self, reason: str) -> None:
        await self._ended()
        self._fail(self._unreachable(reason))

    def pause(self, paused: bool) -> None:
        if paused:
            self._exchange.connection.pause()
        else:
            self._exchange.connection.resume()

    def _client_pauses(self, paused: bool) -> None:
        if self._connection is not None:
            if paused:
                self._connection.pause_reading()
            else:
                self._connection.resume_reading()

    def _open_tunnel(self) -> None:
        assert self._connection is not None
        exchange, connection = self._exchange, self._connection
        exchange.deadline = asyncio.get_running_loop().time() + self._route.lifetime
        Tunnel(exchange, connection, self._end).open()

    # Ends.

    def _client_gone(self) -> None:
        exchange = self._exchange
        if not self._way.modern and exchange.body_done:
            # A legacy client that leaves has not cancelled (MCP 2025-11-25, transports); its
            # connection, which kept the time and the pace, is gone.
            self._client_pauses(False)
            if exchange.deadline:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_at(exchange.deadline, self._timed_out)
            return
        self._over = True
        if self._task is not None:
            self._task.cancel()
        else:
            self._close()
            self._end()

    def _timed_out(self) -> None:
        self._fail(
            CoveError(
                "timeout",
                f"{self._route.name} did not answer within {self._route.timeout:g} s",
                hint="raise limits.timeout in cove.toml if its requests take longer",
            )
        )

    def _unreachable(self, reason: str) -> CoveError:
        instance = self._visit.instance
        ended = f"; it ended: {instance.exit}" if instance is not None and instance.exit else ""
        return CoveError(
            "bad_gateway",
            f"{self._route.name} did not answer: {reason}{ended}",
            hint=f"`cove describe {self._route.name}` shows its instances",
        )

    def _fail(self, error: CoveError) -> None:
        if self._task is not None and self._task is not asyncio.current_task():
            self._over = True
            self._task.cancel()
        self._close()
        self.status = error.status
        self._end()
        if self._exchange.started:
            self._exchange.abort()
        else:
            self._gateway.refuse(self._exchange, error, rpc=self._route.mcp)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _end(self) -> None:
        """Give everything back, once."""
        self._over = True
        self._connection = None
        if self._timer is not None:
            self._timer.cancel()
        if not self._left:
            self._left = True
            exchange = self._exchange
            # Without these the two hold each other, and only the collector would free them.
            exchange.on_gone = exchange.on_deadline = exchange.on_pause = None
            self._gateway.leave(self._exchange, self._route, self._visit, self.status)


class _Upload:
    """The request's body, given to the forward that sends it."""

    __slots__ = ("body", "body_done")

    def __init__(self, forward: Forward) -> None:
        self.body = forward.upload
        self.body_done = forward.upload_done


def too_large(route: Destination) -> CoveError:
    """The request's body is over the function's bound."""
    return CoveError(
        "too_large",
        f"the body is larger than {route.body} bytes, the most that {route.name} takes",
        hint="send less, or raise limits.body in cove.toml",
    )


def _is_stream(headers: Headers) -> bool:
    return any(
        name == b"content-type" and value.lower().startswith(b"text/event-stream")
        for name, value in headers
    )


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
