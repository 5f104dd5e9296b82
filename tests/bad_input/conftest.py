"""Two servers for the whole folder, each with a function that no bad input may disturb."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bad_input.standing import Standing
from e2e.conftest import installed


@pytest.fixture(scope="session")
def cove() -> Iterator[Standing]:
    """With plain processes: for what has nothing to do with isolation, and quick."""
    for installation in installed("process"):
        yield Standing.at(installation)


@pytest.fixture(scope="session")
def contained() -> Iterator[Standing]:
    """With containers, where this machine has them."""
    for installation in installed("auto"):
        if not installation.says("isolation", "container ("):
            pytest.skip("no OCI runtime works here")
        yield Standing.at(installation)
