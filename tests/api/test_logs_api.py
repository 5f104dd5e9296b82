"""Logs and events over HTTP, from real files, through a real server."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from api.served import KEY, PATIENCE, MemoryControl, serving
from cove.api.app import create_app
from cove.clock import iso
from cove.events import Event
from cove.logs.logs import Logs

HEADERS = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    return Logs(tmp_path / "logs", size=1024**2, age=86400, silence=0.05)


@pytest.fixture
def control(logs: Logs) -> MemoryControl:
    control = MemoryControl()
    control.made = {"weather": {}, "clock": {}}
    control.journals = logs
    return control


@pytest.fixture
def url(control: MemoryControl) -> Iterator[str]:
    with serving(create_app(control)) as at:
        yield at


def say(logs: Logs, *texts: str, stream: Any = "stdout", **more: str) -> None:
    logs.printed("weather", 1, "weather-1-0a1b2c3d", stream, texts, **more)


@contextmanager
def asking(url: str, target: str, method: str = "GET") -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE)
    connection.request(method, target, headers=HEADERS)
    try:
        yield connection.getresponse()
    finally:
        connection.close()


def ask(url: str, target: str) -> tuple[int, list[dict[str, Any]]]:
    with asking(url, target) as response:
        return response.status, [json.loads(line) for line in response.read().splitlines() if line]


def texts(url: str, query: str = "") -> list[str]:
    status, records = ask(url, f"/v1/functions/weather/logs{query}")
    assert status == 200
    return [record["text"] for record in records]


def next_record(response: http.client.HTTPResponse) -> dict[str, Any] | None:
    """The next one of a stream; None where it has ended."""
    while line := response.readline():
        if line.strip():
            record: dict[str, Any] = json.loads(line)
            return record
    return None


def test_a_log_is_ndjson_oldest_first(url: str, logs: Logs) -> None:
    say(logs, "one", "zwei \x1b[31m 三")
    with asking(url, "/v1/functions/weather/logs") as response:
        assert response.headers.get_content_type() == "application/x-ndjson"
        assert response.headers["Cache-Control"] == "no-store"
        body = response.read()
    assert body.isascii()
    first, second = map(json.loads, body.splitlines())
    assert (first["text"], second["text"]) == ("one", "zwei \x1b[31m 三")
    assert (first["stream"], first["version"]) == ("stdout", 1)


def test_parameters_narrow_it_down(url: str, logs: Logs) -> None:
    say(logs, "a", session="s-1", request="r-1")
    say(logs, "b", stream="stderr", session="s-2")
    say(logs, "c, about r-1")
    assert texts(url, "?session=s-2") == ["b"]
    assert texts(url, "?stream=stderr") == ["b"]
    assert texts(url, "?request=r-1") == ["a", "c, about r-1"]
    assert texts(url, "?request=r-1&tail=1") == ["c, about r-1"]
    assert texts(url, "?instance=0a1b2c3d&tail=2") == ["b", "c, about r-1"]
    assert texts(url, "?instance=other") == []
    assert texts(url, "?tail=0") == []
    assert texts(url, "?since=&tail=&session=&follow=0") == ["a", "b", "c, about r-1"]


def test_since_is_a_duration_or_a_time(url: str, control: MemoryControl, logs: Logs) -> None:
    now = time.time()
    for ago in (7200, 600, 60):
        logs.event(Event(now - ago, "instance.stopped", "weather", reason=str(ago)))
    for since, expected in {
        "55s": [],
        "90s": ["60"],
        "1h": ["600", "60"],
        "7d": ["7200", "600", "60"],
        iso(now - 601): ["600", "60"],
        "2001-01-01T00:00:00%2B02:00": ["7200", "600", "60"],
        "0001-01-01T00:00:00%2B23:00": ["7200", "600", "60"],
        "9999-12-31T23:59:59-23:00": [],
        "2001-01-01T00:00:00+02:00": ["7200", "600", "60"],
    }.items():
        status, records = ask(url, f"/v1/events?since={since}")
        assert status == 200, since
        assert [record["reason"] for record in records] == expected, since


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("since=yesterday", "10m, 2h, 7d"),
        ("since=10", "10m, 2h, 7d"),
        ("since=10y", "10m, 2h, 7d"),
        ("since=2026-01-15T12:00:00", "time zone"),
        ("since=-5m", "10m, 2h, 7d"),
        ("since=10000-01-01T00:00:00Z", "10m, 2h, 7d"),
        ("tail=-1", "tail=200"),
        ("tail=many", "tail=200"),
        ("tail=%D9%A3", "tail=200"),
        ("tail=99999999999", "tail=200"),
        ("follow=yes", "follow=1"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/functions/weather/logs", "/v1/events"])
def test_a_value_that_cannot_be_is_refused_with_one_that_can(
    url: str, path: str, query: str, said: str
) -> None:
    status, (answer,) = ask(url, f"{path}?{query}")
    assert (status, answer["error"]["code"]) == (400, "bad_request")
    assert query.partition("=")[0] in answer["error"]["message"]
    assert said in answer["error"]["hint"]


def test_a_stream_that_no_function_has_is_refused(url: str) -> None:
    status, (answer,) = ask(url, "/v1/functions/weather/logs?stream=stdin")
    assert (status, answer["error"]["code"]) == (400, "bad_request")
    assert "stdout, stderr, access, cove" in answer["error"]["hint"]


def test_the_log_of_no_function_is_not_found(url: str) -> None:
    status, (answer,) = ask(url, "/v1/functions/wether/logs?follow=1")
    assert (status, answer["error"]["code"]) == (404, "not_found")


def test_events_are_of_all_or_of_one_that_may_be_gone(url: str, logs: Logs) -> None:
    logs.event(Event(time.time(), "function.removed", "gone"))
    logs.event(Event(time.time(), "instance.oom", "weather", 1, "weather-1-0a", "over 256 MiB"))
    assert [e["kind"] for e in ask(url, "/v1/events")[1]] == ["function.removed", "instance.oom"]
    assert [e["kind"] for e in ask(url, "/v1/events?function=gone")[1]] == ["function.removed"]
    assert [e["kind"] for e in ask(url, "/v1/events?tail=1")[1]] == ["instance.oom"]


def test_who_follows_gets_each_record_as_it_comes(url: str, logs: Logs) -> None:
    say(logs, "before")
    with asking(url, "/v1/functions/weather/logs?follow=1&tail=1") as response:
        for text in ("before", "one", "two", "three"):
            if text != "before":
                say(logs, text)
            record = next_record(response)
            assert record is not None
            assert record["text"] == text


def test_while_nothing_comes_something_is_sent(url: str) -> None:
    with asking(url, "/v1/events?follow=1") as response:
        assert [response.readline() for _ in range(3)] == [b"\n"] * 3


def test_who_leaves_is_forgotten(url: str, control: MemoryControl, logs: Logs) -> None:
    say(logs, "hello")
    for _ in range(3):
        with asking(url, "/v1/functions/weather/logs?follow=1") as response:
            assert next_record(response) is not None
    until = time.monotonic() + PATIENCE
    while any(book.readers for book in logs._all()):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_following_ends_when_the_function_is_removed(url: str, logs: Logs) -> None:
    say(logs, "hello")
    with asking(url, "/v1/functions/weather/logs?follow=1") as response:
        assert next_record(response) is not None
        logs.forget("weather")
        assert next_record(response) is None


def test_following_ends_when_the_server_stops(url: str, logs: Logs) -> None:
    say(logs, "hello")
    with asking(url, "/v1/functions/weather/logs?follow=1") as response:
        assert next_record(response) is not None
        logs.end_follows()
        assert next_record(response) is None
    assert texts(url) == ["hello"], "reading goes on meanwhile"


def test_asking_for_the_head_only_ends(url: str) -> None:
    with asking(url, "/v1/functions/weather/logs?follow=1", "HEAD") as response:
        assert (response.status, response.read()) == (200, b"")
    host, port = urlsplit(url).hostname, urlsplit(url).port
    with socket.create_connection((host, port), timeout=PATIENCE) as sock:
        lines = [
            "HEAD /v1/events?follow=1 HTTP/1.1",
            "Host: x",
            *(f"{name}: {value}" for name, value in HEADERS.items()),
            "Connection: close",
        ]
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        while sock.recv(4096):
            pass


def test_a_log_that_cannot_be_read_ends_with_an_error(url: str, logs: Logs, tmp_path: Path) -> None:
    (tmp_path / "logs" / "weather" / "00000001.jsonl").mkdir(parents=True)
    status, records = ask(url, "/v1/functions/weather/logs")
    assert status == 200
    assert records[-1]["error"]["code"] == "internal"


def test_logs_need_the_key(url: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE)
    for target in ("/v1/functions/weather/logs", "/v1/events"):
        connection.request("GET", target)
        response = connection.getresponse()
        response.read()
        assert response.status == 401
    connection.close()


def test_a_reader_that_stops_reading_holds_little(
    url: str, control: MemoryControl, logs: Logs
) -> None:
    """It is waited for, and nobody else waits."""
    logs._size = 64 * 1024**2
    for _ in range(20):
        say(logs, *["x" * 1000] * 1000)
    host, port = urlsplit(url).hostname, urlsplit(url).port
    with socket.create_connection((host, port), timeout=PATIENCE) as sock:
        head = ["GET /v1/functions/weather/logs HTTP/1.1", "Host: x"]
        head += [f"{name}: {value}" for name, value in HEADERS.items()]
        sock.sendall("\r\n".join([*head, "", ""]).encode())
        assert sock.recv(100)
        assert ask(url, "/v1/events")[0] == 200
        assert len(texts(url)) == 20_000
