"""A database file brought to this Cove's revision, whatever released Cove made it.

Records of an older revision are copied beside themselves first, to `cove.db.REVISION`. The
copies are never removed or written over by Cove: each is a way back to the Cove that wrote it.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import structlog
from sqlalchemy import Connection, inspect
from sqlalchemy.exc import DBAPIError

from cove import __version__
from cove.errors import CoveError
from cove.store import migrations, sqlite

log = structlog.get_logger("cove.store")


def upgrade(path: Path) -> None:
    """Make the file if it is not there, and bring it to the newest revision.

    `not_built` for records of a newer Cove, `bad_config` for a file that cannot be read or is
    none of ours, `internal` for a migration that fails: the records are then as they were.
    """
    try:
        _in_turn(path)
    except (OSError, sqlite3.Error, DBAPIError) as fault:
        raise _unopened(path, fault) from fault


def _in_turn(path: Path) -> None:
    # Turning on WAL is the one step that SQLite fails rather than waits for when two openers
    # meet, and closing any descriptor of a database drops its locks in the whole process:
    # openers take turns, on a file of their own.
    with open(path.with_name(path.name + ".lock"), "w", opener=sqlite.private) as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not path.exists():
            os.close(sqlite.private(str(path), os.O_CREAT | os.O_RDWR))
        with sqlite.writing(path) as connection:
            _forward(connection, path)


def _forward(connection: Connection, path: Path) -> None:
    known = migrations.revisions()
    newest, found = known[-1], migrations.revision(connection)
    if found == newest:
        return
    if found is None:
        if tables := inspect(connection).get_table_names():
            raise _not_ours(path, tables)
        migrations.apply(connection)
        return
    if found not in known:
        raise _newer(path, found, known)
    # Other connections read on while this one has the write lock: the copy is what is migrated.
    copy = _copied(path, found)
    log.info("the records are brought to a newer revision", was=found, now=newest, copy=str(copy))
    try:
        migrations.apply(connection)
    except Exception as fault:
        raise CoveError(
            "internal",
            f"the records in {path} could not be brought from revision {found} to {newest}: "
            f"{reason(fault)}; they are as they were, and {copy} is a copy",
            hint="start the Cove that wrote them, and please report this",
        ) from fault


def _copied(path: Path, revision: str) -> Path:
    try:
        return sqlite.copy(path, path.with_name(f"{path.name}.{revision}"))
    except (OSError, sqlite3.Error) as fault:
        raise CoveError(
            "bad_config",
            f"the records in {path} are of revision {revision}, and no copy could be made of "
            f"them before they are brought to this Cove's: {reason(fault)}",
            hint="is there room on the disk, and may Cove write there? nothing was changed",
        ) from fault


def reason(fault: BaseException) -> str:
    """What the database itself said: SQLAlchemy adds a statement and a link to its manual."""
    return str(getattr(fault, "orig", None) or fault) or type(fault).__name__


def _newer(path: Path, found: str, known: Sequence[str]) -> CoveError:
    copies = [path.with_name(f"{path.name}.{revision}") for revision in reversed(known)]
    kept = next((copy for copy in copies if copy.exists()), None)
    back = f"; {kept} is a copy from before the upgrade, for this one" if kept else ""
    return CoveError(
        "not_built",
        f"the records in {path} are of revision {found}, written by a newer Cove; "
        f"this one is {__version__} and knows revisions up to {known[-1]}",
        hint=f"start the newer Cove, or give another folder with --data{back}",
    )


def _not_ours(path: Path, tables: Sequence[str]) -> CoveError:
    return CoveError(
        "bad_config",
        f"{path} is a database, but not Cove's: it has the tables {', '.join(tables[:5])}",
        hint="give another folder with --data, or move that file away",
    )


def _unopened(path: Path, fault: Exception) -> CoveError:
    said = reason(fault)
    if "not a database" in said or "malformed" in said:
        hint = f"put a copy back in its place ({path.name}.REVISION is one), or move it away"
    else:
        hint = "is the folder there, writable, and on a local disk? another with --data"
    return CoveError("bad_config", f"the records in {path} cannot be opened: {said}", hint=hint)
