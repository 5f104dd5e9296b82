"""`/v1/functions/NAME/versions` and `/rollback`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from api.served import MemoryControl, serving
from api.test_control_api import ask, deploy
from cove.api.app import create_app
from cove.api.versions import LIMIT

AT = "/v1/functions/weather/rollback"


@pytest.fixture
def control() -> MemoryControl:
    return MemoryControl()


@pytest.fixture
def url(control: MemoryControl) -> Iterator[str]:
    with serving(create_app(control)) as at:
        deploy(at)
        yield at


def test_versions_say_which_is_live_and_why_one_failed(url: str) -> None:
    response, body = ask(url, "GET", "/v1/functions/weather/versions")
    assert response.status == 200
    newest, failed, _ = body["versions"]
    assert (newest["number"], newest["live"], failed["state"]) == (3, True, "failed")
    assert set(newest) == {"number", "state", "live", "created_at", "error"}
    assert ask(url, "GET", "/v1/functions/other/versions")[0].status == 404


@pytest.mark.parametrize(("text", "now"), [(None, 1), (b"", 1), (b"{}", 1), (b'{"version": 1}', 1)])
def test_it_goes_back_to_the_one_named_or_the_one_before(
    url: str, text: bytes | None, now: int
) -> None:
    response, body = ask(url, "POST", AT, text)
    assert response.status == 200
    assert body == {"function": "weather", "version": now, "was": 3, "changed": True}
    response, body = ask(url, "POST", AT, b'{"version": 1}')
    assert body == {"function": "weather", "version": 1, "was": 1, "changed": False}


@pytest.mark.parametrize(
    "text",
    [
        b"x",
        b"[1]",
        b"1",
        b'{"version": "1"}',
        b'{"version": true}',
        b'{"version": 1.0}',
        b'{"v": 1}',
    ],
)
def test_a_body_that_names_no_version_is_refused(
    url: str, control: MemoryControl, text: bytes
) -> None:
    response, body = ask(url, "POST", AT, text)
    assert (response.status, body["error"]["code"]) == (400, "bad_request")
    assert body["error"]["hint"]
    assert control.live == 3


def test_what_cannot_go_live_is_refused_with_words(url: str) -> None:
    response, body = ask(url, "POST", AT, b'{"version": 2}')
    assert (response.status, body["error"]["code"]) == (409, "conflict")
    assert ask(url, "POST", "/v1/functions/other/rollback")[0].status == 404
    response, body = ask(url, "POST", AT, b" " * (LIMIT + 1))
    assert (response.status, body["error"]["code"]) == (413, "too_large")
