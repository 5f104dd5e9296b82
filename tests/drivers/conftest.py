"""An OCI driver on this machine, and a short way to run a program in it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cove.drivers.base import Exit, Launch
from cove.drivers.oci import OciDriver, OciRunning
from cove.drivers.probe import probe
from cove.drivers.runtime import Runtime
from cove.model import MIB, Interpreter, Limits
from cove.sandbox.cgroup import host_hierarchies

BOUND = 20.0  # seconds for anything that is waited for


def launch_of(folder: Path, source: str, **changes: Any) -> Launch:
    """A launch of a Python program whose code folder is made below `folder`."""
    name = uuid.uuid4().hex[:8]
    code = folder / name
    code.mkdir()
    (code / "program.py").write_text(source)
    python = os.path.realpath(sys.executable)
    made = Launch(
        id=f"t-{name}",
        function="t",
        version=1,
        argv=(python, "-S", "{app}/program.py"),
        env={},
        port=9000,
        code=str(code),
        deps=None,
        interpreter=Interpreter(python, sys.base_prefix, "3"),
        limits=Limits(cpu=0.5, memory=64 * MIB, pids=32),
        stdout=-1,
        stderr=-1,
    )
    return dataclasses.replace(made, **changes)


class Box:
    """Runs programs in containers and reads what they print."""

    def __init__(self, driver: OciDriver, folder: Path) -> None:
        self.driver = driver
        self.folder = folder
        self._readers: list[asyncio.ReadTransport] = []

    async def start(self, source: str, **changes: Any) -> tuple[OciRunning, asyncio.StreamReader]:
        """Start a program; returns once it has printed its first line, which must be `ready`."""
        running, lines = await self.begin(source, **changes)
        first = await asyncio.wait_for(lines.readline(), BOUND)
        assert first == b"ready\n", first + await lines.read(10_000)
        return running, lines

    async def begin(self, source: str, **changes: Any) -> tuple[OciRunning, asyncio.StreamReader]:
        """Start a program; its output can be read."""
        launch = launch_of(self.folder, source, **changes)
        read, write = os.pipe()
        lines = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), os.fdopen(read, "rb")
        )
        self._readers.append(transport)
        try:
            running = await self.driver.start(
                dataclasses.replace(launch, stdout=write, stderr=write)
            )
        finally:
            os.close(write)
        return running, lines

    async def run(self, source: str, **changes: Any) -> tuple[Exit, str]:
        """Run a program to its end: how it ended, and what it printed."""
        running, lines = await self.begin(source, **changes)
        how = await asyncio.wait_for(asyncio.shield(running.exited), BOUND)
        return how, (await asyncio.wait_for(lines.read(), BOUND)).decode()

    def close(self) -> None:
        for reader in self._readers:
            reader.close()


@pytest.fixture(scope="session")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    """The container runtime of this machine; skips where there is none."""
    with ThreadPoolExecutor(1) as pool:
        found, checks = pool.submit(asyncio.run, probe(tmp_path_factory.mktemp("probe"))).result()
    if found is None:
        pytest.skip("; ".join(f"{check.name}: {check.detail}" for check in checks))
    return found


@pytest.fixture
async def box(runtime: Runtime, tmp_path: Path) -> AsyncIterator[Box]:
    parent = f"cove-test-{os.getpid()}"
    made = Box(OciDriver(runtime, tmp_path / "state", None, parent), tmp_path)
    yield made
    await made.driver.close()
    made.close()
    assert host_hierarchies().group(parent).folders() == []
