"""An archive becomes a folder, or is refused; it never reaches outside that folder."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cove.errors import CoveError
from cove.runtimes.archive import unpack

Member = tuple[str, dict[str, object], bytes]
LIMIT = 1024**2


def file(name: str, content: bytes = b"x", **fields: object) -> Member:
    return name, fields, content


def link(name: str, to: str) -> Member:
    return name, {"type": tarfile.SYMTYPE, "linkname": to}, b""


def packed(*members: Member) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, fields, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))
    out.seek(0)
    return out


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "outer" / "into"
    folder.mkdir(parents=True)
    return folder


def refused(data: io.BytesIO, into: Path, files: int = 100) -> CoveError:
    with pytest.raises(CoveError) as caught:
        unpack(data, into, limit_bytes=LIMIT, limit_files=files)
    assert caught.value.code == "bad_source"
    assert list(into.parent.iterdir()) == [into]
    return caught.value


def test_files_folders_and_links_inside_are_unpacked_with_plain_modes(into: Path) -> None:
    data = packed(
        file("a/run.sh", b"#!/bin/sh", mode=0o4711),
        file("./b.txt", b"b", mode=0o600),
        ("empty", {"type": tarfile.DIRTYPE, "mode": 0o700}, b""),
        link("a/up", "../b.txt"),
        link("circle", "circle"),
        ("hard", {"type": tarfile.LNKTYPE, "linkname": "b.txt"}, b""),
    )
    unpack(data, into, limit_bytes=LIMIT, limit_files=100)
    modes = {
        str(path.relative_to(into)): stat.S_IMODE(path.lstat().st_mode)
        for path in into.rglob("*")
        if not path.is_symlink()
    }
    assert modes == {"a": 0o755, "a/run.sh": 0o755, "b.txt": 0o644, "empty": 0o755, "hard": 0o644}
    assert (into / "a/up").read_text() == (into / "hard").read_text() == "b"


def test_an_archive_is_unpacked_from_a_path_too(into: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(packed(file("a")).getvalue())
    unpack(path, into, limit_bytes=LIMIT, limit_files=1)
    assert (into / "a").read_bytes() == b"x"


@pytest.mark.parametrize(
    "members",
    [
        pytest.param([file("/etc/cove-test")], id="absolute path"),
        pytest.param([file("../escaped")], id="path up"),
        pytest.param([file("a/../../escaped")], id="path up within"),
        pytest.param([link("out", "/etc/passwd")], id="absolute link"),
        pytest.param([link("out", "../../etc")], id="link up"),
        pytest.param([link("d", "."), link("out", "d/../x")], id="link up through a link"),
        pytest.param([link("out", ".."), file("out/escaped")], id="file through a link"),
        pytest.param([link("in", "sub"), file("in/x")], id="file through a link that stays"),
        pytest.param(
            [("h", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}, b"")], id="hard link out"
        ),
        pytest.param(
            [link("l", "/etc/passwd"), ("h", {"type": tarfile.LNKTYPE, "linkname": "l"}, b"")],
            id="hard link to a link",
        ),
        pytest.param([("d", {"type": tarfile.CHRTYPE, "devmajor": 1}, b"")], id="device"),
        pytest.param([("d", {"type": tarfile.BLKTYPE, "devmajor": 8}, b"")], id="disk"),
        pytest.param([("p", {"type": tarfile.FIFOTYPE}, b"")], id="fifo"),
        pytest.param([file("a"), ("a/b", {}, b"x")], id="file below a file"),
    ],
)
def test_what_leads_out_or_is_no_plain_file_is_refused(members: list[Member], into: Path) -> None:
    refused(packed(*members), into)


@pytest.mark.parametrize(
    "bomb",
    [
        pytest.param(lambda: packed(file("a", bytes(LIMIT + 1))), id="one large file"),
        pytest.param(lambda: packed(*[file(f"{n}", bytes(200_000)) for n in range(6)]), id="sum"),
        pytest.param(
            lambda: packed(("a", {"pax_headers": {"comment": "x" * 9 * LIMIT}}, b"")),
            id="endless header",
        ),
    ],
)
def test_a_bomb_is_refused_at_its_limit(bomb: Callable[[], io.BytesIO], into: Path) -> None:
    error = refused(bomb(), into)
    assert "larger than 1 MiB unpacked" in error.message
    assert sum(path.stat().st_size for path in into.iterdir()) <= LIMIT


def test_hard_links_count_as_the_files_that_a_layer_makes_of_them(into: Path) -> None:
    def linked(names: int) -> io.BytesIO:
        links: list[Member] = [
            (f"h{n}", {"type": tarfile.LNKTYPE, "linkname": "a"}, b"") for n in range(names - 1)
        ]
        return packed(file("a", bytes(LIMIT // 4)), *links)

    assert "larger than 1 MiB unpacked" in refused(linked(5), into).message
    whole = into / "whole"
    whole.mkdir()
    unpack(linked(4), whole, limit_bytes=LIMIT, limit_files=4)
    (few := into / "few").mkdir()
    with pytest.raises(CoveError, match="more than 3 files"):
        unpack(linked(4), few, limit_bytes=LIMIT, limit_files=3)


def test_too_many_files_are_refused(into: Path) -> None:
    error = refused(packed(*[file(str(n)) for n in range(6)]), into, files=5)
    assert "more than 5 files" in error.message


@pytest.mark.parametrize(
    "data", [b"", b"not an archive", gzip.compress(b"not a tar"), packed(file("a")).getvalue()[:60]]
)
def test_a_damaged_archive_is_an_error_that_says_so(data: bytes, into: Path) -> None:
    assert "cannot be read" in refused(io.BytesIO(data), into).message


def test_a_umask_does_not_change_the_modes(into: Path) -> None:
    old = os.umask(0o077)
    try:
        unpack(packed(file("a/b")), into, limit_bytes=LIMIT, limit_files=9)
    finally:
        os.umask(old)
    assert stat.S_IMODE((into / "a").stat().st_mode) == 0o755
    assert stat.S_IMODE((into / "a/b").stat().st_mode) == 0o644
