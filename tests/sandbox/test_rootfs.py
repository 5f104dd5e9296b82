"""The skeleton: what is surveyed on a host, and what is made of it."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cove.sandbox.rootfs import Skeleton, build, reachable, survey, unreadable
from cove.sandbox.spec import Bind


def targets(skeleton: Skeleton) -> dict[str, str]:
    return {bind.target: bind.source for bind in skeleton.binds}


def look(tmp_path: Path, **changes: str | None) -> Skeleton:
    asked: dict[str, str | None] = {
        "deps": None,
        "serve": None,
        "executable": None,
        "prefix": None,
        **changes,
    }
    return survey(code=str(tmp_path), **asked)  # type: ignore[arg-type]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder with two versions of an interpreter and a private file."""
    for name in ("3.11.1", "3.11.2"):
        (tmp_path / "home" / "versions" / name / "bin").mkdir(parents=True)
        (tmp_path / "home" / "versions" / name / "bin" / "python3").touch()
    (tmp_path / "home" / ".ssh").mkdir()
    return tmp_path / "home"


def test_code_dependencies_and_serve_have_their_places(tmp_path: Path) -> None:
    (tmp_path / "serve.py").touch()
    seen = targets(look(tmp_path, deps=str(tmp_path), serve=str(tmp_path / "serve.py")))
    assert seen["/app"] == seen["/layers/deps"] == str(tmp_path)
    assert seen["/cove/serve.py"] == str(tmp_path / "serve.py")
    assert "/usr" in seen


def test_no_folder_that_holds_more_than_programs_is_bound(tmp_path: Path) -> None:
    seen = targets(look(tmp_path))
    assert not {"/", "/etc", "/home", "/root", "/var", "/run", "/sys", "/dev", "/opt"} & set(seen)
    assert not any(path.startswith(("/etc/ssl/private", "/etc/shadow")) for path in seen)


def test_of_a_home_folder_only_the_interpreters_prefix_is_bound(home: Path, tmp_path: Path) -> None:
    prefix = str(home / "versions" / "3.11.1")
    seen = targets(look(tmp_path, executable=f"{prefix}/bin/python3", prefix=prefix))
    assert [path for path in seen if path.startswith(str(home))] == [prefix]


def test_a_linked_prefix_is_found_under_both_names(home: Path, tmp_path: Path) -> None:
    (home / "versions" / "3.11").symlink_to("3.11.2")
    link, real = str(home / "versions" / "3.11"), str(home / "versions" / "3.11.2")
    seen = targets(look(tmp_path, executable=f"{link}/bin/python3", prefix=link))
    assert (seen[link], seen[real]) == (real, real)


def test_links_that_lead_to_the_interpreter_are_kept(home: Path, tmp_path: Path) -> None:
    # Not below /tmp, which is covered inside: the link is surveyed, never made.
    prefix = str(home / "versions" / "3.11.1")
    skeleton = Skeleton((("/opt/bin/python", f"{prefix}/bin/python3"),), ())
    root = tmp_path / "root"
    build(skeleton, str(root))
    assert os.readlink(root / "opt/bin/python") == f"{prefix}/bin/python3"


def test_the_systems_own_interpreter_needs_no_bind_of_its_own(tmp_path: Path) -> None:
    with_one = look(tmp_path, executable="/usr/bin/python3", prefix="/usr")
    assert with_one.binds == look(tmp_path).binds


def test_a_prefix_shared_with_a_persons_files_is_bound_in_parts(home: Path, tmp_path: Path) -> None:
    prefix = home / ".local"
    for part in ("bin", "lib", "share/keyrings"):
        (prefix / part).mkdir(parents=True)
    seen = targets(look(tmp_path, executable=f"{prefix}/bin/python3", prefix=str(prefix)))
    below = [path for path in seen if path.startswith(str(home))]
    assert below == [f"{prefix}/bin", f"{prefix}/lib"]


def test_what_is_built_can_be_read_by_anybody_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        build(look(tmp_path), str(tmp_path / "root"))
    finally:
        os.umask(before)
    assert unreadable(str(tmp_path / "root" / "etc")) is None
    assert stat.S_IMODE((tmp_path / "root").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "root" / "tmp").stat().st_mode) == 0o1777
    assert "root" in (tmp_path / "root" / "etc" / "passwd").read_text()


def test_many_at_once_build_one_skeleton_and_leave_no_draft(tmp_path: Path) -> None:
    skeleton = look(tmp_path)
    folder = tmp_path / "roots"
    folder.mkdir()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: build(skeleton, str(folder / "one")), range(16)))
    assert [path.name for path in folder.iterdir()] == ["one"]


def test_skeletons_are_shared_by_equal_mount_points_not_by_sources(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = Skeleton((), (Bind(str(tmp_path / "a"), "/app"),))
    two = Skeleton((), (Bind(str(tmp_path / "b"), "/app"),))
    other = Skeleton((), (Bind(str(tmp_path / "a"), "/other"),))
    assert one.digest == two.digest != other.digest


def test_the_first_closed_path_is_named(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "file").touch(0o644)
    tmp_path.chmod(0o755)
    assert unreadable(str(tmp_path)) is None
    (tmp_path / "open" / "file").chmod(0o600)
    assert unreadable(str(tmp_path)) == str(tmp_path / "open" / "file")
    (tmp_path / "open").chmod(0o700)
    assert unreadable(str(tmp_path)) == str(tmp_path / "open")


def test_a_program_that_others_may_read_and_not_run_counts_as_closed(tmp_path: Path) -> None:
    (tmp_path / "tool").touch()
    (tmp_path / "tool").chmod(0o744)
    assert unreadable(str(tmp_path / "tool")) == str(tmp_path / "tool")


def test_a_folder_below_a_closed_one_cannot_be_reached(tmp_path: Path) -> None:
    (tmp_path / "shut" / "in").mkdir(parents=True)
    (tmp_path / "shut").chmod(0o700)
    assert not reachable(str(tmp_path / "shut" / "in"))
    assert reachable("/usr/bin")
