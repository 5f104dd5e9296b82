"""Functions: a version goes live when it is ready, and not before; what is removed is gone."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator
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
from cove.model import Facts, FunctionSpec, Plan, Scale, Version
from cove.runtimes.layers import Layers
from cove.states import VersionState
from cove.store.memory import MemoryStore

BOUND = 5.0


class Bench:
    """Functions over the fake driver; releases skip the building that runtimes do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = MemoryStore()
        self.driver = FakeDriver()
        self.live: dict[str, Pool] = {}
        self.refusal: CoveError | None = None
        self.begin()

    def begin(self) -> None:
        """As after a restart of Cove: only the store remembers."""
        self.sessions = Sessions()
        self.outputs = Outputs(self.folder / "output", lambda printed: None)
        self.supervisor = Supervisor(
            {"process": self.driver}, outputs=self.outputs, parallel_starts=2
        )
        self.functions = Functions(
            store=self.store,
            layers=Layers(self.folder / "layers"),
            supervisor=self.supervisor,
            sessions=self.sessions,
            drivers={"process": self.driver},
            probe=self._look,
            on_live=self._on_live,
            scratch=self.folder,
        )

    async def _look(self, instance: Instance, spec: FunctionSpec) -> Facts:
        if self.refusal is not None:
            raise self.refusal
        return Facts(path="/seen")

    def _on_live(self, name: str, pool: Pool | None) -> None:
        if pool is None:
            self.live.pop(name)
        else:
            self.live[name] = pool

    async def release(self, name: str = "fn", **scale: int) -> None:
        spec = FunctionSpec(name, scale=Scale(**scale))
        plan = Plan((), {}, "", None, None)
        await self.functions._release(spec, plan, "process", lambda line: None)

    async def close(self) -> None:
        await self.supervisor.close()
        await self.driver.close()
        self.outputs.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


async def test_a_version_that_is_ready_goes_live_with_what_was_seen(bench: Bench) -> None:
    await bench.release()
    pool = bench.live["fn"]
    assert (pool.version.number, pool.version.state) == (1, VersionState.READY)
    assert pool.version.facts.path == "/seen"
    assert [f.live for f in await bench.store.functions()] == [1]


@pytest.mark.parametrize("phase", ["start", "look"])
async def test_a_version_that_fails_leaves_the_old_one_serving(bench: Bench, phase: str) -> None:
    await bench.release()
    old = bench.live["fn"]
    failure = CoveError("start_failed", "it broke", lines=["boom"])
    if phase == "start":
        bench.driver.fail_start = failure
    else:
        bench.refusal = failure
    with pytest.raises(CoveError, match="it broke") as caught:
        await bench.release()
    assert caught.value.lines == ("boom",)
    entry = bench.functions.get("fn")
    assert bench.live["fn"] is old
    assert (old.live, entry.live, entry.pools) == (True, 1, {1: old})
    assert (entry.versions[2].state, entry.versions[2].error) == (VersionState.FAILED, "it broke")
    assert {
        launch.version for launch in bench.driver.started if launch.id in bench.driver.running
    } <= {1}


async def test_a_version_that_cannot_be_recorded_does_not_run_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(version: Version, facts: Facts) -> Version:
        raise CoveError("internal", "disk full")

    monkeypatch.setattr(bench.store, "go_live", full)
    with pytest.raises(CoveError, match="disk full"):
        await bench.release()
    assert (bench.live, bench.driver.running) == ({}, {})
    assert bench.functions.get("fn").pools == {}


async def test_a_cancelled_release_leaves_nothing_running(bench: Bench) -> None:
    bench.driver.start_delay = 0.1
    task = asyncio.create_task(bench.release())
    async with asyncio.timeout(BOUND):
        while not bench.functions._entries:
            await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.functions.get("fn").versions[1].state is VersionState.FAILED
    await bench.supervisor.close()
    assert bench.driver.running == {}


async def test_a_tier_that_is_not_offered_is_refused_with_the_next_step(bench: Bench) -> None:
    bench.functions._drivers = {"container": bench.driver}
    assert bench.functions._isolation(FunctionSpec("fn", isolation="container")) == "container"
    with pytest.raises(CoveError) as refused:
        bench.functions._isolation(FunctionSpec("fn", isolation="process"))
    assert refused.value.code == "isolation_unavailable"
    assert "--driver process" in refused.value.hint


async def test_many_releases_leave_no_pools_behind(bench: Bench) -> None:
    for _ in range(5):
        await bench.release()
        async with asyncio.timeout(BOUND):
            while len(bench.driver.running) > 1:
                await asyncio.sleep(0.005)
    entry = bench.functions.get("fn")
    assert len(entry.pools) <= 2
    assert entry.pools[5] is bench.live["fn"]
    assert len(entry.versions) == 5


async def test_removing_ends_instances_sessions_and_records(bench: Bench) -> None:
    await bench.release()
    pool = bench.live["fn"]
    session = bench.sessions.open(pool, "alice", "k", 0.0)
    instance = pool.claim(slot=True)
    assert instance is not None
    bench.sessions.place(session, instance)
    await bench.functions.remove("fn")
    assert (bench.live, bench.driver.running, bench.sessions.of()) == ({}, {}, [])
    assert await bench.store.functions() == []
    with pytest.raises(CoveError, match="no function fn"):
        bench.functions.get("fn")
    with pytest.raises(CoveError, match="no function fn"):
        await bench.functions.remove("fn")


async def test_removed_deployed_and_removed_again_at_once_leaves_nothing(bench: Bench) -> None:
    await bench.release()
    lock = bench.functions._locks.setdefault("fn", asyncio.Lock())
    await lock.acquire()
    removals = [asyncio.create_task(bench.functions.remove("fn"))]
    await asyncio.sleep(0)

    async def again() -> None:  # as `deploy` does, in its turn
        async with lock:
            await bench.release()

    deploying = asyncio.create_task(again())
    await asyncio.sleep(0)
    removals.append(asyncio.create_task(bench.functions.remove("fn")))
    await asyncio.sleep(0)
    lock.release()
    async with asyncio.timeout(BOUND):
        await asyncio.gather(*removals, deploying)
    assert (bench.live, bench.driver.running) == ({}, {})
    assert (bench.functions.all(), await bench.store.functions()) == ([], [])
    await bench.release()
    assert bench.live["fn"].version.number == 1


async def test_a_removal_that_cannot_be_recorded_changes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(name: str) -> None:
        raise CoveError("internal", "disk full")

    await bench.release()
    monkeypatch.setattr(bench.store, "remove_function", full)
    with pytest.raises(CoveError, match="disk full"):
        await bench.functions.remove("fn")
    assert bench.live["fn"].ready
    assert bench.functions.get("fn").live == 1


async def test_a_full_disk_leaves_no_instance_and_says_the_first_reason(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*args: object, **more: object) -> None:
        raise CoveError("internal", "disk full")

    monkeypatch.setattr(bench.store, "set_version", full)
    bench.refusal = CoveError("deploy_failed", "speaks no MCP")
    with pytest.raises(CoveError, match="speaks no MCP"):
        await bench.release()
    entry = bench.functions.get("fn")
    assert (bench.driver.running, entry.pools) == ({}, {})
    assert entry.versions[1].state is VersionState.FAILED


def packed(folder: Path, text: str) -> Path:
    files = {
        "server.py": f"# {text}\n".encode(),
        "cove.toml": b'name = "fn"\nkind = "web"\ncommand = "python server.py"\n',
    }
    path = folder / "packed.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return path


async def test_layers_of_old_versions_are_let_go_and_a_deploys_own_never(
    bench: Bench, tmp_path: Path
) -> None:
    async def deploy(text: str) -> None:
        sent = packed(tmp_path, text)
        await bench.functions.deploy(sent, name=None, fallback="fn", progress=lambda line: None)

    held: Instance | None = None
    for n in range(14):
        await deploy(str(n))
        if n == 1:  # a request that stays on an old version
            held = bench.live["fn"].claim()
    assert held is not None
    versions = bench.functions.get("fn").versions
    there = [n for n, v in versions.items() if Path(v.plan.code).is_dir()]
    assert sorted(versions) == list(range(1, 15))
    assert [n for n in there if n != 2] == list(range(5, 15))
    assert 2 in there
    async with bench.functions._pruning:
        waits = asyncio.create_task(deploy("while layers are removed"))
        await asyncio.sleep(0.05)
        assert bench.functions._deploying == 0
    async with asyncio.timeout(BOUND):
        await waits
    bench.functions._deploying += 1  # another deploy is under way
    await bench.functions.remove("fn")
    assert Path(versions[14].plan.code).is_dir()
    bench.functions._deploying -= 1
    await bench.functions._prune()
    assert not Path(versions[14].plan.code).is_dir()


async def test_a_restart_serves_what_was_live_and_fails_what_was_half_done(bench: Bench) -> None:
    await bench.release()
    version = bench.functions.get("fn").versions[1]
    half = await bench.store.add_version(
        type(version)(
            *("fn", 0, version.spec, version.plan, Facts(), "process", "fake"),
            VersionState.STARTING,
            1.0,
        )
    )
    await bench.supervisor.close()
    bench.live.clear()
    bench.begin()
    await bench.functions.load()
    assert bench.live["fn"].version.number == 1
    assert bench.functions.get("fn").versions[half.number].state is VersionState.FAILED
    assert bench.driver.running == {}
    instance = await bench.live["fn"].wait(slot=False, timeout=BOUND)
    assert instance.id in bench.driver.running
