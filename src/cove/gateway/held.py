"""Held streams: the client's side stays open while instances come and go behind it.

A long-lived stream is not demand. It opens its upstream on an instance that is there anyway,
is held with comments while there is none, and opens it again on the next one that a request
has started. Both eras' streams are held: the legacy GET (`serve_get`) and the modern
`subscriptions/listen` (`serve_listen`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from cove.engine.instance import Instance
from cove.engine.sessions import Session
from cove.errors import CoveError
from cove.gateway.eventstream import EventStream, comments, pass_whole
from cove.gateway.forward import too_large
from cove.gateway.heads import request_head
from cove.gateway.upstream import Response, fetch
from cove.mcp import messages, sse
from cove.states import InstanceState

if TYPE_CHECKING:
    from cove.gateway.gateway import Call

_ERROR_BODY = 1024 * 1024
_ACK = "notifications/subscriptions/acknowledged"
_SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"


async def serve_get(call: Call, target: bytes) -> None:
    """The legacy GET stream of a session, or of a server that keeps none."""
    session = call.gateway.affinity.peek(call.exchange, call.route, call.principal)
    facts = call.route.pool.version.facts
    if session is None and (facts.stateful or not facts.legacy):
        if not facts.legacy:
            raise CoveError("method_not_allowed", "this server has no GET stream")
        raise CoveError(
            "bad_request",
            "Bad Request: Missing session ID",
            hint="POST initialize first, then GET with its Mcp-Session-Id",
        )
    await _Hold(call, target, b"", session).run(None)


async def serve_listen(call: Call, target: bytes) -> None:
    """`subscriptions/listen` (MCP 2026-07-28): acknowledged here where no instance is."""
    body = await call.exchange.read_body(call.route.body)
    if body is None:
        raise too_large(call.route)
    if not call.route.pool.version.facts.modern:
        raise CoveError("not_found", "Method not found: this server speaks legacy MCP only")
    try:
        (message,) = messages.parse(body)
        ident = messages.request_id(message)
    except ValueError:
        message, ident = {}, None
    listen = _Listen(message, ident) if ident is not None else None
    await _Hold(call, target, body, None).run(listen)


class _Listen:
    """What of a listen request the gateway itself has to say or to leave out."""

    def __init__(self, message: dict[str, Any], ident: messages.RequestId) -> None:
        params = message.get("params")
        self._filter = params.get("notifications", {}) if isinstance(params, dict) else {}
        self._ident = ident
        self.acknowledged = False

    def acknowledge(self) -> bytes:
        self.acknowledged = True
        params = {"notifications": self._filter, "_meta": {_SUBSCRIPTION: self._ident}}
        return sse.encode(messages.dump({"jsonrpc": "2.0", "method": _ACK, "params": params}))

    def repeats(self, event: sse.Event) -> bool:
        """Whether an event is an acknowledgement that the client has had already."""
        if _ACK.encode() not in event.data:
            return False
        again, self.acknowledged = self.acknowledged, True
        return again

    def end(self) -> bytes:
        result = {"resultType": "complete", "_meta": {_SUBSCRIPTION: self._ident}}
        return sse.encode(messages.dump({"jsonrpc": "2.0", "id": self._ident, "result": result}))


class _Hold:
    """One held stream."""

    def __init__(self, call: Call, target: bytes, body: bytes, session: Session | None) -> None:
        self._call = call
        self._target = target
        self._body = body
        self._session = session
        self._out = EventStream(call.exchange)
        self._ready = asyncio.Event()

    async def run(self, listen: _Listen | None) -> None:
        on_change = self._call.route.pool.on_change
        pace = asyncio.create_task(comments(self._out))
        on_change.add(self._ready.set)
        try:
            async with asyncio.timeout(self._call.route.lifetime):
                await self._hold(listen)
        except TimeoutError:
            if listen is not None:
                await self._out.send(listen.end())
        finally:
            on_change.discard(self._ready.set)
            pace.cancel()
        if self._out.started:
            self._out.finish()

    async def _hold(self, listen: _Listen | None) -> None:
        """Until upstream itself ends the stream, or the function is removed."""
        while (route := self._call.gateway.routes.get(self._call.route.name)) is not None:
            self._call.route = route
            self._ready.clear()
            instance = self._instance()
            if instance is not None:
                if await self._through(instance, listen):
                    return
                if instance.state is InstanceState.READY:
                    await asyncio.sleep(1.0)  # it refuses the stream for now
                    continue
            if not self._out.started:
                self._out.start()
                if listen is not None:
                    await self._out.send(listen.acknowledge())
            if self._instance() is None:
                await self._ready.wait()

    def _instance(self) -> Instance | None:
        if self._session is not None:
            return self._session.instance if not self._session.lost else None
        ready = self._call.route.pool.ready
        return ready[0] if ready else None

    async def _through(self, instance: Instance, listen: _Listen | None) -> bool:
        """Pass one upstream stream on; whether the client's stream is over with it."""
        call = self._call
        remote = self._session.remote or None if self._session is not None else None
        head = request_head(
            call.exchange,
            call.route,
            self._target,
            prefix=call.prefix,
            key=call.by_key,
            remote=remote,
            length=len(self._body) if self._body else None,
        )
        try:
            async with (
                fetch(call.route.upstream(instance), head, self._body) as response,
                _until_stopping(instance, response),
            ):
                return await self._relay(response, listen)
        except OSError:
            if instance.state is InstanceState.READY and self._out.started:
                return True  # the server broke it off: the client may open it again
            if instance.state is InstanceState.READY:
                raise
            return False

    async def _relay(self, response: Response, listen: _Listen | None) -> bool:
        if response.status != 200 or not response.is_stream:
            if self._out.started:
                return False
            await pass_whole(self._call.exchange, response, _ERROR_BODY)
            return True
        if not self._out.started:
            self._out.start()
        parser = sse.EventParser()
        async for data in response.chunks():
            for event in parser.feed(data):
                if listen is None or not listen.repeats(event):
                    await self._out.send(event.raw)
        return True


@contextlib.asynccontextmanager
async def _until_stopping(instance: Instance, response: Response) -> AsyncIterator[None]:
    """The stream is given up as soon as the instance is to stop."""

    def stop() -> None:
        response.lost("the instance is leaving")

    instance.on_stopping.add(stop)
    try:
        yield
    finally:
        instance.on_stopping.discard(stop)
