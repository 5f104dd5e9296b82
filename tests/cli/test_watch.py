"""`cove deploy --watch`: every change is deployed, and a broken one takes nothing down."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from api.served import PATIENCE, MemoryControl
from cove.cli.watch import counts

from .conftest import COVE, Cove

Next = Callable[[], str]


@contextmanager
def watching(cove: Cove, path: Path, *more: str) -> Iterator[tuple[Next, Next]]:
    """The running program; two functions that wait for the next line of its out and err."""
    run = subprocess.Popen(
        [*COVE, "deploy", str(path), "--watch", *more],
        env=cove.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: list[queue.SimpleQueue[str]] = [queue.SimpleQueue(), queue.SimpleQueue()]
    threads = []
    for stream, into in zip((run.stdout, run.stderr), lines, strict=True):
        assert stream is not None

        def read(stream: Any = stream, into: queue.SimpleQueue[str] = into) -> None:
            for line in stream:
                into.put(line.rstrip("\n"))

        threads.append(threading.Thread(target=read))
        threads[-1].start()
    try:
        yield tuple(lambda q=q: q.get(timeout=PATIENCE) for q in lines)  # type: ignore[misc]
        run.send_signal(signal.SIGINT)
        assert run.wait(PATIENCE) == 130
    finally:
        if run.poll() is None:
            run.kill()
            run.wait(PATIENCE)
        for thread in threads:
            thread.join(PATIENCE)


def until(following: Next, what: str) -> str:
    while what not in (line := following()):
        pass
    return line


def test_each_change_is_deployed_and_a_broken_one_keeps_the_old(cove: Cove, source: Path) -> None:
    with watching(cove, source.parent) as (out, err):
        until(out, "weather version 1")
        until(err, "watching")
        source.write_text("def :")
        until(err, "error: server.py does not start")
        until(err, "version 1 of weather keeps serving")
        until(err, "watching")
        source.write_text("mcp = 2\n")
        until(out, "weather version 2")


def test_as_json_each_outcome_is_a_line(cove: Cove, source: Path) -> None:
    with watching(cove, source, "--json") as (out, _):
        assert json.loads(out())["version"] == 1
        # As editors do: another file takes the name.
        (source.parent / "new").write_text("def :")
        os.replace(source.parent / "new", source)
        assert json.loads(out())["error"]["code"] == "deploy_failed"
        source.write_text("mcp = 3\n")
        assert json.loads(out())["version"] == 2


@pytest.mark.parametrize(
    ("file", "matters"),
    [
        ("server.py", True),
        ("data/cities.json", True),
        (".coveignore", True),
        ("__pycache__/server.cpython-311.pyc", False),
        (".git/index", False),
        ("deep/.venv/bin/python", False),
        (".env", False),
        ("notes.log", False),
    ],
)
def test_only_what_is_deployed_matters(tmp_path: Path, file: str, matters: bool) -> None:
    (tmp_path / ".coveignore").write_text("*.log\n")
    assert counts(tmp_path, tmp_path / file) is matters


def test_of_a_lone_file_only_itself_matters(source: Path) -> None:
    assert counts(source, source)
    assert not counts(source, source.parent / "other.py")


def test_a_change_during_a_deploy_is_deployed_after_it(
    cove: Cove, source: Path, control: MemoryControl
) -> None:
    with watching(cove, source.parent, "--json") as (out, _):
        assert json.loads(out())["version"] == 1
        control.holding.clear()
        control.go.clear()
        source.write_text("mcp = 2\n")
        assert control.holding.wait(PATIENCE)
        source.write_text("mcp = 3\n")
        control.go.set()
        assert json.loads(out())["version"] == 2
        assert json.loads(out())["version"] == 3


def test_a_path_that_is_not_there_is_not_watched(cove: Cove, tmp_path: Path) -> None:
    assert "error: there is no" in cove("deploy", tmp_path / "none", "--watch", code=1).err
