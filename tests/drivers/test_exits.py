"""How ends are learnt of processes that Cove did not fork, and orphans buried."""

from __future__ import annotations

import asyncio
import os
import platform
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import BOUND

from cove.drivers.base import Exit
from cove.drivers.exits import (
    ABANDONED_AFTER,
    Orphans,
    Zombie,
    abandoned,
    become_subreaper,
    exit_of,
    from_status,
    zombies,
)
from cove.drivers.held import Held, hold, hold_same
from cove.drivers.loopback import only_other
from cove.drivers.procfs import (
    MAX_LISTENERS,
    parse_listeners,
    parse_stat,
    process,
    processes,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pidfds are Linux's")

KERNEL = tuple(int(part) for part in platform.release().split(".")[:2] if part.isdigit())


def ended(pidfd: int) -> None:
    assert select.select([pidfd], [], [], BOUND)[0]


def orphan(script: str) -> int:
    """A pidfd of a grandchild of ours whose parent has gone. It reads `go` from its stdin."""
    shell = f"({script}) <&0 & echo $!"
    said = subprocess.run(
        ["sh", "-c", shell], stdin=subprocess.PIPE, capture_output=True, text=True, timeout=BOUND
    )
    return int(said.stdout)


@pytest.mark.parametrize(
    ("script", "how"), [("exit 9", Exit(code=9)), ("kill -KILL $$", Exit(signal=9))]
)
def test_a_childs_end_is_read_from_its_pidfd(script: str, how: Exit) -> None:
    child = subprocess.Popen(["sh", "-c", script])
    pidfd = os.pidfd_open(child.pid)
    try:
        ended(pidfd)
        assert exit_of(pidfd) == how
    finally:
        os.close(pidfd)
        child.wait()


@pytest.mark.skipif(KERNEL < (6, 15), reason="PIDFD_GET_INFO tells exits from Linux 6.15")
def test_the_end_of_somebody_elses_child_is_read_from_its_pidfd() -> None:
    parent = subprocess.Popen(
        ["sh", "-c", "sh -c 'read x; exit 9' <&3 & echo $!; wait"],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.dup2(0, 3),
        close_fds=False,
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    pidfd = os.pidfd_open(int(parent.stdout.readline()))
    try:
        parent.stdin.close()
        parent.wait(BOUND)
        ended(pidfd)
        assert exit_of(pidfd) == Exit(code=9)
    finally:
        os.close(pidfd)
        parent.stdout.close()


@pytest.mark.parametrize(
    ("ends", "how"), [("exit 9", Exit(code=9)), ("kill -KILL $$", Exit(signal=9))]
)
def test_the_end_of_somebody_elses_child_that_is_not_buried_is_read(ends: str, how: Exit) -> None:
    parent = subprocess.Popen(
        ["sh", "-c", f"sh -c 'read x; {ends}' <&3 & echo $!; exec sleep 600"],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.dup2(0, 3),
        close_fds=False,
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    found = process(pid)
    assert found is not None
    pidfd = os.pidfd_open(pid)
    try:
        parent.stdin.close()
        ended(pidfd)
        assert exit_of(pidfd, pid, found.started) == how
        assert exit_of(pidfd, pid, found.started + 1) == Exit()
    finally:
        os.close(pidfd)
        parent.kill()
        parent.wait()
        parent.stdout.close()


async def test_a_held_child_is_noticed_and_signalled_without_pidfds() -> None:
    child = subprocess.Popen(["sleep", "600"])
    child.returncode = 0  # the thread that waits for it has it
    seen = asyncio.Event()
    held = Held(child.pid, -1, seen.set)
    assert held.runs
    held.send(signal.SIGTERM)
    await asyncio.wait_for(seen.wait(), BOUND)
    assert held.exit() == Exit(signal=15)
    assert not held.runs


async def test_what_was_released_is_neither_watched_nor_signalled() -> None:
    child = subprocess.Popen(["sleep", "600"])
    held = Held(child.pid, hold(child.pid), lambda: pytest.fail("was watched"))
    held.release()
    held.release()
    held.send(signal.SIGKILL)
    assert child.poll() is None
    child.kill()
    child.wait()
    await asyncio.sleep(0)


def test_only_the_very_same_process_is_held() -> None:
    child = subprocess.Popen(["sleep", "600"])
    found = process(child.pid)
    assert found is not None
    pidfd = hold_same(child.pid, found.started)
    assert pidfd is not None
    before = len(os.listdir("/proc/self/fd"))
    assert hold_same(child.pid, found.started - 1) is None
    assert hold_same(0, found.started) is None
    child.kill()
    ended(pidfd)
    assert hold_same(child.pid, found.started) is None  # dead, if not buried
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(pidfd)
    child.wait()


def test_an_orphan_is_buried_once_nobody_has_waited_for_it() -> None:
    assert become_subreaper()
    pid = orphan("exec sleep 0.05")
    pidfd = os.pidfd_open(pid)
    ended(pidfd)
    os.close(pidfd)
    orphans = Orphans()
    assert pid not in orphans.sweep(0.0)
    assert pid not in orphans.sweep(ABANDONED_AFTER - 1)
    assert Path(f"/proc/{pid}").exists()
    assert pid in orphans.sweep(ABANDONED_AFTER)
    assert not Path(f"/proc/{pid}").exists()


async def test_a_child_that_is_waited_for_keeps_its_exit_code() -> None:
    become_subreaper()
    orphans = Orphans()
    child = await asyncio.create_subprocess_exec("sh", "-c", "exit 3")
    orphans.sweep(0.0)
    assert await asyncio.wait_for(child.wait(), BOUND) == 3
    assert child.pid not in orphans.sweep(ABANDONED_AFTER)


def test_a_reused_id_starts_a_new_wait() -> None:
    seen = {Zombie(7, 100): 0.0, Zombie(8, 100): 5.0}
    assert abandoned(seen, ABANDONED_AFTER) == [Zombie(7, 100)]


def test_only_dead_children_of_the_parent_are_zombies() -> None:
    me = next(one for one in processes() if one.pid == os.getpid())
    assert zombies([me], me.parent) == []


def test_status_words_are_read_as_wait_does() -> None:
    assert from_status(3 << 8) == Exit(code=3)
    assert from_status(15) == Exit(signal=15)


def test_a_name_with_spaces_and_brackets_does_not_confuse_the_stat_line() -> None:
    line = Path("/proc/self/stat").read_text()
    _, _, rest = line.partition(" (")
    odd = f"7 (a) b (c) {rest.rpartition(') ')[2]}"
    read = parse_stat(odd)
    assert (read.pid, read.parent, read.state) == (7, os.getppid(), "R")


def test_no_more_of_a_table_is_read_than_decides() -> None:
    """A program that listens on every port must not keep Cove reading."""
    taken = 0

    def table() -> Iterator[str]:
        nonlocal taken
        yield "  sl  local_address"
        for port in range(1, 65536):
            taken += 1
            yield f" 0: 0100007F:{port:04X} 00000000:0000 0A 0:0 00:0 0 0 0 {port} 1"

    assert only_other((one.port for one in parse_listeners(table())), told=1) is None
    assert taken == 3
    taken = 0
    assert len(list(parse_listeners(table()))) == taken == MAX_LISTENERS


def test_the_only_other_port_is_meant_whichever_families_it_has() -> None:
    assert only_other([9000, 8000, 8000], told=9000) == 8000
    assert only_other([8000, 8001], told=9000) is None
    assert only_other([9000], told=9000) is None


def test_listening_sockets_are_told_from_the_rest() -> None:
    table = (
        "  sl  local_address rem_address   st tx_queue tr tm->when retrnsmt uid timeout inode\n"
        "   0: 0100007F:2328 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4711 1\n"
        "   1: 0100007F:2329 0100007F:0050 01 00000000:00000000 00:00000000 00000000 0 0 4712 1\n"
    )
    assert [(one.port, one.inode) for one in parse_listeners(table.splitlines())] == [(9000, 4711)]
