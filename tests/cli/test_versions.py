"""`cove versions` and `cove rollback`."""

from __future__ import annotations

from pathlib import Path

import pytest

from api.served import MemoryControl

from .conftest import Cove


@pytest.fixture
def deployed(cove: Cove, source: Path) -> Cove:
    cove("deploy", source)
    return cove


def test_versions_are_listed_newest_first_with_the_live_one(deployed: Cove) -> None:
    rows = [line.split() for line in deployed("versions", "weather").out.splitlines()]
    assert rows[0] == ["VERSION", "STATE", "LIVE", "DEPLOYED", "ERROR"]
    assert [row[:3] for row in rows[1:]] == [
        ["3", "ready", "live"],
        ["2", "failed", "-"],
        ["1", "ready", "-"],
    ]
    assert "\x1b" not in deployed("versions", "weather").out
    listed = deployed("versions", "weather", "--json").json
    assert [each["live"] for each in listed] == [True, False, False]
    assert "did you mean weather?" in deployed("versions", "wether", code=1).err


def test_a_rollback_says_what_is_live_now(deployed: Cove, control: MemoryControl) -> None:
    ran = deployed("rollback", "weather")
    assert ran.out == "weather:1 is live, weather:3 no longer\n"
    assert "sessions stay" in ran.err
    assert deployed("rollback", "weather", "1").out == "weather:1 is live already\n"
    done = deployed("rollback", "weather", "3", "--json").json
    assert done == {"function": "weather", "version": 3, "was": 1, "changed": True}
    assert control.live == 3


def test_a_rollback_that_cannot_be_says_why(deployed: Cove, control: MemoryControl) -> None:
    failed = deployed("rollback", "weather", "2", code=1)
    assert failed.err.splitlines() == ["error: version 2 of weather is failed", "hint: another"]
    for wrong in ("0", "-1", "x", "1.5"):
        deployed("rollback", "weather", wrong, code=2)
    assert control.live == 3
