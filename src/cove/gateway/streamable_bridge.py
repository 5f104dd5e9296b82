"""A server that speaks HTTP+SSE only, shown as Streamable HTTP of the legacy era.

Cove is its client: one event stream per session, opened when a caller initializes. Answers are
found by the ids they answer, progress by its token; what else the server says goes to the only
open request's stream, else to the session's GET stream, else waits for either.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import structlog

from cove.engine.instance import Instance
from cove.engine.pool import Pool
from cove.engine.sessions import Session
from cove.errors import CoveError
from cove.gateway.affinity import stopping, unknown_session
from cove.gateway.destination import overdue
from cove.gateway.eventstream import EventStream
from cove.gateway.exchange import Exchange
from cove.gateway.fetch import Response
from cove.gateway.inbox import Inbox, Unclaimed
from cove.gateway.loss import TRIES, gone
from cove.gateway.replies import rpc_event
from cove.gateway.sse_backend import REPLY_BYTES, AnsweredError, open_stream, opening, posted
from cove.gateway.sse_session import unserved
from cove.mcp import messages, sse
from cove.mcp.classify import Era, era
from cove.states import SessionState

if TYPE_CHECKING:
    from cove.gateway.call import Call

log = structlog.get_logger("cove.gateway")


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
        call.reply(200, b"")
    else:
        raise CoveError("method_not_allowed", "MCP is spoken by POST, GET and DELETE")


def _bridge(call: Call) -> _Bridge:
    """The session of a request that names one."""
    token = call.exchange.fields.get(b"mcp-session-id")
    if token is None:
        raise CoveError(
            "bad_request", "Bad Request: Missing session ID", hint="POST initialize first"
        )
    session = call.gateway.affinity.get(call.route, call.principal, token.decode("latin-1"))
    if session is None or not isinstance(session.attached, _Bridge):
        raise unknown_session()
    call.session, call.instance = session, session.instance
    return session.attached


async def _post(call: Call) -> None:
    body = await call.read()
    try:
        parsed = messages.parse(body)
    except ValueError:
        error = messages.error(-32700, "Parse error")
        call.reply(400, error, b"application/json")
        return
    if not messages.is_initialize(body) or b"mcp-session-id" in call.exchange.fields:
        await _bridge(call).post(call, body, parsed)
        return
    with contextlib.suppress(AnsweredError):
        bridge = await _Bridge.open(call)
        try:
            await bridge.post(call, body, parsed, claimed=True)
        except BaseException:
            bridge.close()
            raise
        if call.exchange.left:
            bridge.close()  # nobody will ever ask for it


async def _get(call: Call, bridge: _Bridge) -> None:
    out = EventStream(call.exchange)
    try:
        with bridge.listening(call.exchange) as inbox, out.commented():
            out.start()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(call.route.lifetime):
                    async for data in inbox.items():
                        await out.send(sse.encode(data))
    finally:
        if out.started and call.gateway.closing:
            out.write(sse.RETRY)
        out.finish()


class _Bridge:
    """One session: Cove's event stream at the server, and the caller's open requests."""

    def __init__(self, call: Call, instance: Instance, response: Response, remote: bytes) -> None:
        """Takes over the caller's slot of `instance`, not its claim."""
        affinity = call.gateway.affinity
        # Not a purpose that other gateways follow: this session lives in this process.
        token = affinity.signer.seal(
            "bridged", call.route.name, call.principal, instance.id, secrets.token_hex(16)
        )
        self._affinity = affinity
        self._pool: Pool = call.route.pool
        self._instance = instance
        self._remote = remote
        self._response = response
        self._requests: dict[messages.RequestId, Inbox] = {}
        self._listener: Inbox | None = None
        self._waiting = Unclaimed()
        self._session: Session = affinity.enrol(self._pool, instance, call.principal, token)
        call.session = self._session
        self._session.attached = self
        self._session.on_end.add(self._ended)

    @classmethod
    async def open(cls, call: Call) -> _Bridge:
        """A new session at the server: its stream is open, its endpoint known.

        A claim on its instance is the caller's. `AnsweredError` where the server refused.
        """
        tries = TRIES
        while True:
            instance = await opening(call)
            tries -= 1
            try:
                return await cls._open(call, instance)
            except ConnectionRefusedError:  # it was not reached: another may be
                if not tries or not await gone(instance):
                    raise

    @classmethod
    async def _open(cls, call: Call, instance: Instance) -> _Bridge:
        opened: asyncio.Future[_Bridge] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(_hear(call, instance, opened))
        call.gateway.keep(task)
        try:
            return await asyncio.shield(opened)
        except BaseException:
            task.cancel()
            if opened.done() and opened.exception() is None:
                opened.result().close()
                call.route.pool.release(instance, asyncio.get_running_loop().time())
            else:
                opened.cancel()
                call.gateway.affinity.give_up(call.route.pool, instance)
            raise

    async def hear(self, data: bytes) -> None:
        """A message from the server, or a batch of them: each to whom it is for.

        Waits while that is a client which does not take what it has been sent.
        """
        self._affinity.touch(self._session)
        try:
            parsed = messages.parse(data)
        except ValueError:
            return
        for message in parsed:
            await self._take(message, data if len(parsed) == 1 else messages.dump(message))

    async def _take(self, message: dict[str, Any], data: bytes) -> None:
        ident = messages.answer_id(message)
        if ident is not None:
            inbox = self._requests.get(ident)
            if inbox is not None and await inbox.put(data):
                self._settle(ident)
            return
        while (found := self._stream_for(message)) is not None:
            if await found.put(data):
                return
        if dropped := self._waiting.add(data):
            log.warning(
                "messages that no client took were dropped",
                function=self._pool.version.function,
                session=self._session.id,
                count=dropped,
            )

    def _stream_for(self, message: dict[str, Any]) -> Inbox | None:
        open_ = list(dict.fromkeys(inbox for inbox in self._requests.values() if inbox.takes))
        token = messages.progress_token(message)
        if token is not None:
            for inbox in open_:
                if token in inbox.tokens:
                    return inbox
        if len(open_) == 1:
            return open_[0]
        if self._listener is not None and self._listener.takes:
            return self._listener
        return open_[-1] if open_ else None

    async def post(
        self, call: Call, body: bytes, parsed: list[dict[str, Any]], *, claimed: bool = False
    ) -> None:
        """One POST: 202 where it asks nothing, else a stream that ends with the answers.

        `claimed`: a claim on the instance is handed over. What asks nothing needs none: the
        request that it answers or takes back may hold the only one.
        """
        ids = [i for m in parsed if (i := messages.request_id(m)) is not None]
        inbox = Inbox(call.exchange, ids, map(messages.progress_token, parsed))
        held = claimed or (bool(ids) and self._claim(inbox))
        if held:
            alone = self._instance.inflight == 1
            self._instance.serving = (call.exchange.id, self._session.id) if alone else None
        self._affinity.touch(self._session)
        self._session.inflight += 1
        self._requests |= dict.fromkeys(inbox.open, inbox)
        sending = asyncio.create_task(self._send(call, body, inbox))
        try:
            async with asyncio.timeout(call.route.timeout):
                # A server that says much before it accepts has to be heard meanwhile.
                await asyncio.wait({sending, inbox.filled}, return_when=asyncio.FIRST_COMPLETED)
                if sending.done():
                    sending.result()
                for message in parsed:
                    self._settle(messages.cancelled_id(message))
                if ids:
                    await self._answer(call, inbox)
                else:
                    call.reply(202, b"")
        except TimeoutError:
            self._fail(call, inbox, overdue(call.route))
        except asyncio.CancelledError:
            if call.gateway.closing:
                self._fail(call, inbox, stopping())
            raise
        finally:
            if not sending.cancel() and not sending.cancelled():
                sending.exception()  # the client has been told by other words
            inbox.close()
            for ident in list(inbox.open):
                self._settle(ident)
            self._session.inflight -= 1
            if held:
                self._pool.release(self._instance, asyncio.get_running_loop().time())

    def _claim(self, inbox: Inbox) -> bool:
        if self._requests.keys() & inbox.open.keys():
            raise CoveError("bad_request", "a request with this id is not answered yet")
        if not self._pool.claim_on(self._instance):
            raise CoveError(
                "too_many_requests",
                "this session's instance has no room",
                hint="retry when earlier requests are answered, or raise scale.concurrency",
            )
        return True

    def _settle(self, ident: messages.RequestId | None) -> None:
        """A request has its answer, or needs none any more: its client has taken it back."""
        inbox = self._requests.pop(ident, None) if ident is not None else None
        if inbox is not None and ident is not None:
            inbox.answered(ident)

    async def _send(self, call: Call, body: bytes, inbox: Inbox) -> None:
        try:
            async with posted(call, self._instance, self._remote, body) as response:
                text = await response.read(REPLY_BYTES)
        except OSError:
            inbox.close()
            raise
        if response.status >= 300:
            inbox.close()
            raise CoveError(
                "bad_gateway",
                f"{call.route.name} answered {response.status} to a message: "
                f"{text[:200].decode(errors='replace')}",
            )

    async def _answer(self, call: Call, inbox: Inbox) -> None:
        out = EventStream(call.exchange)
        call.exchange.is_stream = False  # its end is near: drain waits for it
        out.start([(b"mcp-session-id", self._session.key.encode())])
        with out.commented():
            for data in self._waiting.take():
                await out.send(sse.encode(data))
            async for data in inbox.items():
                await out.send(sse.encode(data))
            # closed by the session's end, or the server's refusal, it still owes answers
            self._finish(call, inbox, unserved(call, self._instance), out)

    def _fail(self, call: Call, inbox: Inbox, error: CoveError) -> None:
        """It takes too long: `error` is the answer, on the stream where that has begun."""
        out = EventStream(call.exchange)
        if not out.started:
            raise error
        self._finish(call, inbox, error, out)

    def _finish(self, call: Call, inbox: Inbox, error: CoveError, out: EventStream) -> None:
        """End a stream; what is still open is answered with `error`."""
        for ident in inbox.open:
            out.write(rpc_event(error, call.exchange.id, ident))
        out.finish()

    @contextlib.contextmanager
    def listening(self, exchange: Exchange) -> Iterator[Inbox]:
        """The session's GET stream; there is one at a time."""
        if self._listener is not None:
            raise CoveError("conflict", "Conflict: Only one SSE stream is allowed per session")
        inbox = self._listener = Inbox(exchange)
        for data in self._waiting.take():
            inbox.add(data)
        try:
            yield inbox
        finally:
            self._listener = None
            inbox.close()

    @property
    def owes(self) -> bool:
        """Whether a request is open, in a session that is."""
        return bool(self._requests) and self._session.state is SessionState.RUNNING

    def close(self) -> None:
        """End the session. Idempotent."""
        self._affinity.end(self._session)

    def _ended(self) -> None:
        for inbox in [*self._requests.values(), *([self._listener] if self._listener else [])]:
            inbox.close()
        self._response.lost("the session has ended")


async def _hear(call: Call, instance: Instance, opened: asyncio.Future[_Bridge]) -> None:
    """Take the server's events to their session, until the stream or the session ends."""
    bridge: _Bridge | None = None
    try:
        async with (
            asyncio.timeout(call.route.timeout + call.route.lifetime),
            open_stream(call, instance) as (response, remote, events),
        ):
            bridge = _Bridge(call, instance, response, remote)
            opened.set_result(bridge)
            with contextlib.suppress(ConnectionError):
                async for event in events:
                    if event.data:
                        await bridge.hear(event.data)
            if bridge.owes:
                await gone(instance)  # what it owes is answered with how it ended
    except (CoveError, AnsweredError, OSError) as error:
        if not opened.done():
            opened.set_exception(error)
    finally:
        if not opened.done():
            opened.set_exception(ConnectionError("its stream could not be opened"))
        if bridge is not None:
            bridge.close()
