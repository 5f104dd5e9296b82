"""SIGKILL of whoever has started instances: the real thing, in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from conftest import BOUND

from cove.drivers.base import Driver, Exit, Running
from cove.drivers.oci import OciDriver
from cove.drivers.process import ProcessDriver
from cove.drivers.runtime import Runtime
from cove.sandbox.cgroup import host_hierarchies
from cove.sandbox.mounts import mounts

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="adoption needs /proc")

DOOMED = Path(__file__).with_name("doomed.py")
COUNTER = """
import os, signal, socket
count = 0
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"still here\\n"))
os.write(1, b"ready\\n")
while True:
    caller, _ = listener.accept()
    if caller.recv(100) == b"exit":
        os._exit(7)
    count += 1
    caller.sendall(str(count).encode())
    caller.close()
"""


class Killing:
    """Drivers of one kind that are killed, and one that comes after them."""

    def __init__(self, runtime: Runtime | None, folder: Path) -> None:
        self.runtime = runtime
        self.folder = folder
        self.state = folder / "state"
        self.parent = f"cove-killed-{os.getpid()}"
        self.mark = uuid.uuid4().hex
        self.fifo = folder / "output"
        os.mkfifo(self.fifo)
        self.output = os.open(self.fifo, os.O_RDWR | os.O_CLOEXEC)
        self.driver: Driver | None = None
        self.code = folder / "code"
        self.code.mkdir(mode=0o700)  # closed to others, so that it has to be mounted
        (self.code / "program.py").write_text(COUNTER)
        self._doomed: list[subprocess.Popen[bytes]] = []

    def doom(self, *, buries: bool = True, steps: bool = False) -> Any:
        """What the doomed said first."""
        asked = {
            "runtime": [self.runtime.name, self.runtime.path] if self.runtime else None,
            "state": str(self.state),
            "parent": self.parent,
            "code": str(self.code),
            "output": str(self.fifo),
            "mark": self.mark,
            "buries": buries,
            "steps": steps,
        }
        doomed = subprocess.Popen(
            [sys.executable, str(DOOMED), json.dumps(asked)], stdout=subprocess.PIPE
        )
        self._doomed.append(doomed)
        assert doomed.stdout is not None
        return json.loads(doomed.stdout.readline())

    def childless(self) -> None:
        """Whoever was orphaned by the killed ones has ended: their init has nothing left to do."""
        assert self._doomed[-1].wait(BOUND) == 0

    def read(self, line: bytes) -> None:
        """The next line that the instances print must be this one."""
        assert select.select([self.output], [], [], BOUND)[0]
        assert os.read(self.output, len(line)) == line

    def next(self) -> Driver:
        if self.runtime is None:
            self.driver = ProcessDriver(Path("serve.py"), self.state)
        else:
            self.driver = OciDriver(self.runtime, self.state, None, self.parent)
        return self.driver

    def alive(self) -> set[int]:
        found = set()
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                environ = Path("/proc", name, "environ").read_bytes().split(b"\0")
                if f"MARK={self.mark}".encode() in environ:
                    found.add(int(name))
        return found

    def left(self) -> dict[str, set[str]]:
        """What there is on this machine of ids that were started, by where it is."""
        info = self.folder.stat()  # closed to others: what they must reach is not below it
        roots = Path("/run/cove") / f"{info.st_dev:x}-{info.st_ino:x}-state"
        named = {
            "cgroups": map(Path, host_hierarchies().group(self.parent).children()),
            "folders": self.state.glob("[br]un*/*" if self.runtime else "*"),
            "layers": (Path(m.target).parents[1] for m in mounts() if "/layers/" in m.target),
            "drafts": roots.glob(".draft-*"),
        }
        return {
            kind: {path.name for path in paths if str(path).startswith(str(self.folder))}
            if kind == "layers"
            else {path.name for path in paths}
            for kind, paths in named.items()
        }

    async def close(self) -> None:
        if self.driver is None:
            await self.next().adopt()
        assert self.driver is not None
        await self.driver.close()
        for doomed in self._doomed:
            doomed.kill()
            doomed.wait()
            assert doomed.stdout is not None
            doomed.stdout.close()
        os.close(self.output)
        assert self.alive() == set()
        assert not self.state.exists()
        assert [one.target for one in mounts() if str(self.folder) in one.target] == []
        assert host_hierarchies().group(self.parent).folders() == []


@pytest.fixture(params=["process", "oci"])
async def killing(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Killing]:
    oci = request.param == "oci"
    made = Killing(request.getfixturevalue("runtime") if oci else None, tmp_path)
    yield made
    await made.close()


async def ask(running: Running, said: bytes = b"hello") -> bytes:
    reader, writer = await asyncio.open_connection(sock=await running.connect())
    writer.write(said)
    answer = await asyncio.wait_for(reader.read(), BOUND)
    writer.close()
    return answer


def kill(pid: int) -> None:
    """SIGKILL, and wait until it has ended."""
    pidfd = os.pidfd_open(pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert select.select([pidfd], [], [], BOUND)[0]
    os.close(pidfd)


@pytest.mark.parametrize("buries", [True, False], ids=["buried", "not buried"])
async def test_instances_outlive_a_killed_driver_and_the_next_one_has_them(
    killing: Killing, buries: bool
) -> None:
    said = await asyncio.to_thread(killing.doom, buries=buries)
    for _ in range(2):
        killing.read(b"ready\n")
    kill(said["pid"])
    for pid in said["instances"].values():
        os.kill(pid, signal.SIGUSR1)
        killing.read(b"still here\n")
    adopted = {one.id: one for one in await killing.next().adopt()}
    assert {ident: one.pid for ident, one in adopted.items()} == said["instances"]
    assert {(one.function, one.version) for one in adopted.values()} == {("t", 3)}
    for count in (b"1", b"2"):
        assert [await ask(one) for one in adopted.values()] == [count, count]
    one, two = adopted.values()
    os.kill(one.pid, signal.SIGKILL)
    assert await asyncio.wait_for(one.exited, BOUND) == Exit(signal=9)
    assert await ask(two, b"exit") == b""
    assert await asyncio.wait_for(two.exited, BOUND) == Exit(code=7)
    assert not any(killing.left().values())


async def test_a_driver_killed_at_any_step_of_a_start_leaves_nothing_but_whole_instances(
    killing: Killing,
) -> None:
    said = await asyncio.to_thread(killing.doom, steps=True)
    assert len(killing.left()["folders"]) > said["steps"] / 2
    adopted = await killing.next().adopt()
    # The last one, and who was to be killed while its runtime worked, if that was done before.
    whole = {one.id for one in adopted}
    assert said["whole"] in whole
    assert all(ident.startswith("t-0-") for ident in whole - {said["whole"]})
    assert killing.alive() == {one.pid for one in adopted}
    after = killing.left()
    assert after.pop("folders") == whole
    if killing.runtime is not None:
        assert after == {"cgroups": whole, "layers": whole, "drafts": set()}
    for one in adopted:
        await one.stop(0.0)
    assert not any(killing.left().values())
    await asyncio.to_thread(killing.childless)
