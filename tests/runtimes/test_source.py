"""What a folder is, found by reading it. Nothing of it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cove.errors import CoveError
from cove.model import Affinity
from cove.runtimes import source
from cove.runtimes.source import Source

FASTMCP = "from mcp.server.fastmcp import FastMCP\n"
CURRENT = "from mcp.server import MCPServer\n"
GUARD = "if __name__ == '__main__':\n    "


def read(folder: Path, name: str | None = None) -> Source:
    return source.read(folder, name=name, fallback="weather")


def refused(folder: Path) -> CoveError:
    with pytest.raises(CoveError) as caught:
        read(folder)
    return caught.value


@pytest.mark.parametrize(
    ("files", "entry"),
    [
        ({"server.py": FASTMCP + "mcp = FastMCP('w', host='0.0.0.0', port=9000)"}, "server:mcp"),
        ({"weather.py": CURRENT + "mcp = MCPServer('w')"}, "weather:mcp"),
        ({"my-server.py": CURRENT + "mcp = MCPServer('w')"}, "my-server:mcp"),
        ({"a.py": "from mcp.server import Server as S\nthing: S = S('w')"}, "a:thing"),
        ({"a.py": "from mcp.server.lowlevel import Server\ns = Server[int]('w')"}, "a:s"),
        ({"a.py": "import mcp.server.fastmcp as f\nx = f.FastMCP()"}, "a:x"),
        ({"a.py": "import mcp.server\nx = mcp.server.MCPServer('w')"}, "a:x"),
        ({"a.py": "from fastmcp import FastMCP\nx = FastMCP()"}, "a:x"),
        ({"a.py": "from mcp.server.mcpserver import MCPServer\nx = MCPServer('w')"}, "a:x"),
        ({"a.py": CURRENT + "x = MCPServer('a')\nserver = MCPServer('b')"}, "a:server"),
        ({"a.py": CURRENT + "try:\n    x = MCPServer('a')\nfinally:\n    pass"}, "a:x"),
        ({"main.py": CURRENT + "m = MCPServer('a')", "a.py": CURRENT + "b = MCPServer('b')"},
         "main:m"),
        ({"src/pkg/server.py": CURRENT + "mcp = MCPServer('a')"}, "pkg.server:mcp"),
        ({"main.py": "from tools import mcp\nmcp.tool()", "tools.py": CURRENT
          + "mcp = MCPServer('a')"}, "main:mcp"),
        ({"main.py": CURRENT + "def make():\n    return MCPServer('x')\nserver = make()"},
         "main:server"),
        ({"main.py": "import server_tools", "server_tools.py": CURRENT + "mcp = MCPServer('a')"},
         "server_tools:mcp"),
        ({"s.py": CURRENT + "mcp = MCPServer('a')\n", "tests/t.py": CURRENT
          + "mcp = MCPServer('b')", ".venv/x.py": "(", "venv/pyvenv.cfg": "", "venv/y.py": "("},
         "s:mcp"),
    ],
)  # fmt: skip
def test_the_server_object_is_found(files: dict[str, str], entry: str, write: Any) -> None:
    found = read(write(files))
    assert (found.spec.kind, found.spec.entry) == ("mcp", entry)
    assert found.is_object


def test_nothing_of_the_source_is_imported(write: Any, tmp_path: Path) -> None:
    proof = tmp_path / "imported"
    text = CURRENT + f"mcp = MCPServer('a')\nopen({str(proof)!r}, 'w')\nraise SystemExit(1)"
    assert read(write({"server.py": text})).spec.entry == "server:mcp"
    assert not proof.exists()


@pytest.mark.parametrize(
    ("files", "said", "hint"),
    [
        ({"a.py": CURRENT + "a = MCPServer('a')\nb = MCPServer('b')"},
         "a.py has several servers: a, b", 'entry = "a:a"'),
        ({"a.py": CURRENT + "a = MCPServer('a')", "b.py": CURRENT + "a = MCPServer('a')"},
         "several files hold an MCP server: a.py, b.py", 'entry = "a:a"'),
        ({"server.py": "print(1)"}, "no MCP server and no ASGI app was found in server.py",
         'entry = "module:object"'),
        ({"server.py": "from mcp import ClientSession\napp = ClientSession()"}, "no MCP", ""),
        ({"server.py": "x = (\n\ny = 1"}, "server.py line 1: '(' was never closed", "line"),
        ({"server.py": "a\0b"}, "server.py", ""),
        ({"server.js": "x"}, "there is no Python file in what was deployed, only server.js",
         "command"),
        ({"mcp.py": CURRENT + "mcp = MCPServer('w')"}, "mcp.py hides the package mcp", "name"),
        ({"a.py": "", "cove.toml": 'entry = "b.py"'}, "there is no such file", ""),
        ({"a.py": "", "cove.toml": 'kind = "web"'}, "no ASGI app", "command"),
        ({"a.py": CURRENT + "x = MCPServer('w')", "cove.toml": 'entry = "a:y"'},
         "a.py has no 'y' at its top level", "it has x"),
    ],
)  # fmt: skip
def test_what_cannot_be_deployed_says_why_and_what_to_write(
    files: dict[str, str], said: str, hint: str, write: Any
) -> None:
    error = refused(write(files))
    assert error.code == "bad_source"
    assert said in error.message
    assert hint in error.hint


@pytest.mark.parametrize(
    ("call", "transport"),
    [
        ("mcp.run(transport='sse')", "sse"),
        ("mcp.run('streamable-http')", "http"),
        ("mcp.run(transport=choice)", None),
        ("import asyncio\nasyncio.run(mcp.run_sse_async())", "sse"),
        ("import uvicorn\nuvicorn.run(mcp.sse_app())", None),
    ],
)
def test_a_module_that_runs_on_import_is_a_program(
    call: str, transport: str | None, write: Any
) -> None:
    found = read(write({"server.py": FASTMCP + "mcp = FastMCP('w')\n" + call}))
    assert found.spec.entry == "server.py"
    assert found.spec.transport == transport
    assert not found.is_object


def test_a_run_behind_the_guard_does_not_make_a_program(write: Any) -> None:
    text = FASTMCP + "mcp = FastMCP('w')\n" + GUARD + "mcp.run(transport='sse')"
    found = read(write({"server.py": text}))
    assert (found.spec.entry, found.spec.transport, found.disarm) == ("server:mcp", None, "")


def test_an_unguarded_run_over_stdio_is_disarmed_and_said(write: Any) -> None:
    found = read(write({"server.py": FASTMCP + "mcp = FastMCP('w')\nmcp.run()"}))
    assert found.spec.entry == "server:mcp"
    assert found.disarm == "mcp.server.fastmcp:FastMCP"
    assert found.notes == ("server.py line 3: run() is passed over, Cove serves 'mcp'",)


@pytest.mark.parametrize(
    "call",
    [
        "mcp.run()",
        GUARD + "mcp.run(transport='stdio')",
        "def main():\n    mcp.run()\n" + GUARD + "main()",
    ],
)
def test_a_program_that_speaks_stdio_is_not_built(call: str, write: Any) -> None:
    text = FASTMCP + "mcp = FastMCP('w')\n" + call
    error = refused(write({"server.py": text, "cove.toml": 'entry = "server.py"'}))
    assert error.code == "not_built"
    assert 'entry = "server:mcp"' in error.hint


def test_a_written_program_learns_its_transport_unless_it_is_written(write: Any) -> None:
    text = FASTMCP + "mcp = FastMCP('w')\n" + GUARD + "mcp.run(transport='sse')"
    folder = write({"server.py": text, "cove.toml": 'entry = "server.py"'})
    assert read(folder).spec.transport == "sse"
    write({"cove.toml": 'entry = "server.py"\ntransport = "http"'})
    assert read(folder).spec.transport == "http"


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("from fastapi import FastAPI\napp = FastAPI()", "main:app"),
        ("from starlette.applications import Starlette\nsite = Starlette()", "main:site"),
        ("import quart\na = quart.Quart(__name__)\napp = quart.Quart(__name__)", "main:app"),
    ],
)
def test_an_asgi_app_is_a_web_function(text: str, entry: str, write: Any) -> None:
    found = read(write({"main.py": text}))
    assert (found.spec.kind, found.spec.entry) == ("web", entry)
    assert found.spec.session.affinity == Affinity("none")


def test_an_mcp_server_comes_before_the_app_around_it(write: Any) -> None:
    text = CURRENT + "import fastapi\nmcp = MCPServer('w')\napp = fastapi.FastAPI()"
    assert read(write({"main.py": text})).spec.entry == "main:mcp"
    folder = write({"cove.toml": 'kind = "web"'})
    assert read(folder).spec.entry == "main:app"


def test_a_written_entry_may_be_a_dependencys(write: Any) -> None:
    found = read(write({"cove.toml": 'entry = "some_package.server:mcp"'}))
    assert found.spec.entry == "some_package.server:mcp"


def test_a_command_needs_no_python_at_all(write: Any) -> None:
    found = read(write({"broken.py": "(", "cove.toml": 'command = "./server"'}))
    assert (found.spec.command, found.spec.entry) == ("./server", None)


@pytest.mark.parametrize(
    ("name", "code"),
    [("cove.toml", "bad_config"), ("server.py", "bad_source")],
)
def test_a_file_of_more_than_a_mebibyte_is_not_parsed(name: str, code: str, write: Any) -> None:
    files = {"server.py": "mcp = 1\n", "cove.toml": "entry = 'server.py'\nkind = 'web'\n"}
    padding = 1024**2 - len(files[name])
    fits = write(files | {name: files[name] + "#" * padding})
    assert read(fits).spec.entry == "server.py"
    error = refused(write(files | {name: files[name] + "#" * (padding + 1)}))
    assert (error.code, error.message) == (code, f"{name} is larger than 1 MiB")


def test_a_config_that_is_a_link_is_not_read(write: Any, tmp_path: Path) -> None:
    folder = write({"server.py": CURRENT + "mcp = MCPServer('w')"})
    (tmp_path / "secret").write_text("password = 'x'")
    (folder / "cove.toml").symlink_to(tmp_path / "secret")
    assert read(folder).spec.name == "weather"


@pytest.mark.parametrize(
    ("command", "entry"),
    [
        ("python server.py --fast", "server.py"),
        ("python ./server.py", "server.py"),
        ("python -m server", "server.py"),
        ("uvicorn server:app --port $PORT", "server.py"),
        ("python -m http.server", None),
    ],
)
def test_the_module_that_a_command_runs_is_known(
    command: str, entry: str | None, write: Any
) -> None:
    text = FASTMCP + "mcp = FastMCP('w')\n" + GUARD + "mcp.run(transport='sse')"
    found = read(write({"server.py": text, "cove.toml": f"command = '{command}'"}))
    assert (str(found.entry.path) if found.entry else None) == entry
    assert found.spec.transport == ("sse" if entry else None)
    assert (found.spec.entry, found.is_object) == (None, False)


def test_a_program_that_can_run_over_several_transports_gives_no_hint(write: Any) -> None:
    text = FASTMCP + "mcp = FastMCP('w')\nif x:\n    mcp.run('sse')\nelse:\n    mcp.run('http')"
    folder = write({"server.py": text, "cove.toml": "command = 'python server.py'"})
    assert read(folder).spec.transport is None
