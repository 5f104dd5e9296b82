"""The client against the real API, against strangers and against nobody."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.served import KEY, PATIENCE, MemoryControl, serving
from cove.api.app import create_app
from cove.errors import CoveError
from cove.sdk.client import CoveClient


@pytest.fixture
def control() -> MemoryControl:
    return MemoryControl()


@pytest.fixture
def client(control: MemoryControl) -> Iterator[CoveClient]:
    with serving(create_app(control, upload_limit=500_000, silence=0.05)) as url:
        yield CoveClient(url, KEY, timeout=PATIENCE)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "weather").mkdir()
    (tmp_path / "weather" / "server.py").write_text("mcp = 1")
    return tmp_path / "weather"


def refused(client: CoveClient) -> CoveError:
    with pytest.raises(CoveError) as error:
        client.functions()
    assert error.value.hint
    return error.value


def test_a_function_lives_and_dies_through_the_client(client: CoveClient, source: Path) -> None:
    lines: list[str] = []
    made = client.deploy(source / "server.py", on_progress=lines.append)
    assert (made["name"], made["version"]) == ("weather", 1)
    assert lines == ["building weather", "it answers"]
    assert client.deploy(source, "clock")["name"] == "clock"
    assert [f["name"] for f in client.functions()] == ["clock", "weather"]
    assert client.describe("weather")["state"] == "ready"
    assert [s["function"] for s in client.sessions("clock")] == ["clock"]
    assert len(client.sessions()) == 2
    client.remove("clock")
    with pytest.raises(CoveError) as gone:
        client.describe("clock")
    assert gone.value.code == "not_found"
    assert client.doctor()[0]["name"] == "crun"
    assert client.version()["api"] == "v1"


def test_a_lone_file_says_which_of_its_neighbours_stay(client: CoveClient, source: Path) -> None:
    (source / "requirements.txt").write_text("rich")
    lines: list[str] = []
    client.deploy(source / "server.py", on_progress=lines.append)
    assert "requirements.txt" in lines[0]
    assert "folder" in lines[0]


def test_a_failed_deploy_carries_the_programs_last_lines(client: CoveClient, source: Path) -> None:
    (source / "server.py").write_text("def :")
    with pytest.raises(CoveError) as failed:
        client.deploy(source)
    assert failed.value.code == "deploy_failed"
    assert failed.value.lines[-1].startswith("SyntaxError")


def test_a_silent_deploy_is_waited_for(control: MemoryControl, source: Path) -> None:
    control.go.clear()
    timer = threading.Timer(1.0, control.go.set)
    with serving(create_app(control, silence=0.1)) as url:
        timer.start()
        # Half a second of silence would count as lost: it is the empty lines that keep it.
        assert CoveClient(url, KEY, timeout=0.5).deploy(source)["version"] == 1
    timer.join()


def test_an_archive_that_is_too_large_is_said_to_be(client: CoveClient, source: Path) -> None:
    (source / "data.bin").write_bytes(random.Random(1).randbytes(20_000_000))
    with pytest.raises(CoveError) as failed:
        client.deploy(source)
    assert failed.value.code == "too_large"
    assert ".coveignore" in failed.value.hint


def test_names_are_quoted(client: CoveClient) -> None:
    for name in ("../doctor", "a/b", "a b?x=1#y", "é"):
        with pytest.raises(CoveError) as missing:
            client.describe(name)
        assert missing.value.code == "not_found"


def test_a_wrong_key_is_unauthorized(client: CoveClient) -> None:
    assert refused(CoveClient(client.url, "wrong")).code == "unauthorized"
    assert refused(CoveClient(client.url, None)).code == "unauthorized"


def test_nobody_there_says_how_to_start_it() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        error = refused(CoveClient(f"http://127.0.0.1:{closed.getsockname()[1]}", KEY))
    assert error.code == "unreachable"
    assert "cove up" in error.hint


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", "bad_gateway"),
        (b"HTTP/1.1 502 Bad\r\nContent-Length: 2\r\n\r\n{}", "bad_gateway"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "bad_gateway"),
        (b"SSH-2.0-OpenSSH\r\n", "unreachable"),
        (b"", "unreachable"),
    ],
)
def test_a_stranger_at_the_address_is_recognised(answer: bytes, code: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(65536)
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        error = refused(CoveClient(f"http://127.0.0.1:{listener.getsockname()[1]}", KEY))
        thread.join(PATIENCE)
    assert error.code == code


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x:port", "nonsense"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(CoveError) as error:
        CoveClient(url, KEY)
    assert error.value.code == "bad_request"


def test_a_server_that_dies_during_a_deploy_is_not_a_success(source: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(65536)
                peer.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n\n")
                peer.sendall(b'{"event":"progress","text":"x"}\n')

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(CoveError) as error:
            CoveClient(f"http://127.0.0.1:{listener.getsockname()[1]}", KEY).deploy(source)
        thread.join(PATIENCE)
    assert error.value.code == "unreachable"


def test_a_refusal_is_heard_though_the_archive_was_not_read(source: Path) -> None:
    (source / "data.bin").write_bytes(random.Random(2).randbytes(20_000_000))
    body = b'{"error": {"code": "too_large", "message": "no room", "hint": "less"}}'
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(1024)
                head = f"HTTP/1.1 413 x\r\nContent-Length: {len(body)}\r\n\r\n"
                peer.sendall(head.encode() + body)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(CoveError) as error:
            CoveClient(f"http://127.0.0.1:{listener.getsockname()[1]}", KEY).deploy(source)
        thread.join(PATIENCE)
    assert error.value.message == "no room"
