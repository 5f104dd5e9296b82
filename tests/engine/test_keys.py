"""The project key: made once, kept as a hash, and revoked by deleting its file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cove.engine.keys import project_keys
from cove.errors import CoveError
from cove.model import Key
from cove.store.memory import MemoryStore


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_text().strip().encode()).hexdigest()


async def test_the_first_start_writes_a_key_that_only_its_owner_reads(tmp_path: Path) -> None:
    store, file = MemoryStore(), tmp_path / "key"
    (key,) = await project_keys(store, file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert (key.sha256, key.subject) == (digest(file), "project")
    assert await project_keys(store, file) == [key]
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


async def test_a_deleted_key_is_replaced_and_no_longer_valid(tmp_path: Path) -> None:
    store, file = MemoryStore(), tmp_path / "key"
    (old,) = await project_keys(store, file)
    other = Key("k", "somebody", "ab" * 32, 0.0)
    await store.add_key(other)
    file.unlink()
    keys = await project_keys(store, file)
    assert {key.sha256 for key in keys} == {digest(file), other.sha256}
    assert old.sha256 != digest(file)
    assert await store.keys() == keys


async def test_a_key_of_other_records_is_not_trusted(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("cove_of-other-records\n")
    (key,) = await project_keys(MemoryStore(), file)
    assert key.sha256 == digest(file)
    assert "other" not in file.read_text()


async def test_a_replacement_that_stops_half_way_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, file = MemoryStore(), tmp_path / "key"
    await project_keys(store, file)
    file.unlink()

    def full(file: Path, secret: str) -> None:
        raise CoveError("internal", "disk full")

    with monkeypatch.context() as patched:
        patched.setattr("cove.engine.keys._write", full)
        with pytest.raises(CoveError, match="disk full"):
            await project_keys(store, file)
    (key,) = await project_keys(store, file)
    assert key.sha256 == digest(file)
