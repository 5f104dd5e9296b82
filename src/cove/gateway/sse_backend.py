"""Functions that speak HTTP+SSE only: their stream, and their POSTs, passed on.

The endpoint event, of whatever path and query the server chose, is learnt and rewritten: the
client posts to Cove's messages path, Cove to the server's own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from cove.engine.instance import Instance
from cove.errors import CoveError
from cove.gateway.eventstream import parsed, pass_whole
from cove.gateway.fetch import Response, fetch
from cove.gateway.head import Headers
from cove.gateway.heads import request_head
from cove.gateway.loss import TRIES, gone
from cove.gateway.sse_session import SseSession, find
from cove.mcp import sse

if TYPE_CHECKING:
    from cove.gateway.call import Call

REPLY_BYTES = 1024 * 1024
"""The most that a server says to a message beside its stream."""


async def stream(call: Call) -> None:
    """GET /sse: the session, from the endpoint event to its end."""
    tries = TRIES
    while True:
        instance = await opening(call)
        tries -= 1
        try:
            await _serve(call, instance)
            return
        except ConnectionRefusedError:  # it was not reached: another may be
            if not tries or not await gone(instance):
                raise


async def _serve(call: Call, instance: Instance) -> None:
    pool = call.route.pool
    session: SseSession | None = None
    try:
        async with open_stream(call, instance) as (response, remote, events):
            session = SseSession(call, pool, instance, lambda: response.lost("ended"))
            session.remote = remote
            pool.release(instance, asyncio.get_running_loop().time())
            await _relay(session, events)
    except AnsweredError:
        pass
    except (ConnectionError, TimeoutError):
        if session is None:
            raise
    finally:
        if session is None:
            call.gateway.affinity.give_up(pool, instance)
        else:
            session.close()


async def opening(call: Call) -> Instance:
    """An instance with a slot for a session to be; a claim and the slot are the caller's."""
    instance = call.instance = await call.gateway.affinity.opening(call.route)
    return instance


async def _relay(session: SseSession, events: AsyncIterator[sse.Event]) -> None:
    with session.out.commented():
        async with asyncio.timeout(session.call.route.lifetime):
            await session.start()
            with contextlib.suppress(ConnectionError):
                async for event in events:
                    if not event.is_comment:
                        session.hears(event.data)
                    await session.out.send(event.raw)
            if session.owes and not session.ended:
                await gone(session.instance)  # what it owes is answered with how it ended


class AnsweredError(Exception):
    """The server refused its stream in words of its own, which the caller has been given."""


@contextlib.asynccontextmanager
async def open_stream(
    call: Call, instance: Instance
) -> AsyncIterator[tuple[Response, bytes, AsyncIterator[sse.Event]]]:
    """The server's stream: its response, the path it is posted to, the events that follow.

    `AnsweredError` where the server answers with an error status.
    """
    async with contextlib.AsyncExitStack() as stack:
        # Bounds the wait for the endpoint event, not what follows.
        async with asyncio.timeout(call.route.timeout):
            response = await stack.enter_async_context(
                fetch(
                    call.route.upstream(instance),
                    own_head(call, b"GET", [(b"accept", b"text/event-stream")]),
                )
            )
            if response.status >= 400:
                await pass_whole(call, response, REPLY_BYTES)
                raise AnsweredError
            events = parsed(response)
            remote = await _endpoint(call, response, events)
        yield response, remote, events


def own_head(call: Call, method: bytes, instead: Headers) -> bytes:
    """A request without a body that Cove makes for a caller, with that caller's headers.

    `instead` replaces some of them.
    """
    called = call.exchange.method
    head = request_head(
        call.exchange,
        call.route,
        call.route.path,
        prefix=call.prefix,
        key=call.by_key,
        remote=None,
        length=None if called == b"GET" else 0,
        instead=instead,
    )
    return method + head.removeprefix(called)


async def _endpoint(call: Call, response: Response, events: AsyncIterator[sse.Event]) -> bytes:
    if response.status == 200 and response.is_stream:
        async for event in events:
            if event.event == b"endpoint":
                return resolve(call.route.path, event.data, call.prefix)
    raise CoveError(
        "bad_gateway",
        f"{call.route.name} answered {response.status} where its event stream should be",
        hint=f"`path` in cove.toml says where it is; now {call.route.path.decode()}",
    )


def resolve(base: bytes, endpoint: bytes, prefix: bytes = b"") -> bytes:
    """An endpoint event's URL, relative or absolute, as path and query on the server.

    A server that honours X-Forwarded-Prefix names the path as its callers see it.
    """
    joined = urlsplit(urljoin(f"http://localhost{base.decode()}", endpoint.decode().strip()))
    path = joined.path or "/"
    if prefix and path.startswith(prefix.decode() + "/"):
        path = path.removeprefix(prefix.decode())
    return (path + (f"?{joined.query}" if joined.query else "")).encode()


def posted(
    call: Call, instance: Instance, target: bytes, body: bytes
) -> AbstractAsyncContextManager[Response]:
    """A caller's message, posted to where the server takes them; what it says to that."""
    head = request_head(
        call.exchange,
        call.route,
        target,
        prefix=call.prefix,
        key=call.by_key,
        remote=None,
        length=len(body),
    )
    return fetch(call.route.upstream(instance), head, body)


async def post(call: Call) -> None:
    """POST to the messages path: sent on to where the endpoint event said."""
    session = find(call)
    body = await call.read()
    ids = session.asks(call, body)
    accepted = False
    try:
        async with (
            asyncio.timeout(call.route.timeout),
            posted(call, session.instance, session.remote, body) as response,
        ):
            accepted = response.status < 300
            await pass_whole(call, response, REPLY_BYTES)
    finally:
        if not accepted:
            session.answered(*ids)
