"""The supervisor: starts what is wanted, notices what ends, and says why what fails did."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cove.drivers.base import Launch
from cove.drivers.fake import FakeDriver, FakeRunning
from cove.engine.instance import Instance
from cove.engine.output import Outputs
from cove.engine.pool import Pool
from cove.engine.supervisor import Supervisor
from cove.errors import CoveError
from cove.events import Event
from cove.model import Facts, FunctionSpec, Isolation, Limits, Plan, Scale, Version
from cove.states import InstanceState, VersionState

BOUND = 5.0


def version(isolation: Isolation = "process", startup: float = 5.0, **scale: Any) -> Version:
    spec = FunctionSpec("fn", limits=Limits(startup=startup), scale=Scale(**scale))
    plan = Plan((), {}, "", None, None)
    return Version("fn", 1, spec, plan, Facts(), isolation, "fake", VersionState.READY, 0.0)


class Deaf(FakeDriver):
    """Its programs run but open no port."""

    async def start(self, launch: Launch) -> FakeRunning:
        running = await super().start(launch)
        running._server.end()
        os.write(launch.stdout, b"listening on the wrong port\n")
        return running


class Bench:
    def __init__(self, driver: FakeDriver, folder: Path) -> None:
        self.driver = driver
        self.events: list[Event] = []
        self.outputs = Outputs(folder / "output", lambda printed: None)
        self.supervisor = Supervisor(
            {"process": driver},
            outputs=self.outputs,
            parallel_starts=2,
            on_event=self.events.append,
        )
        self.loop = asyncio.create_task(self.supervisor.run())

    def pool(self, deployed: Version | None = None, *, live: bool = True) -> Pool:
        pool = Pool(deployed or version(), self.supervisor.wake)
        pool.live = live
        if live:
            self.supervisor.add(pool)
        return pool

    async def until(self, holds: Any) -> None:
        async with asyncio.timeout(BOUND):
            while not holds():
                await asyncio.sleep(0.005)

    async def close(self) -> None:
        self.loop.cancel()
        await self.supervisor.close()
        await self.driver.close()
        self.outputs.close()


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
async def bench(
    monkeypatch: pytest.MonkeyPatch, driver: FakeDriver, tmp_path: Path
) -> AsyncIterator[Bench]:
    monkeypatch.setattr("cove.engine.supervisor._TICK", 0.01)
    bench = Bench(driver, tmp_path)
    yield bench
    await bench.close()


async def nothing(instance: Instance) -> None:
    """A look that finds nothing wrong."""


async def test_a_first_start_is_looked_at_and_kept(bench: Bench) -> None:
    pool = bench.pool(live=False)
    seen: list[InstanceState] = []

    async def look(instance: Instance) -> None:
        seen.append(instance.state)
        assert instance.inflight == 1

    await bench.supervisor.first(pool, look)
    assert seen == [InstanceState.READY]
    assert [instance.inflight for instance in pool.ready] == [0]


async def test_a_first_start_that_fails_says_why(bench: Bench) -> None:
    bench.driver.fail_start = CoveError("start_failed", "no such file", hint="look", lines=["a"])
    pool = bench.pool(live=False)
    with pytest.raises(CoveError, match="no such file") as caught:
        await bench.supervisor.first(pool, nothing)
    error = caught.value
    assert (error.code, error.hint, error.lines) == ("deploy_failed", "look", ("a",))
    assert pool.instances == []


@pytest.mark.parametrize("driver", [Deaf()])
async def test_a_program_that_opens_no_port_is_told_so_in_its_own_words(bench: Bench) -> None:
    pool = bench.pool(version(startup=0.1), live=False)
    with pytest.raises(CoveError, match=r"opened no port within 0\.1 s") as caught:
        await bench.supervisor.first(pool, nothing)
    assert "$PORT" in caught.value.hint
    assert caught.value.lines == ("listening on the wrong port",)
    assert bench.driver.running == {}


async def test_a_look_that_fails_has_the_programs_lines(bench: Bench) -> None:
    async def look(instance: Instance) -> None:
        assert instance.output is not None
        for write in instance.output.open():
            os.write(write, b"what is this\n")
            os.close(write)
        raise CoveError("deploy_failed", "speaks no MCP")

    pool = bench.pool(live=False)
    with pytest.raises(CoveError) as caught:
        await bench.supervisor.first(pool, look)
    assert caught.value.lines == ("what is this", "what is this")


async def test_a_cancelled_first_start_leaves_nothing(bench: Bench) -> None:
    bench.driver.start_delay = 0.1
    pool = bench.pool(live=False)
    task = asyncio.create_task(bench.supervisor.first(pool, nothing))
    await bench.until(lambda: pool.starting)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await bench.until(lambda: not pool.instances and not bench.driver.running)


async def test_a_tier_that_is_not_there_is_said_to_who_waits(bench: Bench) -> None:
    pool = bench.pool(version("container"))
    with pytest.raises(CoveError, match="isolation = 'container'") as caught:
        await pool.wait(slot=False, timeout=BOUND)
    assert caught.value.code == "start_failed"


async def test_a_failing_minimum_is_not_retried_in_a_loop(bench: Bench) -> None:
    tries = 0
    start = bench.driver.start

    async def count(launch: Launch) -> FakeRunning:
        nonlocal tries
        tries += 1
        return await start(launch)

    bench.driver.start = count  # type: ignore[method-assign]
    bench.driver.fail_start = CoveError("start_failed", "never")
    bench.pool(version(min=1))
    await asyncio.sleep(0.2)
    assert tries == 1


async def test_a_minimum_that_ends_at_once_is_not_restarted_in_a_loop(bench: Bench) -> None:
    start = bench.driver.start

    async def brief(launch: Launch) -> FakeRunning:
        running = await start(launch)
        asyncio.get_running_loop().call_later(0.01, running.crash, 1)
        return running

    bench.driver.start = brief  # type: ignore[method-assign]
    bench.pool(version(min=1))
    await asyncio.sleep(0.5)
    assert 1 <= len(bench.driver.started) <= 10


async def test_failing_starts_beside_a_busy_instance_are_not_retried_in_a_loop(
    bench: Bench,
) -> None:
    pool = bench.pool(version(min=1, concurrency=1))
    await bench.until(lambda: pool.ready)
    assert pool.claim() is pool.ready[0]
    tries = 0

    async def fail(launch: Launch) -> FakeRunning:
        nonlocal tries
        tries += 1
        raise CoveError("start_failed", "no room")

    bench.driver.start = fail  # type: ignore[method-assign]
    waits = asyncio.create_task(pool.wait(slot=False, timeout=BOUND))
    await asyncio.sleep(0.2)
    assert tries == 1
    pool.release(pool.ready[0], 1.0)
    assert await waits is pool.ready[0]


async def test_a_setback_does_not_keep_idle_instances(bench: Bench) -> None:
    pool = bench.pool(version(idle=0.05))
    await pool.wait(slot=False, timeout=BOUND)
    pool.retry_at = asyncio.get_running_loop().time() + 60.0
    pool.release(pool.ready[0], asyncio.get_running_loop().time())
    await bench.until(lambda: not bench.driver.running)


async def test_removing_a_pool_ends_what_runs_and_what_starts(bench: Bench) -> None:
    pool = bench.pool(version(min=1))
    await bench.until(lambda: pool.ready)
    bench.driver.start_delay = 0.1
    waits = [asyncio.create_task(pool.wait(slot=True, timeout=BOUND)) for _ in range(30)]
    await bench.until(lambda: pool.starting)
    await bench.supervisor.remove(pool, CoveError("not_found", "removed"))
    assert pool.instances == []
    assert bench.driver.running == {}
    ends = await asyncio.gather(*waits, return_exceptions=True)
    assert all(isinstance(end, Instance | CoveError) for end in ends)


async def test_closing_ends_everything_and_starts_nothing_more(bench: Bench) -> None:
    pool = bench.pool(version(min=3))
    await bench.until(lambda: len(pool.ready) == 3)
    await bench.supervisor.close()
    assert (pool.instances, bench.driver.running) == ([], {})
    bench.supervisor.wake(pool)
    assert pool.instances == []


async def test_starts_at_one_time_are_bounded(bench: Bench) -> None:
    under_way = most = 0
    start = bench.driver.start

    async def watched(launch: Launch) -> FakeRunning:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        try:
            return await start(launch)
        finally:
            under_way -= 1

    bench.driver.start = watched  # type: ignore[method-assign]
    pool = bench.pool(version(min=8))
    await bench.until(lambda: len(pool.ready) == 8)
    assert most == 2


class Slow(FakeDriver):
    """Its programs run at once; those of the function `slow` open no port."""

    async def start(self, launch: Launch) -> FakeRunning:
        running = await super().start(launch)
        if launch.function == "slow":
            running._server.end()
        return running


@pytest.mark.parametrize("driver", [Slow()])
async def test_slow_starts_of_one_function_do_not_hold_up_anothers(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cove.engine.supervisor._TURN", 0.05)
    deployed = version(startup=60.0, min=20)
    slow = bench.pool(replace(deployed, function="slow"))
    await bench.until(lambda: len(slow.starting) == 2)
    other = bench.pool(version())
    assert (await other.wait(slot=False, timeout=1.0)).state is InstanceState.READY
    assert len(slow.starting) == 2  # and they are bounded while they last
    await asyncio.wait_for(bench.supervisor.close(), BOUND)
    assert (slow.instances, bench.driver.running) == ([], {})


@pytest.mark.parametrize("driver", [Deaf()])
async def test_closing_does_not_wait_for_a_first_start_that_never_opens(bench: Bench) -> None:
    pool = bench.pool(version(startup=60.0), live=False)
    deploying = asyncio.create_task(bench.supervisor.first(pool, nothing))
    await bench.until(lambda: bench.driver.running)
    await asyncio.wait_for(bench.supervisor.close(), 1.0)
    with pytest.raises(CoveError, match="stopping"):
        await asyncio.wait_for(deploying, 1.0)
    assert (pool.instances, bench.driver.running) == ([], {})
    with pytest.raises(CoveError, match="stopping"):
        await bench.supervisor.first(pool, nothing)
    assert (pool.instances, bench.driver.running) == ([], {})


async def test_closing_ends_an_instance_that_a_deploy_still_looks_at(bench: Bench) -> None:
    pool = bench.pool(live=False)
    looking = asyncio.Event()

    async def look(instance: Instance) -> None:
        looking.set()
        await asyncio.sleep(BOUND)

    deploying = asyncio.create_task(bench.supervisor.first(pool, look))
    await asyncio.wait_for(looking.wait(), BOUND)
    await asyncio.wait_for(bench.supervisor.close(), 1.0)
    assert (pool.instances, bench.driver.running) == ([], {})
    deploying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await deploying


async def test_closing_ends_a_start_that_has_not_begun(bench: Bench) -> None:
    pool = bench.pool(version(min=1))
    assert pool.starting
    async with asyncio.timeout(1.0):  # in this task: the start's own has not had its first step
        await bench.supervisor.close()
    assert (pool.instances, bench.driver.started) == ([], [])


# Programs that do not stay up.


class Brief(FakeDriver):
    """Its programs end as soon as they listen, until they are `mended`."""

    mended = False

    async def start(self, launch: Launch) -> FakeRunning:
        running = await super().start(launch)
        os.write(launch.stderr, b"no database\n")
        if not self.mended:
            asyncio.get_running_loop().call_soon(running.crash, 3)
        return running


async def ask(pool: Pool) -> CoveError | None:
    """One request, that is served at once where it can be."""
    try:
        instance = await pool.wait(slot=False, timeout=BOUND)
    except CoveError as error:
        return error
    pool.release(instance, asyncio.get_running_loop().time())
    return None


async def until_failing(bench: Bench, pool: Pool) -> None:
    async with asyncio.timeout(BOUND):
        while pool.failing is None:
            await ask(pool)


@pytest.mark.parametrize("driver", [Brief()])
async def test_a_loop_of_crashes_ends_in_failing_and_is_said_at_once(bench: Bench) -> None:
    pool = bench.pool()
    await until_failing(bench, pool)
    started = len(bench.driver.started)
    assert started <= 6
    error = await ask(pool)
    assert error is not None
    assert (error.code, error.lines) == ("failing", ("no database",))
    assert "exit code 3" in error.message
    assert "cove rollback fn" in error.hint
    assert len(bench.driver.started) == started  # nobody was made to wait for another start
    kinds = [event.kind for event in bench.events]
    assert kinds.count("version.failing") == 1
    assert kinds.count("instance.crashed") + kinds.count("instance.start_failed") == started


@pytest.mark.parametrize("driver", [Brief()])
async def test_what_is_failing_is_tried_again_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cove.engine.setbacks._FAILING_PAUSE", 0.05)
    pool = bench.pool()
    await until_failing(bench, pool)
    bench.driver.mended = True  # type: ignore[attr-defined]
    async with asyncio.timeout(BOUND):
        while await ask(pool):
            await asyncio.sleep(0.01)
    assert pool.failing is None


@pytest.mark.parametrize("driver", [Brief()])
async def test_a_new_version_is_not_failing(bench: Bench) -> None:
    await until_failing(bench, bench.pool())
    bench.driver.mended = True  # type: ignore[attr-defined]
    assert await ask(bench.pool()) is None


async def test_callers_who_end_their_instances_do_not_end_the_function(bench: Bench) -> None:
    pool = bench.pool()
    for _ in range(12):
        assert await ask(pool) is None
        for running in list(bench.driver.running.values()):
            running.crash(1)
        await bench.until(lambda: not pool.ready)
    assert pool.failing is None


# Instances of an earlier Cove.


async def test_an_instance_that_answers_is_adopted(bench: Bench) -> None:
    pool = bench.pool()
    assert await ask(pool) is None
    running = pool.ready[0].running
    assert running is not None
    pool.drop(pool.ready[0])
    instance = await bench.supervisor.adopt(pool, running)
    assert instance is not None
    assert (pool.ready, instance.started_by) == ([instance], "adopted")
    assert bench.driver.running[instance.id].throttled
    assert "instance.adopted" in [event.kind for event in bench.events]
    bench.driver.running[instance.id].crash(9)
    await bench.until(lambda: not pool.instances)


async def test_an_instance_that_does_not_answer_is_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cove.engine.supervisor._ADOPT", 0.05)
    pool = bench.pool()
    assert await ask(pool) is None
    running = bench.driver.running[pool.ready[0].id]
    pool.drop(pool.ready[0])
    running._server.end()
    assert await bench.supervisor.adopt(pool, running) is None
    assert (pool.instances, running.exited.done()) == ([], True)


async def test_closing_may_leave_instances_with_sessions(bench: Bench) -> None:
    pool = bench.pool(version(min=2))
    await bench.until(lambda: len(pool.ready) == 2)
    kept = pool.claim(slot=True)
    assert kept is not None
    pool.release(kept, asyncio.get_running_loop().time())
    await bench.supervisor.close(keep=True)
    assert list(bench.driver.running) == [kept.id]
