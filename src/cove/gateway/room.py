"""Room for the messages of a session that were accepted and are not sent on yet, in bytes."""

from __future__ import annotations

import asyncio
from collections import deque

_BYTES = 1024 * 1024


class Room:
    """Given out first come, first served. What is larger than all of it goes alone."""

    def __init__(self) -> None:
        self._taken = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int | None) -> int:
        """Wait for room for `size` bytes, or all of it where that is unknown; what to give back."""
        claim = _BYTES if size is None else min(size, _BYTES)
        if self._waiting or self._taken + claim > _BYTES:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((claim, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.cancelled():
                    self._next()
                else:
                    self.give_back(claim)
                raise
        else:
            self._taken += claim
        return claim

    def give_back(self, claim: int) -> None:
        self._taken -= claim
        self._next()

    def _next(self) -> None:
        while self._waiting:
            claim, turn = self._waiting[0]
            if not turn.done():
                if self._taken + claim > _BYTES:
                    return
                self._taken += claim
                turn.set_result(None)
            self._waiting.popleft()
