"""Logs as Cove uses them: told at once, written behind, read and followed by anybody."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from cove.clock import iso
from cove.events import Event
from cove.logs.book import PENDING
from cove.logs.logs import Logs
from cove.logs.records import LONGEST, Record, Wanted

MIB = 1024**2
DAY = 86400.0
ALL = Wanted()
PATIENCE = 30.0


@pytest.fixture
async def logs(tmp_path: Path) -> AsyncIterator[Logs]:
    made = Logs(tmp_path / "logs", size=64 * MIB, age=DAY, silence=3600)
    yield made
    await made.close()


def say(logs: Logs, text: str, function: str = "weather", **more: str) -> None:
    logs.line(function, 3, f"{function}-3-0a1b2c3d", "stdout", text, **more)


def ask(logs: Logs, target: bytes = b"/mcp", request: bytes = b"r-1", **more: Any) -> None:
    known: dict[str, Any] = {"status": 200, "seconds": 0.01234} | more
    logs.access(
        "weather", 3, "weather-3-0a1b2c3d", "s-1", request, "project", b"POST", target, **known
    )


async def read(logs: Logs, wanted: Wanted = ALL, tail: int | None = None) -> list[Record]:
    return [record async for some in logs.read("weather", wanted, tail=tail) for record in some]


async def texts(logs: Logs, wanted: Wanted = ALL, tail: int | None = None) -> list[str]:
    return [record["text"] for record in await read(logs, wanted, tail)]


class Follower:
    """One who follows, and what was seen so far."""

    def __init__(self, logs: Logs, wanted: Wanted = ALL, tail: int | None = None) -> None:
        self.texts: list[str] = []
        self._grew = asyncio.Event()
        self._records = logs.read("weather", wanted, tail=tail, follow=True)
        self.task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        async for some in self._records:
            self.texts += [record["text"] for record in some]
            self._grew.set()

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not true():
                self._grew.clear()
                await self._grew.wait()


# What is kept of a line, a request, an event.


async def test_a_line_says_when_where_and_for_whom(logs: Logs) -> None:
    before = time.time()
    say(logs, "hello", session="s-1", request="r-1")
    (record,) = await read(logs)
    at = record.pop("time")
    assert iso(before) <= at <= iso(time.time())
    assert len(at) == len("2026-01-01T00:00:00.000Z")
    assert record == {
        "stream": "stdout",
        "function": "weather",
        "version": 3,
        "instance": "weather-3-0a1b2c3d",
        "session": "s-1",
        "request": "r-1",
        "text": "hello",
    }


async def test_what_is_empty_is_left_out(logs: Logs) -> None:
    logs.line("weather", 0, "", "cove", "")
    (record,) = await read(logs)
    assert set(record) == {"time", "stream", "function", "text"}


async def test_a_request_is_a_line_too(logs: Logs) -> None:
    ask(logs)
    (record,) = await read(logs)
    del record["time"]
    assert record == {
        "stream": "access",
        "function": "weather",
        "version": 3,
        "instance": "weather-3-0a1b2c3d",
        "session": "s-1",
        "request": "r-1",
        "principal": "project",
        "method": "POST",
        "path": "/mcp",
        "status": 200,
        "ms": 12.3,
        "text": "POST /mcp 200 12.3 ms",
    }


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/mcp?token=hush", "/mcp"),
        (b"/mcp?a=1?token=hush", "/mcp"),
        (b"/mcp#hush", "/mcp"),
        (b"/?hush", "/"),
        (b"http://me:hush@host:1/a/b?hush", "/a/b"),
        (b"http://me:hush@host", "/"),
        (b"*", "*"),
        (b"/caf\xc3\xa9/\xff", "/café/\N{REPLACEMENT CHARACTER}"),
    ],
)
async def test_a_requests_query_is_never_kept(
    logs: Logs, tmp_path: Path, target: bytes, path: str
) -> None:
    ask(logs, target)
    (record,) = await read(logs)
    assert record["path"] == path
    assert record["text"] == f"POST {path} 200 12.3 ms"
    for file in (tmp_path / "logs").rglob("*.jsonl"):
        assert b"hush" not in file.read_bytes()


async def test_requests_are_not_kept_where_the_operator_says_so(tmp_path: Path) -> None:
    logs = Logs(tmp_path, size=MIB, age=DAY, access=False)
    ask(logs)
    say(logs, "hello")
    assert await texts(logs) == ["hello"]
    await logs.close()


async def test_an_event_says_what_happened_and_why(logs: Logs) -> None:
    logs.event(Event(1_760_000_000.5, "instance.crashed", "weather", 3, "weather-3-0a", "code 1"))
    logs.event(Event(1_760_000_001.0, "cove.stopping"))
    told = [record async for some in logs.read_events(ALL) for record in some]
    assert told == [
        {
            "time": "2025-10-09T08:53:20.500Z",
            "kind": "instance.crashed",
            "function": "weather",
            "version": 3,
            "instance": "weather-3-0a",
            "reason": "code 1",
        },
        {"time": "2025-10-09T08:53:21.000Z", "kind": "cove.stopping"},
    ]
    assert await texts(logs) == [], "a function's log is something else"


async def test_a_long_line_is_cut_and_says_so(logs: Logs) -> None:
    say(logs, "x" * LONGEST)
    say(logs, "y" * 100_000)
    logs.event(Event(time.time(), "version.failed", reason="z" * 100_000))
    whole, short = await texts(logs)
    assert whole == "x" * LONGEST
    assert short == "y" * LONGEST + "… [cut: 100000 characters]"
    async for some in logs.read_events(ALL):
        assert some[0]["reason"].endswith("… [cut: 100000 characters]")


async def test_whatever_was_printed_comes_back_and_the_file_is_ascii(
    logs: Logs, tmp_path: Path
) -> None:
    odd = ["", '"\\', "a\nb\rc", "\x1b[31mred\x9b0m\x00", "日本 \U0001f600", "\udcff", "\u2028"]
    for text in odd:
        say(logs, text, session=text)
    assert await texts(logs) == odd
    (file,) = (tmp_path / "logs" / "weather").iterdir()
    assert file.read_bytes().isascii()
    assert [await texts(logs, Wanted(session=text)) for text in odd[1:]] == [[t] for t in odd[1:]]


async def test_what_was_printed_is_kept_when_the_call_returns(logs: Logs, tmp_path: Path) -> None:
    await asyncio.to_thread(
        logs.printed, "weather", 3, "i", "stderr", ["a", "b" * 9000], session="s"
    )
    (file,) = (tmp_path / "logs" / "weather").iterdir()
    first, second = map(json.loads, file.read_text().splitlines())
    assert (first["stream"], first["text"], first["session"]) == ("stderr", "a", "s")
    assert second["text"].endswith("[cut: 9000 characters]")


KILLED = """
import os, pathlib, signal, sys
from cove.logs.logs import Logs
logs = Logs(pathlib.Path(sys.argv[1]), size=1 << 20, age=1e9)
logs.printed("weather", 1, "i", "stdout", ["last words"])
os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_what_was_printed_outlives_a_killed_cove(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    assert done.returncode == -signal.SIGKILL
    logs = Logs(tmp_path, size=MIB, age=1e12)
    assert await texts(logs) == ["last words"]
    await logs.close()


# Bounds.


async def test_what_waits_is_bounded_and_what_is_dropped_is_counted(
    logs: Logs,
) -> None:
    text = "x" * 8000
    tracemalloc.start()
    for _ in range(5000):
        say(logs, text + "!")  # a text of its own each time: 40 MB in all
    for _ in range(100_000):
        ask(logs, b"/" + b"y" * 20)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 2 * PENDING
    *kept, said = await texts(logs)
    missing = 105_000 - len(kept)
    assert said == f"{missing} lines are missing here: they came faster than they could be written"
    assert len(kept) > 400
    say(logs, "after")
    assert (await texts(logs))[-1] == "after"


async def test_what_waits_for_one_function_does_not_cost_another(logs: Logs) -> None:
    for _ in range(100_000):
        ask(logs, b"/" + b"y" * 100)
    say(logs, "hello", function="clock")
    found = [r async for some in logs.read("clock", ALL) for r in some]
    assert [record["text"] for record in found] == ["hello"]


async def test_reading_takes_the_same_memory_however_much_there_is(logs: Logs) -> None:
    lines = [f"{n} " + "x" * 1000 for n in range(10_000)]
    for _ in range(2):
        await asyncio.to_thread(logs.printed, "weather", 3, "i", "stdout", lines)
    await read(logs, tail=1)  # what is imported and kept by then is no part of it
    tracemalloc.start()
    seen = 0
    for tail in (None, 15_000):
        async for some in logs.read("weather", ALL, tail=tail):
            seen += len(some)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen == 35_000
    assert peak < 2 * MIB, "the journal has more than 20 MiB"


async def test_no_files_stay_open(logs: Logs) -> None:
    for n in range(50):
        say(logs, "hello", function=f"f{n}")
    await logs.flush()
    followers = [logs.read(f"f{n}", ALL, follow=True) for n in range(50)]
    for follower in followers:
        await anext(follower)
    opened = [os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.exists()]
    assert not [each for each in opened if each.endswith(".jsonl")]
    for follower in followers:
        await follower.aclose()


async def test_old_files_go_by_age_of_functions_that_say_nothing_any_more(
    logs: Logs, tmp_path: Path
) -> None:
    say(logs, "long ago")
    await logs.flush()
    now = time.time()
    await logs.prune(now)
    assert await texts(logs) == ["long ago"]
    again = Logs(tmp_path / "logs", size=MIB, age=DAY)
    await again.prune(now + DAY + 60)
    assert await texts(logs) == []
    await again.close()


async def test_running_writes_without_being_asked(logs: Logs, tmp_path: Path) -> None:
    running = asyncio.create_task(logs.run())
    say(logs, "hello")
    file = tmp_path / "logs" / "weather" / "00000001.jsonl"
    async with asyncio.timeout(PATIENCE):
        while not file.exists() or not file.read_bytes():
            await asyncio.sleep(0.01)
    running.cancel()


async def test_what_is_no_record_is_passed_over(logs: Logs, tmp_path: Path) -> None:
    """What a machine that lost power, or somebody with an editor, may leave."""
    say(logs, "before")
    await logs.flush()
    (file,) = (tmp_path / "logs" / "weather").iterdir()
    with file.open("ab") as end:
        end.write(b'\0\0\0\n{"time": "20\n[]\nnull\n\n{}\n\xff\n')
    say(logs, "after")
    assert await texts(logs) == ["before", "after"]
    assert await texts(logs, tail=2) == ["before", "after"]


# Which are wanted.


async def test_each_filter_holds_and_together_they_all_do(logs: Logs) -> None:
    logs.line("weather", 1, "weather-1-aaaaaaaa", "stdout", "a", session="s-1", request="r-1")
    logs.line("weather", 1, "weather-1-bbbbbbbb", "stderr", "b", session="s-1", request="r-2")
    logs.line("weather", 2, "weather-2-aaaabbbb", "stdout", "c about r-1", session="s-2")
    ask(logs, request=b"r-1")
    access = "POST /mcp 200 12.3 ms"
    for wanted, expected in {
        Wanted(): ["a", "b", "c about r-1", access],
        Wanted(stream="stderr"): ["b"],
        Wanted(stream="access"): [access],
        Wanted(session="s-2"): ["c about r-1"],
        Wanted(instance="weather-1-bbbbbbbb"): ["b"],
        Wanted(instance="aaaaaaaa"): ["a"],
        Wanted(instance="bbbb"): [],
        Wanted(request="r-1"): ["a", "c about r-1", access],
        Wanted(request="r-1", session="s-1", stream="stdout"): ["a"],
        Wanted(request="r-"): ["c about r-1"],
        Wanted(function="clock"): [],
    }.items():
        assert await texts(logs, wanted) == expected, wanted


async def test_since_is_about_each_line_whatever_the_clock_did(
    logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in (1000.0, 3000.0, 1500.0, 2500.0, 500.0, 2000.0):
        monkeypatch.setattr("cove.logs.logs.wall", lambda at=at: at)
        say(logs, str(at))
    assert await texts(logs, Wanted(since=2000.0)) == ["3000.0", "2500.0", "2000.0"]
    assert await texts(logs, Wanted(since=2000.0), tail=2) == ["2500.0", "2000.0"]


@pytest.mark.parametrize("tail", [0, 1, 5, 999, 5000, 6000])
async def test_a_tail_is_the_last_that_match(tmp_path: Path, tail: int) -> None:
    logs = Logs(tmp_path, size=8 * MIB, age=DAY)
    for n in range(5000):
        say(logs, f"{n} " + "x" * 400, session="odd" if n % 2 else "even")
    found = await read(logs, Wanted(session="odd"), tail=tail)
    odd = list(range(1, 5000, 2))
    assert [int(record["text"].split()[0]) for record in found] == odd[max(0, 2500 - tail) :]
    assert len(list((tmp_path / "weather").iterdir())) > 1, "more than one file was read"
    await logs.close()


# Following.


async def test_who_follows_misses_nothing_and_sees_nothing_twice(tmp_path: Path) -> None:
    """Files are begun and removed all the while, and another writes at the same time."""
    logs = Logs(tmp_path, size=MIB, age=DAY, silence=3600)
    say(logs, "before 0")
    say(logs, "before 1")
    running = asyncio.create_task(logs.run())
    follower = Follower(logs, tail=1)
    await follower.until(lambda: follower.texts == ["before 1"])

    async def keep_up(word: str) -> None:
        # Not faster than it reads: who is too slow is told, which is another test.
        await follower.until(lambda: any(t.startswith(word) for t in follower.texts[-3000:]))

    async def print_lines() -> None:
        for first in range(0, 8000, 50):
            more = [f"printed {n} {'x' * 200}" for n in range(first, first + 50)]
            await asyncio.to_thread(logs.printed, "weather", 3, "i", "stdout", more)
            if first % 500 == 450:
                await keep_up(f"printed {first} ")

    printing = asyncio.create_task(print_lines())
    for n in range(4000):
        say(logs, f"said {n} {'x' * 200}")
        if n % 100 == 99:
            await logs.flush()
            await keep_up(f"said {n} ")
    await printing
    say(logs, "the end")
    await follower.until(lambda: follower.texts[-1] == "the end")
    seen = [text.split()[:2] for text in follower.texts[1:-1]]
    assert [int(n) for who, n in seen if who == "said"] == list(range(4000))
    assert [int(n) for who, n in seen if who == "printed"] == list(range(8000))
    names = [int(file.stem) for file in (tmp_path / "weather").iterdir()]
    assert min(names) > 8, "the first files are gone long ago"
    follower.task.cancel()
    running.cancel()
    await logs.close()


async def test_what_is_written_between_tail_and_follow_is_seen_once(logs: Logs) -> None:
    """Whatever comes at whichever step of a reader that begins."""
    for steps in range(12):
        function = f"f{steps}"
        say(logs, "first", function=function)
        records = logs.read(function, ALL, tail=5, follow=True)
        got: list[str] = []

        async def follow(
            records: Any = records, got: list[str] = got, function: str = function
        ) -> None:
            async for some in records:
                got += [record["text"] for record in some]
                if "last" in got:
                    return

        task = asyncio.create_task(follow())
        for _ in range(steps):
            await asyncio.sleep(0)
        say(logs, "second", function=function)
        await logs.flush()
        say(logs, "last", function=function)
        await logs.flush()
        await asyncio.wait_for(task, PATIENCE)
        assert got == ["first", "second", "last"]


async def test_who_is_too_slow_is_told_that_lines_are_gone(tmp_path: Path) -> None:
    logs = Logs(tmp_path, size=MIB, age=DAY)
    say(logs, "first")
    records = logs.read("weather", ALL, follow=True)
    await anext(records)
    for n in range(8000):
        say(logs, f"{n} " + "x" * 400)
        if n % 1000 == 0:
            await logs.flush()
    await logs.flush()
    told = (await anext(records))[0]
    assert told["stream"] == "cove"
    assert told["text"] == "lines that stood here were removed before they could be read"
    await records.aclose()
    await logs.close()


async def test_filters_hold_for_who_follows(logs: Logs) -> None:
    follower = Follower(logs, Wanted(stream="stderr"))
    for n in range(10):
        logs.line("weather", 1, "i", "stderr" if n % 2 else "stdout", str(n))
        await logs.flush()
    await follower.until(lambda: follower.texts == ["1", "3", "5", "7", "9"])
    follower.task.cancel()


async def test_who_follows_what_never_comes_is_told_so_however_much_else_does(
    tmp_path: Path,
) -> None:
    logs = Logs(tmp_path, size=MIB, age=DAY, silence=0.2)
    records = logs.read("weather", Wanted(stream="stderr"), follow=True)
    step = asyncio.ensure_future(anext(records))
    async with asyncio.timeout(PATIENCE):
        while not step.done():
            say(logs, "something else")
            await logs.flush()
    assert step.result() == []
    await records.aclose()
    await logs.close()


async def test_following_ends_with_the_logs(tmp_path: Path) -> None:
    logs = Logs(tmp_path, size=MIB, age=DAY)
    follower = Follower(logs)
    say(logs, "hello")
    await logs.flush()
    await follower.until(lambda: follower.texts == ["hello"])
    say(logs, "bye")
    await logs.close()
    await asyncio.wait_for(follower.task, PATIENCE)
    assert follower.texts == ["hello", "bye"]
    say(logs, "nobody hears")
    await logs.flush()


# A function that goes.


async def test_a_new_function_shows_nothing_of_an_old_one_of_its_name(
    logs: Logs, tmp_path: Path
) -> None:
    say(logs, "old")
    await logs.flush()
    say(logs, "old and waiting")
    follower = Follower(logs)
    await follower.until(lambda: follower.texts == ["old", "old and waiting"])
    say(logs, "old and never written")
    logs.forget("weather")
    say(logs, "new")
    await asyncio.wait_for(follower.task, PATIENCE)
    assert await texts(logs) == ["new"]
    assert follower.texts == ["old", "old and waiting"]
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["weather"]


async def test_who_follows_an_old_function_sees_nothing_of_a_new_one(logs: Logs) -> None:
    """Also one who was busy all the while that it went and another came."""
    say(logs, "old")
    records = logs.read("weather", ALL, follow=True)
    assert [record["text"] for record in await anext(records)] == ["old"]
    logs.forget("weather")
    say(logs, "new")
    await logs.flush()
    assert [some async for some in records] == []


async def test_a_forgotten_function_leaves_nothing(logs: Logs, tmp_path: Path) -> None:
    say(logs, "old")
    logs.event(Event(time.time(), "function.removed", "weather"))
    await logs.flush()
    logs.forget("weather")
    await logs.flush()
    await logs.prune(time.time())
    assert [path.name for path in (tmp_path / "logs").iterdir()] == [".events"]
    assert repr(logs).endswith("[1 journals]>")


async def test_what_a_crash_kept_from_being_forgotten_goes_at_the_next_start(
    logs: Logs, tmp_path: Path
) -> None:
    say(logs, "old")
    say(logs, "kept", function="clock")
    logs.event(Event(time.time(), "cove.started"))
    await logs.flush()
    (tmp_path / "logs" / ".gone-12345678").mkdir()
    again = Logs(tmp_path / "logs", size=MIB, age=DAY)
    await again.retain({"clock"})
    await again.prune(time.time())
    names = {path.name for path in (tmp_path / "logs").iterdir()}
    assert names == {".events", "clock"}
    await again.close()


async def test_what_cannot_be_removed_yet_is_not_shown_either(
    logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(logs, "old")
    await logs.flush()

    def stuck(*args: object) -> None:
        raise OSError("stuck")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", stuck)
        logs.forget("weather")
        say(logs, "new")
        assert await texts(logs) == []
    assert await texts(logs) == ["1 lines are missing here: stuck"]
