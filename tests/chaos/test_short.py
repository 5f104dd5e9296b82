"""`make chaos` in short, so that no change breaks what it promises, nor the campaign itself."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.campaign import Campaign
from chaos.report import report
from chaos.tally import Tally
from e2e.installation import until

SEED = 20261121


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that instances' users can walk down to, as they cannot to pytest's own."""
    made = Path(tempfile.mkdtemp(prefix="cove-chaos-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


async def test_two_kills_under_load_lose_nothing_and_leave_nothing(folder: Path) -> None:
    result = await Campaign(folder, 2, SEED).run()
    told = report(result)
    assert result.violations == [], told
    assert (result.rounds, result.kills >= 2) == (2, True)
    assert result.adopted
    assert result.sessions_kept
    assert result.lines
    for kind in ("legacy session", "modern call", "sse call", "websocket", "deploy"):
        assert result.tally.counts[kind]["ok"], told


@pytest.mark.slow
def test_an_interrupted_campaign_takes_everything_with_it(tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    tmp_path.chmod(0o755)
    argv = [sys.executable, "-m", "chaos", "--rounds", "50"]
    tests = Path(__file__).parents[1]
    with subprocess.Popen(argv, cwd=tests, env=env, stdout=subprocess.PIPE, text=True) as campaign:
        logs = until(lambda: list(tmp_path.glob("cove-chaos-*/cove.log")), "a server was started")
        until(lambda: "instance adopted" in logs[0].read_text(), "it was killed once", 90)
        campaign.send_signal(signal.SIGINT)
        out, _ = campaign.communicate(timeout=60)
    assert campaign.returncode == 1
    assert "rounds " in out
    assert list(tmp_path.glob("cove-chaos-*")) == []
    folder = str(logs[0].parent)
    assert folder not in Path("/proc/self/mountinfo").read_text()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            assert folder.encode() not in (process / "cmdline").read_bytes()


def test_what_fails_while_the_server_is_up_is_a_violation() -> None:
    tally = Tally()
    tally.count("web request", "reset", 1.0, 2.0)
    tally.down(10.0)
    tally.count("web request", "refused", 11.0, 12.0)
    tally.up(13.0)
    tally.count("web request", "reset", 12.0, 20.0)
    tally.count("web request", "ok", 20.0, 21.0)
    assert len(tally.violations) == 1
    tally.count("web request", "unavailable", 30.0, 31.0, "why")
    tally.count("web request", "wrong", 12.0, 12.5, "what")
    assert [each.partition(": ")[2] for each in tally.violations] == [
        "web request reset while the server was up: ",
        "web request unavailable while the server was up: why",
        "web request wrong: what",
    ]
