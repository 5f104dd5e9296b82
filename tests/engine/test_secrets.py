"""Secrets: sealed in the store, opened with the key file only, never lost in silence."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sqlite3
import tarfile
import traceback
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from cove.drivers.fake import FakeDriver
from cove.engine import secrets as engine_secrets
from cove.engine.functions import Functions
from cove.engine.output import Outputs
from cove.engine.seal import KEY_BYTES, seal, unseal
from cove.engine.secrets import Secrets
from cove.engine.sessions import Sessions
from cove.engine.supervisor import Supervisor
from cove.errors import CoveError
from cove.model import Facts
from cove.runtimes.layers import Layers
from cove.store.memory import MemoryStore
from cove.store.sql import SqlStore, open_store

MARKER = "hunter2-Ω-marker"
KEY = os.urandom(KEY_BYTES)


def nobody(name: str) -> list[str]:
    return []


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    opened = await open_store(tmp_path / "cove.db")
    yield opened
    await opened.close()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "secrets.key"


@pytest.fixture
async def secrets(store: SqlStore, key_file: Path) -> Secrets:
    return await opened(store, key_file)


async def opened(store: SqlStore, key_file: Path) -> Secrets:
    """As after a start of Cove."""
    found = Secrets(store, key_file)
    await found.load()
    return found


async def refused(doing: Any) -> CoveError:
    with pytest.raises(CoveError) as caught:
        await doing
    told = "".join(traceback.format_exception(caught.value)) + json.dumps(caught.value.to_json())
    assert MARKER not in told
    assert caught.value.hint
    return caught.value


async def use(secrets: Secrets, *names: str) -> dict[str, str]:
    return secrets.values(names)


# Sealing.


@given(name=st.text(), value=st.text(st.characters(exclude_categories=["Cs"])))
def test_what_is_sealed_opens_with_its_key_and_name_only(name: str, value: str) -> None:
    name = name.encode(errors="ignore").decode()
    sealed = seal(KEY, name, value)
    assert unseal(KEY, name, sealed) == value
    assert unseal(os.urandom(KEY_BYTES), name, sealed) is None
    assert unseal(KEY, name + "x", sealed) is None


def test_no_byte_of_it_may_change_or_be_missing() -> None:
    sealed = seal(KEY, "A", MARKER)
    assert MARKER.encode() not in sealed
    for at in range(len(sealed)):
        changed = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        assert unseal(KEY, "A", changed) is None
        assert unseal(KEY, "A", sealed[:at]) is None


def test_one_value_sealed_twice_looks_different() -> None:
    assert seal(KEY, "A", MARKER) != seal(KEY, "A", MARKER)


# Setting, listing, removing.


async def test_a_value_is_kept_over_a_restart_and_never_told(
    store: SqlStore, key_file: Path, secrets: Secrets
) -> None:
    kept = await secrets.set("A", MARKER, lambda name: ["weather"])
    assert set(kept) == {"name", "created_at", "updated_at", "functions"}
    assert kept["functions"] == ["weather"]
    again = await opened(store, key_file)
    assert again.values(["A"]) == secrets.values(["A"]) == {"A": MARKER}
    assert again.list(lambda name: ["weather"]) == [kept]
    assert MARKER not in repr(secrets) + repr(await store.sealed_secrets())


async def test_a_new_value_takes_the_old_ones_place(store: SqlStore, secrets: Secrets) -> None:
    first = await secrets.set("A", "old", nobody)
    second = await secrets.set("A", "new", nobody)
    assert secrets.values(["A"]) == {"A": "new"}
    assert second["created_at"] == first["created_at"]
    assert second["updated_at"] >= first["updated_at"]
    assert len(await store.sealed_secrets()) == 1


async def test_values_set_at_once_are_all_kept_under_one_key(
    store: SqlStore, key_file: Path, secrets: Secrets
) -> None:
    names = [f"A{n}" for n in range(8)]
    await asyncio.gather(*(secrets.set(name, name, nobody) for name in names))
    assert (await opened(store, key_file)).values(names) == {name: name for name in names}


async def test_what_live_versions_name_is_not_removed(secrets: Secrets) -> None:
    await secrets.set("A", MARKER, nobody)
    named = await refused(secrets.remove("A", lambda name: ["clock", "weather"]))
    assert named.code == "conflict"
    assert "clock, weather" in named.message
    assert secrets.values(["A"]) == {"A": MARKER}
    await secrets.remove("A", nobody)
    assert secrets.list(nobody) == []
    assert (await refused(secrets.remove("A", lambda name: ["weather"]))).code == "not_found"


async def test_a_secret_that_is_not_set_is_named_with_what_to_do(secrets: Secrets) -> None:
    await secrets.set("A", MARKER, nobody)
    missing = await refused(use(secrets, "A", "B", "C"))
    assert missing.code == "not_found"
    assert "names the secrets B, C, which are not set" in missing.message
    assert missing.hint == "cove secret set B"
    with pytest.raises(CoveError) as for_deploy:
        secrets.require("weather", ["B"])
    assert for_deploy.value.code == "conflict"
    assert "weather names the secret B, which is not set" in for_deploy.value.message
    secrets.require("weather", ["A"])


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("PATH", MARKER, "bad_name"),
        (MARKER, "x", "bad_name"),
        ("A", "", "bad_request"),
        ("A", MARKER + "\0", "bad_request"),
        ("A", MARKER + "\udcff", "bad_request"),
        ("A", MARKER * 5000, "too_large"),
    ],
)
async def test_what_cannot_be_one_is_refused_and_not_repeated(
    secrets: Secrets, key_file: Path, name: str, value: str, code: str
) -> None:
    assert (await refused(secrets.set(name, value, nobody))).code == code
    assert secrets.list(nobody) == []
    assert not key_file.exists()


async def test_there_is_a_bound_to_how_many_and_to_how_much_together(
    secrets: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_secrets, "MOST", 2)
    monkeypatch.setattr(engine_secrets, "TOGETHER", 10)
    await secrets.set("A", "12345", nobody)
    await secrets.set("B", "123456", nobody)
    assert (await refused(secrets.set("C", "x", nobody))).code == "conflict"
    await secrets.set("B", "123456", nobody)
    assert (await refused(use(secrets, "A", "B"))).code == "too_large"
    assert await use(secrets, "B")


# The key file.


async def test_the_key_is_made_at_the_first_and_only_ours_to_read(
    secrets: Secrets, key_file: Path
) -> None:
    assert not key_file.exists()
    old = os.umask(0)
    try:
        await secrets.set("A", MARKER, nobody)
    finally:
        os.umask(old)
    assert key_file.stat().st_mode & 0o777 == 0o600
    made = key_file.read_bytes()
    await secrets.set("B", MARKER, nobody)
    assert key_file.read_bytes() == made
    assert {file.name for file in key_file.parent.glob("secrets*")} == {"secrets.key"}


async def test_the_values_are_on_no_disk_in_the_clear(
    tmp_path: Path, store: SqlStore, secrets: Secrets
) -> None:
    await secrets.set("A", MARKER, nobody)
    await store.close()
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert MARKER.encode() not in file.read_bytes(), file


@pytest.mark.parametrize("how", ["missing", "another", "no key", "cut short", "a folder"])
async def test_without_the_right_key_nothing_is_used_set_or_lost(
    store: SqlStore, key_file: Path, secrets: Secrets, how: str
) -> None:
    await secrets.set("A", MARKER, nobody)
    await secrets.set("B", MARKER, nobody)
    right = key_file.read_bytes()
    key_file.unlink()
    if how == "a folder":
        key_file.mkdir()
    elif how != "missing":
        wrong = {"another": os.urandom(32).hex(), "no key": "\xff\xfe", "cut short": "ab"}[how]
        key_file.write_bytes(wrong.encode("latin-1"))
    with capture_logs() as said:
        again = await opened(store, key_file)
    assert [each for each in said if each["log_level"] == "warning"]
    assert [each["name"] for each in again.list(nobody)] == ["A", "B"]
    sealed = await store.sealed_secrets()
    for doing in (use(again, "A"), again.set("A", "x", nobody), again.set("C", "x", nobody)):
        error = await refused(doing)
        assert error.code == "conflict"
        assert str(key_file) in error.message
        assert "put back the file" in error.hint
        assert "`cove secret rm A`" in error.hint
    assert await store.sealed_secrets() == sealed
    assert how != "missing" or not key_file.exists()
    if how == "a folder":
        key_file.rmdir()
    key_file.write_bytes(right)
    assert again.values(["A", "B"]) == {"A": MARKER, "B": MARKER}
    await again.set("C", "x", nobody)


async def test_with_all_of_them_removed_a_lost_key_is_made_anew(
    store: SqlStore, key_file: Path, secrets: Secrets
) -> None:
    await secrets.set("A", MARKER, nobody)
    assert (await refused(secrets.remove("A", lambda name: ["fn"]))).code == "conflict"
    key_file.unlink()
    # Also while Cove runs and could still open them: what it set now would be lost at its end.
    assert (await refused(secrets.set("B", "x", nobody))).code == "conflict"
    assert not key_file.exists()
    # Named or not: what cannot be opened would otherwise be in the way of its own successor.
    await secrets.remove("A", lambda name: ["fn"])
    await secrets.set("B", MARKER, nobody)
    assert (await opened(store, key_file)).values(["B"]) == {"B": MARKER}


async def test_a_file_that_holds_no_key_is_not_written_over(
    secrets: Secrets, key_file: Path
) -> None:
    key_file.write_text("mine, and something else\n")
    error = await refused(secrets.set("A", MARKER, nobody))
    assert "move it away" in error.hint
    assert key_file.read_text() == "mine, and something else\n"


async def test_a_value_swapped_below_cove_opens_as_nothing(
    tmp_path: Path, store: SqlStore, key_file: Path, secrets: Secrets
) -> None:
    await secrets.set("A", "of A", nobody)
    await secrets.set("B", "of B", nobody)
    one, other = await store.sealed_secrets()
    await store.put_sealed_secret(replace(one, sealed=other.sealed))
    again = await opened(store, key_file)
    assert (await refused(use(again, "A"))).code == "conflict"
    assert again.values(["B"]) == {"B": "of B"}


async def test_a_key_that_others_may_read_is_pointed_out(
    store: SqlStore, key_file: Path, secrets: Secrets
) -> None:
    await secrets.set("A", MARKER, nobody)
    key_file.chmod(0o644)
    with capture_logs() as said:
        await opened(store, key_file)
    assert any("others may read" in each["event"] for each in said)


async def test_a_store_that_cannot_write_keeps_the_old_value_and_says_nothing_of_the_new(
    tmp_path: Path, store: SqlStore, key_file: Path, secrets: Secrets
) -> None:
    await secrets.set("A", "old", nobody)
    with sqlite3.connect(tmp_path / "cove.db") as other:
        other.execute(
            "CREATE TRIGGER full BEFORE UPDATE ON sealed_secrets "
            "BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
    other.close()
    with pytest.raises(Exception, match="disk full") as failed:
        await secrets.set("A", MARKER, nobody)
    told = "".join(traceback.format_exception(failed.value))
    sealed = (await store.sealed_secrets())[0].sealed
    assert MARKER not in told
    assert "[SQL parameters hidden" in told
    assert secrets.values(["A"]) == {"A": "old"}
    assert unseal(bytes.fromhex(key_file.read_text()), "A", sealed) == "old"


# Deploying.


def packed(folder: Path, *names: str) -> Path:
    toml = f'name = "fn"\nkind = "web"\ncommand = "x"\nsecrets = {json.dumps(names)}\n'
    path = folder / "packed.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo("cove.toml")
        member.size = len(toml)
        tar.addfile(member, io.BytesIO(toml.encode()))
    return path


async def test_a_deploy_that_names_what_is_not_set_builds_nothing(
    tmp_path: Path, secrets: Secrets
) -> None:
    store, driver = MemoryStore(), FakeDriver()
    outputs = Outputs(tmp_path / "output", lambda printed: None)
    supervisor = Supervisor(
        {"process": driver}, outputs=outputs, parallel_starts=1, secrets=secrets.values
    )

    async def look(*seen: object) -> Facts:
        return Facts()

    functions = Functions(
        store=store,
        layers=Layers(tmp_path / "layers"),
        supervisor=supervisor,
        sessions=Sessions(),
        drivers={"process": driver},
        probe=look,
        on_live=lambda name, pool: None,
        scratch=tmp_path,
        require=secrets.require,
    )

    async def deploy(*names: str) -> str:
        return await functions.deploy(
            packed(tmp_path, *names), name=None, fallback="fn", progress=lambda line: None
        )

    try:
        await secrets.set("A", MARKER, nobody)
        error = await refused(deploy("A", "B"))
        assert error.code == "conflict"
        assert "fn names the secret B, which is not set" in error.message
        assert (list((tmp_path / "layers").iterdir()), driver.started) == ([], [])
        assert await store.functions() == []
        await secrets.set("B", "{port}", nobody)
        await deploy("A", "B")
        (launch,) = driver.started
        assert launch.secrets == {"A": MARKER, "B": "{port}"}
        assert functions.naming("A") == ["fn"]
        assert MARKER not in repr(await store.versions())
    finally:
        await supervisor.close()
        await driver.close()
        outputs.close()
