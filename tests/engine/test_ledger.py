"""The ledger: what happened to sessions outlives the process that has not told the store yet."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cove.engine.ledger import LEDGER, Ledger
from cove.model import SessionRecord
from cove.states import SessionState


def record(ident: str, **changes: object) -> SessionRecord:
    made = SessionRecord(
        id=ident,
        function="fn",
        version=1,
        principal="p",
        affinity="mcp",
        key=f"key-{ident}",
        instance="fn-1-a",
        state=SessionState.RUNNING,
        created_at=1.0,
        last_at=2.0,
        remote="r\udcff",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def ended(one: SessionRecord) -> SessionRecord:
    return replace(one, state=SessionState.ENDED)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / LEDGER)
    yield ledger
    ledger.close()


def next_one(folder: Path, kept: list[SessionRecord]) -> list[SessionRecord]:
    """What the next process finds: nothing here is closed before."""
    found = Ledger(folder / LEDGER)
    try:
        return found.settled(kept)
    finally:
        found.close()


def test_what_opened_and_ended_is_known_at_once(ledger: Ledger, tmp_path: Path) -> None:
    a, b = record("a"), record("b")
    ledger.note(a)
    ledger.note(b)
    ledger.note(ended(a))
    assert next_one(tmp_path, []) == [ended(a), b]


def test_what_the_store_has_not_taken_stays(ledger: Ledger, tmp_path: Path) -> None:
    a, b, c = record("a"), record("b"), record("c")
    ledger.note(a)
    ledger.turn()
    ledger.note(b)  # the store is being told of a
    assert next_one(tmp_path, []) == [a, b]
    ledger.turn()  # it did not take it: again, with b
    ledger.note(c)
    assert next_one(tmp_path, []) == [a, b, c]
    ledger.settle()
    assert next_one(tmp_path, [a, b]) == [a, b, c]


def test_what_the_store_has_taken_is_forgotten(ledger: Ledger, tmp_path: Path) -> None:
    ledger.note(record("a"))
    ledger.turn()
    ledger.settle()
    assert next_one(tmp_path, []) == []


def test_the_ledger_is_newer_than_the_store(ledger: Ledger, tmp_path: Path) -> None:
    a = record("a")
    ledger.note(ended(a))
    assert next_one(tmp_path, [a, record("b")]) == [ended(a), record("b")]


@pytest.mark.parametrize("cut", [2, 5, 40])
def test_a_line_that_was_cut_short_is_passed_over(ledger: Ledger, tmp_path: Path, cut: int) -> None:
    ledger.note(record("a"))
    ledger.note(record("b"))
    os.truncate(tmp_path / LEDGER, os.path.getsize(tmp_path / LEDGER) - cut)
    assert next_one(tmp_path, []) == [record("a")]


def test_after_a_torn_line_nothing_is_lost(ledger: Ledger, tmp_path: Path) -> None:
    ledger.note(record("a"))
    os.truncate(tmp_path / LEDGER, os.path.getsize(tmp_path / LEDGER) - 4)
    later = Ledger(tmp_path / LEDGER)
    later.note(record("b"))
    later.close()
    assert next_one(tmp_path, []) == [record("b")]


def test_lines_of_another_kind_are_passed_over(tmp_path: Path, ledger: Ledger) -> None:
    (tmp_path / LEDGER).write_text('[]\n"x"\n7\n{}\n' + json.dumps({"id": "a"}) + "\n\n")
    ledger.note(record("a"))
    assert next_one(tmp_path, []) == [record("a")]


def test_a_full_disk_is_no_error_of_the_request(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        ledger.note(record("a"))
        ledger.turn()
        ledger.settle()
    ledger.note(record("b"))
    assert next_one(tmp_path, []) == [record("b")]
