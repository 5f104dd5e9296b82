"""Two servers for the whole folder, each with a function that no bad input may disturb."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bad_input.standing import Standing, standing


@pytest.fixture(scope="session")
def ground() -> Iterator[Path]:
    """A folder that users of all ids may enter, as instances must and pytest's own do not let."""
    folder = Path(tempfile.mkdtemp(prefix="cove-bad-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def made(ground: Path, name: str) -> Path:
    """A folder for one server."""
    folder = ground / name
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def cove(ground: Path) -> Iterator[Standing]:
    """With plain processes: for what has nothing to do with isolation, and quick."""
    with standing(made(ground, "plain"), "process") as server:
        yield server


@pytest.fixture(scope="session")
def contained(ground: Path) -> Iterator[Standing]:
    """With containers, where this machine has them."""
    with standing(made(ground, "contained"), "auto") as server:
        if not server.cove.says("isolation", "container ("):
            pytest.skip("no OCI runtime works here")
        yield server
