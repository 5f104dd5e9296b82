"""Instances as containers of crun or runc: every namespace, no capability, limits of their own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

from cove.drivers.base import Exit, Launch
from cove.drivers.bundle import Bundle
from cove.drivers.container import OciRunning
from cove.drivers.exits import Orphans, become_subreaper
from cove.drivers.ground import CGROUP_PATIENCE, Ground
from cove.drivers.held import hold
from cove.drivers.leftovers import leftovers
from cove.drivers.procfs import users
from cove.drivers.record import Record, boot_id
from cove.drivers.runtime import Runtime
from cove.drivers.whole import Starts
from cove.errors import CoveError
from cove.model import Isolation
from cove.sandbox.ids import IdRanges

CLEANED_AT_ONCE = 8  # ids of which something is left; a runtime is called for each


class OciDriver:
    """Runs instances through an OCI runtime that passed `cove.drivers.probe`."""

    name = "oci"
    isolation: Isolation = "container"

    def __init__(
        self, runtime: Runtime, state: Path, serve: Path | None, cgroup_parent: str
    ) -> None:
        """`state` is a folder of the driver's own, on which it mounts a tmpfs; `cgroup_parent`
        a name in each hierarchy. `CoveError("isolation_unavailable")` where it cannot mount.
        """
        self.runtime = runtime
        self._ground = Ground(state, serve, cgroup_parent)
        # What an earlier driver has left is not this one's to remove before it has looked at it.
        self._owns = not self._ground.found
        self._boot = boot_id()
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
        first_id = self._ids.take(users())
        bundle = Bundle(self._ground, Record.of(launch, port=launch.port, first_id=first_id))
        self._names.add(launch.id)
        try:
            pid = await self._run(bundle, launch)
            running = self._watch(bundle, pid, hold(pid))
        except OSError as e:
            await self._remove(bundle)
            raise _failed(launch, e) from e
        except BaseException:
            await self._remove(bundle)
            raise
        try:
            bundle.begun(pid, running.held.started, self._boot)
        except OSError as e:
            await running.stop(0.0)
            raise _failed(launch, e) from e
        return running

    async def _run(self, bundle: Bundle, launch: Launch) -> int:
        await asyncio.to_thread(bundle.make, launch)
        return await self.runtime.run(
            launch.id,
            root=self._ground.runtime,
            bundle=bundle.folder,
            stdout=launch.stdout,
            stderr=launch.stderr,
        )

    def _watch(self, bundle: Bundle, pid: int, pidfd: int) -> OciRunning:
        running = OciRunning(bundle, pid, pidfd, self._ended)
        self._running[running.id] = running
        return running

    def _ended(self, running: OciRunning, how: Exit) -> None:
        task = asyncio.ensure_future(self._finish(running, how))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _finish(self, running: OciRunning, how: Exit) -> None:
        try:
            await self._remove(running.bundle)
        finally:
            self._running.pop(running.id, None)
            if not running.exited.done():
                running.exited.set_result(how)

    async def _remove(self, bundle: Bundle) -> None:
        try:
            await self._delete(bundle)
        finally:
            self._ids.free(bundle.record.first_id)
            self._names.discard(bundle.record.id)

    async def _delete(self, bundle: Bundle) -> None:
        if (self._ground.runtime / bundle.record.id).exists():
            with contextlib.suppress(OSError):
                await self.runtime.delete(bundle.record.id, root=self._ground.runtime)
        await asyncio.to_thread(bundle.remove)

    async def adopt(self) -> Sequence[OciRunning]:
        self._orphans.start()
        left = await asyncio.to_thread(leftovers, self._ground)
        for one in left.whole:
            self._ids.hold(one.bundle.record.first_id)
            self._names.add(one.bundle.record.id)
            self._watch(one.bundle, one.bundle.record.pid, one.pidfd)
        self._owns = True
        adopted = list(self._running.values())
        turns = asyncio.Semaphore(CLEANED_AT_ONCE)
        await asyncio.gather(*(self._clean(bundle, turns) for bundle in left.remains))
        return adopted

    async def _clean(self, bundle: Bundle, turns: asyncio.Semaphore) -> None:
        async with turns:
            # First what runs: a runtime waits long for what it finds alive, or frozen for ever.
            await asyncio.to_thread(bundle.cgroup.kill, CGROUP_PATIENCE)
            await self._delete(bundle)

    async def close(self, *, keep: bool = False) -> None:
        await self._starts.settled()
        kept = [one for one in self._running.values() if keep and not one.stopping]
        for one in kept:
            one.let_go()
            del self._running[one.id]
        await asyncio.gather(*(one.stop(0.0) for one in list(self._running.values())))
        while self._ending:
            await asyncio.wait(self._ending)
        self._orphans.stop()
        if kept:
            self._owns = False
        elif self._owns:
            await asyncio.to_thread(self._ground.leave)


def _failed(launch: Launch, error: OSError) -> CoveError:
    return CoveError("start_failed", f"{launch.id} could not be started: {error}")
