"""Instances as containers of crun or runc: every namespace, no capability, limits of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

from cove.drivers.base import Exit, Launch, Usage
from cove.drivers.bundle import Bundle, Ground, roots_for
from cove.drivers.exits import Orphans, become_subreaper, exit_of
from cove.drivers.loopback import dial, only_other
from cove.drivers.procfs import catches, listeners, users
from cove.drivers.runtime import Runtime
from cove.drivers.whole import Starts
from cove.errors import CoveError
from cove.model import Isolation
from cove.sandbox.cgroup import host_hierarchies
from cove.sandbox.ids import IdRanges
from cove.sandbox.layers import Layers

CGROUP_PATIENCE = 2.0  # seconds for the kernel to let go of an empty cgroup


class OciRunning:
    """A container that was started, until its exit."""

    def __init__(self, driver: OciDriver, launch: Launch, bundle: Bundle, pid: int) -> None:
        self.id, self.function, self.version = launch.id, launch.function, launch.version
        self.pid = pid
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.launch = launch
        self.bundle = bundle
        self._driver = driver
        self._ended = asyncio.Event()
        self._stopping = False
        self._pidfd = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_end)

    def __repr__(self) -> str:
        return f"<OciRunning {self.launch.id} pid {self.pid}>"

    async def connect(self) -> socket.socket:
        made = await self._dial(self.launch.port)
        if made is None and (other := self._other()) is not None:
            made = await self._dial(other)
        if made is None:
            raise ConnectionRefusedError(f"{self.launch.id} does not listen")
        return made

    def _other(self) -> int | None:
        if self._ended.is_set():
            return None
        return only_other((one.port for one in listeners(self.pid)), self.launch.port)

    async def _dial(self, port: int) -> socket.socket | None:
        netns = self.bundle.netns
        if self._ended.is_set() or netns is None:
            return None
        return await dial(netns.socket, port)

    async def stop(self, grace: float) -> Exit:
        self._stopping = True
        # The first process of a pid namespace does not even see a SIGTERM it has no handler for.
        if grace > 0 and catches(self.pid, signal.SIGTERM):
            self._signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), grace)
        self._signal(signal.SIGKILL)
        return await asyncio.shield(self.exited)

    def throttle(self) -> None:
        self.bundle.cgroup.throttle(self.launch.limits.cpu)

    def usage(self) -> Usage:
        if self.exited.done():
            return Usage(0.0, 0)
        cgroup = self.bundle.cgroup
        return Usage(cgroup.cpu_seconds(), cgroup.memory_bytes())

    def ports(self) -> list[int]:
        if self._ended.is_set():
            return []
        return sorted({listener.port for listener in listeners(self.pid)})

    def _signal(self, number: signal.Signals) -> None:
        if not self._ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._ended.set()
        how = exit_of(self._pidfd)
        os.close(self._pidfd)
        self._driver.ended(self, self._judged(how))

    def _judged(self, how: Exit) -> Exit:
        """The kernel says only that it killed something; it counts if the instance failed by it."""
        failed = how.signal is not None or how.code != 0
        if failed and not self._stopping and self.bundle.cgroup.oom_kills():
            return Exit(code=how.code, signal=how.signal, oom=True)
        return how


class OciDriver:
    """Runs instances through an OCI runtime that passed `cove.drivers.probe`."""

    name = "oci"
    isolation: Isolation = "container"

    def __init__(
        self, runtime: Runtime, state: Path, serve: Path | None, cgroup_parent: str
    ) -> None:
        """`state` is a folder of the driver's own; `cgroup_parent` a name in each hierarchy."""
        state.mkdir(parents=True, exist_ok=True)
        host = host_hierarchies()
        self.runtime = runtime
        self._ground = Ground(
            state=state,
            roots=roots_for(state),
            serve=serve,
            cgroup_parent=cgroup_parent.strip("/"),
            host=host,
            limit_swap=host.limits_swap(),
            layers=Layers(),
        )
        self._ids = IdRanges()
        self._names: set[str] = set()
        self._running: dict[str, OciRunning] = {}
        self._starts = Starts()
        self._orphans = Orphans()
        self._ending: set[asyncio.Task[None]] = set()
        become_subreaper()

    def __repr__(self) -> str:
        return f"<OciDriver {self.runtime} [{len(self._running)} running]>"

    async def start(self, launch: Launch) -> OciRunning:
        self._orphans.start()
        return await self._starts.run(self._start(launch))

    async def _start(self, launch: Launch) -> OciRunning:
        if launch.id in self._names:
            raise CoveError("start_failed", f"an instance {launch.id} runs already")
        bundle = Bundle(self._ground, launch, self._ids.take(users()))
        self._names.add(launch.id)
        try:
            await asyncio.to_thread(bundle.make)
            pid = await self.runtime.run(
                launch.id,
                root=self._runtime_root,
                bundle=bundle.folder,
                stdout=launch.stdout,
                stderr=launch.stderr,
            )
            running = OciRunning(self, launch, bundle, pid)
        except OSError as e:
            await self._remove(launch.id, bundle)
            raise CoveError("start_failed", f"{launch.id} could not be started: {e}") from e
        except BaseException:
            await self._remove(launch.id, bundle)
            raise
        self._running[launch.id] = running
        return running

    def ended(self, running: OciRunning, how: Exit) -> None:
        """Called by an instance whose first process has ended: removes what is left of it."""
        task = asyncio.ensure_future(self._finish(running, how))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _finish(self, running: OciRunning, how: Exit) -> None:
        try:
            await self._remove(running.launch.id, running.bundle)
        finally:
            self._running.pop(running.launch.id, None)
            if not running.exited.done():
                running.exited.set_result(how)

    async def _remove(self, container: str, bundle: Bundle) -> None:
        try:
            with contextlib.suppress(OSError):
                await self.runtime.delete(container, root=self._runtime_root)
            await asyncio.to_thread(_sweep, bundle)
        finally:
            self._ids.free(bundle.first_id)
            self._names.discard(container)

    async def adopt(self) -> Sequence[OciRunning]:
        return []

    async def close(self, *, keep: bool = False) -> None:
        await self._starts.settled()
        await asyncio.gather(*(one.stop(0.0) for one in list(self._running.values())))
        while self._ending:
            await asyncio.wait(self._ending)
        self._orphans.stop()
        await asyncio.to_thread(self._leave)

    def _leave(self) -> None:
        self._ground.host.group(self._ground.cgroup_parent).remove(CGROUP_PATIENCE)
        for folder in (self._runtime_root, self._ground.roots, self._ground.state / "bundles"):
            shutil.rmtree(folder, ignore_errors=True)
        for empty in (self._ground.roots.parent, self._ground.state):
            with contextlib.suppress(OSError):
                empty.rmdir()

    @property
    def _runtime_root(self) -> Path:
        return self._ground.state / "runtime"


def _sweep(bundle: Bundle) -> None:
    """What a runtime may have left: processes it lost track of, cgroups, then our own things."""
    for pid in bundle.cgroup.pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    bundle.cgroup.remove(CGROUP_PATIENCE)
    bundle.remove()
