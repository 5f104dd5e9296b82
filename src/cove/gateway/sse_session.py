"""An HTTP+SSE session (MCP 2024-11-05): the stream is the session, POSTs belong to it.

It ends when its client closes the stream, or `session.idle` after its last message either
way, but never with a request unanswered: one that the server does not answer within
`limits.timeout` is answered here.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from cove.engine.instance import Instance
from cove.engine.pool import Pool
from cove.engine.sessions import Session
from cove.errors import CoveError
from cove.gateway.affinity import stopping, unknown_session
from cove.gateway.destination import overdue
from cove.gateway.eventstream import EventStream
from cove.gateway.loss import lost
from cove.gateway.replies import rpc_event
from cove.mcp import messages, sse
from cove.states import InstanceState, SessionState

if TYPE_CHECKING:
    from cove.gateway.call import Call

_QUERY = "session_id"


class SseSession:
    """One client's stream, its engine session, and the requests it has open.

    It takes over the caller's slot of `instance`, and gives it back with the session's end,
    of which `on_end` is told.
    """

    def __init__(self, call: Call, pool: Pool, instance: Instance, on_end: Callable[[], None]):
        affinity = call.gateway.affinity
        token = affinity.signer.seal(
            "sse", call.route.name, call.principal, instance.id, secrets.token_hex(16)
        )
        self.call = call
        self.pool = pool
        self.instance = instance
        self.out = EventStream(call.exchange)
        self.remote = b""
        self.session = call.session = affinity.enrol(pool, instance, call.principal, token)
        self.session.on_end.add(on_end)
        self.session.attached = self
        # When each is overdue, and the id of the POST that brought it.
        self._open: dict[messages.RequestId, tuple[asyncio.TimerHandle, bytes]] = {}

    async def start(self) -> None:
        """Send the head and the endpoint event: where this session's POSTs go."""
        target = f"{self.call.prefix.decode()}/messages/?{_QUERY}={self.session.key}"
        self.out.start()
        await self.out.send(sse.encode(target.encode(), b"endpoint"))

    @property
    def ended(self) -> bool:
        return self.session.state is SessionState.ENDED

    def asks(self, call: Call, body: bytes) -> list[messages.RequestId]:
        """A client's message is about to be sent on: which requests it opens.

        `too_many_requests` where the instance has no room for them.
        """
        if self.ended:
            raise unknown_session()
        self._touch()
        try:
            parsed = messages.parse(body)
        except ValueError:
            return []
        self.answered(*(i for m in parsed if (i := messages.cancelled_id(m)) is not None))
        ids = {i: None for m in parsed if (i := messages.request_id(m)) is not None}
        fresh = [ident for ident in ids if ident not in self._open]
        loop = asyncio.get_running_loop()
        timeout = self.call.route.timeout
        for taken, ident in enumerate(fresh):
            if not self.pool.claim_on(self.instance):
                self.answered(*fresh[:taken])
                raise CoveError(
                    "too_many_requests",
                    "this session's instance has no room for more requests",
                    hint="retry when earlier ones are answered, or raise scale.concurrency",
                )
            timer = loop.call_later(timeout, self._overdue, ident)
            self._open[ident] = timer, call.exchange.id
        if fresh:
            alone = self.instance.inflight == 1
            self.instance.serving = (call.exchange.id, self.session.id) if alone else None
        self._count()
        return fresh

    def hears(self, data: bytes) -> None:
        """The server's message is about to be passed on."""
        self._touch()
        if not self._open:
            return
        try:
            parsed = messages.parse(data)
        except ValueError:
            return
        self.answered(*(i for m in parsed if (i := messages.answer_id(m)) is not None))

    @property
    def owes(self) -> bool:
        """Whether a request is open."""
        return bool(self._open)

    def waits_for(self, ident: messages.RequestId) -> bool:
        """Whether this request is open."""
        return ident in self._open

    def answered(self, *ids: messages.RequestId) -> None:
        """These requests are open no more."""
        now = asyncio.get_running_loop().time()
        for ident in ids:
            open_ = self._open.pop(ident, None)
            if open_ is not None:
                open_[0].cancel()
                self.pool.release(self.instance, now)
        self._count()

    def _count(self) -> None:
        self.session.inflight = len(self._open)
        self.call.exchange.stream(owes=bool(self._open))

    def fail(self, ident: messages.RequestId, error: CoveError) -> None:
        """Answer a request, if it is still open, with an error of Cove's own."""
        if (open_ := self._open.get(ident)) is not None:
            self.out.write(rpc_event(error, open_[1], ident))
            self.answered(ident)

    def _overdue(self, ident: messages.RequestId) -> None:
        self.fail(ident, overdue(self.call.route))

    def _touch(self) -> None:
        self.call.gateway.affinity.touch(self.session)

    def close(self) -> None:
        """End the session and give everything back. Idempotent."""
        why = unserved(self.call, self.instance)
        for ident in list(self._open):
            self.fail(ident, why)
        self.call.gateway.affinity.end(self.session)
        self.out.finish()


def unserved(call: Call, instance: Instance) -> CoveError:
    """Why a session ends that still owes answers."""
    if call.gateway.closing:
        return stopping()
    happened = "the session has ended"
    if instance.state is InstanceState.READY:
        return CoveError("bad_gateway", f"{call.route.name} did not answer: {happened}")
    return lost(call.route.name, instance, happened)


def find(call: Call) -> SseSession:
    """The session that a POST to the messages path names; 404 for anyone else's."""
    query = parse_qs(call.exchange.target.partition(b"?")[2].decode("latin-1"))
    token = next(iter(query.get(_QUERY, [])), "")
    session: Session | None = call.gateway.affinity.get(call.route, call.principal, token)
    if session is None or not isinstance(session.attached, SseSession):
        raise unknown_session()
    call.session, call.instance = session, session.instance
    return session.attached
