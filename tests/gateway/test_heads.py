"""Heads that are remembered: found by everything they say, and bounded."""

from __future__ import annotations

import pytest

from cove.gateway.head import Heads, RefusedError

HEADERS = [(b"host", b"localhost"), (b"authorization", b"Bearer one")]


def get(heads: Heads, *, peer: str = "127.0.0.1", headers=HEADERS, version: str = "1.1"):  # type: ignore[no-untyped-def]
    return heads.get(peer, b"POST", b"/fn/a/mcp", version, headers, keep_alive=True)


def test_the_same_head_is_parsed_once() -> None:
    heads = Heads()
    assert get(heads) is get(heads, headers=[*HEADERS])


@pytest.mark.parametrize(
    "other",
    [
        {"peer": "127.0.0.2"},
        {"version": "1.0"},
        {"headers": [(b"host", b"localhost"), (b"authorization", b"Bearer two")]},
        {"headers": HEADERS[::-1]},
        {"headers": HEADERS[:1]},
    ],
)
def test_heads_that_differ_in_anything_share_nothing(other: dict[str, object]) -> None:
    heads = Heads()
    assert get(heads) is not get(heads, **other)  # type: ignore[arg-type]


def test_what_is_remembered_is_bounded() -> None:
    heads = Heads(most=10)
    for number in range(100):
        get(heads, headers=[(b"host", b"%d" % number)])
    get(heads, headers=[(b"host", b"a" * 5000)])
    assert 0 < len(heads) <= 10


def test_a_refused_head_is_refused_again() -> None:
    heads = Heads()
    for _ in range(2):
        with pytest.raises(RefusedError):
            get(heads, headers=[])
    assert len(heads) == 0
