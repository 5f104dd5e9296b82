"""A server that speaks HTTP+SSE only, shown as Streamable HTTP of the legacy era.

Cove is its client: one event stream per session, opened when a caller initializes. Answers are
found by the ids they answer; what the server says by itself goes to the session's GET stream,
else to the stream of an open request, else waits for either.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from cove.engine.instance import Instance
from cove.engine.pool import Pool
from cove.engine.sessions import Session
from cove.errors import CoveError
from cove.gateway.affinity import unknown_session
from cove.gateway.eventstream import EventStream, comments
from cove.gateway.forward import too_large
from cove.gateway.heads import request_head
from cove.gateway.replies import simple_reply
from cove.gateway.sse_backend import open_stream
from cove.gateway.upstream import Response, fetch
from cove.mcp import messages, sse
from cove.mcp.classify import Era, era

if TYPE_CHECKING:
    from cove.gateway.gateway import Call

_WAITING = 100
_REPLY_BYTES = 1024 * 1024


async def serve(call: Call) -> None:
    """Any request to /mcp of such a function."""
    method = call.exchange.method
    if era(call.exchange.fields.get(b"mcp-protocol-version")) is Era.MODERN:
        raise CoveError(
            "bad_request",
            "Bad Request: Server not initialized: it speaks legacy MCP",
            hint="open with initialize",
        )
    if method == b"POST":
        await _post(call)
    elif method == b"GET":
        await _get(call, _bridge(call))
    elif method == b"DELETE":
        _bridge(call).close()
        _reply(call, 200, b"")
    else:
        raise CoveError("method_not_allowed", "MCP is spoken by POST, GET and DELETE")


def _bridge(call: Call) -> _Bridge:
    """The session of a request that names one."""
    session = call.gateway.affinity.peek(call.exchange, call.route, call.principal)
    if session is None:
        raise CoveError(
            "bad_request", "Bad Request: Missing session ID", hint="POST initialize first"
        )
    if not isinstance(session.attached, _Bridge):
        raise unknown_session()
    return session.attached


async def _post(call: Call) -> None:
    body = await call.exchange.read_body(call.route.body)
    if body is None:
        raise too_large(call.route)
    try:
        parsed = messages.parse(body)
    except ValueError:
        call.exchange.write(
            simple_reply(
                400,
                messages.error(-32700, "Parse error"),
                content_type=b"application/json",
                extra=b"X-Request-Id: " + call.exchange.id,
            )
        )
        call.exchange.finish()
        return
    if messages.is_initialize(body) and b"mcp-session-id" not in call.exchange.fields:
        bridge = await _Bridge.open(call)
    else:
        bridge = _bridge(call)
    ids = [i for m in parsed if (i := messages.request_id(m)) is not None]
    await bridge.post(call, body, ids)


async def _get(call: Call, bridge: _Bridge) -> None:
    out = EventStream(call.exchange)
    with bridge.listening() as inbox:
        call.exchange.on_gone = inbox.close
        out.start()
        pace = asyncio.create_task(comments(out))
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(call.route.lifetime):
                    async for data in inbox.items():
                        await out.send(sse.encode(data))
        finally:
            pace.cancel()
    out.finish()


def _reply(call: Call, status: int, body: bytes) -> None:
    call.exchange.write(simple_reply(status, body, extra=b"X-Request-Id: " + call.exchange.id))
    call.exchange.finish()


class _Inbox:
    """Messages on their way to one client stream, in order."""

    def __init__(self) -> None:
        self._items: deque[bytes] = deque()
        self._closed = False
        self._wake = asyncio.Event()

    def put(self, data: bytes) -> None:
        self._items.append(data)
        self._wake.set()

    def close(self) -> None:
        """No more comes."""
        self._closed = True
        self._wake.set()

    async def items(self) -> AsyncIterator[bytes]:
        while True:
            while self._items:
                yield self._items.popleft()
            if self._closed:
                return
            self._wake.clear()
            await self._wake.wait()


class _Bridge:
    """One session: Cove's event stream at the server, and the caller's open requests."""

    def __init__(self, pool: Pool, instance: Instance) -> None:
        self._pool = pool
        self._instance = instance
        self._remote = b""
        self._call: Call
        self._session: Session | None = None
        self._requests: dict[messages.RequestId, _Inbox] = {}
        self._listener: _Inbox | None = None
        self._waiting: deque[bytes] = deque(maxlen=_WAITING)
        self._task: asyncio.Task[None] | None = None
        self._response: Response | None = None

    @classmethod
    async def open(cls, call: Call) -> _Bridge:
        """A new session at the server: its stream is open and its endpoint known."""
        pool = call.route.pool
        instance = await call.gateway.affinity.opening(call.route)
        bridge = cls(pool, instance)
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        bridge._call = call
        bridge._task = asyncio.create_task(bridge._run(call, opened))
        call.gateway.keep(bridge._task)
        try:
            await asyncio.shield(opened)
        except BaseException:
            bridge._task.cancel()
            call.gateway.affinity.give_up(pool, instance)
            raise
        affinity = call.gateway.affinity
        token = affinity.signer.seal(
            "mcp-session", call.route.name, call.principal, instance.id, secrets.token_hex(16)
        )
        bridge._session = affinity.enrol(pool, instance, call.principal, token)
        bridge._session.attached = bridge
        bridge._session.on_end.add(bridge._ended)
        pool.release(instance, asyncio.get_running_loop().time())
        return bridge

    async def _run(self, call: Call, opened: asyncio.Future[None]) -> None:
        """Take the server's events to those they are for, until the stream or session ends."""
        try:
            async with open_stream(call, self._instance) as (response, remote, events):
                self._response, self._remote = response, remote
                opened.set_result(None)
                async for event in events:
                    if event.data:
                        self._hear(event.data)
        except (CoveError, OSError, TimeoutError) as error:
            if not opened.done():
                opened.set_exception(error)
                return
        self.close()

    def _hear(self, data: bytes) -> None:
        assert self._session is not None
        self._call.gateway.affinity.touch(self._session)
        try:
            parsed = messages.parse(data)
        except ValueError:
            return
        for ident in [i for m in parsed if (i := messages.answer_id(m)) is not None]:
            inbox = self._requests.pop(ident, None)
            if inbox is not None:
                inbox.put(data)
                inbox.close()
            return
        if self._listener is not None:
            self._listener.put(data)
        elif self._requests:
            next(reversed(self._requests.values())).put(data)
        else:
            self._waiting.append(data)

    async def post(self, call: Call, body: bytes, ids: list[messages.RequestId]) -> None:
        """One POST: 202 where it asks nothing, else a stream that ends with the answers."""
        assert self._session is not None
        session = self._session
        if not self._pool.claim_on(self._instance):
            raise CoveError(
                "too_many_requests", "this session's instance has no room", hint="retry later"
            )
        call.gateway.affinity.touch(session)
        session.inflight += 1
        inboxes = {ident: self._requests.setdefault(ident, _Inbox()) for ident in ids}
        try:
            async with asyncio.timeout(call.route.timeout):
                await self._send(call, body)
                if ids:
                    await self._answer(call, inboxes)
                else:
                    _reply(call, 202, b"")
        except TimeoutError:
            raise CoveError(
                "timeout", f"{call.route.name} did not answer within {call.route.timeout:g} s"
            ) from None
        finally:
            for ident in ids:
                self._requests.pop(ident, None)
            session.inflight -= 1
            self._pool.release(self._instance, asyncio.get_running_loop().time())

    async def _send(self, call: Call, body: bytes) -> None:
        head = request_head(
            call.exchange,
            call.route,
            self._remote,
            prefix=call.prefix,
            key=call.by_key,
            remote=None,
            length=len(body),
        )
        async with fetch(call.route.upstream(self._instance), head, body) as response:
            text = await response.read(_REPLY_BYTES)
            if response.status >= 300:
                raise CoveError(
                    "bad_gateway",
                    f"{call.route.name} answered {response.status} to a message: "
                    f"{text[:200].decode(errors='replace')}",
                )

    async def _answer(self, call: Call, inboxes: dict[messages.RequestId, _Inbox]) -> None:
        assert self._session is not None
        out = EventStream(call.exchange)
        call.exchange.is_stream = False  # its end is near: drain waits for it
        out.start([(b"mcp-session-id", self._session.key.encode())])
        while self._waiting:
            await out.send(sse.encode(self._waiting.popleft()))
        for inbox in inboxes.values():
            async for data in inbox.items():
                await out.send(sse.encode(data))
        out.finish()

    @contextlib.contextmanager
    def listening(self) -> Iterator[_Inbox]:
        """The session's GET stream; there is one at a time."""
        if self._listener is not None:
            raise CoveError("conflict", "Conflict: Only one SSE stream is allowed per session")
        inbox = self._listener = _Inbox()
        while self._waiting:
            inbox.put(self._waiting.popleft())
        try:
            yield inbox
        finally:
            self._listener = None

    def close(self) -> None:
        """End the session."""
        if self._session is not None:
            self._call.gateway.affinity.end(self._session)

    def _ended(self) -> None:
        for inbox in [*self._requests.values(), *([self._listener] if self._listener else [])]:
            inbox.close()
        if self._response is not None:
            self._response.lost("the session has ended")
