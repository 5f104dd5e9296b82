"""JSON-RPC as far as the gateway looks into it, and the era that headers tell."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.mcp import messages
from cove.mcp.classify import HANDSHAKE_VERSIONS, Era, era, listens

INIT = b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}'


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"1", b'"x"', b"null", b"[1]", b'[{"a":1}, 2]', b"{", b"\xff", b"[" * 200_000],
)
def test_what_is_no_message_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        messages.parse(body)
    assert not messages.is_initialize(body)


def test_initialize_is_the_method_not_the_word() -> None:
    assert messages.is_initialize(INIT)
    assert messages.is_initialize(b"[" + INIT + b"]")
    assert not messages.is_initialize(b'{"method":"tools/call","params":{"name":"initialize"}}')
    assert not messages.is_initialize(b'{"method":["initialize"]}')
    assert not messages.is_initialize(b'"initialize"' + b"[" * 200_000)


def test_requests_answers_and_notifications_are_told_apart() -> None:
    request = {"jsonrpc": "2.0", "id": 3, "method": "tools/list"}
    answer = {"jsonrpc": "2.0", "id": "a", "result": {}}
    failure = {"jsonrpc": "2.0", "id": 0, "error": {}}
    notification = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    assert [messages.request_id(m) for m in (request, answer, failure, notification)] == [
        *(3, None, None, None)
    ]
    assert [messages.answer_id(m) for m in (request, answer, failure, notification)] == [
        *(None, "a", 0, None)
    ]
    assert messages.answer_id({"id": None, "error": {}}) is None


def test_a_cancellation_names_its_request() -> None:
    message = {"method": "notifications/cancelled", "params": {"requestId": 7}}
    assert messages.cancelled_id(message) == 7
    for other in ({}, {"method": "x", "params": {"requestId": 7}}, {**message, "params": []}):
        assert messages.cancelled_id(other) is None


def test_progress_is_found_where_it_is_asked_and_reported() -> None:
    asked = {"method": "tools/call", "params": {"_meta": {"progressToken": "t"}}}
    told = {"method": "notifications/progress", "params": {"progressToken": "t", "progress": 1}}
    assert messages.progress_token(asked) == messages.progress_token(told) == "t"
    assert messages.progress_token({"method": "tools/call", "params": {"_meta": 3}}) is None


@given(st.text(), st.one_of(st.none(), st.integers(), st.text()))
def test_errors_are_json_whatever_they_say(text: str, ident: int | str | None) -> None:
    body = json.loads(messages.error(-32600, text, ident, {"text": text}))
    assert (body["id"], body["error"]["message"], body["error"]["data"]["text"]) == (
        *(ident, text, text),
    )


def test_what_utf_8_cannot_say_is_escaped() -> None:
    body = messages.parse(b'{"id": "\\ud800"}')[0]
    assert messages.dump(body) == b'{"id":"\\ud800"}'
    assert messages.dump({"a": "ä\n"}) == '{"a":"ä\\n"}'.encode()


@pytest.mark.parametrize("version", [None, *sorted(HANDSHAKE_VERSIONS)])
def test_versions_with_a_handshake_are_legacy(version: bytes | None) -> None:
    assert era(version) is Era.LEGACY
    assert not listens(version, b"subscriptions/listen")


@pytest.mark.parametrize("version", [b"2026-07-28", b"2027-01-01", b"", b"nonsense"])
def test_every_other_version_is_modern(version: bytes) -> None:
    assert era(version) is Era.MODERN
    assert listens(version, b"subscriptions/listen")
    assert not listens(version, b"tools/call")
    assert not listens(version, None)
