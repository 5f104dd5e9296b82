"""Whatever a Cove could leave on a machine is seen, each kind of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from chaos import traces
from chaos.server import Server
from chaos.traces import Ground, strays
from cove.sandbox.netns import NetworkNamespace

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make it")


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ground:
    """Where a server keeps its data, of which none runs."""
    monkeypatch.setattr(traces, "PATIENCE", 0.5)
    server = Server(tmp_path)
    for folder in ("run/output", "run/oci/bundles", "uploads", "layers"):
        (server.data / folder).mkdir(parents=True)
    return Ground(server)


async def seen(ground: Ground, *ids: str) -> list[tuple[str, str]]:
    async def instances() -> set[str]:
        return set(ids)

    return [(stray.kind, stray.what) for stray in await strays(ground, instances)]


async def test_an_empty_house_has_no_strays(ground: Ground) -> None:
    for own in ("alive", "api.sock", "sessions.log", "sessions.log.1", "output/.control"):
        (ground.server.data / "run" / own).touch()
    assert await seen(ground) == []


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("run/output/web-1-00000001.stdout", "file"),
        ("run/oci/bundles/web-1-00000001", "file"),
        ("run/of-nobody", "file"),
        ("uploads/upload-1.tar.gz", "folder"),
        ("layers/.unfinished-1", "folder"),
        ("../tmp/cove-deploy-1", "folder"),
    ],
)
async def test_a_file_is_an_instances_or_a_stray(ground: Ground, path: str, kind: str) -> None:
    file = ground.server.data / path
    file.touch()
    assert [found for found, _ in await seen(ground)] == [kind]
    if "web-1" in path:
        assert await seen(ground, "web-1-00000001") == []


async def test_a_process_is_seen_by_its_words(ground: Ground) -> None:
    argv = [sys.executable, "-c", "input()", ground.data]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as process:
        ((kind, what),) = await seen(ground)
        assert (kind, what.split()[0]) == ("process", str(process.pid))
        process.kill()
    assert await seen(ground) == []


@needs_root
async def test_a_control_group_and_who_is_in_it_are_seen(ground: Ground) -> None:
    top = Path("/sys/fs/cgroup")
    hierarchy = top if (top / "cgroup.procs").exists() else top / "memory"
    group = hierarchy / ground.parent / "web-1-00000002"
    group.mkdir(parents=True)
    try:
        with subprocess.Popen(["sleep", "60"]) as process:
            (group / "cgroup.procs").write_text(str(process.pid))
            found = await seen(ground)
            assert [kind for kind, _ in found] == ["cgroup", "process"]
            assert await seen(ground, "web-1-00000002") == []
            process.kill()
    finally:
        group.rmdir()
        group.parent.rmdir()
    assert await seen(ground) == []


@needs_root
async def test_a_mount_is_seen(ground: Ground) -> None:
    place = ground.server.data / "run/oci/bundles"
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        assert await seen(ground) == [("mount", str(place))]
    finally:
        subprocess.run(["umount", place], check=True)


@needs_root
async def test_a_loop_device_is_seen(ground: Ground) -> None:
    image = ground.server.data / "volume"
    image.write_bytes(bytes(1024**2))
    made = subprocess.run(
        ["losetup", "--find", "--show", image], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no loop device can be had: {made.stderr.strip()}")
    try:
        ((kind, what),) = await seen(ground)
        assert kind == "loop device"
        assert str(image) in what
    finally:
        subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


@needs_root
async def test_a_network_namespace_that_only_the_server_has_is_seen(ground: Ground) -> None:
    held = NetworkNamespace()
    try:
        ground.server.process = subprocess.Popen(["true"])
        ground.server.process.wait()
        ground.server.process.pid = os.getpid()  # the server is us, who have it open
        assert await seen(ground) == [("network namespace", os.readlink(held.path))]
    finally:
        held.close()


async def test_a_listening_socket_of_nobodys_is_seen(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ground.server.data)  # a socket's path has a bound
    with socket.socket(socket.AF_UNIX) as listener:
        path = str(ground.server.data / "run/odd.sock")
        if len(path) > 100:
            pytest.skip("the path of this test's folder is too long for a socket")
        listener.bind(path)
        listener.listen()
        assert {kind for kind, _ in await seen(ground)} == {"file", "socket"}
