"""A pool's accounting: whatever happens, what was claimed comes back."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cove.engine.instance import Instance
from cove.engine.pool import Pool
from cove.errors import CoveError
from cove.model import (
    Facts,
    FunctionSpec,
    Plan,
    Scale,
    SessionPolicy,
    Version,
)
from cove.states import IllegalMoveError, InstanceState, VersionState


def version(
    scale: Mapping[str, Any] | None = None, session: Mapping[str, Any] | None = None
) -> Version:
    spec = FunctionSpec(
        "fn", scale=Scale(**(scale or {})), session=SessionPolicy(**(session or {}))
    )
    return Version(
        *("fn", 1, spec, Plan((), {}, "", None, None), Facts(), "process", "fake"),
        VersionState.READY,
        0.0,
    )


class Bench:
    """A pool whose autoscaler is the test."""

    def __init__(self, *, session: Mapping[str, Any] | None = None, **scale: Any) -> None:
        self.woken = 0
        self.pool = Pool(version(scale, session), self._wake)

    def _wake(self, pool: Pool) -> None:
        self.woken += 1

    def ready(self, ident: str = "i1") -> Instance:
        instance = Instance(ident, started_at=0.0, started_by="test")
        self.pool.starting.append(instance)
        self.pool.became_ready(instance, 0.0)
        return instance

    def crash(self, instance: Instance) -> None:
        self.pool.drop(instance)
        if instance.state is not InstanceState.STOPPED:
            instance.move(InstanceState.STOPPED)


def test_a_claim_takes_room_and_a_release_gives_it_back() -> None:
    bench = Bench(concurrency=2)
    assert bench.pool.claim() is None
    instance = bench.ready()
    assert [bench.pool.claim() for _ in range(3)] == [instance, instance, None]
    bench.pool.release(instance, 5.0)
    assert (instance.inflight, instance.idle_since) == (1, 5.0)
    assert bench.pool.claim() is instance


def test_a_slot_outlives_the_claim_that_took_it() -> None:
    bench = Bench(session={"per_instance": 1})
    instance = bench.ready()
    assert bench.pool.claim(slot=True) is instance
    bench.pool.release(instance, 1.0)
    assert (instance.inflight, instance.slots) == (0, 1)
    assert bench.pool.claim(slot=True) is None
    assert bench.pool.demand(9.0).idle == []
    bench.pool.free_slot(instance, 2.0)
    assert bench.pool.demand(9.0).idle == [("i1", 7.0)]
    assert bench.pool.claim(slot=True) is instance


def test_a_session_claims_on_its_own_instance_only_while_it_serves() -> None:
    bench = Bench(concurrency=1)
    instance = bench.ready()
    assert bench.pool.claim_on(instance)
    assert not bench.pool.claim_on(instance)
    bench.pool.release(instance, 1.0)
    bench.crash(instance)
    assert not bench.pool.claim_on(instance)


async def test_who_waits_is_served_in_turn() -> None:
    bench = Bench(concurrency=1)
    served: list[int] = []

    async def visit(number: int) -> None:
        instance = await bench.pool.wait(slot=False, timeout=5)
        served.append(number)
        bench.pool.release(instance, 1.0)

    tasks = [asyncio.create_task(visit(n)) for n in range(5)]
    while bench.pool.waiting < 5:
        await asyncio.sleep(0)
    assert bench.woken == 5
    bench.ready()
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    assert served == [0, 1, 2, 3, 4]
    assert bench.pool.waiting == 0


async def test_a_full_queue_turns_away_at_once() -> None:
    bench = Bench(queue=2)
    tasks = [asyncio.create_task(bench.pool.wait(slot=False, timeout=5)) for _ in range(2)]
    while bench.pool.waiting < 2:
        await asyncio.sleep(0)
    with pytest.raises(CoveError, match="2 requests waiting") as caught:
        await bench.pool.wait(slot=True, timeout=5)
    assert (caught.value.code, caught.value.retry) == ("overloaded", True)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert bench.pool.waiting == 0


async def test_a_wait_ends_after_its_time() -> None:
    bench = Bench()
    with pytest.raises(CoveError, match=r"within 0\.01 s"):
        await bench.pool.wait(slot=True, timeout=0.01)
    assert bench.pool.waiting == 0


async def test_an_instance_that_comes_with_the_end_of_the_wait_is_not_lost() -> None:
    bench = Bench(concurrency=1)
    instance = bench.ready()
    taken = bench.pool.claim()
    assert taken is instance
    loop = asyncio.get_running_loop()
    wait = asyncio.create_task(bench.pool.wait(slot=False, timeout=0.05))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    # Block the loop past the end of the wait, then give the instance free in the same turn.
    end = loop.time() + 0.06

    def late() -> None:
        while loop.time() < end:
            pass
        bench.pool.release(instance, 1.0)

    loop.call_soon(late)
    with contextlib.suppress(CoveError):
        assert await wait is instance
        bench.pool.release(instance, 1.0)
    assert instance.inflight == 0


async def test_an_instance_that_comes_with_a_cancellation_is_not_lost() -> None:
    bench = Bench(session={"per_instance": 1})
    wait = asyncio.create_task(bench.pool.wait(slot=True, timeout=5))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    instance = bench.ready()
    assert (instance.inflight, instance.slots) == (1, 1)
    wait.cancel()
    with pytest.raises(asyncio.CancelledError):
        await wait
    assert (instance.inflight, instance.slots) == (0, 0)


async def test_a_cancelled_wait_passes_its_instance_to_the_next() -> None:
    bench = Bench(concurrency=1)
    first = asyncio.create_task(bench.pool.wait(slot=False, timeout=5))
    second = asyncio.create_task(bench.pool.wait(slot=False, timeout=5))
    while bench.pool.waiting < 2:
        await asyncio.sleep(0)
    instance = bench.ready()
    first.cancel()
    assert await asyncio.wait_for(second, 5) is instance
    assert instance.inflight == 1


async def test_everyone_who_waits_hears_why_there_is_nothing() -> None:
    bench = Bench()
    waits = [asyncio.create_task(bench.pool.wait(slot=s, timeout=5)) for s in (True, False)]
    while bench.pool.waiting < 2:
        await asyncio.sleep(0)
    bench.pool.fail_waiting(CoveError("start_failed", "no such program"))
    for end in await asyncio.gather(*waits, return_exceptions=True):
        assert isinstance(end, CoveError)
        assert end.code == "start_failed"
    assert bench.pool.waiting == 0


async def test_readiness_is_told_to_who_listens() -> None:
    heard: list[str] = []
    pool = Pool(version(), lambda pool: None, {lambda: heard.append("ready")})
    instance = Instance("i1", started_at=0.0, started_by="test")
    pool.starting.append(instance)
    pool.became_ready(instance, 1.0)
    assert heard == ["ready"]


def test_stopping_is_told_once_and_wrong_moves_have_a_name() -> None:
    bench = Bench()
    instance = bench.ready()
    heard: list[str] = []
    instance.on_stopping.add(lambda: heard.append("stopping"))
    instance.move(InstanceState.DRAINING)
    instance.move(InstanceState.STOPPED)
    assert heard == ["stopping"]
    assert instance.on_stopping == set()
    with pytest.raises(IllegalMoveError, match="stopped to ready"):
        instance.move(InstanceState.READY)


def test_a_pool_says_how_it_is() -> None:
    bench = Bench()
    instance = bench.ready()
    bench.pool.claim(slot=True)
    assert repr(bench.pool) == "<Pool fn:1 [1 running, 0 waiting | 1 ready, 0 starting]>"
    assert repr(instance) == "<Instance i1 ready [1 requests, 1 sessions]>"


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                *("claim", "slot", "wait", "wait slot", "release", "free"),
                *("cancel", "ready", "crash", "claim on", "turn"),
            ]
        ),
        max_size=80,
    ),
    st.integers(0, 2**32),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_after_any_story_nothing_is_claimed_and_nobody_waits(  # noqa: C901
    story: list[str], seed: int, concurrency: int, per_instance: int
) -> None:
    async def play() -> None:  # noqa: C901
        chance = random.Random(seed)
        bench = Bench(concurrency=concurrency, session={"per_instance": per_instance})
        pool = bench.pool
        every: list[Instance] = []
        claims: list[Instance] = []
        slots: list[Instance] = []
        waits: list[asyncio.Task[None]] = []
        begun: list[asyncio.Task[None]] = []

        def took(instance: Instance | None, slot: bool) -> None:
            if instance is not None:
                claims.append(instance)
                if slot:
                    slots.append(instance)

        async def wait(slot: bool) -> None:
            with contextlib.suppress(CoveError):
                took(await pool.wait(slot=slot, timeout=60), slot)

        def pick(items: list[Any]) -> Any:
            return items.pop(chance.randrange(len(items)))

        for what in story:
            if what in ("claim", "slot"):
                took(pool.claim(slot=what == "slot"), what == "slot")
            elif what in ("wait", "wait slot"):
                waits.append(asyncio.create_task(wait(what == "wait slot")))
                begun.append(waits[-1])
            elif what == "release" and claims:
                pool.release(pick(claims), 1.0)
            elif what == "free" and slots:
                pool.free_slot(pick(slots), 1.0)
            elif what == "cancel" and waits:
                pick(waits).cancel()
            elif what == "ready":
                every.append(bench.ready(f"i{len(every)}"))
            elif what == "crash" and pool.ready:
                bench.crash(chance.choice(pool.ready))
            elif what == "claim on" and every:
                instance = chance.choice(every)
                if pool.claim_on(instance):
                    claims.append(instance)
            else:
                await asyncio.sleep(0)
            for instance in every:
                assert 0 <= instance.inflight <= concurrency
                assert 0 <= instance.slots <= per_instance
        for task in waits:
            task.cancel()
        await asyncio.gather(*begun, return_exceptions=True)
        for instance in claims:
            pool.release(instance, 1.0)
        for instance in slots:
            pool.free_slot(instance, 1.0)
        assert pool.waiting == 0
        assert all((i.inflight, i.slots) == (0, 0) for i in every)
        assert (pool.demand(9.0).requests, pool.demand(9.0).sessions) == (0, 0)

    asyncio.run(play())
