"""Dependencies that cannot be had: what uv says of it, and nothing of it goes on running."""

from __future__ import annotations

import contextlib
import io
import tarfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bad_input.conftest import made
from bad_input.standing import Standing, standing
from cove.errors import CoveError
from cove.runtimes import uv

SERVER = "mcp = 1\n"
ENTRY = 'entry = "server:mcp"\n'
SETUP = "import pathlib, time\npathlib.Path({0!r}).touch()\ntime.sleep(600)\n"

UNREADABLE = {
    "local": ("-e .", "requirements.txt line 1: '-e .' is no requirement", "wheels only"),
    "git": ("git+https://example.com/x.git", "line 1", "by name"),
    "path": ("x @ file:///etc/passwd", "is not the https address of a wheel", "wheels only"),
    "other file": ("-r /etc/passwd", "is no file of what was deployed", "inside the folder"),
    "rubbish": ("httpx\n>>> nonsense\n", "requirements.txt line 2: '>>> nonsense'", "httpx>=0.27"),
    "option": ("--pre\n", "line 1: '--pre'", ""),
}


class Index(ThreadingHTTPServer):
    """An index that has nothing; below /drip its answers come a byte at a time, without end."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Asked)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.over = threading.Event()


class Asked(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        if not self.path.startswith("/drip"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        with contextlib.suppress(OSError):  # no timeout of the reader's is ever met
            while not self.server.over.wait(0.1):
                self.wfile.write(b" ")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def index() -> Iterator[str]:
    with Index() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.url
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wheels")


@pytest.fixture(scope="module")
def lonely(index: str, wheels: Path, ground: Path) -> Iterator[Standing]:
    """A server with that index and a folder, where resolving takes three seconds at most."""
    settings = {
        "UV_DEFAULT_INDEX": f"{index}/simple",
        "UV_FIND_LINKS": str(wheels),
        "COVE_BUILD_TIMEOUT": "3",
    }
    with standing(made(ground, "lonely"), "process", settings) as server:
        yield server


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_requirement_that_cannot_be_asked_for_is_named_with_its_line(
    cove: Standing, kind: str
) -> None:
    text, said, hint = UNREADABLE[kind]
    refusal = cove.refuses(cove.source({"server.py": SERVER, "requirements.txt": text}, ENTRY))
    assert refusal.code == "bad_source"
    assert said in refusal.message
    assert hint in refusal.hint
    assert "root:" not in refusal.text


def test_requirements_that_conflict_are_told_in_uvs_words(cove: Standing) -> None:
    files = {"server.py": SERVER, "requirements.txt": "anyio==4.4.0\nanyio>=4.5\n"}
    refusal = cove.refuses(cove.source(files, ENTRY))
    assert refusal.code == "resolve_failed"
    said = " ".join(refusal.lines)
    assert "anyio==4.4.0" in said
    assert "anyio>=4.5" in said
    assert "unsatisfiable" in said
    assert "contradict each other" in refusal.hint
    assert len(refusal.lines) <= 20


def test_a_package_that_is_nowhere_is_named(lonely: Standing) -> None:
    files = {"server.py": SERVER, "requirements.txt": "no-such-package-of-ours==1\n"}
    refusal = lonely.refuses(lonely.source(files, ENTRY))
    assert refusal.code == "resolve_failed"
    assert "no-such-package-of-ours" in " ".join(refusal.lines)
    assert refusal.hint


def test_a_package_that_would_have_to_be_built_is_not_and_its_setup_never_runs(
    lonely: Standing, wheels: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    with tarfile.open(wheels / "sleeper-1.0.tar.gz", "w:gz") as sdist:
        for name, text in (
            ("setup.py", SETUP.format(str(marker))),
            ("PKG-INFO", "Metadata-Version: 2.1\nName: sleeper\nVersion: 1.0\n"),
        ):
            member = tarfile.TarInfo(f"sleeper-1.0/{name}")
            member.size = len(text.encode())
            sdist.addfile(member, io.BytesIO(text.encode()))
    files = {"server.py": SERVER, "requirements.txt": "sleeper\n"}
    begun = time.monotonic()
    refusal = lonely.refuses(lonely.source(files, ENTRY))
    assert refusal.code == "resolve_failed"
    assert "sleeper" in " ".join(refusal.lines)
    assert "wheels only" in refusal.hint
    assert not marker.exists()
    assert time.monotonic() - begun < 60  # and nobody waited for it


def test_an_index_that_never_comes_to_an_end_is_left_after_the_bound(
    lonely: Standing, index: str
) -> None:
    requirements = f"--index-url {index}/drip\nslow-package\n"
    files = {"server.py": SERVER, "requirements.txt": requirements}
    refusal = lonely.refuses(lonely.source(files, ENTRY))
    assert refusal.code == "resolve_failed"
    assert "within 3 s" in refusal.message
    assert "COVE_BUILD_TIMEOUT" in refusal.hint


@pytest.mark.parametrize("said", ["soon", "-1", "0", "nan", "1e9"])
def test_a_bound_that_is_none_is_told_with_its_variable(said: str) -> None:
    with pytest.raises(CoveError, match=f"COVE_BUILD_TIMEOUT={said} is no number of seconds"):
        uv.bound({"COVE_BUILD_TIMEOUT": said})
