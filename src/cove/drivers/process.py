"""Instances as plain processes of Cove's own user. Isolates nothing: for development and macOS."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

from cove.clock import now
from cove.drivers.base import Exit, Launch, Usage
from cove.drivers.exits import Orphans
from cove.drivers.loopback import dial, here, only_other
from cove.drivers.placeholders import filled
from cove.drivers.procfs import Process, listeners, processes, socket_at, sockets_of
from cove.drivers.whole import Starts
from cove.errors import CoveError
from cove.model import Isolation

DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
BURIAL = 5.0  # seconds for killed processes to be gone
HAS_PROC = sys.platform == "linux"


class ProcessRunning:
    """A process, its session, and whatever else carries its HOME."""

    def __init__(
        self, launch: Launch, child: asyncio.subprocess.Process, port: int, scratch: str
    ) -> None:
        self.pid = child.pid
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.launch = launch
        self.port = port
        self.scratch = scratch
        self._child = child
        self._proofs: dict[int, tuple[str, int]] = {}
        self._watch = asyncio.ensure_future(self._until_gone())

    def __repr__(self) -> str:
        return f"<ProcessRunning {self.launch.id} pid {self.pid} port {self.port}>"

    async def connect(self) -> socket.socket:
        made = await self._dial(self.port)
        if made is None and (other := only_other(self.ports(), self.port)) is not None:
            made = await self._dial(other)
        if made is None:
            raise ConnectionRefusedError(f"{self.launch.id} does not listen")
        return made

    async def _dial(self, port: int) -> socket.socket | None:
        # Anybody may listen on this port of the host: only the instance's own socket counts.
        if self._child.returncode is not None or (HAS_PROC and not self._owns(port)):
            return None
        return await dial(here, port)

    def _owns(self, port: int) -> bool:
        """Whether one of its own processes listens there.

        A descriptor that led to the listening socket once is looked at first: searching the
        host's sockets takes milliseconds.
        """
        path, inode = self._proofs.get(port, ("", 0))
        if path and socket_at(path) == inode:
            return True
        held = sockets_of(one.pid for one in self._own())
        for listener in listeners():
            if listener.port == port and listener.inode in held:
                self._proofs[port] = (held[listener.inode], listener.inode)
                return True
        return False

    async def stop(self, grace: float) -> Exit:
        if grace > 0 and self._child.returncode is None:
            self._signal_group(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._watch), grace)
        if self._child.returncode is None:
            self._signal_group(signal.SIGKILL)
        return await asyncio.shield(self.exited)

    def throttle(self) -> None:
        """Nothing: without a cgroup there is no quota to set."""

    def usage(self) -> Usage:
        if self.exited.done():
            return Usage(0.0, 0)
        own = self._own()
        return Usage(sum(one.cpu for one in own), sum(one.memory for one in own))

    def ports(self) -> list[int]:
        if self._child.returncode is not None:
            return []
        inodes = sockets_of(one.pid for one in self._own())
        return sorted({listener.port for listener in listeners() if listener.inode in inodes})

    def _own(self) -> list[Process]:
        """Its session, its group, and those that left both but kept the HOME made for it."""
        return [
            one
            for one in processes()
            if one.state != "Z"
            and (self.pid in (one.session, one.group) or _carries(one.pid, self.scratch))
        ]

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    async def _until_gone(self) -> None:
        status = await self._child.wait()
        how = Exit(code=status) if status >= 0 else Exit(signal=-status)
        try:
            await self._kill_rest()
            await asyncio.to_thread(shutil.rmtree, self.scratch, True)
        finally:
            self.exited.set_result(how)

    async def _kill_rest(self) -> None:
        """SIGKILL until nobody is left: a process may fork while it is being looked for."""
        self._signal_group(signal.SIGKILL)
        deadline = now() + BURIAL
        while (left := self._own()) and now() < deadline:
            for one in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(one.pid, signal.SIGKILL)
            await asyncio.sleep(0.002)


def _carries(pid: int, home: str) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as f:
        return f"HOME={home}".encode() in f.read().split(b"\0")
    return False


class ProcessDriver:
    """Starts programs as they are. Every start may read and write what Cove's user may."""

    name = "process"
    isolation: Isolation = "process"

    def __init__(self, serve: Path) -> None:
        self._serve = serve
        self._running: set[ProcessRunning] = set()
        self._ports: set[int] = set()
        self._starts = Starts()
        self._orphans = Orphans()

    def __repr__(self) -> str:
        return f"<ProcessDriver [{len(self._running)} running]>"

    async def start(self, launch: Launch) -> ProcessRunning:
        # A driver beside this one may have made Cove a subreaper: daemons' remains land here too.
        self._orphans.start()
        return await self._starts.run(self._start(launch))

    async def _start(self, launch: Launch) -> ProcessRunning:
        port = self._free_port()
        argv, env = filled(
            launch, app=launch.code, deps=launch.deps, serve=str(self._serve), port=port
        )
        scratch = await asyncio.to_thread(tempfile.mkdtemp, prefix="cove-home-")
        try:
            os.mkdir(f"{scratch}/temporary")
            child = await asyncio.create_subprocess_exec(
                *argv,
                cwd=launch.code,
                env=_environment(env, scratch, port),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=launch.output,
                stderr=launch.output,
                start_new_session=True,
            )
        except OSError as e:
            shutil.rmtree(scratch, ignore_errors=True)
            self._ports.discard(port)
            raise CoveError(
                "start_failed",
                f"{argv[0]} could not be started: {e.strerror or e}: {e.filename}",
                hint="check that the command exists and may be executed",
            ) from e
        running = ProcessRunning(launch, child, port, scratch)
        self._running.add(running)
        running.exited.add_done_callback(lambda _: self._forget(running))
        return running

    def _forget(self, running: ProcessRunning) -> None:
        self._running.discard(running)
        self._ports.discard(running.port)

    def _free_port(self) -> int:
        """One that nobody listens on now, and that no instance of ours was told."""
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port: int = probe.getsockname()[1]
            if port not in self._ports:
                self._ports.add(port)
                return port

    async def close(self) -> None:
        await self._starts.settled()
        await asyncio.gather(*(one.stop(0.0) for one in list(self._running)))
        self._orphans.stop()


def _environment(wanted: dict[str, str], scratch: str, port: int) -> dict[str, str]:
    """A program's whole environment: nothing of Cove's own but where programs are found."""
    defaults = {
        "PATH": DEFAULT_PATH,
        "USER": "cove",
        "LOGNAME": "cove",
        "LANG": "C.UTF-8",
        "TMPDIR": f"{scratch}/temporary",
    }
    return {**defaults, **wanted, "HOME": scratch, "PORT": str(port)}
