"""A crash between any two steps of the engine loses nothing that was acknowledged.

A script of deploys, sessions, ends and removals is run again and again, and cut off before and
after each step that reaches beyond the process: a record written, an instance started or stopped,
a line of the ledger. What is cut off stays cut off: nothing of it acts any more. Then the next
engine takes over, and is asked for everything that had been promised.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cove.drivers.base import Exit, Launch, Usage
from cove.engine.functions import Functions
from cove.engine.instance import Instance
from cove.engine.ledger import LEDGER, Ledger
from cove.engine.output import Outputs
from cove.engine.pool import Pool
from cove.engine.recovery import recover
from cove.engine.sessions import Session, Sessions
from cove.engine.supervisor import Supervisor
from cove.errors import CoveError
from cove.model import Facts, FunctionSpec, Isolation, Plan, Scale, SessionPolicy
from cove.runtimes.layers import Layers
from cove.states import InstanceState, VersionState
from cove.store.memory import MemoryStore

NAMES = ("a", "b")
KEYS = ("k1", "k2", "k3")


class CutOffError(BaseException):
    """The process has been killed here."""


@dataclass
class Doom:
    """Counts steps, and kills at one of them. From then on nothing has an effect."""

    at: int | None = None
    steps: int = 0
    dead: bool = False

    def step(self) -> None:
        if self.dead:
            raise CutOffError
        self.steps += 1
        if self.steps == self.at:
            self.dead = True
            raise CutOffError


class Doomed:
    """Something beyond the process: a step before each call of it, and one after."""

    def __init__(self, real: Any, doom: Doom) -> None:
        self._real = real
        self._doom = doom

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._real, name)
        if not callable(value) or name.startswith("_"):
            return value
        if inspect.iscoroutinefunction(value):

            async def later(*args: Any, **kwargs: Any) -> Any:
                self._doom.step()
                done = await value(*args, **kwargs)
                self._doom.step()
                return done

            return later

        def at_once(*args: Any, **kwargs: Any) -> Any:
            self._doom.step()
            done = value(*args, **kwargs)
            self._doom.step()
            return done

        return at_once


class Program:
    """An instance, which lives whether or not an engine does."""

    pid = 1

    def __init__(self, launch: Launch, home: dict[str, Program]) -> None:
        self.id, self.function, self.version = launch.id, launch.function, launch.version
        self.started_at = 0.0
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.home = home
        home[self.id] = self

    async def connect(self) -> socket.socket:
        if self.exited.done():
            raise ConnectionRefusedError
        near, far = socket.socketpair()
        far.close()
        return near

    async def stop(self, grace: float) -> Exit:
        self.end(Exit(signal=15))
        return self.exited.result()

    def end(self, how: Exit) -> None:
        self.home.pop(self.id, None)
        if not self.exited.done():
            self.exited.set_result(how)

    def throttle(self) -> None: ...

    def usage(self) -> Usage:
        return Usage(0.0, 0)

    def ports(self) -> list[int]:
        return [1]


class Host:
    """The driver, and the machine: what it started is there for the next one."""

    name = "fake"
    isolation: Isolation = "process"

    def __init__(self, home: dict[str, Program], doom: Doom) -> None:
        self._home = home
        self._doom = doom

    async def start(self, launch: Launch) -> Any:
        self._doom.step()
        program = Program(launch, self._home)
        self._doom.step()
        return Doomed(program, self._doom)

    async def adopt(self) -> Sequence[Any]:
        self._doom.step()
        return [Doomed(program, self._doom) for program in self._home.values()]

    async def close(self, *, keep: bool = False) -> None: ...


@dataclass
class Promised:
    """What callers have been told: live versions, running sessions and their instances."""

    live: dict[str, int] = field(default_factory=dict)
    maybe_live: dict[str, int | None] = field(default_factory=dict)
    sessions: dict[tuple[str, str], str] = field(default_factory=dict)
    unsure: set[tuple[str, str]] = field(default_factory=set)


class Engine:
    """One process's worth of engine, over what outlives it."""

    def __init__(self, world: World, doom: Doom) -> None:
        self.world = world
        self.doom = doom
        self.ledger = Ledger(world.folder / LEDGER)
        self.store = Doomed(world.store, doom)
        self.sessions = Sessions(Doomed(self.ledger, doom).note)
        self.outputs = Outputs(world.folder / "output", lambda printed: None)
        self.driver = Host(world.home, doom)
        drivers: Any = {"process": self.driver}
        self.supervisor = Supervisor(drivers, outputs=self.outputs, parallel_starts=2)
        self.functions = Functions(
            store=self.store,  # type: ignore[arg-type]
            layers=Layers(world.folder / "layers"),
            supervisor=self.supervisor,
            sessions=self.sessions,
            drivers=drivers,
            probe=self._look,
            on_live=lambda name, pool: None,
            scratch=world.folder,
        )

    async def _look(self, instance: Instance, spec: FunctionSpec) -> Facts:
        if self.world.refuses:
            raise CoveError("deploy_failed", "it speaks nothing")
        return Facts()

    async def begin(self) -> None:
        self.supervisor.pause()
        await self.functions.load()
        await recover(
            drivers=[self.driver],  # type: ignore[list-item]
            functions=self.functions,
            sessions=self.sessions,
            outputs=self.outputs,
            store=self.store,  # type: ignore[arg-type]
            ledger=Doomed(self.ledger, self.doom),  # type: ignore[arg-type]
            on_event=lambda event: None,
        )
        self.supervisor.resume()

    async def cut_off(self) -> None:
        """Whatever this engine still has under way comes to nothing."""
        self.doom.dead = True
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()  # again and again: some have something to undo first
            await asyncio.sleep(0)
        for instance in list(self.supervisor._every):
            if instance.output is not None:
                instance.output.release()
        self.outputs.close()
        self.ledger.close()

    def pool(self, name: str) -> Pool | None:
        with contextlib.suppress(CoveError):
            entry = self.functions.get(name)
            return entry.pools.get(entry.live) if entry.live is not None else None
        return None

    async def flush(self) -> None:
        changed = self.sessions.take_changed()
        ledger = Doomed(self.ledger, self.doom)
        ledger.turn()
        await self.store.put_sessions(changed)
        ledger.settle()


Op = tuple[str, str, str]


class World:
    """What outlives every engine, and the script that is run on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = MemoryStore()
        self.home: dict[str, Program] = {}
        self.refuses = False
        self.promised = Promised()

    async def live(self, engine: Engine, script: Sequence[Op]) -> None:
        await engine.begin()
        await self.run(engine, script)

    async def run(self, engine: Engine, script: Sequence[Op]) -> None:
        for what, name, key in script:
            step: Callable[[Engine, str, str], Awaitable[None]] = getattr(self, what)
            await step(engine, name, key)

    # What callers do. Each tells `promised` before what it may have done, after what it has.

    async def deploy(self, engine: Engine, name: str, key: str) -> None:
        plan = Plan((), {}, "", None, None)
        spec = FunctionSpec(name, scale=Scale(max=3), session=SessionPolicy(per_instance=2))
        numbers = [version.number for version in await self.store.versions(name)]
        self.promised.maybe_live[name] = max(numbers, default=0) + 1
        await engine.functions._release(spec, plan, "process", lambda line: None)
        self.promised.live[name] = engine.functions.get(name).live or 0
        del self.promised.maybe_live[name]

    async def bad_deploy(self, engine: Engine, name: str, key: str) -> None:
        self.refuses = True
        with contextlib.suppress(CoveError):
            await self.deploy(engine, name, key)
        self.refuses = False
        self.promised.maybe_live.pop(name, None)

    async def open(self, engine: Engine, name: str, key: str) -> None:
        pool = engine.pool(name)
        if pool is None or (name, key) in self.promised.sessions:
            return
        now = asyncio.get_running_loop().time()
        self.promised.unsure.add((name, key))
        session = engine.sessions.open(pool, "p", key, now)
        session.remote = b"r"
        instance = pool.claim(slot=True) or await pool.wait(slot=True, timeout=5.0)
        engine.sessions.place(session, instance)
        pool.release(instance, now)
        self.promised.unsure.discard((name, key))
        self.promised.sessions[name, key] = instance.id

    async def end(self, engine: Engine, name: str, key: str) -> None:
        session = engine.sessions.get(name, "p", key)
        if session is None:
            return
        self.promised.unsure.add((name, key))
        engine.sessions.end(session, asyncio.get_running_loop().time())
        self.promised.unsure.discard((name, key))
        self.promised.sessions.pop((name, key), None)

    async def crash(self, engine: Engine, name: str, key: str) -> None:
        """An instance of the function ends by itself."""
        victims = [program for program in self.home.values() if program.function == name]
        for program in victims[:1]:
            self._forget(program)
            program.end(Exit(signal=9))
        await asyncio.sleep(0)

    def _forget(self, program: Program) -> None:
        gone = [who for who, where in self.promised.sessions.items() if where == program.id]
        for who in gone:
            del self.promised.sessions[who]

    async def remove(self, engine: Engine, name: str, key: str) -> None:
        if name not in self.promised.live:
            return
        self.promised.maybe_live[name] = None
        self.promised.unsure |= {who for who in self.promised.sessions if who[0] == name}
        await engine.functions.remove(name)
        del self.promised.live[name]
        del self.promised.maybe_live[name]
        for who in [who for who in self.promised.sessions if who[0] == name]:
            del self.promised.sessions[who]
        self.promised.unsure = {who for who in self.promised.unsure if who[0] != name}

    async def flush(self, engine: Engine, name: str, key: str) -> None:
        await engine.flush()

    # What must hold when the next engine has taken over.

    async def check(self, engine: Engine) -> None:
        self._check_functions(engine)
        self._check_instances(engine)
        self._check_sessions(engine)
        await engine.flush()
        kept = {record.id: record for record in await self.store.sessions()}
        assert set(kept) == {session.id for session in engine.sessions.of()}

    def _check_functions(self, engine: Engine) -> None:
        found = {entry.name: entry.live for entry in engine.functions.all()}
        for name in NAMES:
            may = {self.promised.live.get(name)}
            if name in self.promised.maybe_live:
                may.add(self.promised.maybe_live[name])
            assert found.get(name) in may, (name, found, may)
        for entry in engine.functions.all():
            states = {version.state for version in entry.versions.values()}
            assert VersionState.STARTING not in states

    def _check_instances(self, engine: Engine) -> None:
        """All that runs is known, and all that is known runs and is ready."""
        known = {i.id: i for entry in engine.functions.all() for _, i in entry.instances}
        assert set(known) == set(self.home)
        serving = [i for i in known.values() if i.slots or i.state is not InstanceState.DRAINING]
        assert {i.state for i in serving} <= {InstanceState.READY}
        for instance in known.values():
            assert instance.slots == sum(s.instance is instance for s in engine.sessions.of())

    def _check_sessions(self, engine: Engine) -> None:
        going_on: dict[tuple[str, str], Session] = {
            (session.pool.version.function, session.key): session
            for session in engine.sessions.of()
        }
        sure = {
            who: where
            for who, where in self.promised.sessions.items()
            if who not in self.promised.unsure and where in self.home
        }
        for who, where in sure.items():
            assert who in going_on, f"{who} is lost"
            assert going_on[who].instance is not None
            assert going_on[who].instance.id == where  # type: ignore[union-attr]
            assert going_on[who].remote == b"r"
        assert set(going_on) <= set(sure) | self.promised.unsure


async def until_cut_off(script: Sequence[Op], at: int | None) -> int:
    """Run the script to its end, or to step `at`; then take over, check, and go on with it all.

    How many steps there were.
    """
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        doom = Doom(at)
        engine = Engine(world, doom)
        living = asyncio.ensure_future(world.live(engine, script))
        while not living.done() and not doom.dead:
            await asyncio.sleep(0)
        if not doom.dead:
            living.result()
        await engine.cut_off()
        world.refuses = False
        following = Engine(world, Doom())
        await following.begin()
        await world.check(following)
        world.promised.maybe_live.clear()
        world.promised.unsure.clear()
        world.promised.live = {e.name: e.live or 0 for e in following.functions.all() if e.live}
        world.promised.sessions = {
            (s.pool.version.function, s.key): s.instance.id
            for s in following.sessions.of()
            if s.instance is not None
        }
        await world.run(following, script)  # and it works as if nothing had been
        await following.cut_off()
        last = Engine(world, Doom())
        await last.begin()
        await world.check(last)
        await last.cut_off()
        return doom.steps


OPS = ("deploy", "open", "open", "open", "end", "crash", "flush", "bad_deploy", "remove")
SCRIPTS = st.lists(
    st.tuples(st.sampled_from(OPS), st.sampled_from(NAMES), st.sampled_from(KEYS)), max_size=6
).map(lambda some: [("deploy", "a", "k1"), ("open", "a", "k1"), *some])


@settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(SCRIPTS)
def test_nothing_acknowledged_is_lost_wherever_the_process_is_cut_off(script: list[Op]) -> None:
    steps = asyncio.run(until_cut_off(script, None))
    assert steps > 10
    for at in range(1, steps + 1):
        asyncio.run(until_cut_off(script, at))


EVERYTHING: list[Op] = [
    ("deploy", "a", ""),
    ("open", "a", "k1"),
    ("flush", "", ""),
    ("open", "a", "k2"),
    ("open", "a", "k3"),
    ("deploy", "a", ""),
    ("end", "a", "k2"),
    ("deploy", "b", ""),
    ("open", "b", "k1"),
    ("bad_deploy", "b", ""),
    ("crash", "a", ""),
    ("flush", "", ""),
    ("remove", "b", ""),
]


def test_the_same_with_a_script_that_does_everything() -> None:
    steps = asyncio.run(until_cut_off(EVERYTHING, None))
    for at in range(1, steps + 1):
        asyncio.run(until_cut_off(EVERYTHING, at))
