"""Forwarding: one request to an instance and its answer back, bytes as they come.

No body is parsed and none is held beyond its bounds: whichever side is slow pauses the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING

from cove.errors import CoveError
from cove.gateway.affinity import DecideAnewError, Visit, Way, stopping
from cove.gateway.destination import Destination, overdue, too_large
from cove.gateway.exchange import SMALL_BODY, Exchange
from cove.gateway.frames import GOING_AWAY
from cove.gateway.head import Headers
from cove.gateway.heads import framing, shown_head
from cove.gateway.lastwords import answers, last_words
from cove.gateway.loss import TRIES, gone, lost
from cove.gateway.tunnel import Tunnel
from cove.gateway.upstream import UpstreamConnection
from cove.mcp import messages, sse
from cove.states import InstanceState

if TYPE_CHECKING:
    from cove.gateway.gateway import Gateway
    from cove.gateway.own import ControlWay

_FIRST_BODY = 256 * 1024

_QUEUE_MARGIN = 1.0
_NO_BODY = (204, 304)
_SAFE = (b"GET", b"HEAD", b"OPTIONS")


class Forward:
    """One request's way through. Sink of the request's body and of the response.

    `_first` is the request's body, as far as it is small: to know whom an error is for, or to
    send it again. `_passed` follows an event stream that may have to be ended here.
    """

    status = 0
    _tries = 0
    _passed: sse.Boundary | None = None
    _tunnel: Tunnel | None = None
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
        visit = self._visit
        instance = visit.instance
        if instance is None:
            # the queue has a bound of its own, and words for it
            exchange.deadline = exchange.started_at + self._route.timeout + _QUEUE_MARGIN
        else:
            exchange.deadline = exchange.started_at + self._route.timeout
            if instance.inflight == 1 and visit.claimed:  # as `Visit.serves`
                session = visit.session
                instance.serving = exchange.id, session.id if session is not None else ""
            else:
                instance.serving = None
        connection = visit.take()
        if connection is not None:
            self._send(connection)
        else:
            self._begin(self._reach())

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        self._task = asyncio.create_task(work)
        self._gateway.keep(self._task)

    async def _reach(self) -> None:
        """Wait for an instance, and connect. What never reached one is tried on another."""
        try:
            while (connection := await self._connect()) is None:
                if not self._again():
                    return
        except CoveError as error:
            self._fail(error)
        else:
            self._send(connection)

    async def _connect(self) -> UpstreamConnection | None:
        """A connection to the visit's instance; None where another may be tried."""
        self._tries += 1
        try:
            await self._arrive()
            upstream = self._visit.upstream
            assert upstream is not None
            connection = await upstream.connect()
            instance = self._visit.instance
            if instance is None or instance.state is InstanceState.READY:
                return connection
            connection.close()
            reason = "it is stopping"
        except (OSError, TimeoutError, DecideAnewError) as error:
            reason = str(error) or type(error).__name__
        if await self._gone() and self._tries < TRIES and isinstance(self._way, Way):
            return None
        raise self._lost(reason)

    async def _arrive(self) -> None:
        visit = self._visit
        if visit.instance is not None or visit.upstream is not None:
            return
        loop, exchange = asyncio.get_running_loop(), self._exchange
        await self._gateway.affinity.arrive(visit, self._route.timeout)
        visit.serves(exchange.id)
        self._route.stats.queued.observe(loop.time() - exchange.started_at)
        exchange.deadline = exchange.started_at + self._route.timeout

    async def _gone(self) -> bool:
        instance = self._visit.instance
        return instance is None or await gone(instance)

    def _again(self) -> bool:
        """Claim another instance. An MCP session cannot: `session_not_found`.

        False where the request is served anew instead: what was decided on it is void.
        """
        way, gateway, exchange = self._way, self._gateway, self._exchange
        assert isinstance(way, Way)
        now = asyncio.get_running_loop().time()
        gateway.affinity.leave(self._visit, now)
        self._visit = Visit(way.route, way.principal)
        if way.epoch == gateway.epoch:
            self._visit = gateway.affinity.claim(exchange, way, now)
            if self._visit.instance is not None:
                self._visit.serves(exchange.id)
            return True
        if exchange.gone:
            raise self._lost("what was decided on it is void, and nobody waits for it")
        if gateway.routes.get(way.route.name) is None:
            raise CoveError(
                "not_found",
                f"{way.route.name} was removed",
                hint="`cove list` shows what is deployed",
            )
        self._over = self._left = True
        exchange.on_gone = exchange.on_deadline = exchange.on_pause = None
        gateway.serve(exchange)
        return False

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
        if self._visit.learns or len(body) <= SMALL_BODY:
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
        if done and body:
            head += b"content-length: %d\r\n\r\n" % len(body)
        else:
            head += framing(exchange.length, done=done)
        if not done:
            exchange.take_body(_Upload(self))
            if exchange.chunked and body:
                body = _chunk(body)
        connection.begin(
            self,
            head + body,
            head=exchange.head.method == b"HEAD",
            last=done,
            switches=exchange.head.upgrade,
        )
        exchange.on_pause = self._client_pauses

    def upload(self, data: bytes) -> None:
        """More of the request's body."""
        exchange, connection = self._exchange, self._connection
        if self._over or connection is None:
            return
        if exchange.received > self._route.body:
            self._fail(too_large(self._route))
            return
        first = self._first
        if first is not None:
            first.append(data)
            size = exchange.received
            if size > SMALL_BODY and (size > _FIRST_BODY or not self._visit.learns):
                self._first = None
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
        shown = connection.shown.get(status, headers)
        if shown is None:
            shown, again = shown_head(
                status, headers, self._route, prefix=self._way.prefix, session_id=self._session_id
            )
            if again:
                connection.shown.put(status, headers, shown)
        block, events, encoded = shown
        if events:
            # MCP answers calls by streams that end with them; others are bound by their lifetime.
            if not self._route.mcp:
                exchange.is_stream = True
                exchange.deadline = exchange.started_at + self._route.lifetime
            if length is None and not encoded:
                self._passed = sse.Boundary()
        out = self._out
        out += (block, exchange.id, b"\r\n")
        if self._visit.extra:
            out += (self._visit.extra, b"\r\n")
        if status == 101:
            out.append(b"connection: upgrade\r\nupgrade: websocket\r\n\r\n")
            return
        if length is not None:
            out.append(b"content-length: %d\r\n" % length)
        elif status not in _NO_BODY and exchange.head.method != b"HEAD":
            self._chunked = exchange.head.version == b"1.1"
            if self._chunked:
                out.append(b"transfer-encoding: chunked\r\n")
            else:
                exchange.keep_alive = False
        out.append(b"\r\n" if exchange.keep_alive else b"connection: close\r\n\r\n")

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
        affinity, farewells = self._gateway.affinity, self._gateway.farewells
        token = affinity.learn(visit, value)
        session = visit.session
        assert session is not None
        if self._exchange.gone:  # nobody will ever ask for it
            affinity.end(session)
            farewells.say(visit.route, session)
        else:
            farewells.expect(visit.route, session)
            visit.serves(self._exchange.id)
        return token

    def body(self, data: bytes) -> None:
        self._out.append(_chunk(data) if self._chunked else data)
        if self._passed is not None:
            self._passed.feed(data)

    def done(self) -> None:
        connection, passed = self._connection, self._passed
        if passed is not None and connection is not None and connection.hung_up:
            owed = messages.request_ids(self._asked()) if self._route.mcp else []
            if passed.reached and not answers(passed.last).issuperset(owed):
                self._begin(self._stopped_short())
                return
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
        if self._exchange.started:
            if self._passed is not None and self._passed.reached:
                self._begin(self._explain(reason))
            else:
                self._fail(self._lost(reason))
            return
        self._out.clear()
        assert connection is not None
        if connection.unreached and self._tries < TRIES and self._take_back():
            self._begin(self._reach())
        elif connection.reused and self._may_repeat():
            self._begin(self._repeat(reason))
        else:
            self._begin(self._explain(reason))

    async def _stopped_short(self) -> None:
        """A stream ended with its connection, before its answer: perhaps with its instance."""
        self._connection = None
        if await self._gone():
            self._fail(self._lost("it ended its stream without an answer"))
        else:  # to be asked again, as a server may
            self._passed = None
            self.done()
            self.flush()

    def _take_back(self) -> bool:
        """Give the exchange its body back, where all of it is still here."""
        exchange, body = self._exchange, self._asked(_FIRST_BODY)
        if not exchange.body_done or len(body) < exchange.received:
            return False
        exchange.put_back(body)
        return True

    def _asked(self, most: int = SMALL_BODY) -> bytes:
        """The request's body as far as it has come, unless it is large."""
        if self._exchange.received > most:
            return b""
        return b"".join(self._first) if self._first is not None else self._exchange.at_hand()

    def _may_repeat(self) -> bool:
        """RFC 9110 §9.2.2: without asking, only what changes nothing."""
        exchange = self._exchange
        return exchange.method in _SAFE and exchange.body_done and not exchange.received

    async def _repeat(self, reason: str) -> None:
        """A kept connection was closed as we wrote: ask anew, unless it was by the request that
        its instance has ended."""
        if await self._gone():
            self._fail(self._lost(reason))
        else:
            await self._reach()

    async def _explain(self, reason: str) -> None:
        await self._gone()
        self._fail(self._lost(reason))

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
        tunnel = self._tunnel = Tunnel(exchange, connection, self._tunnel_ended)
        tunnel.open(lambda: self._begin(tunnel.lose(self._visit.instance)))

    def _tunnel_ended(self) -> None:
        self._tunnel = None
        self._end()

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
            self._gateway.unattended(self._timed_out)
            return
        if self._task is not None:
            self._task.cancel()
        self._close()
        self._end()

    def _timed_out(self) -> None:
        """Its time has passed, or Cove's."""
        closing = self._gateway.closing
        if self._tunnel is not None:
            why = "Cove is stopping" if closing else "session.lifetime has passed"
            self._tunnel.close(GOING_AWAY, why)
        else:
            self._fail(stopping() if closing else overdue(self._route))

    def _lost(self, happened: str) -> CoveError:
        return lost(self._route.name, self._visit.instance, happened)

    def _fail(self, error: CoveError) -> None:
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self._close()
        self.status = error.status
        exchange, asked = self._exchange, self._asked()
        self._end()
        if not exchange.started:
            self._gateway.refuse(exchange, error, rpc=self._route.mcp, asked=asked)
        elif (end := self._last_words(error, asked)) is not None:
            exchange.write(end)
            exchange.finish()
        else:
            exchange.abort()

    def _last_words(self, error: CoveError, asked: bytes) -> bytes | None:
        """What makes the answer that has begun a whole one; None where nothing does."""
        if self._passed is None:
            return None
        mcp = self._route.mcp
        said = last_words(error, self._exchange, self._passed, asked, mcp=mcp)
        if said is None:
            return None
        out = b"".join(self._out)
        if not self._chunked:
            return out + said
        return out + (_chunk(said) if said else b"") + b"0\r\n\r\n"

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
            if exchange.gone:
                self._gateway.attended(self._timed_out)
            # Without these the two hold each other, and only the collector would free them.
            exchange.on_gone = exchange.on_deadline = exchange.on_pause = None
            self._gateway.leave(exchange, self._way, self._visit, self.status)


class _Upload:
    """The request's body, given to the forward that sends it."""

    __slots__ = ("body", "body_done")

    def __init__(self, forward: Forward) -> None:
        self.body = forward.upload
        self.body_done = forward.upload_done


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
