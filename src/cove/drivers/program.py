"""A plain process that runs: whoever is in its session or carries its HOME belongs to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterable
from pathlib import Path

from cove.clock import now
from cove.drivers.base import Exit, Usage
from cove.drivers.held import HAS_PIDFDS, Held, hold_same
from cove.drivers.loopback import dial, here, only_other
from cove.drivers.procfs import (
    Listener,
    Process,
    home_of,
    listeners,
    processes,
    socket_at,
    sockets_of,
)
from cove.drivers.record import Record

BURIAL = 5.0  # seconds for killed processes to be gone
HAS_PROC = sys.platform == "linux"


def home_in(folder: Path) -> Path:
    """The HOME that an instance's folder has for it."""
    return folder / "home"


class ProcessRunning:
    """A process, its session, and whatever else carries its HOME; started here or adopted."""

    def __init__(self, record: Record, folder: Path, pid: int, pidfd: int) -> None:
        """Takes over `pidfd`, and `folder`, which is removed at the end."""
        self.id, self.function, self.version = record.id, record.function, record.version
        self.pid = pid
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.port = record.port
        self.folder = folder
        self.stopping = False
        self.held = Held(pid, pidfd, self._on_end)
        self._proof = ("", 0)
        self._burial: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<ProcessRunning {self.id} pid {self.pid} port {self.port}>"

    async def connect(self) -> socket.socket:
        port = self._meant()
        made = await dial(here, port) if port is not None else None
        if made is None:
            raise ConnectionRefusedError(f"{self.id} does not listen")
        return made

    def _meant(self) -> int | None:
        """The port to dial: only one on which the instance itself listens counts.

        Anybody may listen on any port of the host, so this is asked before dialling: a program
        may close its listener with the first caller. The descriptor that led to the listening
        socket last time is looked at first, as searching the host's sockets takes milliseconds.
        """
        if not self.held.runs:
            return None
        if not HAS_PROC:
            return self.port
        path, inode = self._proof
        if path and socket_at(path) == inode:
            return self.port
        held, heard = self._listening()
        for listener in heard:
            if listener.port == self.port:
                self._proof = (held[listener.inode], listener.inode)
                return self.port
        return only_other((listener.port for listener in heard), self.port)

    def _listening(self) -> tuple[dict[int, str], list[Listener]]:
        """Its sockets as `sockets_of` gives them, and which of them listen."""
        held = sockets_of(one.pid for one in self._session(processes()))
        # Without a socket there is no need to search the host's.
        return held, [one for one in listeners() if one.inode in held] if held else []

    async def stop(self, grace: float) -> Exit:
        self.stopping = True
        if grace > 0 and self.held.runs:
            self._signal_group(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self.exited), grace)
        if self.held.runs:
            self._signal_group(signal.SIGKILL)
        return await asyncio.shield(self.exited)

    def throttle(self) -> None:
        """Nothing: without a cgroup there is no quota to set."""

    def usage(self) -> Usage:
        if self.exited.done():
            return Usage(0.0, 0)
        own = self._session(processes())
        return Usage(sum(one.cpu for one in own), sum(one.memory for one in own))

    def ports(self) -> list[int]:
        if not self.held.runs:
            return []
        return sorted({listener.port for listener in self._listening()[1]})

    def let_go(self) -> None:
        """Leave it to a later driver: it goes on, and this object knows nothing more of it."""
        self.held.release()

    def _session(self, everybody: Iterable[Process]) -> list[Process]:
        """Those that stayed in its session or group."""
        found = list(everybody)
        # An adopted one is buried by its parent: its number, and its session's, may be reused.
        if any(one.pid == self.pid and one.started != self.held.started for one in found):
            return []
        return [o for o in found if self.pid in (o.session, o.group) and o.state != "Z"]

    def _all(self) -> list[Process]:
        """Its session, and those that left it but kept the HOME made for it. Slower."""
        everybody = list(processes())
        return [*self._session(everybody), *carriers([self.folder], everybody)]

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _on_end(self) -> None:
        self._burial = asyncio.ensure_future(self._bury())

    async def _bury(self) -> None:
        """End the rest before its first process is waited for, whose number they go by."""
        try:
            if not HAS_PROC:
                self._signal_group(signal.SIGKILL)
            deadline = now() + BURIAL
            while (left := self._all()) and now() < deadline:
                for one in left:
                    end(one)
                await asyncio.sleep(0.002)
        finally:
            how = self.held.exit()
            await asyncio.to_thread(shutil.rmtree, self.folder, True)
            self.exited.set_result(how)


def carriers(folders: Iterable[Path], among: Iterable[Process] | None = None) -> list[Process]:
    """Processes that were started with the HOME of one of these instances' folders."""
    homes = {str(home_in(folder)) for folder in folders}
    everybody = processes() if among is None else among
    return [one for one in everybody if one.state != "Z" and home_of(one.pid) in homes]


def end(one: Process) -> None:
    """SIGKILL it, if it is still there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        pidfd = hold_same(one.pid, one.started)
        if pidfd is not None:
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)
        elif not HAS_PIDFDS:
            os.kill(one.pid, signal.SIGKILL)
