"""Databases of released Coves, opened by this one."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cove.errors import CoveError
from cove.model import FunctionSpec, SealedSecret
from cove.states import VersionState
from cove.store import migrations
from cove.store.sql import SqlStore, open_store

from .released import records

RELEASED = Path(__file__).parent / "released"
NEWEST = migrations.revisions()[-1]
TABLES = ("functions", "versions", "aliases", "keys", "sessions", "secrets")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A database as the code of revision 0001 left it."""
    path = tmp_path / "cove.db"
    with sqlite3.connect(path) as database:
        database.executescript((RELEASED / "0001.sql").read_text())
    database.close()
    return path


def dump(path: Path) -> list[str]:
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return list(database.iterdump())
    finally:
        database.close()


async def holds_the_records(store: SqlStore) -> None:
    assert await store.functions() == records.FUNCTIONS
    assert await store.versions() == records.VERSIONS
    assert await store.keys() == records.KEYS
    assert await store.sessions() == records.SESSIONS
    for name, value in records.INSTALL_SECRETS.items():
        assert await store.secret(name, b"another") == value


async def opened_and_whole(path: Path) -> None:
    store = await open_store(path)
    try:
        await holds_the_records(store)
    finally:
        await store.close()


def beside(path: Path) -> set[str]:
    """What stands beside the records, but for what SQLite and openers need."""
    own = {path.name + end for end in ("", "-wal", "-shm", ".lock")}
    return {file.name for file in path.parent.iterdir()} - own


def test_every_released_revision_but_the_newest_has_its_database_here() -> None:
    dumps = {file.stem for file in RELEASED.glob("*.sql")}
    assert dumps == set(migrations.revisions()[:-1])


async def test_records_of_a_released_cove_read_as_they_were_kept(old: Path) -> None:
    await opened_and_whole(old)
    await opened_and_whole(old)


async def test_what_this_cove_adds_can_be_kept_in_them(old: Path) -> None:
    store = await open_store(old)
    try:
        secret = SealedSecret("A", b"\0", 1.0, 2.0)
        await store.put_sealed_secret(secret)
        assert await store.sealed_secrets() == [secret]
        await store.put_sessions([replace(s, remote="r") for s in records.SESSIONS])
        assert {s.remote for s in await store.sessions()} == {"r"}
        (starting,) = [v for v in records.VERSIONS if v.state is VersionState.STARTING]
        await store.set_version(starting, VersionState.FAILED, error="ended")
        assert isinstance((await store.versions("site"))[0].spec, FunctionSpec)
    finally:
        await store.close()


async def test_a_copy_is_kept_as_they_were_and_the_log_says_where(old: Path) -> None:
    before = dump(old)
    with capture_logs() as said:
        await opened_and_whole(old)
    copy = old.with_name("cove.db.0001")
    assert dump(copy) == before
    assert copy.stat().st_mode & 0o777 == 0o600
    assert beside(old) == {copy.name}
    (line,) = [each for each in said if each.get("copy")]
    assert (line["was"], line["now"], line["copy"]) == ("0001", NEWEST, str(copy))


async def test_what_stands_in_the_log_of_writes_is_in_the_copy(old: Path) -> None:
    writer = sqlite3.connect(old)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("UPDATE functions SET created_at = 99.5 WHERE name = 'site'")
    writer.commit()
    # Taken while the writer is there: closing it would bring the log into the file.
    for file in old.parent.glob("cove.db*"):
        shutil.copy(file, old.with_name("left-" + file.name))
    writer.close()
    left = old.with_name("left-cove.db")
    assert left.with_name("left-cove.db-wal").stat().st_size > 0
    await (await open_store(left)).close()
    assert any("99.5" in line for line in dump(left.with_name("left-cove.db.0001")))


async def test_new_records_and_those_of_this_revision_are_not_copied(tmp_path: Path) -> None:
    for _ in range(2):
        await (await open_store(tmp_path / "cove.db")).close()
    assert beside(tmp_path / "cove.db") == set()


async def test_a_copy_put_back_is_upgraded_and_one_that_differs_gets_a_number(old: Path) -> None:
    copy = old.with_name("cove.db.0001")
    await opened_and_whole(old)
    for changed in (False, True):
        for name in ("cove.db", "cove.db-wal", "cove.db-shm"):
            old.with_name(name).unlink(missing_ok=True)
        shutil.copy(copy, old)
        first = copy.read_bytes()
        if changed:
            with sqlite3.connect(old) as database:
                database.execute("INSERT INTO keys VALUES ('k3', 'project', 'x', 9.0)")
            database.close()
        store = await open_store(old)
        assert len(await store.keys()) == 2 + changed
        await store.close()
        assert copy.read_bytes() == first
        assert beside(old) == {"cove.db.0001"} | ({"cove.db.0001.2"} if changed else set())


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more migration, which does something and then fails."""
    folder = tmp_path / "scripts"
    shutil.copytree(
        Path(migrations.__file__).parent,
        folder,
        ignore=shutil.ignore_patterns("__pycache__", "__init__.py"),
    )
    (folder / "versions" / "v9999_broken.py").write_text(
        f"from alembic import op\nrevision = '9999'\ndown_revision = {NEWEST!r}\n"
        "def upgrade():\n"
        "    op.execute('DELETE FROM keys')\n"
        "    op.execute('DROP TABLE aliases')\n"
        "    op.execute('SELECT * FROM no_such_table')\n"
    )
    monkeypatch.setattr(migrations, "SCRIPTS", str(folder))


async def test_a_migration_that_fails_leaves_everything_as_it_was(
    old: Path, broken: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dump(old)
    for _ in range(3):  # a service that is started again without end
        with pytest.raises(CoveError) as failed:
            await open_store(old)
        assert failed.value.code == "internal"
        assert "no_such_table" in failed.value.message
        assert "sqlalche" not in failed.value.message
        assert str(old.with_name("cove.db.0001")) in failed.value.message
        assert dump(old) == before
        assert beside(old) == {"cove.db.0001", "scripts"}
    monkeypatch.undo()
    await opened_and_whole(old)


KILLED = """
import os, signal, sys
from pathlib import Path
import sqlite3
import sqlalchemy
from sqlalchemy import event
from cove.store.upgrade import upgrade

path, at = sys.argv[1:]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

@event.listens_for(sqlalchemy.engine.Engine, "before_cursor_execute")
def executing(conn, cursor, statement, parameters, context, many):
    if statement.strip().startswith(at):
        die()

@event.listens_for(sqlalchemy.engine.Engine, "commit")
def committing(conn):
    if at == "COMMIT":
        die()

sys.addaudithook(lambda name, args: name == at and die())
upgrade(Path(path))
print("not reached")
"""


@pytest.mark.parametrize(
    "at", ["os.rename", "ALTER TABLE", "CREATE TABLE sealed", "UPDATE alembic_version", "COMMIT"]
)
async def test_killed_in_the_middle_the_next_start_finds_everything(old: Path, at: str) -> None:
    before = dump(old)
    killed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", KILLED, str(old), at],
        capture_output=True,
        timeout=60,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "not reached" not in killed.stdout
    assert beside(old) == {"cove.db.0001.part" if at == "os.rename" else "cove.db.0001"}
    await opened_and_whole(old)
    assert beside(old) == {"cove.db.0001"}
    assert dump(old.with_name("cove.db.0001")) == before


async def test_without_a_copy_nothing_is_changed(old: Path) -> None:
    before = dump(old)
    old.with_name("cove.db.0001.part").mkdir()
    with pytest.raises(CoveError) as refused:
        await open_store(old)
    assert refused.value.code == "bad_config"
    assert "no copy could be made" in refused.value.message
    assert dump(old) == before


async def test_records_of_a_newer_cove_are_refused_with_words(old: Path) -> None:
    await opened_and_whole(old)
    with sqlite3.connect(old) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
        database.execute("CREATE TABLE of_the_future (x)")
    database.close()
    before = dump(old)
    with pytest.raises(CoveError) as refused:
        await open_store(old)
    assert refused.value.code == "not_built"
    for words in ("revision 9999", "newer Cove", f"up to {NEWEST}"):
        assert words in refused.value.message
    assert "start the newer Cove" in refused.value.hint
    assert str(old.with_name("cove.db.0001")) in refused.value.hint
    assert dump(old) == before
    assert beside(old) == {"cove.db.0001"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"these are not the records\n" * 100, "not a database"),
        (b"SQLite format 3\0" + b"\0" * 4096, "not a database"),
    ],
)
async def test_a_file_that_is_no_database_is_refused_with_words(
    tmp_path: Path, text: bytes, words: str
) -> None:
    path = tmp_path / "cove.db"
    path.write_bytes(text)
    with pytest.raises(CoveError) as refused:
        await open_store(path)
    assert refused.value.code == "bad_config"
    assert words in refused.value.message
    assert "sqlalche" not in refused.value.message
    assert "copy" in refused.value.hint
    assert path.read_bytes() == text


async def test_somebody_elses_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "cove.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE recipes (x)")
    database.close()
    before = dump(path)
    with pytest.raises(CoveError) as refused:
        await open_store(path)
    assert refused.value.code == "bad_config"
    assert "recipes" in refused.value.message
    assert dump(path) == before
