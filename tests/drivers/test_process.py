"""The process driver: what it promises although it isolates nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from conftest import BOUND, launch_of

import cove
from cove.drivers import held, process, procfs, program
from cove.drivers.base import Exit
from cove.drivers.process import ProcessDriver
from cove.drivers.procfs import listeners

WAIT = "import time; time.sleep(600)"


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[ProcessDriver]:
    made = ProcessDriver(tmp_path / "serve.py", tmp_path / "state")
    yield made
    await made.close()


@pytest.fixture
def silent() -> int:
    return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_somebody_elses_listener_on_the_port_is_not_the_instance(
    driver: ProcessDriver, silent: int, tmp_path: Path
) -> None:
    running = await driver.start(launch_of(tmp_path, WAIT, stdout=silent, stderr=silent))
    with socket.create_server(("127.0.0.1", running.port)):
        with pytest.raises(ConnectionRefusedError):
            await running.connect()
        assert running.ports() == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_a_port_that_was_the_instances_and_is_somebody_elses_now_is_not_it(
    driver: ProcessDriver, tmp_path: Path
) -> None:
    source = """
import os, signal, socket, time
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
signal.signal(signal.SIGUSR1, lambda *_: (listener.close(), os.write(1, b"closed\\n")))
os.write(1, b"ready!\\n")
while True:
    time.sleep(600)
"""
    read, write = os.pipe()
    running = await driver.start(launch_of(tmp_path, source, stdout=write, stderr=write))
    assert await asyncio.to_thread(os.read, read, 7) == b"ready!\n"
    (await running.connect()).close()
    os.kill(running.pid, signal.SIGUSR1)
    assert await asyncio.to_thread(os.read, read, 7) == b"closed\n"
    with socket.create_server(("127.0.0.1", running.port)), pytest.raises(ConnectionRefusedError):
        await running.connect()
    os.close(read)
    os.close(write)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_listeners_are_seen_on_a_host_with_many_other_connections() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=200) as early:
        port = early.getsockname()[1]
        callers = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
        with (
            socket.create_server(("127.0.0.1", 0)) as late,
            socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
        ):
            made = {one.getsockname()[1] for one in (early, late, six)}
            assert made <= {listener.port for listener in listeners()}
        for caller in callers:
            caller.close()


async def test_its_home_and_temporary_folder_are_its_own_and_go_with_it(
    driver: ProcessDriver, silent: int, tmp_path: Path
) -> None:
    source = f"""
import os, tempfile
open(os.path.expanduser("~/x"), "w").close()
open({str(tmp_path / "said")!r}, "w").write(os.environ["HOME"] + " " + tempfile.mkdtemp())
"""
    running = await driver.start(launch_of(tmp_path, source, stdout=silent, stderr=silent))
    await asyncio.wait_for(asyncio.shield(running.exited), BOUND)
    home, temporary = (tmp_path / "said").read_text().split()
    assert temporary.startswith(home)
    assert not Path(home).exists()


async def test_it_leads_a_session_of_its_own(
    driver: ProcessDriver, silent: int, tmp_path: Path
) -> None:
    running = await driver.start(launch_of(tmp_path, WAIT, stdout=silent, stderr=silent))
    assert os.getsid(running.pid) == os.getpgid(running.pid) == running.pid


async def test_no_two_instances_are_told_the_same_port(
    driver: ProcessDriver, silent: int, tmp_path: Path
) -> None:
    launches = [launch_of(tmp_path, WAIT, stdout=silent, stderr=silent) for _ in range(10)]
    running = await asyncio.gather(*map(driver.start, launches))
    assert len({one.port for one in running}) == 10


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_what_has_only_just_been_started_is_known_for_what_it_is(
    silent: int, tmp_path: Path
) -> None:
    # For a moment after its start a program has no environment that could be seen.
    state = tmp_path / "state"
    for turn in range(30):
        driver = ProcessDriver(tmp_path / "serve.py", state)
        launch = launch_of(tmp_path, "", argv=("/bin/sleep", "600"), stdout=silent, stderr=silent)
        running = await driver.start(launch)
        half = turn % 2 == 1
        if half:
            (state / running.id / "record.json").unlink()
        await driver.close(keep=True)
        driver = ProcessDriver(tmp_path / "serve.py", state)
        assert len(await driver.adopt()) == (0 if half else 1)
        found = procfs.process(running.pid)
        assert (found is None or found.state == "Z") == half
        await driver.close()


async def test_without_pidfds_instances_are_started_and_ended_whole_and_none_is_kept(
    driver: ProcessDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (held, program):
        monkeypatch.setattr(module, "HAS_PIDFDS", False)
    monkeypatch.setattr(process, "ADOPTS", False)
    source = """
import os, time
if os.fork() == 0:
    os.setsid()
    os.write(1, str(os.getpid()).encode())
time.sleep(600)
"""
    for ends in (lambda one: one.stop(0.0), lambda one: driver.close(keep=True)):
        read, write = os.pipe()
        running = await driver.start(launch_of(tmp_path, source, stdout=write, stderr=write))
        daemon = int(await asyncio.to_thread(os.read, read, 20))
        await asyncio.wait_for(ends(running), BOUND)
        assert running.exited.result() == Exit(signal=9)
        left = procfs.process(daemon)
        assert left is None or left.state == "Z"
        assert await driver.adopt() == []
        os.close(read)
        os.close(write)
    assert not (tmp_path / "state").exists()


async def test_a_port_that_an_adopted_one_was_told_is_told_to_nobody_else(
    driver: ProcessDriver, silent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await driver.start(launch_of(tmp_path, WAIT, stdout=silent, stderr=silent))
    await driver.close(keep=True)
    again = ProcessDriver(tmp_path / "serve.py", tmp_path / "state")
    (adopted,) = await again.adopt()
    with socket.create_server(("127.0.0.1", 0)) as free:
        offered = iter([("127.0.0.1", running.port), free.getsockname()])
    # It does not listen there yet, and the kernel may offer the port to others.
    monkeypatch.setattr(socket.socket, "getsockname", lambda one: next(offered))
    other = await again.start(launch_of(tmp_path, WAIT, stdout=silent, stderr=silent))
    monkeypatch.undo()
    assert adopted.port == running.port != other.port
    await again.close()


AS_NOBODY = """
import asyncio, os, sys
from pathlib import Path
from cove.drivers.base import Launch
from cove.drivers.process import ProcessDriver
from cove.drivers.procfs import listeners
from cove.model import Limits

SERVE = "import os, socket; s = socket.create_server(('127.0.0.1', int(os.environ['PORT'])));" \\
        "print('ready', flush=True); s.accept()"

async def main():
    driver = ProcessDriver(Path("serve.py"), Path(sys.argv[1]) / "state")
    read, write = os.pipe()
    argv = (sys.executable, "-c", SERVE)
    launch = Launch("t-1", "t", 1, argv, {}, 9000, "/tmp", None, None, Limits(), write, write)
    running = await driver.start(launch)
    await asyncio.to_thread(os.read, read, 6)
    (await running.connect()).close()
    await running.stop(0)
    await driver.close()
    print(os.getuid(), running.exited.done(), os.listdir(sys.argv[1]))

asyncio.run(main())
"""


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0 or not shutil.which("python3", path="/usr/bin"),
    reason="needs root to become somebody else, and a Python that everybody may run",
)
def test_it_works_for_an_ordinary_user(tmp_path: Path) -> None:
    version = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; print(sys.version_info >= (3, 11))"],
        capture_output=True,
        text=True,
        timeout=BOUND,
    )
    source = Path(cove.__file__).parent.parent
    if version.stdout != "True\n" or not os.stat(source).st_mode & 0o001:
        pytest.skip("the system's Python is too old, or the checkout is closed to others")
    with tempfile.TemporaryDirectory() as theirs:
        os.chown(theirs, 65534, 65534)
        said = subprocess.run(
            ["/usr/bin/python3", "-c", AS_NOBODY, theirs],
            env={
                "PYTHONPATH": str(source),
                "PATH": "/usr/bin:/bin",
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            capture_output=True,
            text=True,
            timeout=BOUND,
            user=65534,
            group=65534,
            extra_groups=[],
            cwd="/",
        )
    assert said.stdout == "65534 True []\n", said.stderr
