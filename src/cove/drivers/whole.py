"""A start that is cancelled still ends whole: it is let finish, then undone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar


class Stoppable(Protocol):
    async def stop(self, grace: float) -> object:
        """End it, at once with a grace of 0."""


R = TypeVar("R", bound=Stoppable)


class Starts:
    """The starts of one driver under way, and those being undone.

    Half a start cannot be taken back reliably (an OCI runtime killed midway leaves processes
    that nobody has the id of), while a whole one takes milliseconds and can be stopped.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, start: Coroutine[Any, Any, R]) -> R:
        """The result of `start`. When cancelled: finish it, stop what it started, re-raise."""
        task = self._keep(start)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.shield(self._keep(self._undo(task)))
            raise

    async def settled(self) -> None:
        """Returns when no start and no undoing is under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _keep(self, work: Coroutine[Any, Any, R] | Coroutine[Any, Any, None]) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @staticmethod
    async def _undo(task: asyncio.Task[R]) -> None:
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is None:
            await task.result().stop(0.0)
