"""`/v1/secrets`: values go in, names come out."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from structlog.testing import capture_logs

from api.served import KEY, PATIENCE, MemoryControl, serving
from api.test_control_api import ask
from cove.api.app import create_app
from cove.api.secrets import LIMIT
from cove.config import LARGEST_VALUE

MARKER = "hunter2-marker"
AT = "/v1/secrets/WEATHER_KEY"


@pytest.fixture
def control() -> MemoryControl:
    return MemoryControl()


@pytest.fixture
def url(control: MemoryControl) -> Iterator[str]:
    with serving(create_app(control)) as at:
        yield at


def test_a_value_is_set_told_of_and_removed(url: str, control: MemoryControl) -> None:
    response, body = ask(url, "PUT", AT, json.dumps({"value": MARKER}).encode())
    assert response.status == 200
    assert body["name"] == "WEATHER_KEY"
    assert body["applies"] == "to instances that start from now on"
    assert control.kept == {"WEATHER_KEY": MARKER}
    _, listed = ask(url, "GET", "/v1/secrets")
    (secret,) = listed["secrets"]
    assert secret["name"] == "WEATHER_KEY"
    assert set(secret) == set(body) - {"applies"}
    assert set(secret) == {"name", "created_at", "updated_at", "functions"}
    assert ask(url, "DELETE", AT)[1] == {"removed": "WEATHER_KEY"}
    assert ask(url, "DELETE", AT)[0].status == 404
    assert ask(url, "GET", "/v1/secrets")[1] == {"secrets": []}


def test_there_is_no_way_to_read_one(url: str) -> None:
    ask(url, "PUT", AT, json.dumps({"value": MARKER}).encode())
    response, body = ask(url, "GET", AT)
    assert response.status == 405
    assert MARKER not in json.dumps(body)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        MARKER.encode(),
        b'"' + MARKER.encode() + b'"',
        b'["' + MARKER.encode() + b'"]',
        b"{",
        b'{"value": ["' + MARKER.encode() + b'"]}',
        b'{"value": 1, "x": "' + MARKER.encode() + b'"}',
        b'{"value": "a", "' + MARKER.encode() + b'": 1}',
        b'{"value": null}',
        b'{"value": ""}',
        b'{"value": "' + MARKER.encode() + b'\\u0000"}',
        b'{"value": "' + MARKER.encode() + b'\\ud800"}',
        b'{"value": "' + MARKER.encode() + b'\xff"}',
        b"[" * 200_000,
    ],
)
def test_a_body_that_is_no_value_is_refused_and_not_repeated(
    url: str, control: MemoryControl, text: bytes
) -> None:
    with capture_logs() as said:
        response, body = ask(url, "PUT", AT, text)
    assert response.status == 400
    assert body["error"]["code"] == "bad_request"
    assert body["error"]["hint"]
    assert MARKER not in json.dumps(body) + str(response.headers) + str(said)
    assert control.kept == {}


def test_a_name_that_is_none_is_refused_and_not_repeated(url: str, control: MemoryControl) -> None:
    for name in (MARKER, "PATH", "LD_PRELOAD", "a" * 300, "%00", "%2e%2e"):
        response, body = ask(url, "PUT", f"/v1/secrets/{name}", b'{"value": "x"}')
        assert (response.status, body["error"]["code"]) == (400, "bad_name"), name
        assert MARKER not in json.dumps(body)
    assert control.kept == {}


def test_the_largest_value_fits_however_json_writes_it(url: str, control: MemoryControl) -> None:
    value = "\x01" * LARGEST_VALUE
    assert len(json.dumps(value)) > 6 * LARGEST_VALUE
    response, _ = ask(url, "PUT", AT, json.dumps({"value": value}).encode())
    assert response.status == 200
    assert control.kept == {"WEATHER_KEY": value}
    more = json.dumps({"value": "x" * (LARGEST_VALUE + 1)}).encode()
    response, body = ask(url, "PUT", AT, more)
    assert (response.status, body["error"]["code"]) == (413, "too_large")


def test_a_body_over_the_bound_is_not_read_to_its_end(url: str, control: MemoryControl) -> None:
    head = (
        f"PUT {AT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Length: {10 * LIMIT}\r\n\r\n"
    ).encode()
    chunked = head.replace(f"Content-Length: {10 * LIMIT}".encode(), b"Transfer-Encoding: chunked")
    chunk = b"%x\r\n%s\r\n" % (LIMIT + 1, b"x" * (LIMIT + 1))
    for text in (head, chunked + chunk):
        with socket.create_connection(
            (urlsplit(url).hostname, urlsplit(url).port), PATIENCE
        ) as client:
            client.sendall(text)
            assert client.recv(4096).startswith(b"HTTP/1.1 413 ")
    assert control.kept == {}


def test_one_that_a_function_names_stays(url: str, control: MemoryControl) -> None:
    ask(url, "PUT", "/v1/secrets/NAMED", b'{"value": "x"}')
    response, body = ask(url, "DELETE", "/v1/secrets/NAMED")
    assert response.status == 409
    assert "weather" in body["error"]["message"]


def test_a_defect_is_logged_without_the_value(url: str) -> None:
    with capture_logs() as said:
        response, body = ask(url, "PUT", AT, b'{"value": "defect"}')
    assert (response.status, body["error"]["code"]) == (500, "internal")
    assert "secret in it" not in json.dumps(body)
    assert [each["event"] for each in said] == ["request failed"]


def test_without_the_key_nothing_is_set_or_told(url: str, control: MemoryControl) -> None:
    text = json.dumps({"value": MARKER}).encode()
    for method, target in (("GET", "/v1/secrets"), ("PUT", AT), ("DELETE", AT)):
        assert ask(url, method, target, text if method == "PUT" else None, None)[0].status == 401
    assert control.kept == {}
