"""The program `cove` as a subprocess, in front of a real API and a real MCP server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from starlette.types import ASGIApp, Receive, Scope, Send

from api.served import KEY, PATIENCE, MemoryControl, serving
from cove.api.app import create_app

COVE = [sys.executable, "-m", "cove.cli.main"]


@dataclass(frozen=True)
class Ran:
    """What one run of the program left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Cove:
    """Runs the program with a data folder that leads to the server under test."""

    def __init__(self, data: Path, home: Path) -> None:
        self.data = data
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        self.env = {**kept, "HOME": str(home), "COVE_DATA": str(data)}

    def __call__(self, *args: str | Path, code: int = 0, **env: str) -> Ran:
        done = subprocess.run(
            [*COVE, *map(str, args)],
            env=self.env | env,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE * 2,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback (most recent" not in done.stderr
        return Ran(done.returncode, done.stdout, done.stderr)


class Guarded:
    """The MCP app, which remembers the authorization headers it was sent."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.seen: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            found = dict(scope["headers"]).get(b"authorization", b"")
            self.seen.append(found.decode())
        await self.app(scope, receive, send)


@pytest.fixture(scope="session")
def weather() -> Guarded:
    server = MCPServer("weather")

    @server.tool()
    def forecast(city: str, days: int = 1, units: str | None = None) -> str:
        """Tomorrow, and after.

        The second line is not for tables.
        """
        return f"{city!r} {days!r} {units!r}"

    @server.tool()
    def mean(values: list[float], options: dict[str, bool] | None = None) -> dict[str, Any]:
        """The mean of numbers."""
        return {"mean": sum(values) / len(values), "options": options}

    @server.tool()
    def fail(why: str) -> str:
        """Never works."""
        raise ToolError(why)

    return Guarded(server.streamable_http_app())


@pytest.fixture(scope="session")
def mcp_url(weather: Guarded) -> Iterator[str]:
    with serving(weather) as url:
        yield f"{url}/mcp"


@pytest.fixture
def control(mcp_url: str) -> MemoryControl:
    return MemoryControl(mcp_url)


@pytest.fixture
def cove(control: MemoryControl, tmp_path: Path) -> Iterator[Cove]:
    data = tmp_path / "data"
    data.mkdir()
    (data / "key").write_text(KEY)
    with serving(create_app(control)) as url:
        (data / "url").write_text(url)
        yield Cove(data, tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "src" / "weather").mkdir(parents=True)
    file = tmp_path / "src" / "weather" / "server.py"
    file.write_text("mcp = 1\n")
    return file
