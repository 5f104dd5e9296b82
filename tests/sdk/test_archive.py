"""What a deploy sends: the right files, nothing secret, the same bytes for the same files."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from cove.errors import CoveError
from cove.sdk.archive import fallback_name, left_beside, pack
from cove.sdk.ignore import Ignore


def tree(top: Path, *files: str) -> Path:
    for file in files:
        (top / file).parent.mkdir(parents=True, exist_ok=True)
        (top / file).write_text(file)
    return top


def packed(path: Path) -> list[str]:
    with pack(path) as archive, tarfile.open(fileobj=archive, mode="r:gz") as tar:
        return tar.getnames()


def test_a_file_travels_alone(tmp_path: Path) -> None:
    tree(tmp_path, "server.py", "other.py", "requirements.txt")
    assert packed(tmp_path / "server.py") == ["server.py"]
    assert left_beside(tmp_path / "server.py") == ["requirements.txt"]
    assert left_beside(tmp_path) == []


def test_a_folder_travels_without_what_tools_leave_behind(tmp_path: Path) -> None:
    kept = ["cove.toml", "pkg/__init__.py", "pkg/data.json", "server.py", "sub/venv.py"]
    tree(tmp_path, *kept)
    tree(tmp_path, ".git/HEAD", ".venv/bin/python", "venv/x", "node_modules/a/index.js")
    tree(tmp_path, "pkg/__pycache__/a.pyc", "pkg/old.pyc", "sub/node_modules/b")
    assert sorted(packed(tmp_path)) == kept


def test_secrets_do_not_travel(tmp_path: Path) -> None:
    tree(tmp_path, "server.py", ".env", ".env.production", "sub/.env", ".env.example")
    assert sorted(packed(tmp_path)) == [".env.example", "server.py"]


def test_coveignore_leaves_out_and_takes_back(tmp_path: Path) -> None:
    tree(
        tmp_path,
        "a.py",
        "a.log",
        "keep.log",
        "data/big.bin",
        "sub/data/x",
        "top.txt",
        "sub/top.txt",
    )
    rules = "# data\n\n*.log\n!keep.log\n/data/\ntop.txt\n!sub/top.txt\n"
    (tmp_path / ".coveignore").write_text(rules)
    kept = [".coveignore", "a.py", "keep.log", "sub/data/x", "sub/top.txt"]
    assert sorted(packed(tmp_path)) == kept


@pytest.mark.parametrize(
    ("rule", "path", "folder", "out"),
    [
        ("*.tmp", "a/b/c.tmp", False, True),
        ("build/", "build", True, True),
        ("build/", "build", False, False),
        ("a/*.txt", "a/b.txt", False, True),
        ("a/*.txt", "x/a/b.txt", False, False),
        ("**/cache", "deep/er/cache", True, True),
        ("[Mm]ake", "Make", False, True),
        ("", "x", False, False),
        ("#x", "#x", False, False),
        ("!", "x", False, False),
    ],
)
def test_an_ignore_line_means_this(rule: str, path: str, folder: bool, out: bool) -> None:
    assert Ignore([rule]).leaves_out(path, folder) is out


def test_a_file_below_an_ignored_folder_is_ignored() -> None:
    ignore = Ignore(["build/"])
    assert ignore.leaves_out_below("a/build/x/y.py")
    assert not ignore.leaves_out_below("a/built/x/y.py")


def test_the_same_files_make_the_same_bytes(tmp_path: Path) -> None:
    one, two = tree(tmp_path / "one", "a.py", "b/c.py"), tree(tmp_path / "two", "b/c.py", "a.py")
    os.utime(two / "a.py", (1, 1))
    (two / "a.py").chmod(0o640)
    with pack(one) as first, pack(two) as second:
        assert first.read() == second.read()


def test_programs_stay_executable_and_owners_stay_home(tmp_path: Path) -> None:
    tree(tmp_path, "run.sh", "a.py")
    (tmp_path / "run.sh").chmod(0o700)
    with pack(tmp_path) as archive, tarfile.open(fileobj=archive, mode="r:gz") as tar:
        found = {m.name: (m.mode, m.uid, m.uname) for m in tar.getmembers()}
    assert found == {"a.py": (0o644, 0, ""), "run.sh": (0o755, 0, "")}


def test_links_inside_travel_and_links_outside_are_refused(tmp_path: Path) -> None:
    top = tree(tmp_path / "top", "a.py", "sub/b.py")
    (top / "link.py").symlink_to("a.py")
    (top / "sublink").symlink_to("sub")
    os.link(top / "a.py", top / "hard.py")
    with pack(top) as archive, tarfile.open(fileobj=archive, mode="r:gz") as tar:
        kinds = {m.name: m.issym() for m in tar.getmembers()}
        assert tar.extractfile("hard.py").read() == b"a.py"  # type: ignore[union-attr]
    assert kinds == {
        "a.py": False,
        "hard.py": False,
        "link.py": True,
        "sub/b.py": False,
        "sublink": True,
    }
    for target in ("../secret", "/etc/passwd"):
        (top / "bad").symlink_to(target)
        with pytest.raises(CoveError) as refused:
            pack(top)
        assert refused.value.code == "bad_source"
        assert ".coveignore" in refused.value.hint
        (top / ".coveignore").write_text("bad")
        assert "bad" not in packed(top)
        (top / "bad").unlink()
        (top / ".coveignore").unlink()


def test_sockets_and_pipes_are_passed_over(tmp_path: Path) -> None:
    tree(tmp_path, "a.py")
    os.mkfifo(tmp_path / "pipe")
    assert packed(tmp_path) == ["a.py"]


def test_what_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "no-such.py", tmp_path):
        with pytest.raises(CoveError) as refused:
            pack(path)
        assert refused.value.code == "bad_source"
        assert refused.value.hint


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("weather/server.py", "weather"),
        ("weather/main.py", "weather"),
        ("weather/app.py", "weather"),
        ("weather/__main__.py", "weather"),
        ("weather/index.py", "weather"),
        ("tools/my_clock.py", "my-clock"),
        ("My Project v2", "my-project-v2"),
        ("___", "function"),
    ],
)
def test_a_path_without_a_name_gets_this_one(tmp_path: Path, path: str, name: str) -> None:
    place = tmp_path / path
    if place.suffix:
        tree(tmp_path, path)
    else:
        place.mkdir()
    assert fallback_name(place) == name


def test_a_folder_is_named_as_it_is_and_not_as_it_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path, "weather/server.py")
    monkeypatch.chdir(tmp_path / "weather")
    assert fallback_name(Path(".")) == "weather"
    assert fallback_name(Path("server.py")) == "weather"
