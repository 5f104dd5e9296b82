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
from collections.abc import Sequence
from pathlib import Path

from cove.clock import now
from cove.drivers.base import Exit, Launch, Usage
from cove.drivers.exits import Orphans
from cove.drivers.loopback import dial, here, only_other
from cove.drivers.placeholders import filled
from cove.drivers.procfs import Listener, Process, listeners, processes, socket_at, sockets_of
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
        self.id, self.function, self.version = launch.id, launch.function, launch.version
        self.pid = child.pid
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.launch = launch
        self.port = port
        self.scratch = scratch
        self._child = child
        self._proof = ("", 0)
        self._watch = asyncio.ensure_future(self._until_gone())

    def __repr__(self) -> str:
        return f"<ProcessRunning {self.launch.id} pid {self.pid} port {self.port}>"

    async def connect(self) -> socket.socket:
        port = self._meant()
        made = await dial(here, port) if port is not None else None
        if made is None:
            raise ConnectionRefusedError(f"{self.launch.id} does not listen")
        return made

    def _meant(self) -> int | None:
        """The port to dial: only one on which the instance itself listens counts.

        Anybody may listen on any port of the host, so this is asked before dialling: a program
        may close its listener with the first caller. The descriptor that led to the listening
        socket last time is looked at first, as searching the host's sockets takes milliseconds.
        """
        if self._child.returncode is not None:
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
        held = sockets_of(one.pid for one in self._session())
        # Without a socket there is no need to search the host's.
        return held, [one for one in listeners() if one.inode in held] if held else []

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
        own = self._session()
        return Usage(sum(one.cpu for one in own), sum(one.memory for one in own))

    def ports(self) -> list[int]:
        if self._child.returncode is not None:
            return []
        return sorted({listener.port for listener in self._listening()[1]})

    def _session(self) -> list[Process]:
        """Those that stayed in its session or group."""
        return [one for one in processes() if self._stayed(one) and one.state != "Z"]

    def _all(self) -> list[Process]:
        """Its session, and those that left it but kept the HOME made for it. Slower."""
        return [
            one
            for one in processes()
            if one.state != "Z" and (self._stayed(one) or _carries(one.pid, self.scratch))
        ]

    def _stayed(self, one: Process) -> bool:
        return self.pid in (one.session, one.group)

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
        while (left := self._all()) and now() < deadline:
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
                stdout=launch.stdout,
                stderr=launch.stderr,
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

    async def adopt(self) -> Sequence[ProcessRunning]:
        return []

    async def close(self, *, keep: bool = False) -> None:
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
