"""One `cove up` per driver for the whole run, and the functions that most tests share."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cove.server.tiers import cgroup_parent
from e2e.installation import Installation, until
from e2e.servers import EVERY

REPOSITORY = Path(__file__).parents[2]
IDLE = '[scale]\nidle = "1s"\n'
SHARED = {
    "weather": ((REPOSITORY / "examples/weather/server.py").read_text(), IDLE),
    "every": (EVERY, IDLE),
    "every-sse": (EVERY, f'transport = "sse"\n{IDLE}'),
}


def left_behind(data: Path) -> list[str]:
    """What of a stopped installation is still on this machine, its data folder aside."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if str(data).encode() in words and int(process.name) != os.getpid():
            found.append(f"process {process.name}: {words[:200]!r}")
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found += [f"mount {line}" for line in mounts if str(data) in line]
    groups = Path("/sys/fs/cgroup").glob(f"**/{cgroup_parent(data)}")
    found += [f"cgroup {path}" for path in groups]
    found += [f"file {path}" for path in (data / "run").rglob("*") if not path.is_dir()]
    return found


def installed(driver: str) -> Iterator[Installation]:
    folder = Path(tempfile.mkdtemp(prefix="cove-e2e-"))
    folder.chmod(0o755)
    cove = Installation(folder, driver)
    try:
        cove.start()
        yield cove
        assert cove.stop() == 0, "\n".join(cove.log[-30:])
        until(lambda: not left_behind(cove.data), f"nothing is left: {left_behind(cove.data)}", 5)
        assert list(cove.temporary.iterdir()) == []
        assert not cove.says("task failed"), "\n".join(cove.log)
    finally:
        if cove.process is not None and cove.process.poll() is None:
            cove.process.kill()
            cove.process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def cove() -> Iterator[Installation]:
    """With the best isolation that this machine has."""
    yield from installed("auto")


@pytest.fixture(scope="session")
def contained(cove: Installation) -> Installation:
    """The same, where that is containers."""
    if not cove.says("isolation", "container ("):
        pytest.skip("no OCI runtime works here")
    return cove


@pytest.fixture(scope="session")
def plain() -> Iterator[Installation]:
    """With plain processes."""
    yield from installed("process")


@pytest.fixture(scope="session")
def shared(cove: Installation) -> Installation:
    """With the functions of `SHARED` deployed."""
    for name, (source, toml) in SHARED.items():
        cove.deploy(name, {"server.py": source}, toml)
    return cove
