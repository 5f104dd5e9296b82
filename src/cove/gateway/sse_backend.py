"""Functions that speak HTTP+SSE only: their stream, and their POSTs, passed on.

The endpoint event, of whatever path and query the server chose, is learnt and rewritten: the
client posts to Cove's messages path, Cove to the server's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from cove.engine.instance import Instance
from cove.errors import CoveError
from cove.gateway.eventstream import comments, pass_whole
from cove.gateway.forward import too_large
from cove.gateway.heads import request_head
from cove.gateway.sse_session import SseSession, find
from cove.gateway.upstream import Response, fetch
from cove.mcp import sse

if TYPE_CHECKING:
    from cove.gateway.gateway import Call

_REPLY_BYTES = 1024 * 1024


async def stream(call: Call) -> None:
    """GET /sse: the session, from the endpoint event to its end."""
    pool = call.route.pool
    instance = await call.gateway.affinity.opening(call.route)
    pace: asyncio.Task[None] | None = None
    session: SseSession | None = None
    try:
        async with open_stream(call, instance) as (response, remote, events):
            session = SseSession(call, pool, instance, lambda: response.lost("ended"))
            session.remote = remote
            await session.start()
            pace = asyncio.create_task(comments(session.out))
            pool.release(instance, asyncio.get_running_loop().time())
            await _relay(session, events)
    except ConnectionError:
        if session is None:
            raise
    finally:
        if session is None:
            call.gateway.affinity.give_up(pool, instance)
        else:
            session.close()
        if pace is not None:
            pace.cancel()


async def _relay(session: SseSession, events: AsyncIterator[sse.Event]) -> None:
    async with asyncio.timeout(session.call.route.lifetime):
        async for event in events:
            if not event.is_comment:
                session.hears(event.data)
            await session.out.send(event.raw)


@asynccontextmanager
async def open_stream(
    call: Call, instance: Instance
) -> AsyncIterator[tuple[Response, bytes, AsyncIterator[sse.Event]]]:
    """The server's stream: its response, the path it is posted to, the events that follow."""
    head = request_head(
        call.exchange,
        call.route,
        call.route.path,
        prefix=call.prefix,
        key=call.by_key,
        remote=None,
        length=None,
    )
    async with fetch(call.route.upstream(instance), head) as response:
        if response.status != 200 or not response.is_stream:
            raise CoveError(
                "bad_gateway",
                f"{call.route.name} answered {response.status} where its event stream should be",
                hint=f"`path` in cove.toml says where it is; now {call.route.path.decode()}",
            )
        events = parsed(response)
        async with asyncio.timeout(call.route.timeout):
            async for event in events:
                if event.event == b"endpoint":
                    yield response, resolve(call.route.path, event.data), events
                    return


async def parsed(response: Response) -> AsyncIterator[sse.Event]:
    """A stream's events as they come."""
    parser = sse.EventParser()
    async for data in response.chunks():
        for event in parser.feed(data):
            yield event


def resolve(base: bytes, endpoint: bytes) -> bytes:
    """An endpoint event's URL, relative or absolute, as path and query on the server."""
    joined = urlsplit(urljoin(f"http://localhost{base.decode()}", endpoint.decode().strip()))
    return (joined.path + (f"?{joined.query}" if joined.query else "")).encode()


async def post(call: Call) -> None:
    """POST to the messages path: sent on to where the endpoint event said."""
    session = find(call)
    body = await call.exchange.read_body(call.route.body)
    if body is None:
        raise too_large(call.route)
    ids = session.asks(body)
    head = request_head(
        call.exchange,
        call.route,
        session.remote,
        prefix=call.prefix,
        key=call.by_key,
        remote=None,
        length=len(body),
    )
    try:
        async with (
            asyncio.timeout(call.route.timeout),
            fetch(call.route.upstream(session.instance), head, body) as response,
        ):
            if response.status >= 300:
                session.answered(*ids)
            await pass_whole(call.exchange, response, _REPLY_BYTES)
    except OSError:
        session.answered(*ids)
        raise
