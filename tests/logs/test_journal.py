"""Journals on real disks: bounded, and whole whatever ends the writer or fills the disk."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cove.clock import iso
from cove.logs import pages
from cove.logs.journal import GONE, PARTS, Journal

SIZE = 64 * 1024
DAY = 86400.0
NOON = 1_760_000_000.0
PATIENCE = 30.0


def line(number: int, filler: int = 100, at: float = NOON) -> bytes:
    record = {"time": iso(at), "n": number, "text": "x" * filler}
    return json.dumps(record).encode() + b"\n"


def remark(at: float, text: str) -> bytes:
    return json.dumps({"time": iso(at), "text": text}).encode() + b"\n"


def journal(folder: Path, size: int = SIZE, age: float = DAY) -> Journal:
    return Journal(folder, size=size, age=age, remark=remark)


def lines_of(folder: Path) -> list[bytes]:
    """All that a reader sees, page by page."""
    out, at, more = [], pages.START, True
    while more:
        page = pages.forward(folder, at)
        out, at, more = out + page.lines, page.place, page.more
    return out


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(each) for each in lines_of(folder)]


def numbers(folder: Path) -> list[int]:
    return [record["n"] for record in records_of(folder) if "n" in record]


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def total(folder: Path) -> int:
    return sum(file.stat().st_size for file in files(folder))


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = journal(tmp_path / "a" / "b")
    written.write([line(1), line(2)], NOON)
    written.write([line(3)], NOON)
    assert numbers(tmp_path / "a" / "b") == [1, 2, 3]
    assert written.written == 3


def test_only_the_owner_can_read_them(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        journal(tmp_path / "logs" / "j").write([line(1)], NOON)
    finally:
        os.umask(old)
    made = [tmp_path / "logs", *sorted((tmp_path / "logs").rglob("*"))]
    assert [stat.S_IMODE(path.stat().st_mode) for path in made] == [0o700, 0o700, 0o600]


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_all_files_together_stay_below_the_bound_at_every_moment(
    tmp_path: Path, batch: int
) -> None:
    written = journal(tmp_path)
    count, highest = 3000, 0
    for first in range(0, count, batch):
        written.write([line(n) for n in range(first, min(first + batch, count))], NOON)
        highest = max(highest, total(tmp_path))
        assert all(file.stat().st_size <= SIZE // PARTS for file in files(tmp_path))
    assert highest <= SIZE
    assert highest > SIZE * 3 // 4, "the bound is for using"
    kept = numbers(tmp_path)
    assert kept == list(range(kept[0], count)), "the newest, in order, none left out"


def test_the_bound_holds_over_restarts(tmp_path: Path) -> None:
    for first in range(0, 3000, 100):
        journal(tmp_path).write([line(n) for n in range(first, first + 100)], NOON)
        assert total(tmp_path) <= SIZE
    kept = numbers(tmp_path)
    assert kept == list(range(kept[0], 3000))
    assert len(files(tmp_path)) <= PARTS + 1, "a restart goes on with the newest file"


def test_a_file_whose_newest_line_is_too_old_is_removed(tmp_path: Path) -> None:
    written = journal(tmp_path)
    written.write([line(n) for n in range(200)], NOON)
    old, *kept = files(tmp_path)
    os.utime(old, (NOON - DAY - 1,) * 2)
    for file in kept:
        os.utime(file, (NOON - DAY + 1,) * 2)
    written.prune(NOON)
    assert files(tmp_path) == kept
    written.write([line(200)], NOON)
    assert numbers(tmp_path)[-1] == 200


@pytest.mark.parametrize("again", [False, True], ids=["one run", "restarted"])
def test_numbers_go_on_after_all_files_were_too_old(tmp_path: Path, again: bool) -> None:
    written = journal(tmp_path)
    written.write([line(0)], NOON)
    written.write([line(1)], NOON + DAY)
    for file in files(tmp_path):
        os.utime(file, (0, 0))
    at = pages.forward(tmp_path, pages.last(tmp_path)).place
    if again:
        written = journal(tmp_path)
    written.prune(NOON)
    assert files(tmp_path) == []
    written.write([line(2)], NOON)
    page = pages.forward(tmp_path, at)
    assert [json.loads(each)["n"] for each in page.lines] == [2]
    assert not page.missed, "what was removed had been read"


@pytest.mark.parametrize("again", [False, True], ids=["one run", "restarted"])
def test_a_slow_writers_file_does_not_stay_young_for_ever(tmp_path: Path, again: bool) -> None:
    written = journal(tmp_path)
    written.write([line(1, at=NOON)], NOON)
    if again:
        written = journal(tmp_path)
    written.write([line(2)], NOON + DAY / PARTS - 1)
    assert len(files(tmp_path)) == 1
    written.write([line(3)], NOON + DAY / PARTS + 1)
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("jump", [-10 * DAY, 10 * DAY])
def test_a_clock_that_jumps_changes_no_order_and_loses_nothing(tmp_path: Path, jump: float) -> None:
    written = journal(tmp_path)
    for n, at in enumerate([NOON, NOON + jump, NOON + jump + 1, NOON, NOON + 1]):
        written.write([line(n, at=at)], at)
    assert numbers(tmp_path) == [0, 1, 2, 3, 4]


def test_writers_in_several_threads_wait_for_each_other(tmp_path: Path) -> None:
    written = journal(tmp_path, size=1 << 20)

    def write(first: int) -> None:
        for n in range(first, first + 300):
            written.write([line(n, filler=3000)] * 3, NOON)

    threads = [threading.Thread(target=write, args=(first,)) for first in (1000, 2000, 3000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert written.lost == 0
    assert written.written == 2700
    assert total(tmp_path) <= 1 << 20
    assert all(file.stat().st_size <= (1 << 20) // PARTS for file in files(tmp_path))
    kept = numbers(tmp_path)
    for first in (1000, 2000, 3000):
        own = [n for n in kept if first <= n < first + 1000]
        assert own == sorted(own)


# What a crash leaves.

KILLED = """
import sys, pathlib
from cove.logs.journal import Journal
journal = Journal(pathlib.Path(sys.argv[1]), size=1 << 26, age=1e9, remark=lambda at, text: b"")
lines = [b'{"time":"2026-01-01T00:00:00.000Z","n":%d,"text":"%s"}\\n' % (n, b"x" * 5000)
         for n in range(1000)]
print(flush=True)
while True:
    journal.write(lines, 1e9)
"""


def test_a_killed_writers_lines_are_whole_and_the_next_ones_too(tmp_path: Path) -> None:
    torn = 0
    for tried in range(60):
        folder = tmp_path / str(tried)
        writer = subprocess.Popen([sys.executable, "-c", KILLED, folder], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        with writer:
            writer.stdout.readline()
            until = time.monotonic() + PATIENCE
            while not (folder.exists() and total(folder) > 100_000):  # no pause: to meet a write
                assert time.monotonic() < until
            writer.send_signal(signal.SIGKILL)
        before = lines_of(folder)
        assert [json.loads(each)["n"] for each in before] == [n % 1000 for n in range(len(before))]
        torn += not files(folder)[-1].read_bytes().endswith(b"\n")
        journal(folder, size=1 << 26, age=1e12).write([line(-1)], NOON)
        assert lines_of(folder) == [*before, line(-1).strip()]
        if torn >= 3:
            return
    pytest.fail("no writer was killed in the middle of a line")


def test_a_torn_line_is_passed_over_and_the_next_writer_begins_afresh(tmp_path: Path) -> None:
    journal(tmp_path).write([line(1), line(2)], NOON)
    (newest,) = files(tmp_path)
    with newest.open("ab") as file:
        file.write(line(3)[:50])
    end = pages.last(tmp_path)
    assert numbers(tmp_path) == [1, 2]
    assert pages.forward(tmp_path, end).lines == []
    journal(tmp_path).write([line(4)], NOON)
    assert numbers(tmp_path) == [1, 2, 4]
    assert [json.loads(each)["n"] for each in pages.forward(tmp_path, end).lines] == [4]


def test_a_file_that_is_no_log_at_its_end_is_passed_over(tmp_path: Path) -> None:
    """What a machine that lost power leaves: a length without its contents."""
    journal(tmp_path, size=1 << 26).write([line(1)], NOON)
    with files(tmp_path)[0].open("ab") as file:
        file.write(bytes(3 * pages.LONGEST_LINE))
    assert pages.last(tmp_path).offset == len(line(1))
    journal(tmp_path, size=1 << 26).write([line(2)], NOON)
    assert numbers(tmp_path) == [1, 2]


# What cannot be written.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with room for 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_on_a_full_disk_lines_are_dropped_and_counted(small_disk: Path) -> None:
    written = journal(small_disk / "j", size=1 << 20)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(150 * 1024))
    written.write([line(n) for n in range(2000)], NOON)
    kept = numbers(small_disk / "j")
    assert kept == list(range(len(kept))), "whole lines up to where the disk was full"
    assert 0 < len(kept) < 2000
    assert written.lost == 2000 - len(kept)

    written.write([line(n) for n in range(2000, 2010)], NOON)
    assert written.lost == 2010 - len(numbers(small_disk / "j"))
    lost = written.lost

    ballast.unlink()
    written.write([line(9999)], NOON)
    assert written.lost == 0
    *_, said, last = records_of(small_disk / "j")
    assert said["text"] == f"{lost} lines are missing here: No space left on device"
    assert last["n"] == 9999


def test_a_full_disk_is_tried_again_without_anything_new_to_write(small_disk: Path) -> None:
    written = journal(small_disk / "j", size=1 << 20)
    (small_disk / "ballast").write_bytes(bytes(256 * 1024))
    written.write([line(1)], NOON)
    assert written.lost == 1
    (small_disk / "ballast").unlink()
    written.write([], NOON)
    assert [record["text"] for record in records_of(small_disk / "j")] == [
        "1 lines are missing here: No space left on device"
    ]


def test_a_full_disk_is_not_littered_with_empty_files(small_disk: Path) -> None:
    written = journal(small_disk / "j", size=1 << 20)
    written.write([line(1)], NOON)
    (small_disk / "ballast").write_bytes(bytes(252 * 1024))
    for _ in range(20):
        written.write([line(2, filler=8000)], NOON + DAY)
    assert written.lost
    assert len(files(small_disk / "j")) <= 2


def test_a_folder_that_cannot_be_written_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "j").write_text("in the way")
    written = journal(tmp_path / "j")
    written.write([line(1), line(2)], NOON)
    written.prune(NOON)
    assert (written.lost, written.written) == (2, 0)
    (tmp_path / "j").unlink()
    written.write([line(3)], NOON)
    assert records_of(tmp_path / "j")[0]["text"].startswith("2 lines are missing here: ")
    assert numbers(tmp_path / "j") == [3]


def test_a_folder_that_somebody_removed_is_made_again(tmp_path: Path) -> None:
    written = journal(tmp_path / "j")
    written.write([line(1)], NOON)
    files(tmp_path / "j")[0].unlink()
    (tmp_path / "j").rmdir()
    written.write([line(2)], NOON)
    written.write([line(3)], NOON)
    assert numbers(tmp_path / "j") == [3]
    assert "1 lines are missing" in records_of(tmp_path / "j")[0]["text"]


def test_what_is_doomed_goes_and_what_comes_after_stays(tmp_path: Path) -> None:
    written = journal(tmp_path / "j")
    written.write([line(1)], NOON)
    written.doom()
    written.write([line(2)], NOON)
    assert numbers(tmp_path / "j") == [2]
    assert not list(tmp_path.glob(f"{GONE}*"))


# Reading.


def test_pages_are_whole_lines_and_every_line_once(tmp_path: Path) -> None:
    written = journal(tmp_path, size=1 << 23)
    lines = [line(n, filler=(n * 7919) % 90_000) for n in range(120)]
    written.write(lines, NOON)
    assert lines_of(tmp_path) == [each.strip() for each in lines]


def test_going_back_meets_every_line_once_too(tmp_path: Path) -> None:
    written = journal(tmp_path, size=1 << 23)
    lines = [line(n, filler=(n * 7919) % 90_000) for n in range(120)]
    written.write(lines, NOON)
    with files(tmp_path)[3].open("ab") as file:
        file.write(b'{"torn')
    met: list[bytes] = []
    at: pages.Place | None = pages.last(tmp_path)
    while at is not None:
        found, at = pages.back(tmp_path, at)
        assert all(pages.forward(tmp_path, place).lines[0] == each for place, each in found[:1])
        met = [each for _, each in found] + met
    assert met == [each.strip() for each in lines]


def test_a_reader_stops_where_it_was_told(tmp_path: Path) -> None:
    written = journal(tmp_path)
    written.write([line(n) for n in range(150)], NOON)
    stop = pages.last(tmp_path)
    written.write([line(n) for n in range(150, 300)], NOON)
    at, seen, more = pages.START, 0, True
    while more:
        page = pages.forward(tmp_path, at, stop)
        at, seen, more = page.place, seen + len(page.lines), page.more
    assert seen == 150


def test_a_reader_learns_that_it_came_too_late(tmp_path: Path) -> None:
    written = journal(tmp_path)
    written.write([line(n) for n in range(100)], NOON)
    at = pages.Place(1, len(line(0)))
    files(tmp_path)[0].unlink()
    assert pages.forward(tmp_path, at).missed
