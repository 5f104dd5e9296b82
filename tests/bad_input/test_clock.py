"""A clock that jumps, years ahead and years back: it names moments, and decides nothing."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import cove as package
from bad_input.conftest import made
from bad_input.standing import Standing, standing
from chaos.programs import COUNTER
from e2e.servers import HAND
from e2e.test_bridges import ACCEPT, INITIALIZE

PROGRAM = 'command = "python server.py"\n[scale]\nmin = 1\n'
YEARS = 10 * 365 * 86400
# Python reads this file at its start, and so has the clock that a test sets.
SHIM = """
import os, time
from pathlib import Path

_real, _offset = time.time, Path(os.environ["CLOCK_OFFSET"])
time.time = lambda: _real() + float(_offset.read_text())
"""
COUNT = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "count"}}

# Modules that read the wall clock, each with what for. A decision is none of it, but for the two
# that compare times of another process's: those have no other clock in common.
READERS = {
    "api/logs.py": "what --since counts from",
    "engine/functions.py": "when a version was made, when something happened",
    "engine/keys.py": "when a key was made",
    "engine/recovery.py": "when something happened",
    "engine/secrets.py": "when a secret was set",
    "engine/sessions.py": "when a session began; how old one of an earlier process is",
    "engine/supervisor.py": "when an instance began, when something happened",
    "logs/logs.py": "when a line was printed; how old a file of lines is",
    "server/house.py": "when something happened",
}


def test_who_reads_the_wall_clock_is_known() -> None:
    root = Path(package.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        module = str(path.relative_to(root))
        if module.startswith("cli/") or module == "clock.py":
            continue  # people's own; the one place that reads it
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            name = getattr(called, "attr", getattr(called, "id", ""))
            owner = getattr(getattr(called, "value", None), "id", "")
            if name in ("wall", "time_ns", "utcnow") or (owner, name) in (
                ("time", "time"),
                ("datetime", "now"),
            ):
                found.add(module)
    assert found == set(READERS)


@pytest.fixture
def offset(tmp_path: Path) -> Path:
    file = tmp_path / "offset"
    file.write_text("0")
    return file


@pytest.fixture
def jumping(ground: Path, tmp_path: Path, offset: Path) -> Iterator[Standing]:
    """A server whose wall clock is a test's to set."""
    (tmp_path / "sitecustomize.py").write_text(SHIM)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {"PYTHONPATH": path, "CLOCK_OFFSET": str(offset)}
    with standing(made(ground, "jumping"), "process", settings) as server:
        yield server


def test_sessions_instances_and_deploys_go_on_while_the_clock_jumps(
    jumping: Standing, offset: Path
) -> None:
    cove = jumping.cove
    toml = 'command = "python server.py"\n[scale]\nidle = "1m"\n[session]\nidle = "1m"\n'
    cove.deploy("counter", {"server.py": COUNTER}, toml)
    headers, _ = asked(jumping, INITIALIZE)
    session = headers["mcp-session-id"]
    instances = [instance["id"] for instance in cove.instances("counter")]
    for turn, years in enumerate((YEARS, -YEARS, 0), start=1):
        offset.write_text(str(years))
        _, counted = asked(jumping, COUNT, session)
        assert f' {turn}"' in counted
        assert [instance["id"] for instance in cove.instances("counter")] == instances
        assert len(cove("session", "list", "counter", "--json").json) == 1
        source = jumping.source({"server.py": f"# {turn}\n{HAND}"}, PROGRAM)
        cove("deploy", source, "--name", "steady")
        assert jumping.version() == turn + 1
    assert "deployed" in cove("events").out
    assert not cove.says("Traceback")


def asked(server: Standing, message: object, session: str = "") -> tuple[Mapping[str, str], str]:
    headers = {**ACCEPT, "mcp-session-id": session} if session else ACCEPT
    status, found, body = server.ask("/fn/counter/mcp", json.dumps(message).encode(), headers)
    assert status == 200, body
    return found, body.decode()
