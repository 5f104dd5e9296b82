"""Records in SQL: SQLAlchemy Core over SQLite in WAL mode, made and kept by migrations.

`synchronous=FULL` syncs the log on every commit, so what has returned survives a power cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from sqlalchemy import ColumnElement, Row, delete, func, insert, make_url, select, update
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cove.errors import CoveError
from cove.model import (
    Facts,
    Function,
    FunctionSpec,
    Isolation,
    Key,
    Plan,
    SealedSecret,
    SessionRecord,
    Version,
)
from cove.states import SessionState, VersionState, move
from cove.store import faults, sqlite
from cove.store.codec import decode, encode
from cove.store.tables import (
    aliases,
    functions,
    keys,
    sealed_secrets,
    secrets,
    sessions,
    versions,
)
from cove.store.upgrade import upgrade

LIVE = "live"
IDS_A_STATEMENT = 500


async def open_store(url_or_path: str | Path) -> SqlStore:
    """The store in that SQLite file (or `sqlite+aiosqlite:///…`), made or migrated if need be.

    `CoveError` as `cove.store.upgrade` has them.
    """
    path = _file(url_or_path)
    await asyncio.to_thread(upgrade, path)
    return SqlStore(sqlite.async_engine(path))


class SqlStore:
    """`cove.store.base.Store` over an engine whose schema is the newest."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._writer = sqlite.as_writer(engine)

    async def functions(self) -> Sequence[Function]:
        live = (aliases.c.function == functions.c.name) & (aliases.c.name == LIVE)
        query = (
            select(functions.c.name, functions.c.created_at, aliases.c.number)
            .select_from(functions.outerjoin(aliases, live))
            .order_by(functions.c.name)
        )
        return [Function(row.name, row.created_at, row.number) for row in await self._read(query)]

    async def versions(self, function: str | None = None) -> Sequence[Version]:
        query = select(versions).order_by(versions.c.function, versions.c.number)
        if function is not None:
            query = query.where(versions.c.function == function)
        return [_version(row) for row in await self._read(query)]

    async def add_version(self, version: Version) -> Version:
        name = version.function
        async with self._write() as tx:
            of_it = select(versions.c.number).where(versions.c.function == name)
            if version.number == 0:
                newest = await tx.scalar(select(func.max(of_it.subquery().c.number)))
                version = replace(version, number=(newest or 0) + 1)
            elif await tx.scalar(of_it.where(versions.c.number == version.number)):
                raise faults.taken(name, version.number)
            await tx.execute(
                upsert(functions)
                .values(name=name, created_at=version.created_at)
                .on_conflict_do_nothing()
            )
            await tx.execute(insert(versions).values(**_columns(version)))
        return version

    async def set_version(
        self, version: Version, state: VersionState, *, facts: Facts | None = None, error: str = ""
    ) -> Version:
        moved = _moved(version, state, facts, error)
        async with self._write() as tx:
            await _put_state(tx, version, moved)
        return moved

    async def go_live(self, version: Version, facts: Facts) -> Version:
        ready = _moved(version, VersionState.READY, facts, "")
        async with self._write() as tx:
            await _put_state(tx, version, ready)
            await _point_live(tx, version.function, version.number)
        return ready

    async def set_live(self, function: str, number: int) -> None:
        async with self._write() as tx:
            known = select(versions.c.number).where(_this(function, number))
            if await tx.scalar(known) is None:
                raise faults.unknown_version(function, number)
            await _point_live(tx, function, number)

    async def remove_function(self, name: str) -> None:
        async with self._write() as tx:
            done = await tx.execute(delete(functions).where(functions.c.name == name))
            if done.rowcount == 0:
                raise faults.unknown_function(name)

    async def keys(self) -> Sequence[Key]:
        rows = await self._read(select(keys).order_by(keys.c.created_at, keys.c.id))
        return [Key(**row._mapping) for row in rows]

    async def add_key(self, key: Key) -> None:
        async with self._write() as tx:
            await _put_key(tx, key)

    async def replace_keys(self, key: Key) -> None:
        async with self._write() as tx:
            await tx.execute(delete(keys).where(keys.c.subject == key.subject))
            await _put_key(tx, key)

    async def sessions(self, function: str | None = None) -> Sequence[SessionRecord]:
        query = select(sessions).order_by(sessions.c.created_at.desc(), sessions.c.id)
        if function is not None:
            query = query.where(sessions.c.function == function)
        return [
            SessionRecord(**{**row._mapping, "state": SessionState(row.state)})
            for row in await self._read(query)
        ]

    async def put_sessions(self, records: Sequence[SessionRecord]) -> None:
        newest = {record.id: record for record in records}
        ids = list(newest)
        async with self._write() as tx:
            for start in range(0, len(ids), IDS_A_STATEMENT):
                some = ids[start : start + IDS_A_STATEMENT]
                await tx.execute(delete(sessions).where(sessions.c.id.in_(some)))
            # A function may be removed while its sessions are on their way here.
            known = set((await tx.scalars(select(functions.c.name))).all())
            kept = [
                {**asdict(record), "state": str(record.state)}
                for record in newest.values()
                if record.state is not SessionState.ENDED and record.function in known
            ]
            if kept:
                await tx.execute(insert(sessions), kept)

    async def sealed_secrets(self) -> Sequence[SealedSecret]:
        rows = await self._read(select(sealed_secrets).order_by(sealed_secrets.c.name))
        return [SealedSecret(**row._mapping) for row in rows]

    async def put_sealed_secret(self, secret: SealedSecret) -> None:
        row = asdict(secret)
        async with self._write() as tx:
            await tx.execute(
                upsert(sealed_secrets)
                .values(**row)
                .on_conflict_do_update(index_elements=["name"], set_=row)
            )

    async def remove_sealed_secret(self, name: str) -> None:
        async with self._write() as tx:
            done = await tx.execute(delete(sealed_secrets).where(sealed_secrets.c.name == name))
            if done.rowcount == 0:
                raise faults.unknown_secret(name)

    async def secret(self, name: str, fresh: bytes) -> bytes:
        async with self._write() as tx:
            await tx.execute(
                upsert(secrets).values(name=name, value=fresh).on_conflict_do_nothing()
            )
            return bytes(
                (
                    await tx.execute(select(secrets.c.value).where(secrets.c.name == name))
                ).scalar_one()
            )

    async def close(self) -> None:
        await self._engine.dispose()

    async def _read(self, query: Any) -> Sequence[Row[Any]]:
        with _said("read"):
            async with self._engine.connect() as tx:
                return (await tx.execute(query)).all()

    @asynccontextmanager
    async def _write(self) -> AsyncIterator[AsyncConnection]:
        with _said("written"):
            async with self._writer.begin() as tx:
                yield tx


@contextmanager
def _said(what: str) -> Iterator[None]:
    """What the machine does to a database, in words; our own mistakes stay what they are."""
    try:
        yield
    except DatabaseError as fault:
        if type(fault) not in (DatabaseError, OperationalError):
            raise
        raise faults.broken(what, str(fault.orig)) from fault


def _moved(version: Version, state: VersionState, facts: Facts | None, error: str) -> Version:
    return replace(
        version,
        state=move(f"version {version.number}", version.state, state),
        facts=facts or version.facts,
        error=error,
    )


def _this(function: str, number: int) -> ColumnElement[bool]:
    return (versions.c.function == function) & (versions.c.number == number)


async def _put_state(tx: AsyncConnection, seen: Version, moved: Version) -> None:
    """Compare and set: the record becomes `moved` if it still is in the state that was seen."""
    this = _this(seen.function, seen.number)
    done = await tx.execute(
        update(versions)
        .where(this, versions.c.state == seen.state)
        .values(state=str(moved.state), facts=encode(moved.facts), error=moved.error)
    )
    if done.rowcount == 0:
        if await tx.scalar(select(versions.c.state).where(this)) is None:
            raise faults.unknown_version(seen.function, seen.number)
        raise faults.moved(seen.function, seen.number, seen.state)


async def _point_live(tx: AsyncConnection, function: str, number: int) -> None:
    await tx.execute(
        upsert(aliases)
        .values(function=function, name=LIVE, number=number)
        .on_conflict_do_update(
            index_elements=[aliases.c.function, aliases.c.name], set_={"number": number}
        )
    )


async def _put_key(tx: AsyncConnection, key: Key) -> None:
    row = asdict(key)
    await tx.execute(
        upsert(keys).values(**row).on_conflict_do_update(index_elements=["id"], set_=row)
    )


def _columns(version: Version) -> dict[str, Any]:
    return {
        "function": version.function,
        "number": version.number,
        "spec": encode(version.spec),
        "plan": encode(version.plan),
        "facts": encode(version.facts),
        "isolation": version.isolation,
        "driver": version.driver,
        "state": str(version.state),
        "created_at": version.created_at,
        "error": version.error,
    }


def _version(row: Row[Any]) -> Version:
    return Version(
        function=row.function,
        number=row.number,
        spec=decode(FunctionSpec, row.spec),
        plan=decode(Plan, row.plan),
        facts=decode(Facts, row.facts),
        isolation=cast(Isolation, row.isolation),
        driver=row.driver,
        state=VersionState(row.state),
        created_at=row.created_at,
        error=row.error,
    )


def _file(url_or_path: str | Path) -> Path:
    if isinstance(url_or_path, Path) or "://" not in url_or_path:
        return Path(url_or_path).absolute()
    try:
        url = make_url(url_or_path)
    except ArgumentError as fault:
        raise CoveError("bad_config", f"{url_or_path!r} is no database URL") from fault
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        raise CoveError(
            "not_built",
            f"records cannot be kept in {url.render_as_string(hide_password=True)}",
            hint="give a file: sqlite+aiosqlite:///path/to/cove.db",
        )
    return Path(url.database).absolute()
