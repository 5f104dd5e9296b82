"""Held streams: the client's side stays open while instances come and go behind it.

A long-lived stream is not demand. It opens its upstream on an instance that is there anyway,
is held with comments while there is none, and opens it again on the next one that a request
has started. Both eras' streams are held: the legacy GET (`serve_get`) and the modern
`subscriptions/listen` (`serve_listen`).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from cove.engine.instance import Instance
from cove.engine.sessions import Session
from cove.errors import CoveError
from cove.gateway.eventstream import EventStream, parsed, pass_whole
from cove.gateway.fetch import Response, fetch
from cove.gateway.heads import request_head
from cove.gateway.listen import Listen, Refusal, read
from cove.mcp import sse
from cove.states import InstanceState, SessionState

if TYPE_CHECKING:
    from cove.gateway.call import Call

_ERROR_BODY = 1024 * 1024
_RETRY_FIRST, _RETRY_MOST = 1.0, 60.0
_EXIT_SECONDS = 1.0


async def serve_get(call: Call, target: bytes) -> None:
    """The legacy GET stream of a session, or of a server that keeps none."""
    session = call.gateway.affinity.peek(call.exchange, call.route, call.principal)
    facts = call.route.pool.version.facts
    if session is None and not facts.legacy:
        raise CoveError("method_not_allowed", "this server has no GET stream")
    if session is None and facts.stateful:
        raise CoveError(
            "bad_request",
            "Bad Request: Missing session ID",
            hint="POST initialize first, then GET with its Mcp-Session-Id",
        )
    await _Hold(call, target, b"", session, None).run()


async def serve_listen(call: Call, target: bytes) -> None:
    """`subscriptions/listen` (MCP 2026-07-28): acknowledged here where no instance is."""
    body = await call.read()
    found = read(
        body,
        call.exchange.fields.get(b"mcp-protocol-version", b""),
        modern=call.route.pool.version.facts.modern,
    )
    if isinstance(found, Refusal):
        call.reply(found.status, found.body, b"application/json")
        return
    await _Hold(call, target, body, None, found).run()


class _Hold:
    """One held stream, of a session or of none, opened by GET or by a listen request."""

    def __init__(
        self,
        call: Call,
        target: bytes,
        body: bytes,
        session: Session | None,
        listen: Listen | None,
    ) -> None:
        call.session = session
        self._call = call
        self._target = target
        self._body = body
        self._session = session
        self._listen = listen
        self._out = EventStream(call.exchange)
        self._changed = asyncio.Event()
        self._upstream: tuple[Instance, Response] | None = None
        self._version = call.route.pool.version.number
        self._pause = _RETRY_FIRST

    async def run(self) -> None:
        on_change = self._call.route.pool.on_change
        on_change.add(self._notice)
        if self._session is not None:
            self._session.on_end.add(self._notice)
        try:
            with self._out.commented():
                async with asyncio.timeout(self._call.route.lifetime):
                    await self._hold()
        except TimeoutError:
            if not self._out.started:
                raise
        finally:
            on_change.discard(self._notice)
            if self._session is not None:
                self._session.on_end.discard(self._notice)
            if self._out.started:
                if self._call.gateway.draining:
                    self._out.write(sse.RETRY)
                if self._listen is not None:
                    self._out.write(self._listen.end())
            self._out.finish()

    def _notice(self) -> None:
        """An instance has become ready, the function has changed, or the session has ended."""
        self._changed.set()
        if self._upstream is None:
            return
        instance, response = self._upstream
        if self._over() or (self._session is None and not self._serves(instance)):
            response.lost("the stream is needed elsewhere")

    def _over(self) -> bool:
        """The function was removed, or the session has ended."""
        if self._session is not None and self._session.state is SessionState.ENDED:
            return True
        route = self._call.gateway.routes.get(self._call.route.name)
        return route is None or route.pool.on_change is not self._call.route.pool.on_change

    def _serves(self, instance: Instance) -> bool:
        """Whether an instance is the caller's own, or of the version that is live."""
        if instance is self._keyed():
            return True
        route = self._call.gateway.routes.get(self._call.route.name)
        return route is not None and instance in route.pool.ready

    async def _hold(self) -> None:
        """Until upstream itself ends the stream, the function is removed or the session ends."""
        while not self._over():
            self._changed.clear()
            self._move()
            instance = self._instance()
            if instance is not None and await self._through(instance):
                return
            if self._over() or self._changed.is_set():
                continue
            if instance is not None and instance is self._instance():
                # It refuses the stream for now: others may not, and nor may it later.
                await self._wait(self._pause)
                self._pause = min(self._pause * 2, _RETRY_MOST)
            elif self._instance() is None:
                await self._begin()
                self._out.comment()
                await self._wait(None if self._session is None else _RETRY_MOST)

    async def _wait(self, seconds: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    def _move(self) -> None:
        """Follow the function to its live version, of which a listener may want to know."""
        route = self._call.gateway.routes.get(self._call.route.name)
        if route is None:
            return
        number = route.pool.version.number
        if number != self._version and self._session is None:
            self._version, self._pause = number, _RETRY_FIRST
            if self._listen is not None and self._out.started:
                for note in self._listen.lists_changed():
                    self._out.write(note)
        self._call.route = route

    def _instance(self) -> Instance | None:
        if self._session is not None:
            return self._session.instance if not self._session.lost else None
        if (own := self._keyed()) is not None:
            return own
        pool = self._call.route.pool
        # where every session has an instance of its own, none is anybody else's
        return pool.ready[0] if pool.ready and not pool.exclusive else None

    def _keyed(self) -> Instance | None:
        """Where the caller's session is, if its requests are told apart by a key they bring."""
        call = self._call
        if call.route.affinity.kind in ("mcp", "none"):
            return None
        try:
            session = call.gateway.affinity.peek(call.exchange, call.route, call.principal)
        except CoveError:
            return None
        return session.instance if session is not None else None

    async def _begin(self) -> None:
        """The client's stream, where no server's answer has opened it."""
        if not self._out.started:
            self._out.start()
            if self._listen is not None:
                await self._out.send(self._listen.acknowledge())

    async def _through(self, instance: Instance) -> bool:
        """Pass one upstream stream on; whether the client's stream is over with it."""
        call = self._call
        head = request_head(
            call.exchange,
            call.route,
            self._target,
            prefix=call.prefix,
            key=call.by_key,
            remote=(self._session.remote or None) if self._session is not None else None,
            length=len(self._body) if self._body else None,
        )
        try:
            async with asyncio.timeout(call.route.timeout) as patience:
                async with fetch(call.route.upstream(instance), head, self._body) as response:
                    patience.reschedule(None)
                    self._upstream = instance, response
                    call.instance = instance
                    instance.on_stopping.add(self._notice)
                    return await self._relay(response)
        except OSError:
            return await self._broken(instance)
        finally:
            self._upstream = None
            instance.on_stopping.discard(self._notice)

    async def _relay(self, response: Response) -> bool:
        if response.status != 200 or not response.is_stream:
            if self._out.started:
                return False
            await pass_whole(self._call, response, _ERROR_BODY)
            return True
        if not self._out.started:
            self._out.start()
        self._pause = _RETRY_FIRST
        async for event in parsed(response):
            if self._listen is None or not self._listen.repeats(event):
                await self._out.send(event.raw)
        return True

    async def _broken(self, instance: Instance) -> bool:
        """The upstream is lost: with its instance, for the stream's sake, or by the server."""
        if self._changed.is_set() or instance.state is not InstanceState.READY:
            return False
        if instance.running is not None:  # its end may not have been noticed yet
            await asyncio.wait([instance.running.exited], timeout=_EXIT_SECONDS)
        if instance.state is not InstanceState.READY:
            return False
        if not self._out.started:
            raise ConnectionError("it broke its event stream off")
        return self._listen is None  # a GET stream's client opens it again by itself
