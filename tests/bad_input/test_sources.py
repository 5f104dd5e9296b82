"""Sources that are no program, no server, or one that does not come up."""

from __future__ import annotations

from pathlib import Path

import pytest

from bad_input.standing import Standing
from e2e.installation import until

RAISES = 'def weigh():\n    raise RuntimeError("no barometer")\n\n\nweigh()\nmcp = None\n'
FIRST_REQUEST = """
import os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        print("asked, and overwhelmed", flush=True)
        os._exit(7)


HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
TWO = "from mcp.server import MCPServer\n\neast = MCPServer('east')\nwest = MCPServer('west')\n"
ONE = "from mcp.server import MCPServer\n\n{0} = MCPServer('{0}')\n"
EAST = "import fastapi\n\neast = fastapi.FastAPI()\n"
PROGRAM = 'command = "python server.py"\n'

NOT_PYTHON = {
    "a binary": (b"\x7fELF\x02\x01\x01\x00\x00\x00", "server.py", "server.py is no Python file"),
    "a text": (b"Dear all,\n\nthe weather is fine.\n", "server.py", "server.py line 1"),
    "another encoding": (b"mcp = 'T\xfcr'\n", "server.py", "server.py line 1"),
    "a wrong line": (b"a = 1\ndef f(:\n    pass\n", "server.py", "server.py line 2"),
    "not called .py": (b"mcp = 1\n", "notes.txt", "notes.txt"),
    "a huge one": (b"a = 1\n" * 200_000, "server.py", "server.py is larger than 1 MiB"),
    "nothing in it": (b"", "server.py", "was found in server.py"),
}


@pytest.mark.parametrize("kind", NOT_PYTHON)
def test_a_file_that_is_no_python_is_named_with_the_line(cove: Standing, kind: str) -> None:
    content, name, named = NOT_PYTHON[kind]
    refusal = cove.refuses(cove.source({name: content}) / name)
    assert refusal.code == "bad_source"
    assert named in refusal.message
    assert refusal.hint
    assert not refusal.retry
    if kind == "a wrong line":
        assert refusal.lines == ["def f(:"]
    assert "\0" not in refusal.text
    assert len(refusal.text) < 600


def test_people_read_the_reason_the_programs_lines_and_the_next_step(cove: Standing) -> None:
    folder = cove.source({"server.py": "def f(:\n"})
    with cove.unchanged():
        said = cove.cove("deploy", folder / "server.py", "--name", "steady", code=1)
    assert said.out == ""
    assert said.err.splitlines() == [
        "error: server.py line 1: invalid syntax",
        "  | def f(:",
        "hint: correct that line; nothing was deployed",
        "version 1 of steady keeps serving",
    ]


def test_a_path_that_is_not_there_or_has_nothing_in_it_is_said_before_anything_is_sent(
    cove: Standing, tmp_path: Path
) -> None:
    missing = cove.refuses(tmp_path / "nowhere.py")
    assert missing.code == "bad_source"
    assert "nowhere.py" in missing.message
    empty = cove.refuses(tmp_path)
    assert empty.code == "bad_source"
    assert "nothing to deploy" in empty.message
    (tmp_path / "pipe.py").symlink_to("/etc/hostname")
    out = cove.refuses(tmp_path)
    assert "pipe.py" in out.message
    assert ".coveignore" in out.hint


def test_a_module_that_raises_at_import_shows_its_own_last_lines(cove: Standing) -> None:
    refusal = cove.refuses(cove.source({"server.py": RAISES}, 'entry = "server:mcp"\n'))
    assert refusal.code == "deploy_failed"
    assert "steady" in refusal.message
    said = "\n".join(refusal.lines)
    assert 'server.py", line 2, in weigh' in said
    assert "RuntimeError: no barometer" in said
    assert refusal.lines[-1] == "server.py failed while it was imported"
    assert "importlib" not in said


def test_a_folder_without_a_server_says_what_was_looked_for(cove: Standing) -> None:
    refusal = cove.refuses(cove.source({"server.py": "x = 1\n", "other.py": "y = 2\n"}))
    assert refusal.code == "bad_source"
    assert "server.py" in refusal.message
    assert "other.py" in refusal.message
    assert "FastMCP" in refusal.message
    assert "entry" in refusal.hint


@pytest.mark.parametrize(
    ("files", "names", "choice"),
    [
        ({"server.py": TWO}, ("east", "west"), 'entry = "server:east"'),
        (
            {"one.py": ONE.format("east"), "two.py": ONE.format("west")},
            ("one.py", "two.py"),
            'entry = "one:east"',
        ),
    ],
)
def test_two_servers_are_both_named_and_how_to_choose(
    cove: Standing, files: dict[str, str], names: tuple[str, str], choice: str
) -> None:
    refusal = cove.refuses(cove.source(files))
    assert refusal.code == "bad_source"
    assert all(name in refusal.message for name in names)
    assert choice in refusal.hint


@pytest.mark.parametrize(
    ("entry", "named"),
    [("server:wind", "wind"), ("winds:mcp", "winds"), ("winds.py", "winds.py")],
)
def test_an_entry_that_is_not_there_says_what_is(cove: Standing, entry: str, named: str) -> None:
    refusal = cove.refuses(cove.source({"server.py": EAST}, f'entry = "{entry}"\n'))
    assert refusal.code in ("bad_source", "deploy_failed")
    assert named in refusal.text
    if entry == "server:wind":
        assert "east" in refusal.hint


def test_a_port_that_never_opens_is_said_after_limits_startup(cove: Standing) -> None:
    server = "import time\nprint('still busy', flush=True)\ntime.sleep(60)\n"
    toml = PROGRAM + '[limits]\nstartup = "0.3s"\n'
    refusal = cove.refuses(cove.source({"server.py": server}, toml))
    assert refusal.code == "deploy_failed"
    assert "opened no port within 0.3 s" in refusal.message
    assert "$PORT" in refusal.hint
    assert "limits.startup" in refusal.hint
    assert refusal.lines == ["still busy"]


def test_a_program_that_ends_while_starting_is_said_at_once_with_its_code(cove: Standing) -> None:
    server = "import sys\nprint('out of ink', flush=True)\nsys.exit(3)\n"
    refusal = cove.refuses(cove.source({"server.py": server}, PROGRAM))
    assert refusal.code == "deploy_failed"
    assert "exit code 3" in refusal.message
    assert refusal.lines == ["out of ink"]


def test_a_command_that_is_not_there_is_named(cove: Standing) -> None:
    refusal = cove.refuses(cove.source({"server.py": "x = 1\n"}, 'command = "pyhton server.py"\n'))
    assert refusal.code == "deploy_failed"
    assert "pyhton" in refusal.text


def test_a_crash_at_the_first_request_is_told_with_the_programs_lines(cove: Standing) -> None:
    refusal = cove.refuses(cove.source({"server.py": FIRST_REQUEST}, PROGRAM))
    assert refusal.code == "deploy_failed"
    assert "asked, and overwhelmed" in "\n".join(refusal.lines)


def test_a_web_function_that_crashes_at_its_first_request_tells_its_caller(cove: Standing) -> None:
    source = cove.source({"server.py": FIRST_REQUEST}, PROGRAM + 'kind = "web"\n')
    with cove.unchanged():
        cove.cove("deploy", source, "--name", "fragile")
        try:
            status, body = cove.post("/fn/fragile/", b"{}")
            assert status == 502
            assert b"fragile" in body
            assert b"exit code 7" in body
            until(lambda: "asked, and overwhelmed" in cove.cove("logs", "fragile").out, "it said")
        finally:
            cove.cove("rm", "fragile", "--yes")


def test_what_answers_but_speaks_no_mcp_says_what_was_seen(cove: Standing) -> None:
    server = (
        "import os\nfrom http.server import *\nHTTPServer(('127.0.0.1', int(os.environ['PORT'])),"
        " SimpleHTTPRequestHandler).serve_forever()\n"
    )
    refusal = cove.refuses(cove.source({"server.py": server}, PROGRAM))
    assert refusal.code == "deploy_failed"
    assert "speaks no MCP" in refusal.message
    assert "POST /mcp answered 501" in refusal.message
    assert 'kind = "web"' in refusal.hint
