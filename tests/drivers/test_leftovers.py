"""What an earlier driver left is cleaned by what the kernel says, and only what is its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import BOUND, Box, launch_of

from cove.drivers import probe
from cove.drivers.container import OciRunning
from cove.drivers.oci import OciDriver
from cove.drivers.process import ProcessDriver
from cove.drivers.procfs import process
from cove.drivers.record import Record, boot_id, read_record
from cove.drivers.runtime import Runtime
from cove.sandbox.cgroup import host_hierarchies
from cove.sandbox.ids import IDS_EACH
from cove.sandbox.mounts import below, mount_tmpfs, mounts

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="adoption needs /proc")

SLEEP = "import time; print('ready', flush=True); time.sleep(600)"


def again(box: Box) -> OciDriver:
    """Another driver on the same ground; the old one must have let go."""
    old = box.driver
    box.driver = OciDriver(old.runtime, box.folder / "state", None, old._ground.parent.path)
    return box.driver


async def left_by(box: Box) -> OciRunning:
    """An instance that a driver has let go of, and that another is to find."""
    running, _ = await box.start(SLEEP)
    await box.driver.close(keep=True)
    again(box)
    return running


def ended(pid: int) -> bool:
    found = process(pid)
    return found is None or found.state == "Z"


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the same user that leads a session of its own, with no environment."""
    made = subprocess.Popen(["/bin/sleep", "600"], start_new_session=True, env={})
    yield made
    assert made.poll() is None
    made.kill()
    made.wait()


def forged(ident: str, pid: int) -> Record:
    """A record that says of a process whatever is true of it."""
    found = process(pid)
    assert found is not None
    return Record(
        id=ident,
        function="t",
        version=1,
        port=9000,
        cpu=1.0,
        memory=1 << 20,
        first_id=0,
        pid=pid,
        started=found.started,
        boot=boot_id(),
    )


async def test_a_container_that_a_record_claims_is_not_touched(
    box: Box, stranger: subprocess.Popen[bytes]
) -> None:
    running = await left_by(box)
    folder = box.folder / "state" / "bundles" / "t-forged"
    folder.mkdir()
    forged("t-forged", stranger.pid).write(folder)
    (adopted,) = await box.driver.adopt()
    assert adopted.pid == running.pid
    assert not folder.exists()


@pytest.mark.parametrize("env", [{}, {"HOME": "/elsewhere"}, {"X": "y"}])
async def test_a_process_that_a_record_claims_is_not_touched(
    tmp_path: Path, env: dict[str, str]
) -> None:
    stranger = subprocess.Popen(["/bin/sleep", "600"], start_new_session=True, env=env)
    folder = tmp_path / "state" / "t-forged"
    folder.mkdir(parents=True)
    forged("t-forged", stranger.pid).write(folder)
    driver = ProcessDriver(Path("serve.py"), tmp_path / "state")
    try:
        assert await driver.adopt() == []
        await driver.close()
        assert stranger.poll() is None
        assert not (tmp_path / "state").exists()
    finally:
        stranger.kill()
        stranger.wait()


async def test_a_program_that_has_written_over_its_environment_is_adopted(tmp_path: Path) -> None:
    source = """
import ctypes, os
start, end = (int(x) for x in open("/proc/self/stat").read().rpartition(") ")[2].split()[47:49])
ctypes.memset(start, 0, end - start)
os.write(1, b"ready")
import time; time.sleep(600)
"""
    read, write = os.pipe()
    driver = ProcessDriver(Path("serve.py"), tmp_path / "state")
    running = await driver.start(launch_of(tmp_path, source, stdout=write, stderr=write))
    assert await asyncio.to_thread(os.read, read, 5) == b"ready"
    await driver.close(keep=True)
    driver = ProcessDriver(Path("serve.py"), tmp_path / "state")
    (adopted,) = await driver.adopt()
    assert adopted.pid == running.pid
    await driver.close()
    os.close(read)
    os.close(write)


async def test_containers_of_another_driver_are_not_touched(box: Box, runtime: Runtime) -> None:
    other = Box(
        OciDriver(runtime, box.folder / "other", None, f"cove-other-{os.getpid()}"), box.folder
    )
    try:
        theirs, _ = await other.start(SLEEP, id="t-same")
        running, _ = await box.start(SLEEP, id="t-same")
        (box.folder / "state" / "bundles" / "t-same" / "record.json").unlink()
        await box.driver.close(keep=True)
        assert await again(box).adopt() == []
        assert ended(running.pid)
        assert not ended(theirs.pid)
        assert len(theirs.bundle.cgroup.folders()) == len(host_hierarchies().mounts)
        assert (theirs.bundle.folder / "config.json").exists()
    finally:
        await other.driver.close()
        other.close()


async def test_a_record_of_another_instance_adopts_nothing(box: Box) -> None:
    one, _ = await box.start(SLEEP)
    two, _ = await box.start(SLEEP)
    text = (one.bundle.folder / "record.json").read_text()
    (two.bundle.folder / "record.json").write_text(text.replace(one.id, two.id))
    await box.driver.close(keep=True)
    (adopted,) = await again(box).adopt()
    assert adopted.id == one.id
    assert ended(two.pid)


async def test_a_process_within_that_is_not_the_first_is_not_adopted(box: Box) -> None:
    running, _ = await box.start(f"import os, time\nos.fork() or time.sleep(600)\n{SLEEP}")
    (child,) = set(running.bundle.cgroup.pids()) - {running.pid}
    await box.driver.close(keep=True)
    found = process(child)
    assert found is not None
    replace(running.bundle.record, pid=child, started=found.started).write(running.bundle.folder)
    assert await again(box).adopt() == []
    assert ended(running.pid)


async def test_one_whose_ids_are_not_those_of_its_record_is_not_adopted(box: Box) -> None:
    running, _ = await box.start(SLEEP)
    other = running.bundle.record.first_id + IDS_EACH
    replace(running.bundle.record, first_id=other).write(running.bundle.folder)
    await box.driver.close(keep=True)
    assert await again(box).adopt() == []
    assert ended(running.pid)


async def test_what_is_frozen_is_thawed_to_die(box: Box) -> None:
    running = await left_by(box)
    freeze(running)
    (running.bundle.folder / "record.json").unlink()
    assert await asyncio.wait_for(box.driver.adopt(), BOUND) == []
    assert ended(running.pid)
    assert running.bundle.cgroup.folders() == []


async def test_what_is_frozen_is_thawed_when_it_is_adopted(box: Box) -> None:
    running = await left_by(box)
    freeze(running)
    (adopted,) = await box.driver.adopt()
    await asyncio.wait_for(adopted.stop(0.0), BOUND)


def freeze(running: OciRunning) -> None:
    host = host_hierarchies()
    path = running.bundle.cgroup.path
    if "freezer" in host.v1:
        Path(host.v1["freezer"], path, "freezer.state").write_text("FROZEN")
    else:
        Path(str(host.v2), path, "cgroup.freeze").write_text("1")


async def test_processes_in_a_group_that_nobody_remembers_are_ended(box: Box) -> None:
    running = await left_by(box)
    host = host_hierarchies()
    group = host.group(f"{box.driver._ground.parent.path}/t-stray/deeper")
    for mount in host.mounts:
        os.makedirs(f"{mount}/{group.path}")
    stray = subprocess.Popen(["/bin/sleep", "600"])
    for mount in host.mounts:
        with contextlib.suppress(OSError):  # cpuset wants to be told its CPUs first
            Path(mount, group.path, "cgroup.procs").write_text(str(stray.pid))
    (adopted,) = await box.driver.adopt()
    assert adopted.pid == running.pid
    assert stray.wait(BOUND) == -signal.SIGKILL
    assert group.folders() == []


async def test_a_runtime_still_at_work_is_ended_and_one_for_others_is_not(box: Box) -> None:
    os.mkfifo(box.folder / "config.json")  # which nobody writes: whoever reads it stays
    calls = [
        subprocess.Popen(
            [box.driver.runtime.path, "--root", str(root), "run", "--bundle", box.folder, "t-x"]
        )
        for root in (box.folder / "state" / "runtime", box.folder / "elsewhere")
    ]
    ours, theirs = calls
    try:
        await box.driver.close(keep=True)
        await again(box).adopt()
        assert ours.wait(BOUND) == -signal.SIGKILL
        assert theirs.poll() is None
    finally:
        for call in calls:
            call.kill()
            call.wait()


async def test_too_much_memory_is_told_of_an_adopted_one_with_the_limit(box: Box) -> None:
    source = """
import os, signal
def eat(*_):
    os.write(1, b"eating\\n")
    held = [bytearray(1 << 20) for _ in range(1000)]
signal.signal(signal.SIGUSR1, eat)
print("ready", flush=True)
while True:
    signal.pause()
"""
    await box.start(source)
    await box.driver.close(keep=True)
    (running,) = await again(box).adopt()
    os.kill(running.pid, signal.SIGUSR1)
    how = await asyncio.wait_for(running.exited, BOUND)
    assert (how.oom, how.memory) == (True, 64 << 20)
    assert str(how) == "killed: out of memory, over its 64 MiB"


# The ground.


def tmpfses(folder: Path) -> list[str]:
    return [m.target for m in mounts() if m.target.startswith(str(folder)) and m.kind == "tmpfs"]


async def test_what_containers_are_started_with_is_on_one_tmpfs(box: Box) -> None:
    state = box.folder / "state"
    assert tmpfses(box.folder) == [str(state)]
    running, _ = await box.start(SLEEP, env={"TOKEN": "hidden"}, secrets={"KEY": "hidden-too"})
    seen = [path for path in state.rglob("*") if path.is_file() and b"hidden" in path.read_bytes()]
    assert {path.parent.name for path in seen} >= {running.id, "secrets"}
    assert {path.stat().st_dev for path in seen} == {state.stat().st_dev}
    assert state.stat().st_dev != box.folder.stat().st_dev
    await box.driver.close(keep=True)
    await again(box).adopt()
    assert tmpfses(box.folder) == [str(state)]
    await box.driver.close()
    assert tmpfses(box.folder) == []
    assert not state.exists()


async def test_only_root_sees_into_bundles_and_the_runtimes_state(box: Box) -> None:
    running, _ = await box.start(SLEEP)
    for folder in (running.bundle.folder.parent, box.folder / "state" / "runtime"):
        assert folder.stat().st_mode & 0o077 == 0


async def test_a_driver_with_nothing_to_keep_leaves_nothing(box: Box) -> None:
    await box.driver.close(keep=True)
    assert not (box.folder / "state").exists()


async def test_a_folder_with_a_space_is_known_again(runtime: Runtime, tmp_path: Path) -> None:
    state = tmp_path / "a folder" / "state"
    parent = f"cove-space-{os.getpid()}"
    for _ in range(2):
        OciDriver(runtime, state, None, parent)
    assert len([one for one in mounts() if one.target == str(state)]) == 1
    driver = OciDriver(runtime, state, None, parent)
    await driver.adopt()
    await driver.close()
    assert not state.exists()


async def test_what_lay_on_a_disk_before_is_removed(runtime: Runtime, tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "bundles" / "t-old" / "layers" / "0").mkdir(parents=True)
    (state / "bundles" / "t-old" / "config.json").write_text("hidden")
    mount_tmpfs(str(state / "bundles" / "t-old" / "layers" / "0"), 1 << 20, 0o700)
    driver = OciDriver(runtime, state, None, f"cove-old-{os.getpid()}")
    assert below(str(state)) == []
    assert await driver.adopt() == []
    await driver.close()
    assert not state.exists()


REFUSED = """
import ctypes, os, sys
from pathlib import Path
from cove.drivers.oci import OciDriver
from cove.drivers.runtime import Runtime
from cove.errors import CoveError
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
try:
    OciDriver(Runtime("none", "/bin/true"), Path(sys.argv[1], "state"), None, "cove-refused")
except CoveError as error:
    print(error.code, "|", error.message, "|", error.hint)
"""


def test_without_a_tmpfs_there_is_no_driver(tmp_path: Path) -> None:
    folder = Path("/tmp") / f"cove-refused-{os.getpid()}"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    try:
        said = subprocess.run(
            [sys.executable, "-c", REFUSED, str(folder)],
            capture_output=True,
            text=True,
            timeout=BOUND,
        )
        code, message, hint = said.stdout.split(" | ")
        assert code == "isolation_unavailable"
        assert str(folder) in message
        assert "tmpfs" in message
        assert hint
    finally:
        (folder / "state").rmdir()
        folder.rmdir()


# Records.


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = tmp_path / "t-1"
    folder.mkdir()
    record = forged("t-1", os.getpid())
    record.write(folder)
    assert read_record(folder) == record
    assert [path.name for path in folder.iterdir()] == ["record.json"]


def test_a_record_with_more_in_it_is_read_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "t-1"
    folder.mkdir()
    forged("t-1", os.getpid()).write(folder)
    path = folder / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "later": 1}))
    assert read_record(folder) == forged("t-1", os.getpid())


# Probes.

PROBE = """
import asyncio, sys
from pathlib import Path
from cove.drivers import probe
print("go", flush=True)
asyncio.run(probe.probe(Path(sys.argv[1])))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look for runtimes")
@pytest.mark.parametrize("delay", [0.01, 0.03, 0.06, 0.1, 0.15])
def test_what_a_killed_probe_leaves_the_next_one_removes(
    runtime: Runtime, tmp_path: Path, delay: float
) -> None:
    state = tmp_path / "state"
    doomed = subprocess.Popen(
        [sys.executable, "-c", PROBE, str(state)], stdout=subprocess.PIPE, text=True
    )
    assert doomed.stdout is not None
    assert doomed.stdout.readline() == "go\n"
    select.select([doomed.stdout], [], [], delay)
    doomed.kill()
    doomed.communicate()
    left = {path.name for path in state.glob("*")}
    again = subprocess.run([sys.executable, "-c", PROBE, str(state)], timeout=BOUND)
    assert again.returncode == 0
    assert list(state.iterdir()) == []
    assert [one.target for one in mounts() if str(tmp_path) in one.target] == []
    assert [host_hierarchies().group(name).folders() for name in left] == [[]] * len(left)


def test_a_probe_at_work_is_left_alone_by_another(tmp_path: Path, runtime: Runtime) -> None:
    state = tmp_path / "state"
    state.mkdir()
    folder, lock = probe._folder(state)
    (folder / "something").touch()
    asyncio.run(probe.probe(state))
    assert (folder / "something").exists()
    os.close(lock)
    asyncio.run(probe.probe(state))
    assert not folder.exists()
