"""`cove up` where it cannot start: it ends at once, says why, and what may be done."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bad_input.standing import Standing
from cove.config import OPERATOR_KEYS
from cove.engine.datafolder import configured, hold
from cove.errors import CoveError
from e2e.installation import COVE

NOBODY = 65534
# Root's own Python may be one that no other user can start: it is started by root, and left.
AS_NOBODY = f"""
import os, sys
from cove.server.__main__ import main
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
sys.exit(main(["up", *sys.argv[1:]]))
"""
PATIENCE = 30


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can enter, as pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="cove-bad-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def up(data: Path, *options: str, listen: str = "127.0.0.1:0", nobody: bool = False) -> str:
    """What `cove up` says before it ends, which it must with exit code 1."""
    argv = [sys.executable, "-c", AS_NOBODY] if nobody else [*COVE, "up"]
    argv += ["--data", str(data), "--listen", listen, "--driver", "process", *options]
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVE_")}
    ran = subprocess.run(
        argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE
    )
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr, ran.stderr
    assert "is up at" not in ran.stdout
    if "--json" not in options:
        assert re.search(r"^error: .+\nhint: .+$", ran.stderr, re.MULTILINE), ran.stderr
    return ran.stderr + ran.stdout


def test_a_port_in_use_is_named_with_the_way_out(data: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        said = up(data, listen=address)
    assert f"cannot listen on {address}: Address already in use" in said
    assert "--listen" in said


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1:70700", "no.such.host.invalid:7070"])
def test_an_address_that_is_none_is_named(data: Path, listen: str) -> None:
    said = up(data, listen=listen)
    assert listen in said
    assert "--listen" in said or "127.0.0.1:7070" in said


def test_a_data_folder_that_is_a_file_or_below_one_is_said_to_be(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    assert f"{file} cannot be used: {file} is a file" in up(file)
    with (
        pytest.raises(CoveError, match=f"{file}/below cannot be used: {file} is a file"),
        hold(file / "below"),
    ):
        pass
    assert file.read_text() == "not a folder"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_data_folder_that_another_user_owns_is_not_used(open_folder: Path) -> None:
    ours = open_folder / "ours"
    said = up(ours, nobody=True)  # it cannot even be made
    assert f"{ours} cannot be used: user {NOBODY} may not write {ours}" in said
    ours.mkdir(mode=0o755)
    (ours / "lock").touch(mode=0o600)
    said = up(ours, nobody=True)
    assert f"user {NOBODY} may not write {ours / 'lock'}" in said
    assert "run Cove as the user whose it is" in said
    assert [path.name for path in ours.iterdir()] == ["lock"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_read_only_file_system_is_said_to_be(data: Path) -> None:
    data.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=64k", "none", data], check=True)
    try:
        said = up(data)
    finally:
        subprocess.run(["umount", data], check=True)
    assert f"{data} cannot be used: Read-only file system" in said


def test_a_second_cove_on_the_folder_is_refused_by_any_path_to_it(
    cove: Standing, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(cove.data)
    assert cove.cove.process is not None
    with cove.unchanged():
        for path in (cove.data, link):
            said = up(path)
            assert f"another Cove runs on the data folder {path}" in said
            assert f"process {cove.cove.process.pid}" in said
            assert "--data" in said


OPERATOR = {
    "domain": ('"Not a domain"', "a domain name"),
    "listen": ("7070", "an address and a port"),
    "drain": ('"soon"', "a duration"),
}


@pytest.mark.parametrize("key", sorted(".".join(path) for path in OPERATOR_KEYS))
def test_every_key_of_config_toml_wrong_in_turn_is_told_with_its_line(
    tmp_path: Path, key: str
) -> None:
    file = tmp_path / "config.toml"
    wrong, right = OPERATOR.get(key, ("2026-01-15", ""))
    *table, name = key.split(".")
    file.write_text((f"[{table[0]}]" if table else "#") + f"\n{name} = {wrong}\n")
    with pytest.raises(CoveError, match=f"{file} line 2: {key} must be {right}") as caught:
        configured(tmp_path)
    assert caught.value.code == "bad_config"
    assert caught.value.hint


def test_a_config_toml_with_a_key_misspelt_stops_the_start(data: Path) -> None:
    data.mkdir()
    file = data / "config.toml"
    file.write_text("\ndrian = 3\n")
    said = up(data)
    assert f"{file} line 2: drian is not a key of this file" in said
    assert "did you mean drain?" in said


def test_a_config_toml_that_is_no_text_says_so(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    assert configured(tmp_path) == configured(tmp_path / "nowhere")
    for data, said in ((b'domain = "\xff"\n', "is not UTF-8"), (b"drain = ", "is not valid TOML")):
        file.write_bytes(data)
        with pytest.raises(CoveError, match=f"{file} {said}") as caught:
            configured(tmp_path)
        assert caught.value.hint
    file.unlink()
    file.mkdir()
    with pytest.raises(CoveError, match=f"{file} cannot be read: Is a directory") as caught:
        configured(tmp_path)
    assert caught.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_containers_that_are_demanded_and_cannot_be_had_are_an_error(open_folder: Path) -> None:
    data = open_folder / "data"
    data.mkdir()
    os.chown(data, NOBODY, NOBODY)
    said = up(data, "--driver", "oci", nobody=True)
    assert "no OCI runtime passed the probe" in said
    assert "cove doctor" in said


def test_a_client_without_a_server_says_how_to_start_one(tmp_path: Path) -> None:
    argv = [*COVE, "list", "--json", "--data", str(tmp_path), "--url", "http://127.0.0.1:9"]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE)
    assert ran.returncode == 1
    error = json.loads(ran.stdout)["error"]
    assert error["code"] == "unreachable"
    assert "127.0.0.1:9" in error["message"]
    assert "cove up" in error["hint"]
    assert sys.executable not in ran.stderr


@pytest.mark.xfail(strict=True, reason="the server reads config.toml without `configured` yet")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_data_folder_that_cannot_even_be_looked_into_is_said_to_be(open_folder: Path) -> None:
    shut = open_folder / "shut"
    shut.mkdir(mode=0o700)
    said = up(shut, nobody=True)
    assert f"{shut / 'config.toml'} cannot be read: Permission denied" in said


def test_records_that_are_none_are_said_to_be(data: Path) -> None:
    data.mkdir()
    (data / "cove.db").write_bytes(b"this is no database, and was never one" * 100)
    said = up(data)
    assert f"{data / 'cove.db'}" in said


@pytest.mark.xfail(strict=True, reason="the server says it in words only yet")
def test_a_program_reads_why_the_server_did_not_start_as_json(data: Path) -> None:
    error = json.loads(up(data, "--json", listen="nonsense"))["error"]
    assert error["code"] == "bad_config"
    assert "nonsense" in error["message"]
    assert error["hint"]
