"""How many instances: the decision alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.engine.autoscaler import Decision, Demand, decide
from cove.model import Scale


def demand(**given: object) -> Demand:
    nothing = {"requests": 0, "waiting": 0, "sessions": 0, "ready": 0, "starting": 0, "idle": ()}
    return Demand(**{**nothing, **given})  # type: ignore[arg-type]


def test_nothing_is_wanted_nothing_is_started() -> None:
    assert decide(demand(), Scale(), 20) == Decision()


def test_one_waiting_request_starts_one_instance() -> None:
    assert decide(demand(requests=1, waiting=1), Scale(), 20) == Decision(start=1)


def test_a_start_under_way_serves_who_waits() -> None:
    assert decide(demand(requests=5, waiting=5, starting=1), Scale(), 20) == Decision()


@pytest.mark.parametrize(
    ("requests", "concurrency", "target", "wanted"),
    [(10, 1, 0.7, 10), (32, 32, 0.7, 2), (22, 32, 0.7, 1), (10, 5, 1.0, 2), (11, 5, 1.0, 3)],
)
def test_requests_want_instances_by_their_concurrency(
    requests: int, concurrency: int, target: float, wanted: int
) -> None:
    scale = Scale(concurrency=concurrency, target=target)
    assert decide(demand(requests=requests, waiting=requests), scale, 20).start == wanted


def test_sessions_want_instances_by_their_slots() -> None:
    assert decide(demand(requests=1, waiting=1, sessions=41, ready=2), Scale(), 20).start == 1
    assert decide(demand(sessions=40, ready=2), Scale(), 20).start == 0


def test_who_finds_no_room_gets_one_more_even_below_target() -> None:
    assert decide(demand(requests=2, waiting=1, ready=1), Scale(), 20).start == 1


def test_the_minimum_is_kept_while_live() -> None:
    idle = [("a", 100.0), ("b", 90.0), ("c", 80.0)]
    full = demand(ready=3, idle=idle)
    assert decide(full, Scale(min=2), 20).stop == ("a",)
    assert decide(full, Scale(min=2), 20, live=False).stop == ("a", "b", "c")
    assert decide(demand(), Scale(min=2), 20).start == 2
    assert decide(demand(), Scale(min=2), 20, live=False).start == 0


def test_idle_time_is_waited_out_but_for_old_versions() -> None:
    idle = [("a", 59.9)]
    assert decide(demand(ready=1, idle=idle), Scale(idle=60.0), 20).stop == ()
    assert decide(demand(ready=1, idle=[("a", 60.0)]), Scale(idle=60.0), 20).stop == ("a",)
    assert decide(demand(ready=1, idle=[("a", 0.0)]), Scale(idle=60.0), 20, live=False).stop == (
        "a",
    )


@st.composite
def situations(draw: st.DrawFn) -> tuple[Demand, Scale, int, bool]:
    ready = draw(st.integers(0, 20))
    idle = draw(st.integers(0, ready))
    times = sorted(draw(st.lists(st.floats(0, 1e6), min_size=idle, max_size=idle)), reverse=True)
    waiting = 0 if idle else draw(st.integers(0, 200))  # nobody waits beside an idle instance
    busy = draw(st.integers(ready - idle, 400)) if ready > idle else 0
    most = draw(st.integers(1, 25))
    return (
        Demand(
            requests=busy + waiting,
            waiting=waiting,
            sessions=draw(st.integers(0, 400)),
            ready=ready,
            starting=draw(st.integers(0, 20)),
            idle=[(f"i{n}", time) for n, time in enumerate(times)],
        ),
        Scale(
            min=draw(st.integers(0, most)),
            max=most,
            concurrency=draw(st.integers(1, 200)),
            target=draw(st.floats(0.05, 1.0)),
            idle=draw(st.floats(0, 1e5)),
        ),
        draw(st.integers(1, 200)),
        draw(st.booleans()),
    )


@given(situations())
def test_decisions_keep_their_bounds(situation: tuple[Demand, Scale, int, bool]) -> None:
    asked, scale, per_instance, live = situation
    decision = decide(asked, scale, per_instance, live=live)
    have = asked.ready + asked.starting
    assert decision.start >= 0
    assert decision.start == 0 or have + decision.start <= scale.max
    assert set(decision.stop) <= {ident for ident, _ in asked.idle}
    assert len(set(decision.stop)) == len(decision.stop)
    assert not (decision.start and decision.stop)
    if live:
        assert all(dict(asked.idle)[ident] >= scale.idle for ident in decision.stop)
        left = have + decision.start - len(decision.stop)
        assert left >= min(scale.min, scale.max, have) or not decision.stop
        assert have + decision.start >= scale.min
    if asked.waiting and have == 0:
        assert decision.start
    again = decide(
        Demand(
            asked.requests,
            asked.waiting,
            asked.sessions,
            asked.ready - len(decision.stop),
            asked.starting + decision.start,
            [one for one in asked.idle if one[0] not in decision.stop],
        ),
        scale,
        per_instance,
        live=live,
    )
    assert again.stop == ()  # what is decided is decided: nothing flaps
    assert again.start == 0 or not asked.starting + decision.start
