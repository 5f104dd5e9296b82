"""Functions: what is deployed. A deploy makes a version; the version that is ready goes live."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from cove import clock
from cove.drivers.base import Driver, Running
from cove.engine import rollback
from cove.engine.instance import Instance
from cove.engine.pool import Pool
from cove.engine.sessions import Sessions
from cove.engine.supervisor import Supervisor
from cove.errors import CoveError
from cove.events import Event, EventKind, OnEvent
from cove.model import Facts, FunctionSpec, Isolation, Plan, Version
from cove.runtimes import archive, python, source
from cove.runtimes.layers import Layers
from cove.states import VersionState
from cove.store.base import Store

log = structlog.get_logger("cove.functions")

Progress = Callable[[str], None]
Probe = Callable[[Instance, FunctionSpec], Awaitable[Facts]]
"""Looks at a started instance and says what it speaks; `CoveError` where it speaks nothing."""
Require = Callable[[str, Sequence[str]], None]
"""`CoveError` where a function could not be given the secrets of these names."""

_UNPACKED_BYTES = 1024**3
_UNPACKED_FILES = 50_000
_KEPT = 10
_UNAVAILABLE: Mapping[Isolation, str] = {
    "container": "`cove doctor` says what is missing",
    "process": "it isolates nothing: leave the line out, or the operator starts Cove with "
    "--driver process to allow it",
}


@dataclass(slots=True)
class Entry:
    """A function in memory: its versions, and the pool of each that has one."""

    name: str
    created_at: float
    versions: dict[int, Version] = field(default_factory=dict)
    pools: dict[int, Pool] = field(default_factory=dict)
    live: int | None = None
    on_change: set[Callable[[], None]] = field(default_factory=set)

    @property
    def version(self) -> Version:
        """The live version, else the newest."""
        return self.versions[self.live if self.live is not None else max(self.versions)]

    @property
    def instances(self) -> list[tuple[Version, Instance]]:
        return [(p.version, i) for p in self.pools.values() for i in p.instances]


class Functions:
    """All functions of this Cove. `on_live` is told which pool serves a name, or None."""

    def __init__(
        self,
        *,
        store: Store,
        layers: Layers,
        supervisor: Supervisor,
        sessions: Sessions,
        drivers: Mapping[Isolation, Driver],
        probe: Probe,
        on_live: Callable[[str, Pool | None], None],
        scratch: Path,
        require: Require = lambda function, names: None,
        on_event: OnEvent = lambda event: None,
    ) -> None:
        """`scratch` is a folder for deploys under way; what is found in it is nobody's."""
        self._scratch = scratch
        self._require = require
        self._on_event = on_event
        self._store = store
        self._layers = layers
        self._supervisor = supervisor
        self._sessions = sessions
        self._drivers = drivers
        self._probe = probe
        self._on_live = on_live
        self._entries: dict[str, Entry] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._deploying = 0
        self._pruning = asyncio.Lock()

    async def load(self) -> None:
        """Read what earlier runs deployed; nothing is started but declared minimums."""
        for function in await self._store.functions():
            self._entries[function.name] = Entry(
                function.name, function.created_at, live=function.live
            )
        for version in await self._store.versions():
            entry = self._entries[version.function]
            if version.state is VersionState.STARTING:
                version = await self._store.set_version(
                    version, VersionState.FAILED, error="Cove ended during this deploy"
                )
            entry.versions[version.number] = version
        for entry in self._entries.values():
            if entry.live is not None:
                version = entry.versions[entry.live]
                self._go_live(entry, Pool(version, self._supervisor.wake, entry.on_change))

    async def adopt(self, left: Sequence[Running]) -> dict[str, tuple[Pool, Instance]]:
        """Instances of an earlier Cove go on in the pools of their versions, by id.

        Those of versions that are not there, or never were ready, are stopped.
        """
        taken = await asyncio.gather(*(self._adopt(running) for running in left))
        return {instance.id: (pool, instance) for pool, instance in filter(None, taken)}

    async def _adopt(self, running: Running) -> tuple[Pool, Instance] | None:
        entry = self._entries.get(running.function)
        version = entry.versions.get(running.version) if entry is not None else None
        if entry is None or version is None or version.state is not VersionState.READY:
            await running.stop(0)
            return None
        pool = entry.pools.get(version.number)
        if pool is None:
            pool = entry.pools[version.number] = Pool(
                version, self._supervisor.wake, entry.on_change
            )
            self._supervisor.add(pool)
        instance = await self._supervisor.adopt(pool, running)
        return (pool, instance) if instance is not None else None

    def get(self, name: str) -> Entry:
        """`not_found`, with what there is, for an unknown name."""
        entry = self._entries.get(name)
        if entry is None or not entry.versions:
            raise CoveError(
                "not_found",
                f"there is no function {name}",
                hint="`cove list` shows what is deployed; `cove deploy` deploys",
            )
        return entry

    def all(self) -> list[Entry]:
        return [
            self._entries[name] for name in sorted(self._entries) if self._entries[name].versions
        ]

    def naming(self, secret: str) -> list[str]:
        """The functions whose live version names a secret."""
        live = [entry.version for entry in self.all() if entry.live is not None]
        return [version.function for version in live if secret in version.spec.secrets]

    # Deploying.

    async def deploy(
        self, packed: Path, *, name: str | None, fallback: str, progress: Progress
    ) -> str:
        """Make a version of an archive, start it, look at it, and let it go live.

        A version that fails leaves the old one serving: `CoveError` with the reason and, where
        the program ran, its own last lines.
        """
        async with self._pruning:
            self._deploying += 1
        folder = Path(tempfile.mkdtemp(dir=self._scratch))
        try:
            await asyncio.to_thread(
                archive.unpack,
                packed,
                folder,
                limit_bytes=_UNPACKED_BYTES,
                limit_files=_UNPACKED_FILES,
            )
            found = await asyncio.to_thread(source.read, folder, name=name, fallback=fallback)
            function = found.spec.name
            async with self._locks.setdefault(function, asyncio.Lock()):
                isolation = self._isolation(found.spec)
                self._require(function, found.spec.secrets)
                progress(_isolation_said(isolation, self._drivers[isolation].name))
                spec, plan = await python.plan(found, self._layers, progress)
                await self._release(spec, plan, isolation, progress)
            return function
        finally:
            self._deploying -= 1
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            await self._prune()

    def _isolation(self, spec: FunctionSpec) -> Isolation:
        if spec.isolation is not None:
            if spec.isolation not in self._drivers:
                raise CoveError(
                    "isolation_unavailable",
                    f"{spec.name} demands isolation = {spec.isolation!r}, which this Cove has not",
                    hint=_UNAVAILABLE[spec.isolation],
                )
            return spec.isolation
        return "container" if "container" in self._drivers else "process"

    async def _release(
        self, spec: FunctionSpec, plan: Plan, isolation: Isolation, progress: Progress
    ) -> None:
        version = await self._store.add_version(
            Version(
                function=spec.name,
                number=0,
                spec=spec,
                plan=plan,
                facts=Facts(),
                isolation=isolation,
                driver=self._drivers[isolation].name,
                state=VersionState.STARTING,
                created_at=clock.wall(),
            )
        )
        entry = self._entries.setdefault(spec.name, Entry(spec.name, version.created_at))
        entry.versions[version.number] = version
        pool = Pool(version, self._supervisor.wake, entry.on_change)
        entry.pools[version.number] = pool
        try:
            progress(f"starting {version.function}:{version.number}")
            facts = await self._first_start(pool)
            # Shielded: what is live in the store must not be failed here.
            version = await asyncio.shield(self._store.go_live(version, facts))
        except BaseException as error:
            reason = error.message if isinstance(error, CoveError) else "cancelled"
            try:
                await self._supervisor.remove(pool, CoveError("start_failed", reason))
            finally:
                entry.pools.pop(version.number, None)
                entry.versions[version.number] = await self._failed(version, reason)
            self._tell("version.failed", version, reason)
            raise
        entry.versions[version.number] = pool.version = version
        self._take_over(entry, pool, "deployed")

    def _take_over(self, entry: Entry, pool: Pool, reason: str) -> None:
        """The store has this version live; from here on so have requests."""
        old, entry.live = entry.live, pool.version.number
        self._go_live(entry, pool)
        if old is not None:
            self._supervisor.retire(entry.pools[old])
        self._tell("version.live", pool.version, reason)
        log.info("version live", function=entry.name, version=entry.live, reason=reason)

    def _tell(self, kind: EventKind, version: Version, reason: str) -> None:
        self._on_event(Event(clock.wall(), kind, version.function, version.number, reason=reason))

    async def _failed(self, version: Version, reason: str) -> Version:
        """The version as one that failed."""
        try:
            return await self._store.set_version(version, VersionState.FAILED, error=reason)
        except Exception:
            # The deploy's own error is the one to tell. A restart records this one.
            log.exception("a failed version was not recorded", version=version.number)
            return replace(version, state=VersionState.FAILED, error=reason)

    async def _first_start(self, pool: Pool) -> Facts:
        facts: list[Facts] = []

        async def look(instance: Instance) -> None:
            facts.append(await self._probe(instance, pool.version.spec))

        await self._supervisor.first(pool, look)
        return facts[0]

    def _go_live(self, entry: Entry, pool: Pool) -> None:
        busy = {n: p for n, p in entry.pools.items() if p.live or p.instances or p.waiting}
        entry.pools = {**busy, pool.version.number: pool}
        pool.live = True
        self._supervisor.add(pool)
        self._on_live(entry.name, pool)
        for listener in list(entry.on_change):
            listener()

    # Rolling back.

    async def rollback(self, name: str, number: int | None = None) -> tuple[Version, int | None]:
        """Let a version that worked go live again; it, and the number of the one it was before.

        Without a number, the newest below the live one. Nothing changes where it is live
        already. Sessions of the version that was live stay on their instances.
        """
        asked = self.get(name).live
        async with self._locks.setdefault(name, asyncio.Lock()), self._pruning:
            entry = self.get(name)
            was = entry.live
            if number is None and was != asked:
                raise CoveError(
                    "conflict",
                    f"version {was} of {name} has gone live meanwhile",
                    hint=f"say which one is wanted: `cove rollback {name} VERSION`",
                )
            version = rollback.choose(name, entry.versions, was, number)
            if version.number != was:
                await self._check_runs(version)
                await self._store.set_live(name, version.number)
                reason = f"rolled back from {was}" if was is not None else "rolled back"
                self._take_over(entry, self._pool_again(entry, version), reason)
            return version, was

    async def _check_runs(self, version: Version) -> None:
        """`CoveError` if this machine lacks what the version needs: it would be live and down."""
        if version.isolation not in self._drivers:
            raise CoveError(
                "isolation_unavailable",
                f"version {version.number} of {version.function} runs with isolation = "
                f"{version.isolation!r}, which this Cove has not",
                hint=_UNAVAILABLE[version.isolation],
            )
        await asyncio.to_thread(rollback.check_disk, version)
        self._require(version.function, version.spec.secrets)

    def _pool_again(self, entry: Entry, version: Version) -> Pool:
        """The pool that still has a version's instances, its failures forgotten; or a new one."""
        pool = entry.pools.get(version.number)
        if pool is None or not pool.instances:
            return Pool(version, self._supervisor.wake, entry.on_change)
        pool.retry_at, pool.setbacks, pool.stillborn, pool.failing = 0.0, 0, 0, None
        return pool

    # Removing.

    async def remove(self, name: str) -> None:
        """End a function: its records, route, sessions, instances and layers.

        A deploy of that name under way is waited for and removed; one that comes later makes a
        new function.
        """
        self.get(name)
        async with self._locks.setdefault(name, asyncio.Lock()):
            entry = self.get(name)  # another removal or deploy may have come between
            await self._store.remove_function(name)
            self._entries.pop(name, None)
            self._on_live(name, None)
            now = asyncio.get_running_loop().time()
            for session in self._sessions.of(name):
                self._sessions.end(session, now)
            gone = CoveError("not_found", f"the function {name} was removed")
            await asyncio.gather(*(self._supervisor.remove(p, gone) for p in entry.pools.values()))
            for listener in list(entry.on_change):
                listener()
            self._on_event(Event(clock.wall(), "function.removed", name))
        await self._prune()

    # Layers.

    async def _prune(self) -> None:
        # Shielded: who calls may be cancelled, a thread cannot.
        task = asyncio.create_task(self._prune_between_deploys())
        await asyncio.shield(task)

    async def _prune_between_deploys(self) -> None:
        async with self._pruning:  # no deploy begins meanwhile
            if self._deploying:  # its fresh layers are in no record yet; it prunes at its own end
                return
            try:
                gone = await asyncio.to_thread(self._layers.prune, self._layers_in_use())
            except OSError as error:
                log.warning("layers could not be removed", reason=str(error))
            else:
                log.debug("layers removed", count=len(gone))

    def _layers_in_use(self) -> set[str]:
        plans = [v.plan for entry in self._entries.values() for v in _kept(entry)]
        return {layer for plan in plans for layer in (plan.code, plan.deps) if layer}


def _kept(entry: Entry) -> list[Version]:
    """Versions whose layers stay: the newest, the newest that work, and those that run."""
    newest = sorted(entry.versions, reverse=True)
    working = [n for n in newest if entry.versions[n].state is VersionState.READY]
    kept = {*newest[:_KEPT], *working[:_KEPT], *entry.pools, entry.live}
    return [version for number, version in entry.versions.items() if number in kept]


def _isolation_said(isolation: Isolation, driver: str) -> str:
    if isolation == "process":
        return "isolation: process (isolates nothing: for development and trusted code only)"
    return f"isolation: {isolation} ({driver})"
