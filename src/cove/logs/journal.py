"""A journal: lines in files of a folder, bounded in size and age, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import structlog

from cove.logs import pages, records

log = structlog.get_logger("cove.logs")

PARTS = 8
GONE = ".gone-"

Remark = Callable[[float, str], bytes]
"""A line that says something of the journal itself, at a time."""


class Journal:
    """Appends to the newest of its files, and removes the oldest, so that all stay below `size`
    bytes together and none has only lines older than `age` seconds.

    Nothing is flushed to the disk: lines outlive the process from the moment they are written,
    and not the machine. A process that is killed in the middle of a line leaves a torn one,
    which readers pass over and the next writer cuts off. What cannot be written is dropped and
    counted; nothing raises, and a remark says how much is missing as soon as one can be
    written. Files are readable by their owner only. Calls wait for each other, in any thread.
    """

    def __init__(self, folder: Path, *, size: int, age: float, remark: Remark) -> None:
        """Touches nothing yet. No line may be longer than an eighth of `size`."""
        self.folder = folder
        self.lost = 0
        self.written = 0
        self.doomed = False
        self._size = size
        self._age = age
        self._remark = remark
        self._why = ""
        self._turn = threading.Lock()
        self._files: dict[int, int] | None = None  # bytes by number, oldest first
        self._newest = 0
        self._began = 0.0  # when the newest file's first line was written

    def __repr__(self) -> str:
        return f"<Journal {self.folder} [{self.written} written, {self.lost} lost]>"

    def write(self, lines: Sequence[bytes], now: float, *, lost: int = 0, why: str = "") -> None:
        """Append lines, each with its end. `lost`: how many after them were dropped, and `why`."""
        with self._turn:
            self._report(now)
            kept = self._put(lines, now)
            self.lost += len(lines) - kept
            if lost:
                self.lost, self._why = self.lost + lost, why
            self._report(now)

    def prune(self, now: float) -> None:
        """Remove what is too old, and what `doom` meant."""
        with self._turn, contextlib.suppress(OSError):
            self._settle()
            for sequence in pages.sequences(self.folder):
                self._newest = max(self._newest, sequence)  # a number is used once
                path = pages.path_of(self.folder, sequence)
                if path.stat().st_mtime < now - self._age:
                    self._files = None
                    path.unlink()

    def doom(self) -> None:
        """What is written until now belongs to nobody. Does not wait: the next call removes it."""
        self.doomed, self.lost = True, 0

    def _report(self, now: float) -> None:
        """Say what is missing, where something can be said."""
        if not self.lost:
            return
        if self._put([self._remark(now, f"{self.lost} lines are missing here: {self._why}")], now):
            log.warning("log lines were lost", journal=str(self.folder), count=self.lost)
            self.lost = 0

    def _put(self, lines: Sequence[bytes], now: float) -> int:
        """Append; how many of the lines are kept."""
        kept = 0
        try:
            self._settle()
            files = self._load() if lines else {}
            while kept < len(lines):
                sequence, room = self._room(files, len(lines[kept]), now)
                data = bytearray()
                for line in lines[kept:]:
                    if data and len(data) + len(line) > room:
                        break
                    data += line
                self._remove_oldest(files, len(data))
                kept += self._append(sequence, data, now)
                files[sequence] = files.get(sequence, 0) + len(data)
        except _CutShortError as short:
            kept += short.lines
            self._fail(short.fault)
        except OSError as fault:
            self._fail(fault)
        self.written += kept
        return kept

    def _fail(self, fault: OSError) -> None:
        self._why = fault.strerror or str(fault)
        self._files = None  # whatever it was, look again
        if not self.lost:
            log.warning("log lines cannot be kept", journal=str(self.folder), reason=self._why)

    def _room(self, files: dict[int, int], least: int, now: float) -> tuple[int, int]:
        """Which file takes the next lines, the newest or one after it, and how many bytes."""
        most = self._size // PARTS
        used = files.get(self._newest)
        if used == 0 or (
            used is not None
            and used + least <= most
            and now - self._began <= self._age / PARTS  # or a slow writer's file never got old
        ):
            return self._newest, most - used
        return self._newest + 1, most

    def _remove_oldest(self, files: dict[int, int], coming: int) -> None:
        while files and sum(files.values()) + coming > self._size:
            oldest = next(iter(files))
            pages.path_of(self.folder, oldest).unlink(missing_ok=True)
            del files[oldest]

    def _append(self, sequence: int, data: bytearray, now: float) -> int:
        """How many lines that is. `_CutShortError` where only the first of them are kept."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        file = os.open(pages.path_of(self.folder, sequence), flags, 0o600)
        try:
            before, put = os.fstat(file).st_size, 0
            try:
                while put < len(data):
                    put += os.write(file, memoryview(data)[put:])
            except OSError as fault:
                # What it has of the next line is torn, as after a crash.
                raise _CutShortError(data.count(b"\n", 0, put), fault) from fault
        finally:
            os.close(file)
        if not before:
            self._newest, self._began = sequence, now
        return data.count(b"\n")

    def _load(self) -> dict[int, int]:
        """The files there are, by number; the newest without what a crash tore off."""
        if self._files is None:
            for folder in (self.folder.parent, self.folder):  # `parents` would take no mode
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            files = {
                sequence: pages.path_of(self.folder, sequence).stat().st_size
                for sequence in pages.sequences(self.folder)
            }
            end = pages.last(self.folder)
            if files.get(end.sequence, 0) > end.offset:
                os.truncate(pages.path_of(self.folder, end.sequence), end.offset)
                files[end.sequence] = end.offset
            if end.sequence > 0 and end.sequence >= self._newest:
                self._newest = end.sequence
                self._began = _first_time(self.folder)
            self._files = files
        return self._files

    def _settle(self) -> None:
        """Remove what `doom` meant: out of the way at once, then bit by bit."""
        if not self.doomed:
            return
        away = self.folder.with_name(GONE + secrets.token_hex(4))
        with contextlib.suppress(FileNotFoundError):
            self.folder.rename(away)
        self.doomed = False
        self._files, self._newest = None, 0
        shutil.rmtree(away, ignore_errors=True)


class _CutShortError(Exception):
    """Not all of it was written, but some lines."""

    def __init__(self, lines: int, fault: OSError) -> None:
        super().__init__(str(fault))
        self.lines = lines
        self.fault = fault


def _first_time(folder: Path) -> float:
    """When the newest file's first line was written; 0 where that cannot be read."""
    newest = pages.sequences(folder)[-1]
    lines = pages.forward(folder, pages.Place(newest, 0)).lines
    record = records.read(lines[0]) if lines else None
    try:
        return datetime.fromisoformat(record["time"]).timestamp() if record else 0.0
    except ValueError:
        return 0.0
