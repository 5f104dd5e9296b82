"""Archives that `cove deploy` never makes, and uploads without end, sent straight to the API."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import socket
import tarfile

import pytest

from bad_input.standing import Refusal, Standing
from cove.api import upload
from e2e.installation import PATIENCE

Member = tuple[str, dict[str, object], bytes]
SERVER: Member = ("server.py", {}, b"mcp = 1\n")
MIB = 1024**2


def tarred(*members: Member) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, fields, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def linked(name: str, to: str, hard: bool = False) -> Member:
    return name, {"type": tarfile.LNKTYPE if hard else tarfile.SYMTYPE, "linkname": to}, b""


HOSTILE: dict[str, tuple[Member, str]] = {
    "up": (("../escaped.py", {}, b"x"), "'../escaped.py' leads out of the folder"),
    "up within": (("a/../../b", {}, b"x"), "'a/../../b' leads out"),
    "absolute": (("/tmp/cove-escaped", {}, b"x"), "'/tmp/cove-escaped' leads out"),
    "link out": (linked("key", "/etc/shadow"), "'key' links out, to /etc/shadow"),
    "link up": (linked("key", "../../key"), "'key' links out, to ../../key"),
    "hard link out": (linked("key", "/etc/shadow", hard=True), "'/etc/shadow' leads out"),
    "hard link up": (linked("key", "../../key", hard=True), "'../../key' leads out"),
    "device": (("null", {"type": tarfile.CHRTYPE, "devmajor": 1}, b""), "'null' is neither"),
    "fifo": (("pipe", {"type": tarfile.FIFOTYPE}, b""), "'pipe' is neither"),
    "twice": (("server.py", {}, b"mcp = 2\n"), "'server.py' clashes with an entry before it"),
    "file as folder": (("server.py/x", {}, b""), "'server.py/x' clashes"),
    "name too long": (("x" * 300, {}, b""), "File name too long"),
    "config in other letters": (("Cove.TOML", {}, b"kind='web'"), "Cove.TOML"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_archive_that_reaches_out_or_is_no_folder_of_files_is_refused_by_name(
    cove: Standing, kind: str
) -> None:
    member, said = HOSTILE[kind]
    refusal = cove.refuses_archive(gzip.compress(tarred(SERVER, member)))
    assert refusal.code in ("bad_source", "bad_config")
    assert said in refusal.message
    assert refusal.hint
    assert not os.path.exists("/tmp/cove-escaped")


@pytest.mark.parametrize(
    "archive",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"PK\x03\x04 is a zip", id="not gzip"),
        pytest.param(b"\x1f\x8b and then no more", id="gzip by its first bytes"),
        pytest.param(gzip.compress(b"no tar " * 200), id="no tar"),
        pytest.param(gzip.compress(tarred(SERVER))[:-20], id="cut short"),
        pytest.param(gzip.compress(tarred(SERVER)[:700]), id="tar cut short"),
        pytest.param(gzip.compress(tarred(SERVER).replace(b"server", b"terser")), id="tar changed"),
    ],
)
def test_an_archive_that_cannot_be_read_says_what_to_send(cove: Standing, archive: bytes) -> None:
    refusal = cove.refuses_archive(archive)
    assert refusal.code == "bad_source"
    assert "archive" in refusal.message
    assert "tar" in refusal.hint


def test_an_archive_that_unpacks_to_a_hundred_times_its_size_is_refused(cove: Standing) -> None:
    bomb = gzip.compress(tarred(SERVER, ("zeros", {}, bytes(65 * MIB))), 9)
    assert len(bomb) < MIB / 10
    refusal = cove.refuses_archive(bomb)
    assert refusal.code == "bad_source"
    assert "more than 100 times its size" in refusal.message
    assert refusal.hint


class Upload:
    """A POST to the API by hand, as large as its sender likes."""

    def __init__(self, cove: Standing, *headers: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", cove.cove.port), PATIENCE)
        head = [
            "POST /v1/functions?name=steady HTTP/1.1",
            "Host: localhost",
            f"Authorization: Bearer {cove.cove.key}",
            *headers,
        ]
        self.socket.sendall(("\r\n".join(head) + "\r\n\r\n").encode())

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def answered(self) -> bool:
        """Whether there is something to read, or the connection has ended."""
        self.socket.settimeout(0)
        try:
            return len(self.socket.recv(1, socket.MSG_PEEK)) >= 0
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self.socket.settimeout(PATIENCE)

    def answer(self) -> tuple[int, Refusal]:
        """The status and what it says, to the connection's end."""
        text = b""
        with contextlib.suppress(ConnectionResetError):
            while more := self.socket.recv(65536):
                text += more
        head, _, body = text.partition(b"\r\n\r\n")
        return int(head.split()[1]), Refusal.of(json.loads(body)["error"])


def test_five_gibibytes_that_are_announced_are_refused_before_a_byte(cove: Standing) -> None:
    with cove.unchanged(), Upload(cove, f"Content-Length: {5 * 1024 * MIB}") as sent:
        status, refusal = sent.answer()
    assert (status, refusal.code) == (413, "too_large")
    assert "MiB" in refusal.message
    assert refusal.hint


def test_an_upload_without_end_is_refused_at_the_bound_and_its_file_is_gone(
    cove: Standing,
) -> None:
    chunk = b"%x\r\n" % MIB + b"\x1f\x8b" + os.urandom(MIB - 2) + b"\r\n"
    most = 0
    with cove.unchanged(), Upload(cove, "Transfer-Encoding: chunked") as upload_:
        sent = 0
        with contextlib.suppress(ConnectionError):
            while not upload_.answered() and sent < 2 * upload.LIMIT:
                upload_.socket.sendall(chunk)
                sent += MIB
                kept = sum(f.stat().st_size for f in (cove.data / "uploads").glob("*"))
                most = max(most, kept)
        assert upload.LIMIT <= sent < upload.LIMIT + 64 * MIB
        assert most <= upload.LIMIT
        status, refusal = upload_.answer()
    assert (status, refusal.code) == (413, "too_large")
    assert ".coveignore" in refusal.hint


def test_a_sender_that_stops_in_the_middle_has_deployed_nothing(cove: Standing) -> None:
    with cove.unchanged(), Upload(cove, "Content-Length: 100000") as half:
        half.socket.sendall(gzip.compress(tarred(SERVER)))
        half.socket.shutdown(socket.SHUT_WR)
        assert not half.socket.recv(65536).startswith(b"HTTP/1.1 2")
