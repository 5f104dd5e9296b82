"""Programs that are run for a while leave nothing, not even when who runs them is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cove.runtimes import bounded

RUNS = """
import asyncio, sys, uvloop
from cove.runtimes import bounded
uvloop.run(bounded.run(["/bin/sh", "-c", "echo $$ > " + sys.argv[1] + "; exec sleep 60"], {}, 60))
"""


async def test_it_ends_with_its_time() -> None:
    with pytest.raises(TimeoutError):
        await bounded.run(["/bin/sleep", "60"], {}, 0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of it")
def test_it_ends_with_a_killed_parent(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", RUNS, str(file)])
    try:
        deadline = time.monotonic() + 10
        while not (file.exists() and file.read_text().strip()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        pid = int(file.read_text())
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 5
    while os.path.exists(f"/proc/{pid}") and _state(pid) != "Z":
        assert time.monotonic() < deadline, "the program outlived its parent"
        time.sleep(0.01)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except FileNotFoundError:
        return "Z"
