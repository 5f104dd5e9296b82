"""An archive becomes a folder, or is refused; it never reaches outside that folder."""

from __future__ import annotations

import gzip
import io
import os
import random
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from cove.errors import CoveError
from cove.runtimes.archive import unpack

Member = tuple[str, dict[str, object], bytes]
LIMIT = 1024**2
LONG = "long-name-" * 15


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


def plain(*members: Member) -> bytes:
    return gzip.decompress(packed(*members).getvalue())


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
        pytest.param([file("a"), file("a", b"y")], id="file twice"),
        pytest.param([file("a"), file("./a", b"y")], id="file twice by another path"),
        pytest.param([file("a"), ("a", {"type": tarfile.DIRTYPE}, b"")], id="file and folder"),
        pytest.param([("a", {"type": tarfile.DIRTYPE}, b""), file("a")], id="folder and file"),
        pytest.param([link("a", "b"), file("b"), file("a")], id="link and file"),
        pytest.param([file("b"), link("a", "b"), link("a", "b")], id="link twice"),
        pytest.param([file("a"), ("a", {"type": tarfile.LNKTYPE, "linkname": "a"}, b"")], id="own"),
        pytest.param([file("d/" * 65 + "a")], id="too deep"),
        pytest.param([file("x" * 300)], id="name too long"),
        pytest.param([link("a", "")], id="link to nothing"),
        pytest.param(
            [("a", {"type": tarfile.SYMTYPE, "pax_headers": {"linkpath": "b\0c"}}, b"")],
            id="NUL in a link",
        ),
        pytest.param([file("x", pax_headers={"path": "a\0c"})], id="NUL in a name"),
        pytest.param([file("x", pax_headers={"path": "../escaped"})], id="path up in a header"),
        pytest.param([file("")], id="no name"),
        pytest.param([("v", {"type": b"V"}, b"")], id="volume"),
        pytest.param([("s", {"type": tarfile.GNUTYPE_SPARSE}, b"")], id="sparse"),
        pytest.param([("s", {"pax_headers": {"GNU.sparse.major": "1"}}, b"")], id="pax sparse"),
    ],
)
def test_what_leads_out_or_is_no_plain_file_is_refused(members: list[Member], into: Path) -> None:
    refused(packed(*members), into)


@pytest.mark.parametrize(
    ("bomb", "said"),
    [
        pytest.param([file("a", bytes(LIMIT + 1))], "larger than 1 MiB", id="one large file"),
        pytest.param([file(f"{n}", bytes(200_000)) for n in range(6)], "larger than 1", id="sum"),
        pytest.param(
            [file(f"{n}", pax_headers={"comment": "x" * 200_000}) for n in range(9)],
            "larger than 1 MiB",
            id="headers",
        ),
        pytest.param(
            [file("a", pax_headers={"comment": "x" * LIMIT})], "256 KiB of headers", id="a header"
        ),
        pytest.param([file(str(n)) for n in range(101)], "more than 100 files", id="files"),
        pytest.param(
            [file(f"{n}/" + "d/" * 50 + "f") for n in range(2)], "more than 100 files", id="folders"
        ),
    ],
)
def test_a_bomb_is_refused_at_its_limit(bomb: list[Member], said: str, into: Path) -> None:
    assert said in refused(packed(*bomb), into).message
    assert sum(path.stat().st_size for path in into.rglob("*") if path.is_file()) <= LIMIT
    assert len(list(into.rglob("*"))) <= 100


def test_what_unpacks_to_a_hundred_times_its_size_is_refused_long_before_its_limit(
    into: Path,
) -> None:
    zeros = packed(*[file(str(n), bytes(16 * LIMIT)) for n in range(5)])
    assert len(zeros.getvalue()) < LIMIT
    with pytest.raises(CoveError, match="more than 100 times its size") as caught:
        unpack(zeros, into, limit_bytes=10**9, limit_files=100)
    assert caught.value.hint
    assert sum(path.stat().st_size for path in into.iterdir()) <= 65 * LIMIT
    few = into / "few"
    few.mkdir()
    unpack(packed(file("a", bytes(32 * LIMIT))), few, limit_bytes=10**9, limit_files=9)


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


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"not an archive", id="not gzip"),
        pytest.param(gzip.compress(b"not a tar"), id="a short text"),
        pytest.param(gzip.compress(b"not a tar" * 100), id="a text"),
        pytest.param(packed(file("a")).getvalue()[:60], id="cut short"),
        pytest.param(packed(file("a", os.urandom(9000))).getvalue()[:-9], id="cut at its sum"),
        pytest.param(packed(file("a")).getvalue() + b"and more", id="more behind it"),
        pytest.param(
            gzip.compress(plain(file("a")) + plain(file("b"))), id="two archives, of which one is"
        ),
        pytest.param(gzip.compress(plain(file("a"))[:1024]), id="without its end"),
        pytest.param(gzip.compress(plain(file("a", b"x" * 600))[:1024]), id="half a file"),
        pytest.param(gzip.compress(plain(file("a"), file("b"))[:1100]), id="half a header"),
    ],
)
def test_a_damaged_archive_is_an_error_that_says_so(data: bytes, into: Path) -> None:
    assert "cannot be read" in refused(io.BytesIO(data), into).message


def test_an_archive_with_any_bytes_changed_is_unpacked_or_refused_and_nothing_else(
    tmp_path: Path,
) -> None:
    whole = plain(
        (LONG, {"mode": 0o755, "mtime": 2**40}, b"a" * 700),
        ("d", {"type": tarfile.DIRTYPE}, b""),
        link("d/l", "../" + LONG),
        ("h", {"type": tarfile.LNKTYPE, "linkname": LONG}, b""),
    )
    dice, end = random.Random(7), len(whole.rstrip(b"\0"))
    outcomes = set()
    for turn in range(400):
        changed = bytearray(whole)
        for _ in range(dice.choice((1, 1, 2, 8))):
            changed[dice.randrange(end)] = dice.choice((0, 32, 47, 48, 57, 128, 255))
        if dice.random() < 0.5:
            _mend_sums(changed)
        outer = tmp_path / str(turn)
        into = outer / "into"
        into.mkdir(parents=True)
        data = io.BytesIO(gzip.compress(bytes(changed), 1))
        try:
            unpack(data, into, limit_bytes=LIMIT, limit_files=100)
            outcomes.add("unpacked")
        except CoveError as error:
            outcomes.add(f"{error.code}: {error.message[:24]}")
        assert list(outer.iterdir()) == [into]
        shutil.rmtree(outer)
    assert len(outcomes) > 3
    assert all(outcome.startswith(("unpacked", "bad_source")) for outcome in outcomes)


def _mend_sums(data: bytearray) -> None:
    """Make every header's sum right again, so that what it says is looked at."""
    for at in range(0, len(data), 512):
        if data[at + 257 : at + 262] == b"ustar":
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "pax"])
def test_what_the_program_tar_makes_is_unpacked_as_it_was(
    form: str, tmp_path: Path, into: Path
) -> None:
    deep = "a-folder-with-a-long-name/" * (2 if form in ("v7", "ustar") else 9)
    given = tmp_path / "given"
    (given / deep).mkdir(parents=True)
    (given / deep / "f\u00fcr.txt").write_text("long")
    (given / "run").write_bytes(os.urandom(1234))
    (given / "run").chmod(0o755)
    (given / "Run").write_text("another")
    (given / "link").symlink_to("run")
    os.link(given / "run", given / "same")
    packed = tmp_path / "a.tar.gz"
    subprocess.run(["tar", "czf", packed, f"--format={form}", "-C", given, "."], check=True)
    unpack(packed, into, limit_bytes=LIMIT, limit_files=100)
    found = {path.relative_to(into): path for path in into.rglob("*")}
    assert found.keys() == {path.relative_to(given) for path in given.rglob("*")}
    for name, path in found.items():
        assert path.is_symlink() == (given / name).is_symlink()
        assert path.is_dir() or path.read_bytes() == (given / name).read_bytes()
    assert stat.S_IMODE((into / "run").stat().st_mode) == 0o755


def test_a_umask_does_not_change_the_modes(into: Path) -> None:
    old = os.umask(0o077)
    try:
        unpack(packed(file("a/b")), into, limit_bytes=LIMIT, limit_files=9)
    finally:
        os.umask(old)
    assert stat.S_IMODE((into / "a").stat().st_mode) == 0o755
    assert stat.S_IMODE((into / "a/b").stat().st_mode) == 0o644
