"""Farewells: a session that has ended here by itself is deleted at its server too.

Its client may never come back to say so, and servers keep what they are not told to forget.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from cove.engine.sessions import Session
from cove.gateway.fetch import fetch, plain_head
from cove.gateway.routes import Route
from cove.states import InstanceState

_AT_ONCE = 8
_SECONDS = 5.0
_ANSWER_BYTES = 1024 * 1024


class Farewells:
    """Sends them in the background, a few at a time; one that fails is not repeated."""

    def __init__(self, keep: Callable[[asyncio.Task[None]], None]) -> None:
        self._keep = keep
        self._due: deque[tuple[Route, Session]] = deque()
        self._busy = 0

    def expect(self, route: Route, session: Session) -> None:
        """See to the end of a session whose id its server minted."""
        session.on_end.add(lambda: self._ended(route, session))

    def _ended(self, route: Route, session: Session) -> None:
        if session.due() <= asyncio.get_running_loop().time():
            self.say(route, session)
        # else its client or its server said so, or its instance is gone

    def say(self, route: Route, session: Session) -> None:
        """Delete a session that has ended here."""
        self._due.append((route, session))
        if self._busy < _AT_ONCE:
            self._busy += 1
            self._keep(asyncio.create_task(self._work()))

    async def _work(self) -> None:
        try:
            while self._due:
                route, session = self._due.popleft()
                with contextlib.suppress(OSError, TimeoutError):
                    async with asyncio.timeout(_SECONDS):
                        await _delete(route, session)
        finally:
            self._busy -= 1


async def _delete(route: Route, session: Session) -> None:
    instance, pool = session.instance, session.pool
    if instance is None or instance.state is not InstanceState.READY:
        return
    # A full instance is told all the same: a farewell must not wait for room, nor be lost.
    claimed = pool.claim_on(instance)
    try:
        head = plain_head(
            b"DELETE", route.path, [(b"mcp-session-id", session.remote)], port=route.port
        )
        async with fetch(route.upstream(instance), head) as response:
            await response.read(_ANSWER_BYTES)
    finally:
        if claimed:
            pool.release(instance, asyncio.get_running_loop().time())
