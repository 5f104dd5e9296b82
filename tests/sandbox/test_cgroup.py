"""Cgroups of both versions: found, read, throttled, removed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from cove.sandbox.cgroup import Hierarchies, hierarchies, host_hierarchies

V1 = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
"""
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
UNIFIED = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"


def test_version_one_is_read_by_controller() -> None:
    found = hierarchies(V1)
    assert found.mode == "v1"
    assert found.v1["cpu"] == found.v1["cpuacct"] == "/sys/fs/cgroup/cpu,cpuacct"
    assert found.v1["systemd"] == "/sys/fs/cgroup/systemd"
    assert found.mounts == [
        "/sys/fs/cgroup/cpu,cpuacct",
        "/sys/fs/cgroup/memory",
        "/sys/fs/cgroup/systemd",
    ]


def test_version_two_and_both_at_once_are_told_apart() -> None:
    assert (hierarchies(V2).mode, hierarchies(V2).v2) == ("v2", "/sys/fs/cgroup")
    assert hierarchies(V1 + UNIFIED).mode == "hybrid"
    assert hierarchies("").mode == "none"


def files(folder: Path, **texts: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_a_version_two_group_is_read_and_throttled(tmp_path: Path) -> None:
    group = Hierarchies({}, str(tmp_path)).group("/cove/i-1")
    files(
        tmp_path / "cove" / "i-1",
        cpu__stat="usage_usec 1500000\nuser_usec 1\n",
        memory__current="4096\n",
        memory__events="low 0\noom 1\noom_kill 2\n",
        cgroup__procs="12\n7\n",
    )
    assert (group.cpu_seconds(), group.memory_bytes(), group.oom_kills()) == (1.5, 4096, 2)
    assert group.pids() == [7, 12]
    group.throttle(0.1)
    assert (tmp_path / "cove" / "i-1" / "cpu.max").read_text() == "10000 100000"


def test_a_version_one_group_is_read_and_throttled(tmp_path: Path) -> None:
    host = Hierarchies({n: str(tmp_path / n) for n in ("cpu", "cpuacct", "memory")}, None)
    files(tmp_path / "cpu" / "i-1")
    files(tmp_path / "cpuacct" / "i-1", cpuacct__usage="2500000000\n")
    files(
        tmp_path / "memory" / "i-1",
        memory__usage_in_bytes="8192\n",
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
    )
    group = host.group("i-1")
    assert (group.cpu_seconds(), group.memory_bytes(), group.oom_kills()) == (2.5, 8192, 1)
    group.throttle(2)
    assert (tmp_path / "cpu" / "i-1" / "cpu.cfs_quota_us").read_text() == "200000"
    assert (tmp_path / "cpu" / "i-1" / "cpu.cfs_period_us").read_text() == "100000"


def test_a_quota_is_never_less_than_the_kernel_takes(tmp_path: Path) -> None:
    files(tmp_path / "i-1")
    Hierarchies({}, str(tmp_path)).group("i-1").throttle(0.0001)
    assert (tmp_path / "i-1" / "cpu.max").read_text() == "1000 100000"


def test_a_group_that_is_gone_used_nothing_and_takes_no_harm(tmp_path: Path) -> None:
    group = Hierarchies({}, str(tmp_path)).group("gone")
    assert (group.cpu_seconds(), group.memory_bytes(), group.oom_kills()) == (0.0, 0, 0)
    assert group.pids() == []
    group.throttle(1.0)
    assert group.remove()


def test_removing_takes_children_first_and_tells_when_it_cannot(tmp_path: Path) -> None:
    group = Hierarchies({}, str(tmp_path)).group("cove")
    (tmp_path / "cove" / "a" / "b").mkdir(parents=True)
    assert group.remove()
    assert not (tmp_path / "cove").exists()
    files(tmp_path / "cove", busy="")
    assert not group.remove(wait=0.01)


def test_swap_is_limited_where_a_group_has_the_file(tmp_path: Path) -> None:
    assert not Hierarchies({}, str(tmp_path)).limits_swap()
    files(tmp_path / "system", memory__swap__max="max\n")
    assert Hierarchies({}, str(tmp_path)).limits_swap()
    assert not Hierarchies({"memory": str(tmp_path / "system")}, None).limits_swap()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_real_group_is_made_and_removed() -> None:
    host = host_hierarchies()
    if host.mode == "none":
        pytest.skip("no cgroups here")
    group = host.group(f"cove-test-{os.getpid()}/child")
    for mount in host.mounts:
        os.makedirs(f"{mount}/{group.path}", exist_ok=True)
    assert len(group.folders()) == len(host.mounts)
    assert host.group(f"cove-test-{os.getpid()}").remove(wait=1.0)
    assert group.folders() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_all_that_is_in_a_group_is_killed_frozen_or_below_and_nothing_else() -> None:
    host = host_hierarchies()
    if host.mode == "none":
        pytest.skip("no cgroups here")
    parent = host.group(f"cove-test-kill-{os.getpid()}")
    places = (parent.path, f"{parent.path}/one", f"{parent.path}/one/deeper", f"{parent.path}/two")
    inside = {}
    for place in places:
        for mount in host.mounts:
            os.makedirs(f"{mount}/{place}", exist_ok=True)
        inside[place] = subprocess.Popen(["sleep", "600"])
        for mount in host.mounts:
            with contextlib.suppress(OSError):  # cpuset wants to be told its CPUs first
                Path(mount, place, "cgroup.procs").write_text(str(inside[place].pid))
    try:
        assert parent.children() == {"one", "two"}
        one = host.group(places[1])
        assert set(one.pids()) == {inside[places[1]].pid, inside[places[2]].pid}
        if "freezer" in host.v1:
            Path(host.v1["freezer"], one.path, "freezer.state").write_text("FROZEN")
        assert one.kill(wait=10.0)
        assert [process.poll() is None for process in inside.values()] == [True, False, False, True]
    finally:
        assert parent.kill(wait=10.0)
        for process in inside.values():
            assert process.wait() == -signal.SIGKILL
        assert parent.remove(wait=2.0)


def test_a_group_that_is_gone_has_nobody_to_kill(tmp_path: Path) -> None:
    group = Hierarchies({}, str(tmp_path)).group("gone")
    assert group.kill(0.0)
    assert group.children() == set()
    group.thaw()
