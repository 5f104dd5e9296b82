"""How processes ended that Cove did not fork itself: exits by pidfd, and orphans.

A detached OCI runtime leaves the instance's first process behind as an orphan. As a child
subreaper Cove becomes its parent and may ask the kernel how it ended; the price is that
every other orphan below Cove lands here too, and has to be buried.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import struct
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cove.clock import now
from cove.drivers.base import Exit
from cove.drivers.procfs import Process, process, processes

PR_SET_CHILD_SUBREAPER = 36

# linux/pidfd.h, from 6.15: the exit code of any process, kept by a pidfd opened before.
PIDFD_GET_INFO = 0xC040FF0B
PIDFD_INFO_EXIT = 1 << 3
_PIDFD_INFO = struct.Struct("=QQ11Ii")

# A zombie that its starter waits for is gone within milliseconds.
ABANDONED_AFTER = 30.0


def become_subreaper() -> bool:
    """Make orphans below this process its children. False where the kernel cannot."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def exit_of(pidfd: int, pid: int = 0, started: int = 0) -> Exit:
    """How a process that has ended did so; a child is buried.

    Of somebody else's child its stat line tells until its parent looks (`pid` and `started` say
    which), its pidfd from then on, where the kernel can: it is never between the two.
    """
    with contextlib.suppress(ChildProcessError):
        info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
        if info is not None:
            if info.si_code == os.CLD_EXITED:
                return Exit(code=info.si_status)
            return Exit(signal=info.si_status)
    found = process(pid) if pid else None
    if found is not None and found.state in "ZX" and found.started == started:
        return from_status(found.status)
    request = _PIDFD_INFO.pack(PIDFD_INFO_EXIT, *([0] * 13))
    with contextlib.suppress(OSError):
        answer = _PIDFD_INFO.unpack(fcntl.ioctl(pidfd, PIDFD_GET_INFO, request))
        if answer[0] & PIDFD_INFO_EXIT:
            return from_status(answer[-1])
    return Exit()


def from_status(status: int) -> Exit:
    """From a wait(2) status word."""
    if os.WIFSIGNALED(status):
        return Exit(signal=os.WTERMSIG(status))
    return Exit(code=os.WEXITSTATUS(status))


@dataclass(frozen=True, slots=True)
class Zombie:
    """A dead child that nobody has waited for. Equal only if it is the same process."""

    pid: int
    started: int


def zombies(everything: Iterable[Process], parent: int) -> list[Zombie]:
    """The dead children of `parent`."""
    return [Zombie(p.pid, p.started) for p in everything if p.state == "Z" and p.parent == parent]


def abandoned(first_seen: Mapping[Zombie, float], at: float) -> list[Zombie]:
    """Those dead so long that whoever started them has not been waiting."""
    return [zombie for zombie, since in first_seen.items() if at - since >= ABANDONED_AFTER]


class Orphans:
    """Buries orphans now and then. Nobody's child is taken: only what lies unclaimed."""

    def __init__(self) -> None:
        self._seen: dict[Zombie, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to look, on the running loop. Idempotent."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(ABANDONED_AFTER, self._tick)

    def stop(self) -> None:
        """Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = None
        self.sweep(now())
        self.start()

    def sweep(self, at: float) -> list[int]:
        """Look once; the ids buried."""
        present = zombies(processes(), os.getpid())
        self._seen = {zombie: self._seen.get(zombie, at) for zombie in present}
        buried = abandoned(self._seen, at)
        for zombie in buried:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(zombie.pid, os.WNOHANG)
        return [zombie.pid for zombie in buried]
