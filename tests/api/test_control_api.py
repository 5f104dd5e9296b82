"""The control API as its callers meet it: over sockets, byte by byte where it matters."""

from __future__ import annotations

import http.client
import io
import json
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from api.served import KEY, PATIENCE, MemoryControl, serving
from cove.api.app import create_app
from cove.api.edge import bearer

Answer = tuple[http.client.HTTPResponse, Any]


@pytest.fixture
def control() -> MemoryControl:
    return MemoryControl()


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    (tmp_path / "uploads").mkdir()
    return tmp_path / "uploads"


@pytest.fixture
def url(control: MemoryControl, uploads: Path) -> Iterator[str]:
    app = create_app(control, uploads=uploads, upload_limit=100_000, silence=0.05)
    with serving(app) as at:
        yield at


def ask(
    url: str,
    method: str,
    target: str,
    body: bytes | None = None,
    key: str | None = KEY,
    **more: str,
) -> Answer:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE)
    headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
    connection.request(method, target, body, headers | more)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    kind = response.headers.get_content_type()
    return response, json.loads(text) if kind == "application/json" and text else text


def archive(**files: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name.replace("_py", ".py"))
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return made.getvalue()


def events(text: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line]


def deploy(url: str, name: str = "weather", **files: str) -> list[dict[str, Any]]:
    packed = archive(**(files or {"server_py": "mcp = 1"}))
    response, text = ask(url, "POST", f"/v1/functions?fallback={name}", packed)
    assert response.status == 200
    assert response.headers.get_content_type() == "application/x-ndjson"
    return events(text)


def test_a_deploy_tells_what_happens_and_ends_with_the_function(
    url: str, control: MemoryControl, uploads: Path
) -> None:
    told = deploy(url)
    assert [event["event"] for event in told] == ["progress", "progress", "deployed"]
    assert told[0]["text"] == "building weather"
    assert told[-1]["function"]["version"] == 1
    (where, files), *_ = control.archives
    assert files == ["server.py"]
    assert where.parent == uploads
    assert list(uploads.iterdir()) == []


def test_a_name_that_is_asked_for_wins_over_the_fallback(url: str) -> None:
    _, text = ask(url, "POST", "/v1/functions?name=clock&fallback=weather", archive(a_py=""))
    assert events(text)[-1]["function"]["name"] == "clock"


def test_a_failed_deploy_ends_with_the_programs_own_lines(url: str, uploads: Path) -> None:
    last = deploy(url, server_py="def :")[-1]
    assert last["event"] == "error"
    assert last["error"]["code"] == "deploy_failed"
    assert "SyntaxError" in last["error"]["lines"][-1]
    assert last["error"]["hint"]
    assert list(uploads.iterdir()) == []


def test_a_quiet_deploy_still_sends_something(url: str, control: MemoryControl) -> None:
    control.go.clear()
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE)
    headers = {"Authorization": f"Bearer {KEY}"}
    connection.request("POST", "/v1/functions?fallback=w", archive(a_py=""), headers)
    response = connection.getresponse()
    assert json.loads(response.readline())["event"] == "progress"
    assert response.readline() == b"\n"
    control.go.set()
    assert events(response.read())[-1]["event"] == "deployed"
    connection.close()


def test_a_client_that_leaves_does_not_stop_its_deploy(
    url: str, control: MemoryControl, uploads: Path
) -> None:
    control.go.clear()
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE)
    headers = {"Authorization": f"Bearer {KEY}"}
    connection.request("POST", "/v1/functions?fallback=w", archive(a_py=""), headers)
    response = connection.getresponse()
    response.readline()
    response.close()
    connection.close()
    control.go.set()
    assert control.finished.wait(PATIENCE)
    answer, body = ask(url, "GET", "/v1/functions/w")
    assert (answer.status, body["state"]) == (200, "ready")


def test_a_client_that_leaves_while_sending_deploys_nothing(
    url: str, control: MemoryControl, uploads: Path
) -> None:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), PATIENCE) as half:
        half.sendall(
            b"POST /v1/functions?fallback=w HTTP/1.1\r\nHost: x\r\n"
            b"Authorization: Bearer " + KEY.encode() + b"\r\nContent-Length: 5000\r\n\r\n\x1f\x8b"
        )
        half.shutdown(socket.SHUT_WR)
        half.recv(1)
    assert ask(url, "GET", "/v1/functions")[1] == {"functions": []}
    assert not control.holding.is_set()
    assert list(uploads.iterdir()) == []


def test_a_server_that_stops_ends_the_deploy_and_says_so(
    control: MemoryControl, uploads: Path
) -> None:
    app = create_app(control, uploads=uploads)
    control.go.clear()
    with serving(app) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE)
        headers = {"Authorization": f"Bearer {KEY}"}
        connection.request("POST", "/v1/functions?fallback=w", archive(a_py=""), headers)
        response = connection.getresponse()
        response.readline()
        (task,) = app.state.deploys._running
        task.get_loop().call_soon_threadsafe(task.cancel)
        assert json.loads(response.readline())["error"]["code"] == "draining"
        control.go.set()
        connection.close()
    assert list(uploads.iterdir()) == []


@pytest.mark.parametrize("chunked", [False, True])
def test_an_archive_over_the_bound_is_refused_and_not_kept(
    url: str, uploads: Path, chunked: bool
) -> None:
    parts = urlsplit(url)
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 100001"
    with socket.create_connection((parts.hostname, parts.port), PATIENCE) as sender:
        sender.sendall(
            b"POST /v1/functions?fallback=w HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
            + KEY.encode()
            + b"\r\n"
            + length
            + b"\r\n\r\n"
        )
        if chunked:
            sender.sendall(b"186a1\r\n" + b"\0" * 100_001)
        answer = sender.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert list(uploads.iterdir()) == []


@pytest.mark.parametrize("body", [b"", b"print('not an archive')"])
def test_a_body_that_is_no_archive_is_refused_before_anything_starts(
    url: str, uploads: Path, body: bytes
) -> None:
    response, answer = ask(url, "POST", "/v1/functions?fallback=w", body)
    assert (response.status, answer["error"]["code"]) == (400, "bad_source")
    assert list(uploads.iterdir()) == []


def test_functions_are_listed_described_and_removed(url: str) -> None:
    deploy(url, "b")
    deploy(url, "a")
    _, body = ask(url, "GET", "/v1/functions")
    assert [(f["name"], f["instances"]) for f in body["functions"]] == [("a", 1), ("b", 1)]
    _, body = ask(url, "GET", "/v1/functions/a")
    assert body["instances"][0]["pid"] == 4242
    assert ask(url, "DELETE", "/v1/functions/a")[1] == {"removed": "a"}
    response, body = ask(url, "GET", "/v1/functions/a")
    assert (response.status, body["error"]["code"]) == (404, "not_found")
    assert ask(url, "DELETE", "/v1/functions/a")[0].status == 404


def test_sessions_doctor_and_version_answer(url: str) -> None:
    deploy(url, "a")
    deploy(url, "b")
    _, body = ask(url, "GET", "/v1/sessions?function=b")
    assert [s["function"] for s in body["sessions"]] == ["b"]
    assert len(ask(url, "GET", "/v1/sessions")[1]["sessions"]) == 2
    assert ask(url, "GET", "/v1/sessions?function=c")[0].status == 404
    assert [c["name"] for c in ask(url, "GET", "/v1/doctor")[1]["checks"]] == ["crun", "runc"]
    assert ask(url, "GET", "/v1/version")[1]["api"] == "v1"


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/v1/functions"),
        ("POST", "/v1/functions"),
        ("GET", "/v1/functions/weather"),
        ("DELETE", "/v1/functions/weather"),
        ("GET", "/v1/sessions"),
        ("GET", "/v1/doctor"),
        ("GET", "/v1/version"),
        ("GET", "/v1/no-such-route"),
        ("GET", "/v1"),
    ],
)
def test_without_the_key_nothing_is_told(url: str, method: str, target: str) -> None:
    deploy(url)
    for key in (None, "", "wrong", KEY + "x"):
        response, body = ask(url, method, target, key=key)
        assert response.status == 401
        assert body["error"]["code"] == "unauthorized"
        assert body["error"]["hint"]
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
    assert ask(url, "GET", "/v1/functions/weather")[0].status == 200


def test_an_encoded_path_is_no_way_around_the_key(url: str) -> None:
    for target in ("/%76%31/functions", "//v1/functions", "/x/../v1/functions"):
        assert ask(url, "GET", target, key=None)[0].status in (401, 404)


@pytest.mark.parametrize("target", ["/v1/no-such", "/", "/v2/functions", "/v1/functions/"])
def test_an_unknown_route_is_json_with_a_hint(url: str, target: str) -> None:
    response, body = ask(url, "GET", target)
    assert (response.status, body["error"]["code"]) == (404, "not_found")
    assert body["error"]["hint"]


def test_a_wrong_method_says_which_are_right(url: str) -> None:
    response, body = ask(url, "PUT", "/v1/functions")
    assert (response.status, body["error"]["code"]) == (405, "method_not_allowed")
    assert {"GET", "POST"} <= set(response.headers["Allow"].split(", "))
    assert ask(url, "HEAD", "/v1/functions")[0].status == 200


def test_a_defect_is_a_500_that_tells_its_id_and_nothing_else(
    url: str, control: MemoryControl, capfd: pytest.CaptureFixture[str]
) -> None:
    control.made["defect"] = {}
    response, body = ask(url, "GET", "/v1/functions/defect", **{"X-Request-Id": "req-77"})
    assert response.status == 500
    assert response.headers["X-Request-Id"] == "req-77"
    assert "req-77" in body["error"]["message"]
    assert "secret" not in json.dumps(body)
    logged = capfd.readouterr()
    assert "RuntimeError" in logged.out + logged.err
    assert "req-77" in logged.out + logged.err


def test_a_defect_during_a_deploy_tells_its_id_and_nothing_else(url: str) -> None:
    last = deploy(url, server_py="# RuntimeError")[-1]
    assert last["error"]["code"] == "internal"
    assert "secret" not in json.dumps(last)


def test_every_reply_has_a_request_id_that_cannot_be_forged(url: str) -> None:
    one, _ = ask(url, "GET", "/v1/functions")
    two, _ = ask(url, "GET", "/v1/functions", **{"X-Request-Id": "a b\tc" * 40})
    ids = {one.headers["X-Request-Id"], two.headers["X-Request-Id"]}
    assert len(ids) == 2
    assert all(len(i) == 32 for i in ids)


def test_it_works_on_a_unix_socket(control: MemoryControl, tmp_path: Path) -> None:
    with (
        serving(create_app(control), unix=tmp_path / "api.sock") as path,
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.settimeout(PATIENCE)
        client.connect(path)
        client.sendall(
            f"GET /v1/functions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            f"Authorization: Bearer {KEY}\r\n\r\n".encode()
        )
        with client.makefile("rb") as reader:
            answer = reader.read()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b'{"functions":[]}')


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer abc", "abc"),
        ("Bearer  abc ", "abc"),
        ("Basic abc", ""),
        ("Bearer", ""),
        ("abc", ""),
        ("", ""),
    ],
)
def test_a_bearer_token_is_read_as_the_rfc_says(header: str, token: str) -> None:
    assert bearer(header) == token
