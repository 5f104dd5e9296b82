"""Going back: to which version, what must be there for it, and who stays where they are."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from cove.drivers.fake import FakeDriver
from cove.engine.functions import Functions
from cove.engine.instance import Instance
from cove.engine.output import Outputs
from cove.engine.pool import Pool
from cove.engine.sessions import Sessions
from cove.engine.supervisor import Supervisor
from cove.errors import CoveError
from cove.events import Event
from cove.model import Facts, FunctionSpec, Interpreter, Plan, Version
from cove.runtimes.layers import Layers
from cove.states import InstanceState, VersionState
from cove.store.memory import MemoryStore

BOUND = 5.0


class Bench:
    """Functions over the fake driver. Releases skip the building, but not the layers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = MemoryStore()
        self.driver = FakeDriver()
        self.live: dict[str, Pool] = {}
        self.events: list[Event] = []
        self.required: list[tuple[str, tuple[str, ...]]] = []
        self.unset: set[str] = set()
        self.refusal: CoveError | None = None
        self.outputs = Outputs(folder / "output", lambda printed: None)
        self.supervisor = Supervisor(
            {"process": self.driver}, outputs=self.outputs, parallel_starts=2
        )
        self.functions = Functions(
            store=self.store,
            layers=Layers(folder / "layers"),
            supervisor=self.supervisor,
            sessions=Sessions(),
            drivers={"process": self.driver},
            probe=self._look,
            on_live=lambda name, pool: self.live.update({name: pool} if pool else {}),
            scratch=folder,
            require=self._require,
            on_event=self.events.append,
        )

    async def _look(self, instance: Instance, spec: FunctionSpec) -> Facts:
        if self.refusal is not None:
            raise self.refusal
        return Facts()

    def _require(self, function: str, names: tuple[str, ...]) -> None:
        self.required.append((function, tuple(names)))
        if self.unset & set(names):
            raise CoveError("conflict", "not set", hint="cove secret set")

    async def release(self, **changes: object) -> Version:
        """A version with a code layer of its own."""
        number = len(self.functions._entries["fn"].versions) + 1 if self.functions.all() else 1
        code = self.folder / "layers" / f"code-{number}"
        code.mkdir()
        plan = Plan((), {}, str(code), None, None)
        spec = FunctionSpec("fn", **changes)  # type: ignore[arg-type]
        await self.functions._release(spec, plan, "process", lambda line: None)
        return self.functions.get("fn").versions[number]

    async def fails(self) -> None:
        self.refusal = CoveError("deploy_failed", "speaks no MCP")
        with pytest.raises(CoveError):
            await self.release()
        self.refusal = None

    async def back(self, number: int | None = None) -> tuple[int, int | None]:
        version, was = await self.functions.rollback("fn", number)
        return version.number, was

    async def refused(self, number: int | None = None) -> CoveError:
        with pytest.raises(CoveError) as caught:
            await self.back(number)
        assert caught.value.hint
        return caught.value

    async def is_live(self, number: int) -> bool:
        """In the store, in memory and for requests alike."""
        (kept,) = await self.store.functions()
        pool = self.live["fn"]
        assert kept.live == self.functions.get("fn").live == pool.version.number
        return kept.live == number and pool.live

    async def close(self) -> None:
        await self.supervisor.close()
        await self.driver.close()
        self.outputs.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


async def test_it_goes_back_to_the_newest_that_works_and_then_further(bench: Bench) -> None:
    await bench.release()
    await bench.release()
    await bench.fails()
    await bench.release()
    assert await bench.back() == (2, 4)
    assert await bench.is_live(2)
    assert await bench.back() == (1, 2)
    assert await bench.is_live(1)
    nothing = await bench.refused()
    assert nothing.code == "conflict"
    assert "no version below 1" in nothing.message
    assert await bench.is_live(1)


async def test_it_goes_to_the_version_that_is_named_forward_too(bench: Bench) -> None:
    for _ in range(3):
        await bench.release()
    assert await bench.back(1) == (1, 3)
    assert await bench.back(3) == (3, 1)
    assert await bench.is_live(3)
    told = [(e.kind, e.version, e.reason) for e in bench.events if e.kind == "version.live"]
    assert told[-2:] == [
        ("version.live", 1, "rolled back from 3"),
        ("version.live", 3, "rolled back from 1"),
    ]


async def test_to_the_live_version_is_no_change(bench: Bench) -> None:
    await bench.release()
    pool = bench.live["fn"]
    events = len(bench.events)
    assert await bench.back(1) == (1, 1)
    assert bench.live["fn"] is pool
    assert len(bench.events) == events


async def test_a_version_that_never_worked_is_refused_with_its_reason(bench: Bench) -> None:
    await bench.release()
    await bench.fails()
    refused = await bench.refused(2)
    assert refused.code == "conflict"
    assert "failed" in refused.message
    assert "speaks no MCP" in refused.message
    assert "no version 9 of fn" in (await bench.refused(9)).message
    with pytest.raises(CoveError) as unknown:
        await bench.functions.rollback("other")
    assert unknown.value.code == "not_found"
    assert await bench.is_live(1)


async def test_a_version_whose_layers_or_python_are_gone_is_refused(bench: Bench) -> None:
    first = await bench.release()
    await bench.release()
    shutil.rmtree(first.plan.code)
    gone = await bench.refused()
    assert gone.code == "conflict"
    assert "its code is no longer" in gone.message
    assert "deploy" in gone.hint
    (bench.folder / "layers" / "code-1").mkdir()
    away = Interpreter(str(bench.folder / "python3.9"), str(bench.folder), "3.9.1")
    entry = bench.functions.get("fn")
    entry.versions[1] = replace(first, plan=replace(first.plan, interpreter=away))
    assert "its Python is no longer" in (await bench.refused()).message
    assert await bench.is_live(2)


async def test_a_version_of_a_tier_that_is_not_here_is_refused(bench: Bench) -> None:
    first = await bench.release()
    await bench.release()
    bench.functions.get("fn").versions[1] = replace(first, isolation="container")
    assert (await bench.refused()).code == "isolation_unavailable"
    assert await bench.is_live(2)


async def test_a_version_whose_secrets_are_not_set_is_refused(bench: Bench) -> None:
    await bench.release(secrets=("A", "B"))
    await bench.release()
    bench.unset = {"B"}
    assert (await bench.refused()).message == "not set"
    assert bench.required[-1] == ("fn", ("A", "B"))
    assert await bench.is_live(2)
    bench.unset = set()
    assert await bench.back() == (1, 2)


async def test_functions_that_name_a_secret_are_those_whose_live_version_does(
    bench: Bench,
) -> None:
    await bench.release(secrets=("A",))
    assert bench.functions.naming("A") == ["fn"]
    assert bench.functions.naming("B") == []
    await bench.release()
    assert bench.functions.naming("A") == []
    await bench.back()
    assert bench.functions.naming("A") == ["fn"]


async def test_who_has_an_instance_keeps_it_and_its_pool_serves_again(bench: Bench) -> None:
    await bench.release()
    first = bench.live["fn"]
    held = first.claim(slot=True)
    assert held is not None
    await bench.release()
    second = bench.live["fn"]
    sitting = second.claim(slot=True)
    assert sitting is not None
    first.failing, first.retry_at, first.setbacks = CoveError("failing", "x"), 1e12, 5
    await bench.back()
    assert bench.live["fn"] is first
    assert (first.live, second.live) == (True, False)
    assert (first.failing, first.retry_at, first.setbacks) == (None, 0.0, 0)
    assert (held.state, sitting.state) == (InstanceState.READY, InstanceState.READY)
    assert set(bench.functions.get("fn").pools) == {1, 2}


async def test_a_version_without_instances_starts_one_for_who_comes(bench: Bench) -> None:
    await bench.release()
    first = bench.live["fn"]
    await bench.release()
    async with asyncio.timeout(BOUND):
        while first.instances:
            await asyncio.sleep(0.005)
    await bench.back()
    pool = bench.live["fn"]
    assert pool is not first
    instance = await pool.wait(slot=False, timeout=BOUND)
    assert instance.running is not None
    assert bench.driver.started[-1].version == 1


async def test_a_deploy_that_ends_while_it_waits_is_not_undone_unasked(bench: Bench) -> None:
    await bench.release()
    await bench.release()
    async with bench.functions._locks.setdefault("fn", asyncio.Lock()):
        unsaid = asyncio.create_task(bench.back())
        said = asyncio.create_task(bench.back(1))
        await asyncio.sleep(0)
        await bench.release()
    with pytest.raises(CoveError) as meanwhile:
        await unsaid
    assert meanwhile.value.code == "conflict"
    assert "version 3 of fn has gone live meanwhile" in meanwhile.value.message
    assert await said == (1, 3)


async def test_layers_are_not_removed_while_it_looks_for_them(bench: Bench) -> None:
    """An old version's layers may be on their way out: it finds them gone, or keeps them."""
    for _ in range(12):
        await bench.release()
    code = Path(bench.functions.get("fn").versions[1].plan.code)
    async with bench.functions._pruning:
        going = asyncio.create_task(bench.back(1))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not going.done()
        shutil.rmtree(code)
    with pytest.raises(CoveError, match="no longer on this machine"):
        await going
    assert await bench.is_live(12)


async def test_a_store_that_cannot_write_changes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.release()
    await bench.release()

    async def full(function: str, number: int) -> None:
        raise CoveError("internal", "disk full")

    monkeypatch.setattr(bench.store, "set_live", full)
    with pytest.raises(CoveError, match="disk full"):
        await bench.back()
    assert await bench.is_live(2)
    assert bench.functions.get("fn").versions[2].state is VersionState.READY
