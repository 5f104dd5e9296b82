"""SQLite as records need it: how its connections are set up, and a file copied while it is used."""

from __future__ import annotations

import contextlib
import filecmp
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

BUSY_MS = 30_000
E = TypeVar("E", Engine, AsyncEngine)


def async_engine(path: Path) -> AsyncEngine:
    """A pool of connections to that file."""
    # Hidden: an error that is logged must not carry the rows that could not be written.
    engine = create_async_engine(
        _url("sqlite+aiosqlite", path), pool_size=2, max_overflow=2, hide_parameters=True
    )
    _configure(engine.sync_engine)
    return engine


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Connection]:
    """One transaction that has the file's only write lock, on a connection of its own."""
    engine = create_engine(_url("sqlite", path), poolclass=NullPool, hide_parameters=True)
    _configure(engine)
    try:
        with as_writer(engine).begin() as connection:
            yield connection
    finally:
        engine.dispose()


def as_writer(engine: E) -> E:
    """The engine (of either kind), its transactions taking the write lock as they begin."""
    return engine.execution_options(cove_writes=True)


def private(path: str, flags: int) -> int:
    """An opener of files that only we may read. SQLite gives -wal and -shm the file's own mode."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def copy(source: Path, target: Path) -> Path:
    """Copy a database that may be in use, as its last commit left it; where the copy is.

    What has the name already is never written over: the copy is `target`, else `target.2` and
    so on. Where the latest of those holds the same, that one is it: a start that fails and is
    tried again without end must not fill the disk.
    """
    aside = target.with_name(target.name + ".part")
    aside.unlink(missing_ok=True)
    try:
        os.close(private(str(aside), os.O_CREAT | os.O_EXCL | os.O_RDWR))
        _backup(source, aside)
        latest, free = _names(target)
        if latest is not None and filecmp.cmp(latest, aside, shallow=False):
            return latest
        _sync(aside)
        aside.rename(free)
        _sync(free.parent)
        return free
    finally:
        aside.unlink(missing_ok=True)


def _backup(source: Path, target: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(source)) as old,
        contextlib.closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)
        # One file, whoever looks at it: a database in WAL mode makes two more when it is read.
        new.execute("PRAGMA journal_mode=DELETE")


def _names(target: Path) -> tuple[Path | None, Path]:
    """The latest copy, if there is any, and the first name after it."""
    latest, free, number = None, target, 1
    while free.exists():
        number += 1
        latest, free = free, target.with_name(f"{target.name}.{number}")
    return latest, free


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _url(driver: str, path: Path) -> URL:
    return URL.create(driver, database=str(path))


def _configure(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def pragmas(connection: Any, record: object) -> None:
        # None hands BEGIN to us: the module's own begins late, and never before a SELECT.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout={BUSY_MS}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that reads first and writes later cannot wait for another's lock once
        # it has its snapshot: writers take the lock at the start.
        writes = connection.get_execution_options().get("cove_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
