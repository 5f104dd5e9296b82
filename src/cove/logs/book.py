"""A journal, what waits to be written to it, and who waits for more."""

from __future__ import annotations

import asyncio

from cove.logs.journal import Journal
from cove.logs.records import Entry, Record, Writing, read

PENDING = 4 * 1024**2
COST = 256  # bytes of an entry beside its text
_MISSED = "lines that stood here were removed before they could be read"


class Book:
    """One function's journal, or that of events: only the loop's thread has it in hand."""

    __slots__ = (
        "changed",
        "cost",
        "entries",
        "function",
        "journal",
        "life",
        "lost",
        "readers",
        "seen",
    )

    def __init__(self, function: str, journal: Journal) -> None:
        self.function = function
        self.journal = journal
        self.entries: list[Entry] = []
        self.cost = 0
        self.lost = 0
        self.changed = asyncio.Event()
        self.seen = 0
        self.life = 0  # one more each time it is forgotten
        self.readers = 0

    @property
    def due(self) -> bool:
        journal = self.journal
        return bool(self.entries or self.lost or journal.lost or journal.doomed)

    def put(self, entry: Entry, size: int) -> None:
        if self.cost > PENDING:
            self.lost += 1
            return
        self.cost += COST + size
        self.entries.append(entry)

    def take(self) -> tuple[list[Entry], int]:
        taken = self.entries, self.lost
        self.entries, self.cost, self.lost = [], 0, 0
        return taken

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def wake_if_written(self) -> None:
        if self.seen != self.journal.written:
            self.seen = self.journal.written
            self.wake()

    def missed(self, at: float) -> Record:
        """What a reader is told who came too late for some lines."""
        remark = read(Writing(self.function).remark(at, _MISSED))
        assert remark is not None
        return remark
