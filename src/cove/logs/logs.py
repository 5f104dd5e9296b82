"""All logs of one Cove: a journal for each function and one for events, written and read."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import AsyncGenerator, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import structlog

from cove import clock
from cove.clock import wall
from cove.events import Event
from cove.logs import pages
from cove.logs.book import COST, PENDING, Book
from cove.logs.journal import GONE, Journal
from cove.logs.pages import Place
from cove.logs.records import Entry, Match, Record, Wanted, Writing, cut

log = structlog.get_logger("cove.logs")

Stream = Literal["stdout", "stderr", "cove"]
EVENTS = ".events"

SILENCE = 10.0
_FLUSH_SECONDS = 0.25
_PRUNE_SECONDS = 60.0
_TURN = 256  # entries formatted in one go
_BREATH = 0.0005
_TOO_FAST = "they came faster than they could be written"


class Logs:
    """What functions print, which requests they were sent, and what happened to them.

    `line`, `access` and `event` only append to memory; a thread writes what they were told every
    0.25 s, so that a killed Cove loses no more than that. `printed` writes at once. Where more
    than 4 MiB of a function's wait, the rest is dropped and counted. The order of a journal is
    the order in which it was written, which a clock that jumps does not change.
    """

    def __init__(
        self,
        folder: Path,
        *,
        size: int,
        age: float,
        access: bool = True,
        silence: float = SILENCE,
    ) -> None:
        """`size` bytes and `age` seconds are kept of each function; `access` lines if wanted.

        `silence`: seconds after which those who follow are told that nothing came.
        """
        self._folder = folder
        self._size = size
        self._age = age
        self._access = access
        self._silence = silence
        self._books: dict[str, Book] = {}
        # One thread of its own: writes are in order, and wait for nobody else's.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="cove-logs")
        self._following = True
        self._closed = False

    def __repr__(self) -> str:
        return f"<Logs {self._folder} [{len(self._books)} journals]>"

    # Writing.

    def line(
        self,
        function: str,
        version: int,
        instance: str,
        stream: Stream,
        text: str,
        *,
        session: str = "",
        request: str = "",
    ) -> None:
        """One line, for the loop's thread."""
        text = cut(text)
        entry = (wall(), stream, version, instance, session, request, text)
        self._book(function).put(entry, len(text))

    def printed(
        self,
        function: str,
        version: int,
        instance: str,
        stream: Stream,
        lines: Sequence[str],
        *,
        session: str = "",
        request: str = "",
    ) -> None:
        """Lines of a program's output: they outlive this process when this returns.

        Touches the disk, and is for threads other than the loop's.
        """
        writing, at = Writing(function), wall()
        self._book(function).journal.write(
            [
                writing((at, stream, version, instance, session, request, cut(text)))
                for text in lines
            ],
            at,
        )

    def access(
        self,
        function: str,
        version: int,
        instance: str,
        session: str,
        request: bytes,
        principal: str,
        method: bytes,
        target: bytes,
        status: int,
        seconds: float,
    ) -> None:
        """A request that was answered, for the loop's thread. Of its target only the path is
        kept."""
        if not self._access:
            return
        book = self._books.get(function) or self._book(function)
        # What `book.put` does: a call costs a fifth of all this.
        if book.cost > PENDING:
            book.lost += 1
            return
        book.cost += COST + len(target)
        entry = (
            wall(),
            version,
            instance,
            session,
            request,
            principal,
            method,
            target,
            status,
            seconds,
        )
        book.entries.append(entry)

    def event(self, event: Event) -> None:
        """Something that happened, for the loop's thread."""
        self._book(EVENTS).put(event, len(event.reason))

    def forget(self, function: str) -> None:
        """A function is no more: its lines are removed, and who follows them has seen the end.

        What is told of it later begins a new log. Its events stay.
        """
        book = self._book(function)
        book.take()
        book.journal.doom()
        book.life += 1
        book.wake()

    async def retain(self, functions: Collection[str]) -> None:
        """Forget all functions but these: what a crash kept from being forgotten."""
        found = await asyncio.to_thread(_names, self._folder)
        for name in found:
            if not name.startswith(".") and name not in functions:
                self.forget(name)
        await self.flush()

    async def run(self) -> None:
        """Write what waits, four times a second, and remove what is too old, until cancelled."""
        pruned = -_PRUNE_SECONDS
        while True:
            try:
                if clock.now() - pruned >= _PRUNE_SECONDS:
                    pruned = clock.now()
                    await self.prune(wall())
                if any(book.due for book in self._all()):
                    await self.flush()
                for book in self._all():
                    book.wake_if_written()
            except Exception:
                log.exception("logs were not written")
            await asyncio.sleep(_FLUSH_SECONDS)

    async def flush(self) -> None:
        """Write what waits; what was told before is there for readers when this returns."""
        if self._closed:
            return
        due = [(book, *book.take()) for book in self._all() if book.due]
        await asyncio.get_running_loop().run_in_executor(self._writer, _write, due)
        for book in self._all():
            book.wake_if_written()

    async def prune(self, now: float) -> None:
        """Remove what is older than `age` at `now`, and what forgotten functions left."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        kept = await loop.run_in_executor(self._writer, self._prune, now)
        for name, book in list(self._books.items()):
            if name not in kept and not book.due and not book.readers:
                del self._books[name]

    def end_follows(self) -> None:
        """Those who follow have seen the end, after what there is: the server is going away."""
        self._following = False
        for book in self._all():
            book.wake()

    async def close(self) -> None:
        """Write what waits, and end those who follow."""
        await self.flush()
        self._closed = True
        self.end_follows()
        self._writer.shutdown(wait=False)

    # Reading.

    def read(
        self, function: str, wanted: Wanted, *, tail: int | None = None, follow: bool = False
    ) -> AsyncGenerator[list[Record], None]:
        """A function's records that are wanted, oldest first, a few at a time.

        `tail`: only the last so many. `follow`: then those that come, and nothing now and then
        while none do, until the function is forgotten or `end_follows`; without it, those that
        are there when it begins. None comes twice and none is left out, unless so slow a reader
        that they are removed before: a remark says so then. The memory taken does not depend on
        how much there is.
        """
        return self._read(function, wanted, tail, follow)

    def read_events(
        self, wanted: Wanted, *, tail: int | None = None, follow: bool = False
    ) -> AsyncGenerator[list[Record], None]:
        """Events, likewise."""
        return self._read(EVENTS, wanted, tail, follow)

    async def _read(
        self, name: str, wanted: Wanted, tail: int | None, follow: bool
    ) -> AsyncGenerator[list[Record], None]:
        book = self._book(name)
        life, folder, match = book.life, book.journal.folder, wanted.matcher()
        book.readers += 1
        try:
            await self.flush()
            end = await asyncio.to_thread(pages.last, folder)
            at = pages.START if tail is None else await _before_last(folder, end, tail, match)
            told = clock.now()
            while book.life == life and not book.journal.doomed:
                changed = book.changed
                stop = None if follow else end
                page, found = await asyncio.to_thread(pages.select, folder, at, stop, match)
                at = page.place
                if page.missed:
                    found.insert(0, book.missed(wall()))
                if book.life != life:
                    return
                if found or clock.now() - told >= self._silence:
                    yield found
                    told = clock.now()
                if page.more:
                    continue
                if not follow or not self._following:
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(told + self._silence - clock.now()):
                        await changed.wait()
        finally:
            book.readers -= 1

    # Books.

    def _book(self, name: str) -> Book:
        book = self._books.get(name)
        if book is None:
            function = "" if name == EVENTS else name
            remark = Writing(function).remark
            journal = Journal(self._folder / name, size=self._size, age=self._age, remark=remark)
            # Two threads may make one at once: the first counts.
            book = self._books.setdefault(name, Book(function, journal))
        return book

    def _all(self) -> list[Book]:
        return list(self._books.values())  # a copy: other threads may add one

    def _prune(self, now: float) -> set[str]:
        """In the writer's thread: which journals there are still."""
        for name in _names(self._folder):
            if name.startswith(GONE):
                shutil.rmtree(self._folder / name, ignore_errors=True)
            else:
                self._book(name).journal.prune(now)
        return set(_names(self._folder))


def _write(due: list[tuple[Book, list[Entry], int]]) -> None:
    """In the writer's thread."""
    for book, entries, lost in due:
        writing, lines = Writing(book.function), []
        for first in range(0, len(entries), _TURN):
            if first:
                # A thread that computes gives way to the loop's only after 5 ms, unasked.
                time.sleep(_BREATH)
            lines += [writing(entry) for entry in entries[first : first + _TURN]]
        book.journal.write(lines, wall(), lost=lost, why=_TOO_FAST)


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(folder)
    return []


async def _before_last(folder: Path, end: Place, count: int, match: Match) -> Place:
    """Where the last `count` wanted records before `end` begin."""
    at: Place | None = end
    while count and at is not None:
        end, count, at = await asyncio.to_thread(pages.step_back, folder, at, count, match)
    return end
