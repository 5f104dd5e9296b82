"""One suite over every record store, and what only a file can promise."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError

from cove.errors import CoveError
from cove.model import (
    Affinity,
    Facts,
    FunctionSpec,
    Interpreter,
    Key,
    Limits,
    Plan,
    SealedSecret,
    SessionPolicy,
    SessionRecord,
    Version,
)
from cove.states import IllegalMoveError, SessionState, VersionState
from cove.store.base import Store
from cove.store.codec import decode, encode
from cove.store.memory import MemoryStore
from cove.store.sql import SqlStore, open_store
from cove.store.tables import metadata

Open = Callable[[], Awaitable[Store]]


def version(function: str = "weather", number: int = 0, **changes: object) -> Version:
    spec = FunctionSpec(
        name=function,
        env={"UNITS": "metric", "Ω": "ohm"},
        limits=Limits(cpu=0.1),
        session=SessionPolicy(affinity=Affinity("header", "X-Thread"), per_instance=1),
        secrets=("WEATHER_KEY", "MAPS_KEY"),
    )
    plan = Plan(
        argv=("{serve}", "server:mcp"),
        env={"A": "{app}"},
        code="/layers/code",
        deps=None,
        interpreter=Interpreter("/usr/bin/python3", "/usr", "3.11.2"),
        notes=("mcp<2",),
    )
    whole = Version(
        function, number, spec, plan, Facts(), "process", "process", VersionState.STARTING, 5.5
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def session(name: str = "s1", function: str = "weather", **changes: object) -> SessionRecord:
    whole = SessionRecord(
        name, function, 1, "anonymous", "mcp", "k", "i1", SessionState.RUNNING, 1.0, 2.0, "r-1"
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made: Store = (
        MemoryStore() if request.param == "memory" else await open_store(tmp_path / "cove.db")
    )
    yield made
    await made.close()


@pytest.fixture
async def reopen(tmp_path: Path) -> AsyncIterator[Open]:
    opened: list[SqlStore] = []

    async def again() -> Store:
        if opened:
            await opened[-1].close()
        opened.append(await open_store(tmp_path / "cove.db"))
        return opened[-1]

    yield again
    await opened[-1].close()


async def test_a_version_is_kept_as_it_was_given(store: Store) -> None:
    added = await store.add_version(version())
    assert added == version(number=1)
    assert await store.versions("weather") == [added]
    assert [f.name for f in await store.functions()] == ["weather"]


async def test_numbers_ascend_for_each_function_alone(store: Store) -> None:
    names = ["b", "a", "b", "b"]
    numbers = [(await store.add_version(version(name))).number for name in names]
    assert numbers == [1, 1, 2, 3]
    listed = [(v.function, v.number) for v in await store.versions()]
    assert listed == [("a", 1), ("b", 1), ("b", 2), ("b", 3)]


async def test_versions_added_at_once_get_different_numbers(store: Store) -> None:
    added = await asyncio.gather(*(store.add_version(version()) for _ in range(12)))
    assert sorted(v.number for v in added) == list(range(1, 13))


async def test_a_number_that_is_taken_is_refused(store: Store) -> None:
    await store.add_version(version(number=7))
    with pytest.raises(CoveError) as refused:
        await store.add_version(version(number=7))
    assert refused.value.code == "conflict"
    assert (await store.add_version(version())).number == 8


async def test_a_version_moves_once_and_only_from_the_state_it_carries(store: Store) -> None:
    seen = await store.add_version(version())
    facts = Facts(transport="sse", path="/sse", modern=True, legacy=False, stateful=False)
    ready = await store.set_version(seen, VersionState.READY, facts=facts)
    assert (ready.state, ready.facts) == (VersionState.READY, facts)
    assert await store.versions("weather") == [ready]
    with pytest.raises(CoveError) as lost:
        await store.set_version(seen, VersionState.FAILED, error="too late")
    assert lost.value.code == "conflict"
    assert await store.versions("weather") == [ready]


async def test_of_two_moves_at_once_one_wins(store: Store) -> None:
    seen = await store.add_version(version())
    outcomes = await asyncio.gather(
        store.set_version(seen, VersionState.READY),
        store.set_version(seen, VersionState.FAILED, error="e"),
        return_exceptions=True,
    )
    (won,) = [o for o in outcomes if isinstance(o, Version)]
    (lost,) = [o for o in outcomes if isinstance(o, CoveError)]
    assert lost.code == "conflict"
    assert await store.versions() == [won]


async def test_a_move_keeps_what_went_wrong(store: Store) -> None:
    failed = await store.set_version(
        await store.add_version(version()), VersionState.FAILED, error="no module named x"
    )
    assert [v.error for v in await store.versions()] == ["no module named x"]
    with pytest.raises(IllegalMoveError):
        await store.set_version(failed, VersionState.READY)


async def test_an_unknown_version_cannot_move_or_be_live(store: Store) -> None:
    with pytest.raises(CoveError) as lost:
        await store.set_version(version(number=3), VersionState.READY)
    assert lost.value.code == "not_found"
    await store.add_version(version())
    with pytest.raises(CoveError) as missing:
        await store.set_live("weather", 2)
    assert missing.value.code == "not_found"
    assert [f.live for f in await store.functions()] == [None]


async def test_going_live_is_one_step(store: Store) -> None:
    seen = await store.add_version(version())
    facts = Facts(transport="sse", path="/sse", modern=True, legacy=False, stateful=False)
    ready = await store.go_live(seen, facts)
    assert (ready.state, ready.facts) == (VersionState.READY, facts)
    assert await store.versions() == [ready]
    assert [f.live for f in await store.functions()] == [1]
    newer = await store.add_version(version())
    await store.set_version(newer, VersionState.FAILED, error="e")
    for late in (newer, version(number=3)):
        with pytest.raises(CoveError) as refused:
            await store.go_live(late, facts)
        assert refused.value.code == ("conflict" if late is newer else "not_found")
    assert [f.live for f in await store.functions()] == [1]


async def test_going_live_does_both_or_nothing(tmp_path: Path) -> None:
    opened = await open_store(tmp_path / "cove.db")
    try:
        seen = await opened.add_version(version())
        with sqlite3.connect(tmp_path / "cove.db") as other:
            other.execute(
                "CREATE TRIGGER full BEFORE INSERT ON aliases BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
        other.close()
        with pytest.raises(DBAPIError):
            await opened.go_live(seen, Facts())
        assert await opened.versions() == [seen]
    finally:
        await opened.close()


async def test_a_full_disk_changes_nothing_and_reads_go_on(tmp_path: Path) -> None:
    opened = await open_store(tmp_path / "cove.db")
    pages = (tmp_path / "cove.db").stat().st_size // 4096 + 8

    @event.listens_for(opened._engine.sync_engine, "connect")
    def full(connection: Any, record: object) -> None:
        # The database's own way of having no room: what it says and does is the same.
        connection.cursor().execute(f"PRAGMA max_page_count={pages}")

    try:
        kept = await opened.go_live(await opened.add_version(version()), Facts())
        plan = replace(kept.plan, notes=("x" * 200_000,))
        for _ in range(3):
            with pytest.raises(CoveError) as refused:
                await opened.add_version(version(plan=plan))
            assert refused.value.code == "overloaded"
            assert "is full" in refused.value.message
            assert "free space" in refused.value.hint
            assert await opened.versions() == [kept]
            assert [f.live for f in await opened.functions()] == [1]
        await opened.put_sessions([session()])
    finally:
        await opened.close()


async def test_records_that_the_disk_lost_are_said_so(tmp_path: Path) -> None:
    opened = await open_store(tmp_path / "cove.db")
    try:
        await opened.add_version(version())
    finally:
        await opened.close()
    whole = (tmp_path / "cove.db").read_bytes()
    (tmp_path / "cove.db").write_bytes(whole[:4096] + b"\xa5" * (len(whole) - 4096))

    async def look() -> None:
        again = await open_store(tmp_path / "cove.db")
        try:
            await again.versions()
        finally:
            await again.close()

    with pytest.raises(CoveError) as refused:
        await look()
    assert "malformed" in refused.value.message
    assert refused.value.hint


async def test_live_moves_and_moves_again(store: Store) -> None:
    for number in (1, 2):
        await store.add_version(version())
        await store.set_live("weather", number)
        assert [f.live for f in await store.functions()] == [number]


async def test_a_removed_function_takes_all_of_its_own_and_nothing_else(store: Store) -> None:
    for name in ("weather", "clock"):
        await store.add_version(version(name))
        await store.set_live(name, 1)
    await store.put_sessions([session("s1"), session("s2", "clock")])
    await store.remove_function("weather")
    assert [f.name for f in await store.functions()] == ["clock"]
    assert [v.function for v in await store.versions()] == ["clock"]
    assert [s.id for s in await store.sessions()] == ["s2"]
    with pytest.raises(CoveError) as gone:
        await store.remove_function("weather")
    assert gone.value.code == "not_found"
    await store.add_version(version())
    assert {f.name: f.live for f in await store.functions()} == {"clock": 1, "weather": None}


async def test_sessions_are_replaced_by_id_and_ended_ones_leave(store: Store) -> None:
    await store.add_version(version())
    await store.put_sessions([session("old", created_at=1.0), session("new", created_at=9.0)])
    assert [s.id for s in await store.sessions("weather")] == ["new", "old"]
    later = session("old", created_at=1.0, last_at=77.0, instance="i2")
    await store.put_sessions(
        [later, session("new", state=SessionState.ENDED), session("x", state=SessionState.ENDED)]
    )
    assert await store.sessions() == [later]
    assert await store.sessions("clock") == []


async def test_more_sessions_than_one_statement_takes_are_kept(store: Store) -> None:
    await store.add_version(version())
    many = [session(f"s{n}") for n in range(1203)]
    await store.put_sessions(many)
    await store.put_sessions([replace(s, last_at=3.0) for s in many])
    assert {s.last_at for s in await store.sessions()} == {3.0}
    assert len(await store.sessions()) == 1203


async def test_sessions_of_a_removed_function_do_not_stop_the_others(store: Store) -> None:
    await store.add_version(version())
    await store.put_sessions([session("lost", "gone"), session("kept")])
    assert [s.id for s in await store.sessions()] == ["kept"]


@pytest.mark.parametrize("key", ["", "a\0b", "\udcff", "日本", "x" * 5000])
async def test_whatever_a_caller_sends_as_its_key_is_kept(store: Store, key: str) -> None:
    await store.add_version(version())
    await store.put_sessions([session(key=key, principal=key, remote=key)])
    kept = await store.sessions()
    assert [(s.key, s.principal, s.remote) for s in kept] == [(key, key, key)]


async def test_keys_are_kept(store: Store) -> None:
    made = [Key("k2", "project", "ab" * 32, 2.0), Key("k1", "project", "cd" * 32, 3.0)]
    for key in made:
        await store.add_key(key)
    assert await store.keys() == made


async def test_a_key_replaces_those_of_its_subject_and_no_others(store: Store) -> None:
    for key in (Key("k1", "project", "ab" * 32, 1.0), Key("k2", "project", "cd" * 32, 2.0)):
        await store.add_key(key)
    other = Key("k3", "somebody", "ef" * 32, 3.0)
    await store.add_key(other)
    new = Key("k4", "project", "01" * 32, 4.0)
    await store.replace_keys(new)
    assert await store.keys() == [other, new]


async def test_sealed_secrets_are_kept_replaced_by_name_and_removed(store: Store) -> None:
    kept = [SealedSecret(name, b"\0\xff" + name.encode(), 1.0, 2.0) for name in ("B", "A")]
    for secret in kept:
        await store.put_sealed_secret(secret)
    assert await store.sealed_secrets() == sorted(kept, key=lambda secret: secret.name)
    newer = SealedSecret("A", b"", 1.0, 3.0)
    await store.put_sealed_secret(newer)
    await store.remove_sealed_secret("B")
    assert await store.sealed_secrets() == [newer]
    with pytest.raises(CoveError) as gone:
        await store.remove_sealed_secret("B")
    assert gone.value.code == "not_found"


async def test_what_is_sealed_is_not_printed() -> None:
    assert "marker" not in repr(SealedSecret("A", b"marker", 1.0, 2.0))


async def test_a_secret_is_the_first_that_was_offered(store: Store) -> None:
    offered = [bytes([n]) * 32 for n in range(8)]
    got = await asyncio.gather(*(store.secret("ids", fresh) for fresh in offered))
    assert len(set(got)) == 1
    assert got[0] in offered
    assert await store.secret("other", b"\0\xff") == b"\0\xff"


async def test_everything_survives_a_reopening(reopen: Open) -> None:
    first = await reopen()
    kept = await first.set_version(await first.add_version(version()), VersionState.READY)
    await first.set_live("weather", 1)
    await first.put_sessions([session()])
    await first.add_key(Key("k", "project", "ab" * 32, 1.0))
    sealed = SealedSecret("A", b"\0", 1.0, 2.0)
    await first.put_sealed_secret(sealed)
    secret = await first.secret("ids", b"first")
    again = await reopen()
    assert [(f.name, f.live) for f in await again.functions()] == [("weather", 1)]
    assert await again.versions() == [kept]
    assert await again.sessions() == [session()]
    assert [k.id for k in await again.keys()] == ["k"]
    assert await again.sealed_secrets() == [sealed]
    assert await again.secret("ids", b"second") == secret


async def test_two_openers_of_one_file_share_its_numbers(tmp_path: Path) -> None:
    stores = await asyncio.gather(*(open_store(str(tmp_path / "cove.db")) for _ in range(8)))
    try:
        added = await asyncio.gather(*(s.add_version(version()) for s in stores for _ in range(2)))
        assert sorted(v.number for v in added) == list(range(1, 17))
    finally:
        for opened in stores:
            await opened.close()


async def test_an_opener_waits_for_the_one_before_it(tmp_path: Path) -> None:
    with (tmp_path / "cove.db.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        opening = asyncio.create_task(open_store(tmp_path / "cove.db"))
        done, _ = await asyncio.wait({opening}, timeout=0.5)
        assert not done
    opened = await asyncio.wait_for(opening, 10)
    await opened.close()


async def test_what_returned_is_on_disk_and_only_ours_to_read(tmp_path: Path) -> None:
    path = tmp_path / "with % and space.db"
    old = os.umask(0)
    try:
        opened = await open_store(path)
    finally:
        os.umask(old)
    try:
        await opened.add_version(version())
        async with opened._engine.connect() as tx:
            found = [
                (await tx.exec_driver_sql(f"PRAGMA {name}")).scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys")
            ]
        assert found == ["wal", 2, 1]
        assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
        with sqlite3.connect(path) as other:
            assert other.execute("SELECT count(*) FROM versions").fetchone() == (1,)
        other.close()
    finally:
        await opened.close()


async def test_migrations_make_exactly_the_tables_that_the_code_means(tmp_path: Path) -> None:
    await (await open_store(tmp_path / "cove.db")).close()
    engine = create_engine(f"sqlite:///{tmp_path}/cove.db")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


async def test_records_of_a_newer_cove_are_refused_with_a_hint(tmp_path: Path) -> None:
    await (await open_store(tmp_path / "cove.db")).close()
    engine = create_engine(f"sqlite:///{tmp_path}/cove.db")
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(CoveError) as refused:
        await open_store(tmp_path / "cove.db")
    assert "newer Cove" in refused.value.message
    assert refused.value.hint


async def test_opening_leaves_logging_as_it_was(tmp_path: Path) -> None:
    root = logging.getLogger()
    before = (list(root.handlers), root.level, logging.getLogger("cove").disabled)
    await (await open_store(tmp_path / "cove.db")).close()
    assert (list(root.handlers), root.level, logging.getLogger("cove").disabled) == before


@pytest.mark.parametrize(
    ("where", "code"),
    [
        ("postgresql://u:hidden@h/db", "not_built"),
        ("sqlite:///:memory:", "not_built"),
        ("no-such-folder/deeper/cove.db", "bad_config"),
    ],
)
async def test_what_cannot_be_a_store_is_refused(
    where: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CoveError) as refused:
        await open_store(where)
    assert refused.value.code == code
    assert "hidden" not in refused.value.message


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cove.db").write_text("these are not the records\n" * 100)
    with pytest.raises(CoveError) as refused:
        await open_store(tmp_path / "cove.db")
    assert refused.value.code == "bad_config"


_text = st.text(max_size=8)
_seconds = st.floats(min_value=0, allow_infinity=False)
_limits = st.builds(Limits, cpu=_seconds, memory=st.integers(0, 2**63), timeout=_seconds)
_sessions = st.builds(
    SessionPolicy, affinity=st.builds(Affinity, st.just("query"), _text), idle=_seconds
)
_specs = st.builds(
    FunctionSpec,
    name=_text,
    kind=st.sampled_from(["mcp", "web"]),
    command=st.none() | _text,
    env=st.dictionaries(_text, _text),
    limits=_limits,
    session=_sessions,
    secrets=st.lists(_text).map(tuple),
)
_plans = st.builds(
    Plan,
    argv=st.lists(_text).map(tuple),
    env=st.dictionaries(_text, _text),
    deps=st.none() | _text,
    interpreter=st.none() | st.builds(Interpreter, _text, _text, _text),
    notes=st.lists(_text).map(tuple),
)


@given(value=st.one_of(_specs, _plans, st.builds(Facts, modern=st.booleans(), path=_text)))
def test_records_come_back_from_json_as_they_went(value: FunctionSpec | Plan | Facts) -> None:
    assert repr(decode(type(value), json.loads(json.dumps(encode(value))))) == repr(value)


def test_a_record_without_a_newer_field_reads_with_its_default() -> None:
    assert decode(Limits, {"cpu": 1}) == Limits(cpu=1.0)


@pytest.mark.parametrize(
    "body", [{"cpu": 1.0, "disk": 5}, {"cpu": "1"}, {"pids": True}, {"memory": None}, [], "x"]
)
def test_a_record_that_this_cove_does_not_understand_is_an_error(body: object) -> None:
    with pytest.raises(CoveError) as refused:
        decode(Limits, body)
    assert refused.value.code == "internal"
    assert "newer Cove" in refused.value.hint
