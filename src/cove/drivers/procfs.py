"""What Linux says of processes and sockets under /proc, parsed (proc(5))."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

LISTEN = "0A"
MAX_LISTENERS = 4096
SETTLE = 1.0  # a program is started in less than a millisecond, unless its disk is slow


@dataclass(frozen=True, slots=True)
class Process:
    """One line of /proc/PID/stat. `started` in clock ticks since boot tells reused ids apart.

    `status` is the wait(2) status of one that is dead and not buried, and `environment` where the
    end of its environment lies in its memory, -1 without any; both are 0 where we may not know.
    """

    pid: int
    state: str
    parent: int
    group: int
    session: int
    cpu: float
    started: int
    memory: int
    status: int
    environment: int


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening TCP socket: its port, and the inode that names it in /proc/PID/fd."""

    port: int
    inode: int


def parse_stat(text: str) -> Process:
    """From /proc/PID/stat. The command's name may hold spaces and brackets."""
    pid, _, rest = text.partition(" (")
    fields = rest.rpartition(") ")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    return Process(
        pid=int(pid),
        state=fields[0],
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        cpu=(int(fields[11]) + int(fields[12])) / ticks,
        started=int(fields[19]),
        memory=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        status=int(fields[49]),
        environment=int(fields[48]) if fields[20] != "0" else -1,
    )


def processes() -> Iterator[Process]:
    """All processes of this machine, zombies too; nothing where there is no /proc."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                found = process(int(name))
                if found is not None:
                    yield found


def process(pid: int) -> Process | None:
    """The process of this number, a zombie too; None if there is none, or no /proc."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as f:
        return parse_stat(f.read())
    return None


def settle() -> None:
    """Wait, `SETTLE` seconds at most, until what this user's processes are can be seen. Blocks."""
    deadline = time.monotonic() + SETTLE
    while any(user_of(one.pid) == os.geteuid() and becoming(one.pid) for one in processes()):
        if time.monotonic() >= deadline:
            return
        time.sleep(0.001)


def becoming(pid: int) -> bool:
    """Whether a process is just turning into another program, and has no words or environment."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as f:
        if not f.read(1):
            found = process(pid)
            return found is not None and not found.environment
    return False


def pid_inside(pid: int) -> int:
    """What a process is called in the innermost pid namespace that it is in; 0 for none."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as f:
        for line in f:
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return 0


def first_id(pid: int) -> int:
    """The host's id for user 0 of a process's user namespace; -1 if it cannot be told."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/uid_map") as f:
        inside, outside, _ = f.readline().split()
        if int(inside) == 0:
            return int(outside)
    return -1


def words(pid: int) -> list[str]:
    """A process's command line; empty for one that is gone, or dead."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as f:
        return os.fsdecode(f.read()).split("\0")[:-1]
    return []


def home_of(pid: int) -> str | None:
    """HOME in the environment that a process was started with, empty if there was none in it.

    None where it is not to be seen: some programs write a title over their environment.
    """
    if becoming(pid):
        return None
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as f:
        pairs = f.read().split(b"\0")[:-1]
        for pair in pairs:
            if pair.startswith(b"HOME="):
                return os.fsdecode(pair[5:])
        if all(b"=" in pair for pair in pairs):
            return ""
    return None


def users() -> set[int]:
    """Ids that own processes of this machine now."""
    return {user_of(int(name)) for name in os.listdir("/proc") if name.isdigit()} - {-1}


def user_of(pid: int) -> int:
    """Whose a process is; -1 if it has gone."""
    with contextlib.suppress(OSError):
        return os.stat(f"/proc/{pid}").st_uid
    return -1


def parse_listeners(table: Iterable[str]) -> Iterator[Listener]:
    """The first `MAX_LISTENERS` listening sockets in the lines of /proc/PID/net/tcp or tcp6.

    The kernel lists them before all others, of which a busy host has thousands: these are
    not even read.
    """
    rows = (line.split() for line in itertools.islice(table, 1, 1 + MAX_LISTENERS))
    for row in itertools.takewhile(lambda row: row[3] == LISTEN, rows):
        yield Listener(port=int(row[1].rpartition(":")[2], 16), inode=int(row[9]))


def listeners(pid: int | str = "self") -> Iterator[Listener]:
    """Listening TCP sockets, IPv4 and IPv6, in a process's network namespace.

    Read as they are asked for, and no more than `MAX_LISTENERS` of a family: what a program
    opens must not decide how long Cove looks.
    """
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/net/{table}") as f:
            yield from parse_listeners(f)


def sockets_of(pids: Iterable[int]) -> dict[int, str]:
    """Inodes of the sockets that these processes hold open, each with a path under /proc to it."""
    found: dict[int, str] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                path = f"/proc/{pid}/fd/{name}"
                if (inode := socket_at(path)) is not None:
                    found[inode] = path
    return found


def socket_at(path: str) -> int | None:
    """The inode of the socket that a descriptor's path under /proc leads to, if it is one."""
    with contextlib.suppress(OSError):
        target = os.readlink(path)
        if target.startswith("socket:["):
            return int(target[8:-1])
    return None


def catches(pid: int, signal: int) -> bool:
    """Whether a process has a handler for a signal; False for one that is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as f:
        for line in f:
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (signal - 1) & 1)
    return False
