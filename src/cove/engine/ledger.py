"""The ledger: what happened to sessions since the store was last told, in a file.

Sessions reach the store a moment behind the requests that change them. What opened or ended in
that moment is noted here first, by one write without waiting for the disk: it outlives this
process, if not a power cut, which no instance outlives either.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import structlog

from cove.model import SessionRecord
from cove.states import SessionState

log = structlog.get_logger("cove.ledger")

LEDGER = "sessions.log"


class Ledger:
    """Lines of session records, oldest first. All calls are short and do not raise.

    `turn` before the store is told, `settle` once it has taken it: what was noted between the
    two is kept for the next time.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._old = file.with_name(file.name + ".old")
        self._open = _opened(file)
        self._torn = True  # an earlier process may have been cut short

    def __repr__(self) -> str:
        return f"<Ledger {self._file}>"

    def note(self, record: SessionRecord) -> None:
        """Keep a record as it is now."""
        line = json.dumps(asdict(record), separators=(",", ":")).encode() + b"\n"
        if self._torn:
            line = b"\n" + line
        try:
            self._torn = os.write(self._open, line) < len(line)
        except OSError as error:
            if not self._torn:
                log.warning("sessions are noted late", reason=str(error))
            self._torn = True

    def turn(self) -> None:
        """What is noted so far is about to be told to the store."""
        with contextlib.suppress(OSError):
            if self._old.exists():  # the store has not taken the last ones
                with self._old.open("ab") as old:
                    old.write(self._file.read_bytes())
                os.ftruncate(self._open, 0)
            else:
                self._file.rename(self._old)
                try:
                    fresh = _opened(self._file)
                except OSError:
                    self._old.rename(self._file)
                    raise
                os.close(self._open)
                self._open = fresh

    def settle(self) -> None:
        """The store has taken what was noted before the last `turn`."""
        with contextlib.suppress(OSError):
            self._old.unlink(missing_ok=True)

    def settled(self, kept: Iterable[SessionRecord]) -> list[SessionRecord]:
        """The store's records as they should be by what is noted here: ended ones too."""
        records = {record.id: record for record in kept}
        for record in [*_read(self._old), *_read(self._file)]:
            records[record.id] = record
        return list(records.values())

    def close(self) -> None:
        """What is noted from here on is not."""
        descriptor, self._open = self._open, -1
        os.close(descriptor)


def _opened(file: Path) -> int:
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _read(file: Path) -> list[SessionRecord]:
    try:
        lines = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [record for line in lines if (record := _record(line)) is not None]


def _record(line: bytes) -> SessionRecord | None:
    """A line's; None for one that was cut short."""
    try:
        fields = json.loads(line)
        return replace(SessionRecord(**fields), state=SessionState(fields["state"]))
    except (ValueError, TypeError, KeyError):
        return None
