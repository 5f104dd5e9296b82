"""The commands, each run as a program."""

from __future__ import annotations

import json
import os
import pty
import resource
import select
import subprocess
import sys
from pathlib import Path

import pytest

from api.served import KEY, PATIENCE, MemoryControl

from .conftest import COVE, Cove

HELP_CPU = 0.25


def on_a_terminal(cove: Cove, *args: str, typed: str = "") -> tuple[int, str]:
    """The exit code and everything shown, of a run whose streams are a terminal."""
    leader, follower = pty.openpty()
    try:
        run = subprocess.Popen(
            [*COVE, *args],
            env=cove.env | {"TERM": "xterm", "COLUMNS": "200"},
            stdin=follower,
            stdout=follower,
            stderr=follower,
        )
        os.close(follower)
        os.write(leader, typed.encode())
        shown = b""
        while select.select([leader], [], [], PATIENCE)[0]:
            try:
                some = os.read(leader, 65536)
            except OSError:  # how Linux says that the last writer has closed
                break
            shown += some
        return run.wait(PATIENCE), shown.decode()
    finally:
        os.close(leader)


def test_deploy_shows_progress_then_where_it_answers(
    cove: Cove, source: Path, control: MemoryControl
) -> None:
    ran = cove("deploy", source)
    assert ran.out.splitlines()[0] == "weather version 1, mcp, process (process)"
    assert control.mcp_url in ran.out
    assert ran.err.splitlines() == [
        "  building weather",
        "  it answers",
        "note: process isolates nothing",
    ]


def test_deploy_as_json_is_one_object_and_nothing_else(cove: Cove, source: Path) -> None:
    ran = cove("deploy", source.parent, "--name", "clock", "--json")
    assert (ran.json["name"], ran.json["version"], ran.err) == ("clock", 1, "")


def test_a_failed_deploy_says_why_in_the_programs_words(cove: Cove, source: Path) -> None:
    source.write_text("def :")
    ran = cove("deploy", source, code=1)
    assert "error: server.py does not start" in ran.err
    assert "  | SyntaxError: invalid syntax" in ran.err
    assert "hint: run it yourself first" in ran.err
    assert ran.out == ""
    ran = cove("deploy", source, "--json", code=1)
    assert ran.json["error"]["code"] == "deploy_failed"
    assert ran.json["error"]["lines"][-1].startswith("SyntaxError")


def test_a_path_that_is_not_there_fails(cove: Cove, tmp_path: Path) -> None:
    assert "error: there is no" in cove("deploy", tmp_path / "none.py", code=1).err


def test_list_is_an_aligned_table_in_a_pipe(cove: Cove, source: Path) -> None:
    assert "cove deploy" in cove("list").err
    cove("deploy", source)
    cove("deploy", source, "--name", "a-much-longer-name")
    lines = cove("list").out.splitlines()
    assert lines[0].startswith("NAME                KIND  VERSION")
    assert lines[1].startswith("a-much-longer-name  mcp   1")
    assert lines[2].startswith("weather             mcp   1")
    assert [f["name"] for f in cove("list", "--json").json] == ["a-much-longer-name", "weather"]


def test_list_is_a_table_on_a_terminal(cove: Cove, source: Path) -> None:
    cove("deploy", source)
    code, shown = on_a_terminal(cove, "list")
    assert code == 0
    assert "\x1b[1m" in shown
    assert "weather" in shown


def test_describe_has_all_that_programs_rely_on(cove: Cove, source: Path) -> None:
    cove("deploy", source)
    found = cove("describe", "weather", "--json").json
    assert {
        "name",
        "kind",
        "version",
        "urls",
        "isolation",
        "driver",
        "instances",
        "sessions",
    } <= found.keys()
    instance = {"id", "state", "pid", "started_at", "started_by", "sessions"}
    assert instance <= found["instances"][0].keys()
    shown = cove("describe", "weather").out
    assert "isolation  process (process)" in shown
    assert "4242" in shown
    assert "1m ago" in shown


def test_a_name_that_is_nearly_right_is_suggested(cove: Cove, source: Path) -> None:
    cove("deploy", source)
    for args in (("describe",), ("rm", "--yes"), ("tools",), ("connect",), ("session", "list")):
        ran = cove(*args, "wether", code=1)
        assert "error: there is no function 'wether'" in ran.err
        assert "hint: did you mean weather?" in ran.err
    ran = cove("call", "wether", "forecast", "--json", code=1)
    assert ran.json["error"]["hint"] == "did you mean weather?"
    assert "cove list" in cove("describe", "zzzzzz", code=1).err


def test_options_count_on_either_side_of_the_command(cove: Cove, source: Path) -> None:
    cove("deploy", source)
    url = (cove.data / "url").read_text()
    for args in (
        ("--url", url, "--json", "list"),
        ("list", "--url", url, "--json"),
        ("--data", str(cove.data), "list", "--json"),
        ("--json", "session", "list"),
        ("session", "--json", "list"),
        ("session", "list", "--json"),
    ):
        assert isinstance(cove(*args).json, list)
    assert cove("--url", "http://127.0.0.1:1", "list", "--url", url).out


def test_sessions_are_listed_and_cannot_move_the_cursor(cove: Cove, source: Path) -> None:
    assert "no session" in cove("session", "list").err
    cove("deploy", source)
    shown = cove("session", "list", "weather").out
    assert "s-weather" in shown
    assert "2h ago" in shown
    _, drawn = on_a_terminal(cove, "session", "list")
    assert "anony" in drawn
    assert "\x1b[31m" not in drawn
    assert cove("session", "list", "--json").json[0]["principal"] == "anony\x1b[31mmous\udcff"


def test_rm_asks_only_a_person(cove: Cove, source: Path, control: MemoryControl) -> None:
    cove("deploy", source)
    code, shown = on_a_terminal(cove, "rm", "weather", typed="n\n")
    assert code == 1
    assert "1 sessions?" in shown
    assert "weather" in control.made
    code, _ = on_a_terminal(cove, "rm", "weather", typed="y\n")
    assert code == 0
    assert control.made == {}
    cove("deploy", source)
    assert cove("rm", "weather").out == "removed weather\n"
    cove("deploy", source)
    assert cove("rm", "weather", "--json").json == {"removed": "weather"}
    cove("deploy", source)
    assert on_a_terminal(cove, "rm", "weather", "--yes")[0] == 0
    assert control.made == {}


def test_doctor_asks_the_server(cove: Cove) -> None:
    ran = cove("doctor")
    assert "running at http://127.0.0.1:" in ran.out
    assert "refuses hybrid" in ran.out
    assert "hint: crun: runc is used" in ran.out
    assert [c["name"] for c in cove("doctor", "--json").json] == ["server", "crun", "runc"]


def test_doctor_looks_at_the_machine_itself_where_no_server_answers(cove: Cove) -> None:
    server, *machine = cove("doctor", "--json", "--url", "http://127.0.0.1:1").json
    assert (server["name"], server["ok"]) == ("server", False)
    assert "cove up" in server["hint"]
    assert {"name", "ok", "detail", "hint"} <= machine[0].keys()


def test_connect_prints_what_clients_take(cove: Cove, source: Path, control: MemoryControl) -> None:
    cove("deploy", source)
    entry = {"type": "http", "url": control.mcp_url}
    assert cove("connect", "weather").json == {"mcpServers": {"weather": entry}}
    control.auth = "key"
    cove("deploy", source)
    with_key = entry | {"headers": {"Authorization": f"Bearer {KEY}"}}
    assert cove("connect", "weather", "--json").json == {"mcpServers": {"weather": with_key}}


def test_a_web_function_has_no_tools_to_connect_to(cove: Cove, source: Path) -> None:
    (source.parent / "web.txt").write_text("")
    cove("deploy", source.parent)
    for args in (("connect", "weather"), ("tools", "weather"), ("call", "weather", "x")):
        assert "is a web function" in cove(*args, code=1).err


def test_no_server_is_said_with_the_way_to_one(cove: Cove) -> None:
    ran = cove("list", "--url", "http://127.0.0.1:1", code=1)
    assert "error: no Cove server answers at http://127.0.0.1:1" in ran.err
    assert "hint: start it with `cove up`" in ran.err
    ran = cove("list", "--url", "http://127.0.0.1:1", "--json", code=1)
    assert ran.json["error"]["code"] == "unreachable"
    assert ran.err == ""


def test_a_missing_key_says_where_it_would_be(cove: Cove) -> None:
    (cove.data / "key").unlink()
    ran = cove("list", code=1)
    assert str(cove.data / "key") in ran.err
    assert "COVE_KEY" in ran.err
    assert cove("list", COVE_KEY=KEY).code == 0


@pytest.mark.parametrize("args", [("describe",), ("no-such",), ("list", "--no-such"), ("up", "-x")])
def test_what_is_not_understood_exits_2(cove: Cove, args: tuple[str, ...]) -> None:
    assert "Usage: cove" in cove(*args, code=2).err


def test_a_reader_that_has_enough_is_no_disaster(cove: Cove, source: Path) -> None:
    cove("deploy", source)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COVE, "list"], env=cove.env, stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


def test_up_becomes_the_server_with_its_options(cove: Cove, tmp_path: Path) -> None:
    # A stand-in for python at the path that the program takes for it: it prints its words.
    (tmp_path / "fake").mkdir()
    python = tmp_path / "fake" / "python"
    python.write_text('#!/bin/sh\necho "$$"\nfor word; do echo "$word"; done\n')
    python.chmod(0o755)
    script = (
        f"import sys; sys.executable = {str(python)!r}; sys.argv[0] = 'cove'\n"
        "from cove.cli.main import main; main()"
    )
    words = ["up", "--listen", "127.0.0.1:0", "--driver", "process", "--domain", "d", "--json"]
    with subprocess.Popen(
        [sys.executable, "-c", script, *words], env=cove.env, stdout=subprocess.PIPE, text=True
    ) as run:
        out, _ = run.communicate(timeout=PATIENCE)
    assert out.splitlines() == [
        str(run.pid),
        "-m",
        "cove.server",
        "--data",
        str(cove.data),
        "--listen",
        "127.0.0.1:0",
        "--domain",
        "d",
        "--driver",
        "process",
        "--json",
    ]


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    cpu = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*COVE, "--help"], check=True, capture_output=True, timeout=PATIENCE)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(cpu) < HELP_CPU
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, json\nfrom cove.cli.main import cove, COMMANDS\n"
            "[cove.get_command(None, name) for name in COMMANDS]\n"
            "print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    heavy = {"mcp", "mcp_types", "rich", "watchfiles", "sqlalchemy", "starlette", "pydantic"}
    assert heavy.isdisjoint(json.loads(loaded))
