"""Sessions: opened, found, ended by whatever comes first, and then gone."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.engine.instance import Instance
from cove.engine.pool import Pool
from cove.engine.sessions import Session, Sessions
from cove.model import (
    Affinity,
    Facts,
    FunctionSpec,
    Plan,
    SessionPolicy,
    Version,
)
from cove.states import InstanceState, SessionState, VersionState


def make_pool(idle: float = 10.0, lifetime: float = 100.0, name: str = "fn") -> Pool:
    policy = SessionPolicy(Affinity("header", "x-s"), idle=idle, lifetime=lifetime)
    spec = FunctionSpec(name, session=policy)
    plan = Plan((), {}, "", None, None)
    return Pool(
        Version(name, 1, spec, plan, Facts(), "process", "fake", VersionState.READY, 0.0),
        lambda pool: None,
    )


def make_instance(pool: Pool) -> Instance:
    instance = Instance("i1", started_at=0.0, started_by="test")
    pool.starting.append(instance)
    pool.became_ready(instance, 0.0)
    return instance


def placed(sessions: Sessions, pool: Pool, key: str = "k", now: float = 0.0) -> Session:
    session = sessions.open(pool, "alice", key, now)
    instance = pool.claim(slot=True)
    assert instance is not None
    pool.release(instance, now)
    sessions.place(session, instance)
    return session


def test_a_session_is_found_by_function_principal_and_key() -> None:
    sessions, pool = Sessions(), make_pool()
    make_instance(pool)
    session = placed(sessions, pool)
    assert sessions.get("fn", "alice", "k") is session
    for other in (("fn", "bob", "k"), ("fn", "alice", "j"), ("nf", "alice", "k")):
        assert sessions.get(*other) is None
    assert (sessions.count("fn"), sessions.count("nf")) == (1, 0)


def test_idleness_ends_a_session_and_frees_its_slot() -> None:
    sessions, pool = Sessions(), make_pool(idle=10.0)
    instance = make_instance(pool)
    session = placed(sessions, pool)
    sessions.touch(session, 5.0)
    assert sessions.expire(14.9) == []
    assert sessions.expire(15.0) == [session]
    assert (session.state, instance.slots, instance.on_stopping) == (SessionState.ENDED, 0, set())
    assert sessions.get("fn", "alice", "k") is None


def test_a_lifetime_ends_a_session_however_busy() -> None:
    sessions, pool = Sessions(), make_pool(lifetime=100.0)
    make_instance(pool)
    session = placed(sessions, pool)
    session.inflight = 1
    for now in range(0, 100, 5):
        sessions.touch(session, now)
        assert sessions.expire(now) == []
    assert sessions.expire(100.0) == [session]


def test_an_open_request_keeps_a_session_from_idling_out() -> None:
    sessions, pool = Sessions(), make_pool(idle=10.0)
    make_instance(pool)
    session = placed(sessions, pool)
    session.inflight = 1
    assert sessions.expire(30.0) == []
    session.inflight = 0
    sessions.touch(session, 31.0)
    assert sessions.expire(40.5) == []
    assert sessions.expire(41.0) == [session]


def test_a_session_ends_with_its_instance() -> None:
    sessions, pool = Sessions(), make_pool()
    instance = make_instance(pool)
    session = placed(sessions, pool)
    ends: list[str] = []
    session.on_end.add(lambda: ends.append("end"))
    pool.drop(instance)
    instance.move(InstanceState.STOPPED)
    assert (session.state, instance.slots, ends) == (SessionState.ENDED, 0, ["end"])
    assert sessions.of() == []
    sessions.end(session, 9.0)
    assert (instance.slots, ends) == (0, ["end"])


def test_a_session_that_ended_before_it_had_an_instance_takes_no_slot() -> None:
    sessions, pool = Sessions(), make_pool()
    instance = make_instance(pool)
    session = sessions.open(pool, "alice", "k", 0.0)
    sessions.end(session, 1.0)
    assert pool.claim(slot=True) is instance
    sessions.place(session, instance)
    assert (instance.slots, instance.on_stopping, session.instance) == (0, set(), None)


def test_records_tell_the_store_what_changed_and_only_that() -> None:
    sessions, pool = Sessions(), make_pool()
    make_instance(pool)
    session = placed(sessions, pool)
    (record,) = sessions.take_changed()
    assert (record.function, record.principal, record.key) == ("fn", "alice", "k")
    assert (record.affinity, record.instance, record.state) == ("header:x-s", "i1", "running")
    assert sessions.take_changed() == []
    sessions.end(session, 7.0)
    (record,) = sessions.take_changed()
    assert record.state is SessionState.ENDED


def test_records_that_the_store_did_not_take_are_due_again() -> None:
    sessions, pool = Sessions(), make_pool()
    make_instance(pool)
    runs, ended = placed(sessions, pool, "runs"), placed(sessions, pool, "ended")
    sessions.end(ended, 1.0)
    taken = sessions.take_changed()
    ends_meanwhile = placed(sessions, pool, "meanwhile", 2.0)
    sessions.put_back(taken)
    sessions.put_back([replace(ends_meanwhile.record())])
    sessions.end(ends_meanwhile, 3.0)
    sessions.touch(runs, 7.0)
    due = {record.id: record for record in sessions.take_changed()}
    assert {ident: record.state for ident, record in due.items()} == {
        runs.id: SessionState.RUNNING,
        ended.id: SessionState.ENDED,
        ends_meanwhile.id: SessionState.ENDED,
    }
    assert due[runs.id].last_at == runs.record().last_at  # as it is now
    assert sessions.take_changed() == []


def test_one_that_ended_while_the_store_failed_is_ended_there_too() -> None:
    sessions, pool = Sessions(), make_pool()
    make_instance(pool)
    session = placed(sessions, pool)
    taken = sessions.take_changed()
    sessions.end(session, 1.0)
    sessions.take_changed()
    sessions.put_back(taken)
    assert [record.state for record in sessions.take_changed()] == [SessionState.ENDED]


def test_records_that_cannot_be_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cove.engine.sessions._KEPT", 10)
    sessions, pool = Sessions(), make_pool()
    for n in range(100):
        sessions.end(sessions.open(pool, "alice", str(n), 0.0), 1.0)
        sessions.put_back(sessions.take_changed())
    assert len(sessions.take_changed()) == 10


def test_ended_sessions_are_let_go_long_before_their_time() -> None:
    sessions, pool = Sessions(), make_pool(idle=1e6, lifetime=1e6)
    make_instance(pool)
    kept = placed(sessions, pool, "kept")
    held = []
    for n in range(1000):
        session = placed(sessions, pool, str(n))
        session.attached = Sessions()
        held.append(weakref.ref(session.attached))
        sessions.end(session, 1.0)
        sessions.take_changed()
    assert len(sessions._due) <= 200
    gone = sum(ref() is None for ref in held)
    assert gone >= 999  # the last may be `session`'s own
    assert sessions.expire(1e7) == [kept]
    assert (sessions._due, sessions._stale) == ([], 0)


def test_sessions_are_listed_newest_first() -> None:
    sessions, pool, other = Sessions(), make_pool(), make_pool(name="other")
    make_instance(pool)
    make_instance(other)
    opened = [placed(sessions, pool, str(n), float(n)) for n in range(3)]
    last = placed(sessions, other, "x", 9.0)
    assert sessions.of("fn") == opened[::-1]
    assert sessions.of() == [last, *opened[::-1]]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["open", "touch", "busy", "quiet", "end", "expire", "crash"]),
            st.integers(0, 5),
            st.floats(0, 30),
        ),
        max_size=60,
    )
)
def test_whatever_happens_all_sessions_are_gone_in_the_end(
    story: list[tuple[str, int, float]],
) -> None:
    sessions, pool, now = Sessions(), make_pool(idle=10.0, lifetime=100.0), 0.0
    every = [make_instance(pool)]
    known: dict[int, Session] = {}
    for what, who, passed in story:
        now += passed
        session = known.get(who)
        if what == "open" and (session is None or session.state is SessionState.ENDED):
            if all(i.slots >= 20 for i in pool.ready):
                every.append(make_instance(pool))
            known[who] = placed(sessions, pool, str(who), now)
        elif what == "touch" and session is not None:
            sessions.touch(session, now)
        elif what in ("busy", "quiet") and session is not None:
            session.inflight = int(what == "busy")
            sessions.touch(session, now)
        elif what == "end" and session is not None:
            sessions.end(session, now)
        elif what == "expire":
            sessions.expire(now)
        elif what == "crash":
            instance = every[-1]
            if instance.state is InstanceState.READY:
                pool.drop(instance)
                instance.move(InstanceState.STOPPED)
                every.append(make_instance(pool))
    sessions.expire(now + 101.0)
    sessions.take_changed()
    assert all(i.slots == 0 and not i.on_stopping for i in every)
    assert sessions.of() == []
    sessions.expire(now + 1000.0)
    assert (sessions._by_key, sessions._due, sessions._changed) == ({}, [], {})


@pytest.mark.parametrize("now", [0.0, 1e9])
def test_expiring_nothing_is_nothing(now: float) -> None:
    assert Sessions().expire(now) == []
