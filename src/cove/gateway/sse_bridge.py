"""A Streamable HTTP server shown as HTTP+SSE: for clients of 2024-11-05.

Each POST is accepted at once; what the server answers comes on the session's stream, as do the
messages it sends by itself, for which a GET stream of its own is opened once the client has
initialized.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from cove.engine.instance import Instance
from cove.errors import CoveError
from cove.gateway.destination import overdue
from cove.gateway.eventstream import parsed
from cove.gateway.fetch import Response, fetch
from cove.gateway.head import Headers
from cove.gateway.heads import request_head
from cove.gateway.loss import gone, lost
from cove.gateway.room import Room
from cove.gateway.sse_backend import opening, own_head
from cove.gateway.sse_session import SseSession, find
from cove.mcp import messages, sse

if TYPE_CHECKING:
    from cove.gateway.call import Call

_ANSWER_BYTES = 64 * 1024 * 1024
_END_SECONDS = 5.0
_RETRY_SECONDS = 1.0
_RETRY_MOST = 30.0


async def stream(call: Call) -> None:
    """GET /sse: the session, until its client leaves, it idles out, or its lifetime ends."""
    pool = call.route.pool
    instance = await opening(call)
    ended = asyncio.Event()
    bridged = _Bridged(call, instance, ended)
    pool.release(instance, asyncio.get_running_loop().time())
    try:
        with bridged.out.commented(), contextlib.suppress(TimeoutError):
            async with asyncio.timeout(call.route.lifetime):
                await bridged.start()
                await ended.wait()
    finally:
        bridged.stop()


async def post(call: Call) -> None:
    """POST to the messages path: accepted, and sent on."""
    session = find(call)
    assert isinstance(session, _Bridged)
    await session.accept(call)
    call.reply(202, b"Accepted")


class _Bridged(SseSession):
    """A session whose server speaks Streamable HTTP. `backend` holds its id and version there."""

    def __init__(self, call: Call, instance: Instance, ended: asyncio.Event) -> None:
        super().__init__(call, call.route.pool, instance, ended.set)
        self._upstream = call.route.upstream(instance)
        self._backend: Headers = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._order: asyncio.Task[None] | None = None
        self._room = Room()

    async def accept(self, call: Call) -> None:
        """Take a client's message and see to it that it is sent on.

        A request's claim bounds what is held of it; other messages, which claim nothing, wait
        with their client until there is room for them. `session_not_found` where the session
        ends first.
        """
        try:
            async with asyncio.timeout(call.route.timeout):
                claim = await self._room.take(call.exchange.length)
        except TimeoutError:
            raise CoveError(
                "too_many_requests",
                f"{call.route.name} has not taken this session's earlier messages",
                hint="retry when it has",
            ) from None
        kept = False
        try:
            body = await call.read()
            ids = self.asks(call, body)
            task = self._pass_on(call, body, ids)
            if not ids:
                kept = True
                task.add_done_callback(lambda _: self._room.give_back(claim))
        finally:
            if not kept:
                self._room.give_back(claim)

    def _pass_on(
        self, call: Call, body: bytes, ids: list[messages.RequestId]
    ) -> asyncio.Task[None]:
        """Send a client's message to the server; its answer goes to the stream."""
        task = asyncio.create_task(self._deliver(call, body, ids, self._order))
        # What follows initialize needs the session id it brings, and notifications come in order.
        if not ids or messages.is_initialize(body):
            self._order = task
        self._keep(task)
        return task

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.call.gateway.keep(task)

    async def _deliver(
        self,
        call: Call,
        body: bytes,
        ids: list[messages.RequestId],
        previous: asyncio.Task[None] | None,
    ) -> None:
        why = lost(call.route.name, None, "its answer ended early")
        try:
            async with asyncio.timeout(call.route.timeout):
                if previous is not None:
                    await asyncio.wait([previous])
                await self._exchange(self._head(call, len(body)), body, ids)
        except TimeoutError:
            why = overdue(call.route)
        except OSError as error:
            await gone(self.instance)
            why = lost(call.route.name, self.instance, str(error))
        for ident in ids:
            self.fail(ident, why)

    def _head(self, call: Call, length: int) -> bytes:
        return request_head(
            call.exchange,
            call.route,
            call.route.path,
            prefix=call.prefix,
            key=call.by_key,
            remote=None,
            length=length,
            instead=[
                (b"accept", b"application/json, text/event-stream"),
                (b"content-type", b"application/json"),
                *self._backend,
            ],
        )

    def _own_head(self, method: bytes, headers: Headers) -> bytes:
        return own_head(self.call, method, [*headers, *self._backend])

    async def _exchange(self, head: bytes, body: bytes, ids: list[messages.RequestId]) -> None:
        opens = not self._backend and messages.is_initialize(body)
        last, pause = b"", _RETRY_SECONDS
        async with fetch(self._upstream, head, body) as response:
            if opens and 200 <= response.status < 300:
                self._backend = _backend_id(response)
            if response.is_stream:
                last, pause = await self._pass_events(response, opens=opens)
            else:
                await self._pass_answer(response, ids, opens=opens)
        while last and any(self.waits_for(ident) for ident in ids):
            await asyncio.sleep(pause)  # the server hung up to be asked again (SEP-1699)
            last, pause = await self._listen_once(last)
        if b'"notifications/initialized"' in body:
            self._keep(asyncio.create_task(self._listen()))

    async def _pass_answer(
        self, response: Response, ids: list[messages.RequestId], *, opens: bool
    ) -> None:
        answer = await response.read(_ANSWER_BYTES)
        if answer and response.get(b"content-type").startswith(b"application/json"):
            if opens:
                self._learn_version(answer)
            await self._say(_with_id(answer, ids))
        for ident in ids:
            self.fail(ident, lost(self.call.route.name, None, f"it said {response.status}"))
        if response.status == 404 and self._backend:
            self._backend = []
            self.close()  # the server has lost the session: the client is to open another

    def _learn_version(self, answer: bytes) -> None:
        """What the two agreed on, which every later request has to carry."""
        with contextlib.suppress(ValueError):
            for message in messages.parse(answer):
                result = message.get("result")
                version = result.get("protocolVersion") if isinstance(result, dict) else None
                if isinstance(version, str) and version.isprintable():
                    self._backend.append((b"mcp-protocol-version", version.encode("latin-1")))

    async def _listen(self) -> None:
        """The server's own messages, where it offers a stream of them, again and again."""
        last, pause = b"", 0.0
        while not self.ended:
            try:
                last, pause = await self._listen_once(last)
            except OSError:
                pause = min(max(pause * 2, _RETRY_SECONDS), _RETRY_MOST)
            if pause < 0:
                return
            await asyncio.sleep(pause)

    async def _listen_once(self, last: bytes) -> tuple[bytes, float]:
        """One GET stream to its end: the last event id, and the seconds to wait for the next.

        Negative seconds where the server offers no such stream.
        """
        headers = [(b"accept", b"text/event-stream")]
        if last:
            headers.append((b"last-event-id", last))
        head = self._own_head(b"GET", headers)
        async with fetch(self._upstream, head) as response:
            if response.status != 200 or not response.is_stream:
                return b"", -1.0
            again, pause = await self._pass_events(response, opens=False)
            return again or last, pause

    async def _pass_events(self, response: Response, *, opens: bool) -> tuple[bytes, float]:
        last, pause = b"", _RETRY_SECONDS
        async for event in parsed(response):
            last = event.id or last
            pause = sse.retry(event.raw) or pause
            if not event.is_comment:
                if opens:
                    self._learn_version(event.data)
                await self._say(event.data)
        return last, pause

    async def _say(self, data: bytes) -> None:
        self.hears(data)
        await self.out.send(sse.encode(data))

    def stop(self) -> None:
        """End everything of the session, its half at the server included."""
        for task in self._tasks:
            task.cancel()
        lost = self.session.lost
        self.close()
        if self._backend and not lost:
            self.call.gateway.keep(asyncio.create_task(self._delete()))

    async def _delete(self) -> None:
        head = self._own_head(b"DELETE", [])
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_END_SECONDS), fetch(self._upstream, head) as response:
                await response.read(_ANSWER_BYTES)


def _backend_id(response: Response) -> Headers:
    ident = response.get(b"mcp-session-id")
    return [(b"mcp-session-id", ident)] if ident else []


def _with_id(answer: bytes, ids: list[messages.RequestId]) -> bytes:
    """An answer as one line; an error without an id gets that of the request it answers."""
    try:
        parsed_ = messages.parse(answer)
    except ValueError:
        return answer.replace(b"\n", b" ")
    if len(parsed_) == 1 and len(ids) == 1 and parsed_[0].get("id") is None:
        message: dict[str, Any] = {**parsed_[0], "id": ids[0]}
        return messages.dump(message)
    return answer.replace(b"\n", b" ")
