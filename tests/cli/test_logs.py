"""`cove logs` and `cove events`, as programs, over real logs."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from api.served import PATIENCE, MemoryControl
from cove.cli.record import moment, short, shown
from cove.clock import iso
from cove.events import Event
from cove.logs.logs import Logs

from .conftest import COVE, Cove


@pytest.fixture
def logs(control: MemoryControl, tmp_path: Path) -> Logs:
    control.made = {"weather": {"name": "weather", "instances": []}}
    control.journals = Logs(tmp_path / "logs", size=1024**2, age=86400)
    return control.journals


def say(logs: Logs, *texts: str, stream: Any = "stdout", **more: str) -> None:
    logs.printed("weather", 3, "weather-3-0a1b2c3d", stream, texts, **more)


@contextmanager
def running(cove: Cove, *args: str) -> Iterator[subprocess.Popen[str]]:
    run = subprocess.Popen(
        [*COVE, *args],
        env=cove.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    with run:
        try:
            yield run
        finally:
            run.kill()


def test_a_line_says_when_which_version_and_instance_and_for_whom(cove: Cove, logs: Logs) -> None:
    say(logs, "hello", session="s-1", request="r-1")
    say(logs, "  indented", stream="stderr")
    first, second = cove("logs", "weather").out.splitlines()
    at, rest = first.split(" ", 1)
    assert datetime.strptime(at, "%H:%M:%S.%f")
    assert rest == "v3 0a1b2c3d stdout hello  session=s-1  request=r-1"
    assert second.endswith(" v3 0a1b2c3d stderr   indented")


def test_the_last_200_lines_are_shown_or_as_many_as_are_asked_for(cove: Cove, logs: Logs) -> None:
    say(logs, *[f"line {n}" for n in range(300)])

    def shown_by(*args: str) -> list[str]:
        out = cove("logs", "weather", *args).out.splitlines()
        return [out[0].rpartition("stdout ")[2], str(len(out))]

    assert shown_by() == ["line 100", "200"]
    assert shown_by("--tail", "3") == ["line 297", "3"]
    assert shown_by("--since", "10m") == ["line 0", "300"]
    assert shown_by("--since", "10m", "--tail", "2") == ["line 298", "2"]


def test_options_narrow_it_down(cove: Cove, logs: Logs) -> None:
    say(logs, "a", session="s-1", request="r-1")
    say(logs, "b", stream="stderr", session="s-2", request="r-2")

    def texts(*args: str) -> list[str]:
        return [
            json.loads(s)["text"]
            for s in cove("logs", "weather", "--json", *args).out.split("\n")[:-1]
        ]

    assert texts() == ["a", "b"]
    assert texts("--stream", "stderr") == ["b"]
    assert texts("--session", "s-1") == ["a"]
    assert texts("--request", "r-2") == ["b"]
    assert texts("--instance", "0a1b2c3d") == ["a", "b"]
    assert texts("--instance", "weather-3-ffffffff") == []


def test_json_is_the_records_a_line_each(cove: Cove, logs: Logs) -> None:
    say(logs, "größer\x1b[31m\x9b\u202e", "b")
    ran = cove("logs", "weather", "--json")
    first, second = map(json.loads, ran.out.splitlines())
    assert first["text"] == "größer\x1b[31m\x9b\u202e"
    assert set(second) == {"time", "stream", "function", "version", "instance", "text"}
    assert "größer" in ran.out
    assert not {"\x1b", "\x9b", "\u202e"} & set(ran.out)


def test_a_terminal_never_meets_what_a_program_printed(cove: Cove, logs: Logs) -> None:
    say(logs, "\x1b]0;title\x07\x1b[2J\x9b31m\rover\b\u202eevil\x00", session="\x1b[5m")
    logs.event(Event(time.time(), "instance.crashed", "weather", 3, "i-\x1b[5m", "\x1b[2Jboom"))
    for args in (["logs", "weather"], ["events"]):
        out = cove(*args).out
        assert "\x1b" not in out
        on_terminal = terminal(cove, *args)
        assert r"\x1b[2J" in on_terminal
        for bad in ("\x1b[2J", "\x1b]0;", "\x1b[5m", "\x9b", "\x07", "\b", "\u202e", "\x00"):
            assert bad not in on_terminal, args
    assert (
        r"\x1b]0;title\x07\x1b[2J\x9b31m\x0dover\x08\u202eevil\x00" in cove("logs", "weather").out
    )


def terminal(cove: Cove, *args: str, **env: str) -> str:
    """What a run whose streams are a terminal shows."""
    leader, follower = pty.openpty()
    try:
        run = subprocess.Popen(
            [*COVE, *args],
            env=cove.env | {"TERM": "xterm", "COLUMNS": "40"} | env,
            stdin=follower,
            stdout=follower,
            stderr=follower,
        )
        os.close(follower)
        shown_ = b""
        while select.select([leader], [], [], PATIENCE)[0]:
            try:
                shown_ += os.read(leader, 65536)
            except OSError:  # how Linux says that the last writer has closed
                break
        assert run.wait(PATIENCE) == 0
        return shown_.decode()
    finally:
        os.close(leader)


def test_on_a_terminal_errors_stand_out_and_long_lines_stay_whole(cove: Cove, logs: Logs) -> None:
    say(logs, "fine")
    say(logs, "wrong " + "x" * 200, stream="stderr")
    out = terminal(cove, "logs", "weather")
    assert "\x1b[31mwrong " + "x" * 200 in out
    assert "\x1b[31mfine" not in out
    assert "\x1b[" not in terminal(cove, "logs", "weather", NO_COLOR="1", TERM="dumb")


def test_following_shows_what_comes_until_ctrl_c_which_is_no_failure(
    cove: Cove, logs: Logs
) -> None:
    say(logs, "before")
    with running(cove, "logs", "weather", "-f") as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.readline().endswith("stdout before\n")
        for n in range(3):
            say(logs, f"after {n}")
            assert run.stdout.readline().endswith(f"stdout after {n}\n")
        run.send_signal(signal.SIGINT)
        assert run.wait(PATIENCE) == 0
        assert run.stdout.read() == ""
        assert run.stderr.read() == ""


def test_following_ends_with_the_function(cove: Cove, logs: Logs) -> None:
    say(logs, "before")
    with running(cove, "logs", "weather", "--follow", "--json") as run:
        assert run.stdout is not None
        assert json.loads(run.stdout.readline())["text"] == "before"
        logs.forget("weather")
        assert run.stdout.readline() == ""
        assert run.wait(PATIENCE) == 0


def test_events_say_what_happened_and_why(cove: Cove, logs: Logs) -> None:
    logs.event(Event(time.time(), "cove.started", reason="version 1"))
    logs.event(Event(time.time(), "instance.crashed", "weather", 3, "weather-3-0a1b2c3d", "exit 1"))
    logs.event(Event(time.time(), "function.removed", "gone"))
    started, crashed, removed = (line.split() for line in cove("events").out.splitlines())
    assert started[1:] == ["cove.started", "version", "1"]
    assert crashed[1:] == ["instance.crashed", "weather", "v3", "0a1b2c3d", "exit", "1"]
    assert removed[1:] == ["function.removed", "gone"]
    assert len(cove("events", "gone").out.splitlines()) == 1
    assert len(cove("events", "--tail", "2").out.splitlines()) == 2
    (only,) = cove("events", "weather", "--json").out.splitlines()
    assert json.loads(only)["reason"] == "exit 1"


def test_events_are_followed(cove: Cove, logs: Logs) -> None:
    logs.event(Event(time.time(), "cove.started"))
    with running(cove, "events", "-f", "--json") as run:
        assert run.stdout is not None
        assert json.loads(run.stdout.readline())["kind"] == "cove.started"
        logs.event(Event(time.time(), "cove.stopping"))
        assert json.loads(run.stdout.readline())["kind"] == "cove.stopping"
        run.send_signal(signal.SIGINT)
        assert run.wait(PATIENCE) == 0


def test_where_there_is_nothing_it_says_so_beside_the_output(cove: Cove, logs: Logs) -> None:
    ran = cove("logs", "weather", "--session", "nobody")
    assert (ran.out, ran.err) == ("", "there are no such lines\n")
    ran = cove("events", "nobody")
    assert (ran.out, ran.err) == ("", "there are no such events\n")
    ran = cove("events", "--json")
    assert (ran.out, ran.err) == ("", "")


def test_errors_say_what_to_do(cove: Cove, logs: Logs) -> None:
    ran = cove("logs", "wether", code=1)
    assert "hint: did you mean weather?" in ran.err
    ran = cove("logs", "weather", "--since", "yesterday", code=1)
    assert "yesterday" in ran.err
    assert "10m" in ran.err
    ran = cove("logs", "wether", "-f", "--json", code=1)
    assert json.loads(ran.out)["error"]["code"] == "not_found"
    cove("logs", "weather", "--tail", "-1", code=2)
    cove("logs", "weather", "--stream", "stdin", code=2)


def test_a_time_is_the_clocks_here_with_its_date_where_it_is_not_today() -> None:
    now = datetime.now()
    noon = now.replace(hour=12, minute=0, second=0, microsecond=5000)
    assert moment(iso(noon.timestamp()), now) == "12:00:00.005"
    yesterday = noon - timedelta(days=1)
    assert moment(iso(yesterday.timestamp()), now) == f"{yesterday:%Y-%m-%d} 12:00:00.005"
    assert moment("\x1b", now) == r"\x1b"
    assert moment(None, now) == "None"


def test_what_is_shown_is_one_line_that_no_terminal_obeys() -> None:
    assert shown("a\tb\nc\x1b\x9b\u2028\u2066") == r"a" + "\t" + r"b\x0ac\x1b\x9b\u2028\u2066"
    assert shown("größer 日本 😀") == "größer 日本 😀"
    assert short("my-weather-12-0a1b2c3d") == "0a1b2c3d"
