"""A process held fast: signals reach it and no later one of its number, its end is noticed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable

from cove.drivers.base import Exit
from cove.drivers.exits import exit_of, from_status
from cove.drivers.procfs import process


def _has_pidfds() -> bool:
    with contextlib.suppress(OSError, AttributeError):  # Linux before 5.3, some sandboxes; macOS
        os.close(os.pidfd_open(os.getpid()))
        return True
    return False


HAS_PIDFDS = _has_pidfds()


def hold(pid: int) -> int:
    """A pidfd; -1 where the system has none. `ProcessLookupError` if there is no such process."""
    return os.pidfd_open(pid) if HAS_PIDFDS else -1


def hold_same(pid: int, started: int) -> int | None:
    """A pidfd of the process that had this number and started then, if it is there still.

    Of no process, where the system has no pidfds. One that is dead but not buried is not there.
    """
    if pid <= 0 or not HAS_PIDFDS:
        return None
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)
        # Who has the number now, and had it then, has had it in between.
        found = process(pid)
        if found is not None and found.started == started and not _ended(pidfd):
            return pidfd
        os.close(pidfd)
    return None


def _ended(pidfd: int) -> bool:
    """Asked of the pidfd: a program whose first thread has left looks dead in its stat line."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


class Held:
    """A process and its pidfd, watched on the running loop until it ends or is released."""

    def __init__(self, pid: int, pidfd: int, on_end: Callable[[], None]) -> None:
        """Takes over `pidfd`. `on_end` is called once, and has to ask for the `exit`.

        Without pidfds only children can be held.
        """
        found = process(pid)
        self.pid = pid
        self.started = found.started if found is not None else 0
        self.ended = asyncio.Event()
        self._pidfd = pidfd
        self._on_end = on_end
        self._status = 0
        self._released = False
        self._loop = asyncio.get_running_loop()
        if pidfd >= 0:
            self._loop.add_reader(pidfd, self._end)
        else:
            threading.Thread(target=self._wait, name=f"cove-wait-{pid}", daemon=True).start()

    def __repr__(self) -> str:
        return f"<Held {self.pid}{' ended' if self.ended.is_set() else ''}>"

    @property
    def runs(self) -> bool:
        return not self.ended.is_set() and not self._released

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it alone; nothing once it has ended or been released."""
        if not self.runs:
            return
        with contextlib.suppress(ProcessLookupError):
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, number)
            else:
                os.kill(self.pid, number)

    def exit(self) -> Exit:
        """How it ended; to be asked once. Buries a child, whose number may be another's then."""
        if self._pidfd < 0:
            return from_status(self._status)
        how = exit_of(self._pidfd, self.pid, self.started)
        self._close()
        return how

    def release(self) -> None:
        """Let it go on unwatched. Idempotent."""
        if self.runs and self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            self._close()
        self._released = True

    def _close(self) -> None:
        os.close(self._pidfd)
        self._pidfd = -1

    def _end(self) -> None:
        if self._released:
            return
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
        self.ended.set()
        self._on_end()

    def _wait(self) -> None:
        with contextlib.suppress(ChildProcessError):
            self._status = os.waitpid(self.pid, 0)[1]
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            self._loop.call_soon_threadsafe(self._end)
