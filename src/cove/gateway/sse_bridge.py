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
from cove.gateway.eventstream import comments
from cove.gateway.forward import too_large
from cove.gateway.heads import request_head
from cove.gateway.head import Headers
from cove.gateway.replies import simple_reply
from cove.gateway.sse_backend import parsed
from cove.gateway.sse_session import SseSession, find
from cove.gateway.upstream import Response, fetch, plain_head
from cove.mcp import messages, sse

if TYPE_CHECKING:
    from cove.gateway.gateway import Call

_ANSWER_BYTES = 64 * 1024 * 1024
_END_SECONDS = 5.0


async def stream(call: Call) -> None:
    """GET /sse: the session, until its client leaves, it idles out, or its lifetime ends."""
    pool = call.route.pool
    instance = await call.gateway.affinity.opening(call.route)
    ended = asyncio.Event()
    bridged = _Bridged(call, instance, ended)
    pool.release(instance, asyncio.get_running_loop().time())
    pace = asyncio.create_task(comments(bridged.out))
    try:
        await bridged.start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(call.route.lifetime):
                await ended.wait()
    finally:
        pace.cancel()
        bridged.stop()


async def post(call: Call) -> None:
    """POST to the messages path: accepted, and sent on."""
    session = find(call)
    body = await call.exchange.read_body(call.route.body)
    if body is None:
        raise too_large(call.route)
    ids = session.asks(body)
    assert isinstance(session, _Bridged)
    session.pass_on(call, body, ids)
    call.exchange.write(simple_reply(202, b"Accepted", extra=b"X-Request-Id: " + call.exchange.id))
    call.exchange.finish()


class _Bridged(SseSession):
    """A session whose server speaks Streamable HTTP. `backend` holds its id and version there."""

    def __init__(self, call: Call, instance: Instance, ended: asyncio.Event) -> None:
        super().__init__(call, call.route.pool, instance, ended.set)
        self._upstream = call.route.upstream(instance)
        self._backend: Headers = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._order: asyncio.Task[None] | None = None

    def pass_on(self, call: Call, body: bytes, ids: list[messages.RequestId]) -> None:
        """Send a client's message to the server; its answer goes to the stream."""
        previous = self._order
        task = asyncio.create_task(self._pass_on(call, body, ids, previous))
        # What follows initialize needs the session id it brings, and notifications come in order.
        if not ids or messages.is_initialize(body):
            self._order = task
        self._keep(task)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.call.gateway.keep(task)

    async def _pass_on(
        self,
        call: Call,
        body: bytes,
        ids: list[messages.RequestId],
        previous: asyncio.Task[None] | None,
    ) -> None:
        if previous is not None:
            await asyncio.wait([previous])
        head = request_head(
            call.exchange,
            call.route,
            call.route.path,
            prefix=call.prefix,
            key=call.by_key,
            remote=None,
            length=len(body),
            instead=[(b"accept", b"application/json, text/event-stream"), *self._backend],
        )
        try:
            async with asyncio.timeout(call.route.timeout):
                await self._exchange(head, body, ids)
        except (OSError, TimeoutError) as error:
            reason = str(error) or "no answer in time"
            for ident in ids:
                await self._say(messages.error(-32603, f"the server failed: {reason}", ident))

    async def _exchange(self, head: bytes, body: bytes, ids: list[messages.RequestId]) -> None:
        async with fetch(self._upstream, head, body) as response:
            if not self._backend and messages.is_initialize(body):
                self._learn(response)
            if response.is_stream:
                await self._pass_events(response)
                return
            answer = await response.read(_ANSWER_BYTES)
            if answer and response.get(b"content-type").startswith(b"application/json"):
                await self._say(_with_id(answer, ids))
            elif response.status >= 400:
                for ident in ids:
                    text = f"the server answered {response.status}"
                    await self._say(messages.error(-32603, text, ident))
        if b'"notifications/initialized"' in body:
            self._keep(asyncio.create_task(self._listen()))

    def _learn(self, response: Response) -> None:
        if 200 <= response.status < 300 and (ident := response.get(b"mcp-session-id")):
            self._backend = [(b"mcp-session-id", ident)]

    async def _listen(self) -> None:
        """The server's own messages, where it offers a stream of them."""
        headers = [(b"accept", b"text/event-stream"), *self._backend]
        head = plain_head(b"GET", self.call.route.path, headers, port=self.call.route.port)
        with contextlib.suppress(OSError):
            async with fetch(self._upstream, head) as response:
                if response.status == 200 and response.is_stream:
                    await self._pass_events(response)

    async def _pass_events(self, response: Response) -> None:
        async for event in parsed(response):
            if not event.is_comment:
                await self._say(event.data)

    async def _say(self, data: bytes) -> None:
        self.hears(data)
        await self.out.send(sse.encode(data))

    def stop(self) -> None:
        """End everything of the session, its half at the server included."""
        for task in self._tasks:
            task.cancel()
        self.close()
        if self._backend and not self.session.lost:
            self.call.gateway.keep(asyncio.create_task(self._delete()))

    async def _delete(self) -> None:
        head = plain_head(b"DELETE", self.call.route.path, self._backend, port=self.call.route.port)
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_END_SECONDS), fetch(self._upstream, head) as response:
                await response.read(_ANSWER_BYTES)


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
