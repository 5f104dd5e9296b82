"""A driver of each kind, for the suites that run over all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from contracts.rig import PARENT, Rig, counting, mountinfo
from cove.drivers.base import Driver
from cove.drivers.fake import FakeDriver, FakeRunning
from cove.drivers.oci import OciDriver
from cove.drivers.probe import probe
from cove.drivers.process import ProcessDriver
from cove.sandbox.cgroup import host_hierarchies


@pytest.fixture(scope="session")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The container runtime of this machine; skips where there is none."""
    with ThreadPoolExecutor(1) as pool:
        found, checks = pool.submit(asyncio.run, probe(tmp_path_factory.mktemp("probe"))).result()
    if found is None:
        pytest.skip("; ".join(f"{check.name}: {check.detail}" for check in checks))
    return found


@pytest.fixture(params=["process", "oci", "fake"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    serve = tmp_path / "serve.py"
    serve.write_text("# stands for Cove's own serving program\n")
    state = tmp_path / "state"
    runtime = request.getfixturevalue("runtime") if request.param == "oci" else None
    world: dict[str, FakeRunning] = {}
    counted = counting()

    def make() -> Driver:
        if request.param == "process":
            return ProcessDriver(serve, state)
        if request.param == "fake":
            return FakeDriver(counted, world=world)
        return OciDriver(runtime, state, serve, PARENT)

    made = Rig(make, tmp_path)
    yield made
    await made.driver.close()
    assert made.alive() == []
    made.close()
    assert host_hierarchies().group(PARENT).folders() == []
    assert not state.exists()
    assert [x for x in mountinfo() if str(tmp_path) in x] == []
    info = tmp_path.stat()
    assert list(Path("/run/cove").glob(f"{info.st_dev:x}-{info.st_ino:x}-*")) == []


@pytest.fixture
def programs(rig: Rig) -> Rig:
    """A rig whose driver runs programs."""
    if rig.fake:
        pytest.skip("its instances are not programs")
    return rig
