"""Which server and key a client means."""

from __future__ import annotations

from pathlib import Path

import pytest

from cove.paths import default_data
from cove.sdk.locate import DEFAULT_URL, locate


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "key").write_text("kept\n")
    (tmp_path / "url").write_text("http://127.0.0.1:9999\n")
    return tmp_path


def test_the_option_wins_then_the_environment_then_the_servers_own_note(data: Path) -> None:
    env = {"COVE_URL": "http://env:1/"}
    assert locate("http://opt:2", data, env).url == "http://opt:2"
    assert locate(None, data, env).url == "http://env:1"
    assert locate(None, data, {}).url == "http://127.0.0.1:9999"
    assert locate(None, None, {"COVE_DATA": str(data)}).url == "http://127.0.0.1:9999"
    assert locate(None, data / "none", {}).url == DEFAULT_URL


def test_a_url_may_lack_its_scheme(data: Path) -> None:
    assert locate("127.0.0.1:7071", data, {}).url == "http://127.0.0.1:7071"


def test_the_key_is_the_environments_or_the_data_folders(data: Path) -> None:
    assert locate(None, data, {"COVE_KEY": "given"}).key == "given"
    assert locate(None, data, {}).key == "kept"
    assert locate(None, None, {"COVE_DATA": str(data)}).key == "kept"


def test_a_key_is_not_shown_by_accident(data: Path) -> None:
    assert "kept" not in repr(locate(None, data, {}))


def test_a_missing_key_says_where_it_was_looked_for(tmp_path: Path) -> None:
    found = locate(None, tmp_path, {})
    assert found.key is None
    assert str(tmp_path / "key") in found.missing


def test_the_default_folder_is_the_systems_for_root_and_the_users_else(tmp_path: Path) -> None:
    assert default_data({}, uid=0) == Path("/var/lib/cove")
    assert default_data({"XDG_DATA_HOME": str(tmp_path)}, uid=1000) == tmp_path / "cove"
    home = Path.home() / ".local" / "share" / "cove"
    assert default_data({}, uid=1000) == home
    assert default_data({"XDG_DATA_HOME": "relative"}, uid=1000) == home
