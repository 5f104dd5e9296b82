"""Reading a journal's files, a page at a time, forward or back, while they are written.

A place is a file's number and an offset where a line begins. Nothing is held open between two
calls: a reader that leaves has nothing to give back, and one that waits keeps no file alive.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from cove.logs.records import Match, Record

PAGE = 64 * 1024
PAGE_BACK = 256 * 1024  # more than two of the longest lines there are
LONGEST_LINE = 1024 * 1024  # what is longer is no line of ours, and is passed over
_NAME = re.compile(r"([0-9]{8,})\.jsonl")


class Place(NamedTuple):
    """Before which line. `end`: none stood there when it was last looked at."""

    sequence: int
    offset: int
    end: bool = False


START = Place(0, 0)


class Page(NamedTuple):
    """Whole lines and the place after them.

    `more`: there may be another page already. `missed`: lines before these were removed before
    they could be read.
    """

    lines: list[bytes]
    place: Place
    more: bool
    missed: bool = False


def path_of(folder: Path, sequence: int) -> Path:
    return folder / f"{sequence:08d}.jsonl"


def sequences(folder: Path) -> list[int]:
    """The numbers of a journal's files, oldest first."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def last(folder: Path) -> Place:
    """The place after the last whole line there is."""
    for sequence in reversed(sequences(folder)):
        start = _size(folder, sequence)
        if start is None:
            continue
        while start:
            before, start = start, max(0, start - PAGE_BACK)
            found = _read(folder, sequence, start, before - start).rfind(b"\n")
            if found >= 0:
                return Place(sequence, start + found + 1)
        return Place(sequence, 0)
    return START


def forward(folder: Path, at: Place, stop: Place | None = None) -> Page:
    """The lines from `at`, and none beyond `stop`."""
    found = [
        sequence
        for sequence in sequences(folder)
        if sequence >= at.sequence and (stop is None or sequence <= stop.sequence)
    ]
    if not found:
        return Page([], at, more=False)
    missed = False
    if found[0] != at.sequence:
        missed = at.sequence > 0 and not (at.end and found[0] == at.sequence + 1)
        at = Place(found[0], 0)
    bound = stop is not None and stop.sequence == at.sequence
    size = min(PAGE, stop.offset - at.offset) if stop is not None and bound else PAGE
    data = _whole_lines(folder, at, size)
    if data:
        lines = data.split(b"\n")[:-1]
        return Page(lines, Place(at.sequence, at.offset + len(data)), more=True, missed=missed)
    # The files were listed before this one was read: where there was a later one then, nothing
    # is added to this one any more.
    if len(found) > 1:
        return Page([], Place(found[1], 0), more=True, missed=missed)
    return Page([], Place(at.sequence, at.offset, end=True), more=False, missed=missed)


def back(folder: Path, at: Place) -> tuple[list[tuple[Place, bytes]], Place | None]:
    """The lines before `at`, oldest first, each with its place; and the place before them all,
    None where nothing is before that."""
    if not at.offset:
        earlier = [sequence for sequence in sequences(folder) if sequence < at.sequence]
        size = _size(folder, earlier[-1]) if earlier else None
        return [], None if size is None else Place(earlier[-1], size)
    start = max(0, at.offset - PAGE_BACK)
    data = _read(folder, at.sequence, start, at.offset - start)
    first = data.find(b"\n") + 1 if start else 0
    if start and first in (0, len(data)):
        return [], Place(at.sequence, start)
    lines, offset = [], start + first
    for line in data[first:].split(b"\n")[:-1]:
        lines.append((Place(at.sequence, offset), line))
        offset += len(line) + 1
    return lines, Place(at.sequence, start + first)


def select(folder: Path, at: Place, stop: Place | None, match: Match) -> tuple[Page, list[Record]]:
    """A page forward, and what is wanted of it."""
    page = forward(folder, at, stop)
    return page, [record for line in page.lines if (record := match(line)) is not None]


def step_back(folder: Path, at: Place, count: int, match: Match) -> tuple[Place, int, Place | None]:
    """A page back, for the last `count` wanted lines before `at`.

    Where they begin as far as is known, how many are wanted before that, and where to go on.
    """
    lines, before = back(folder, at)
    for place, line in reversed(lines):
        if match(line) is not None:
            count -= 1
            if not count:
                return place, 0, None
    return before or at, count, before


def _whole_lines(folder: Path, at: Place, size: int) -> bytes:
    """Up to `size` bytes of whole lines, or one that is longer."""
    try:
        with path_of(folder, at.sequence).open("rb") as file:
            file.seek(at.offset)
            data = file.read(size)
            if data and b"\n" not in data:
                data += file.readline(LONGEST_LINE)
    except FileNotFoundError:
        return b""
    return data if len(data) > LONGEST_LINE else data[: data.rfind(b"\n") + 1]


def _read(folder: Path, sequence: int, offset: int, size: int) -> bytes:
    try:
        with path_of(folder, sequence).open("rb") as file:
            file.seek(offset)
            return file.read(size)
    except FileNotFoundError:
        return b""


def _size(folder: Path, sequence: int) -> int | None:
    try:
        return path_of(folder, sequence).stat().st_size
    except FileNotFoundError:
        return None
