"""Who holds a port: what a person would look up when theirs is taken (proc(5), /proc/net/tcp)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_LISTENING = "0A"
_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")


def holder(port: int) -> str | None:
    """`NAME (pid N)` of a program that listens on a port; None where that cannot be seen."""
    wanted = {f"socket:[{inode}]" for inode in _listening(port)}
    if not wanted:
        return None
    for pid in filter(str.isdigit, os.listdir("/proc")):
        # other users' programs do not show their descriptors, and some have just ended
        with contextlib.suppress(OSError):
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{descriptor}") in wanted:
                    with open(f"/proc/{pid}/comm", errors="replace") as file:
                        return f"{file.read().strip()} (pid {pid})"
    return None


def _listening(port: int) -> Iterator[str]:
    """Inodes of the sockets that listen on a port, whatever their address."""
    for table in _TABLES:
        with contextlib.suppress(OSError), open(table) as file:
            for line in file.readlines()[1:]:
                _, local, _, state, *rest = line.split()
                if state == _LISTENING and int(local.rpartition(":")[2], 16) == port:
                    yield rest[5]
