"""Tokens: made by Cove alone, opened in one spelling only."""

from __future__ import annotations

import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cove.gateway.tokens import Signer

SIGNER = Signer(b"k" * 32)
FIELDS = st.lists(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1
)


@given(FIELDS)
def test_what_is_sealed_is_opened(fields: list[str]) -> None:
    token = SIGNER.seal("session", *fields)
    assert SIGNER.open("session", token) == tuple(fields)
    assert set(token) <= set(string.ascii_letters + string.digits + "-_")


@given(FIELDS, st.data())
def test_a_changed_token_never_opens(fields: list[str], data: st.DataObject) -> None:
    token = SIGNER.seal("session", *fields)
    at = data.draw(st.integers(0, len(token)))
    how = data.draw(st.sampled_from(["replace", "insert", "remove", "append"]))
    character = data.draw(st.sampled_from(string.ascii_letters + string.digits + "-_=+/!\n \0é"))
    changed = {
        "replace": token[:at] + character + token[at + 1 :],
        "insert": token[:at] + character + token[at:],
        "remove": token[:at] + token[at + 1 :],
        "append": token + character,
    }[how]
    assume(changed != token)
    assert SIGNER.open("session", changed) is None


@given(st.text())
def test_what_cove_did_not_make_does_not_open(token: str) -> None:
    assert SIGNER.open("session", token) is None


def test_every_spelling_of_the_last_character_but_one_is_refused() -> None:
    token = SIGNER.seal("session", "a")
    same = [
        other
        for other in string.ascii_letters + string.digits + "-_"
        if SIGNER.open("session", token[:-1] + other) is not None
    ]
    assert same == [token[-1]]


def test_purposes_and_installs_do_not_mix() -> None:
    token = SIGNER.seal("session", "a", "b")
    assert SIGNER.open("cookie", token) is None
    assert Signer(b"x" * 32).open("session", token) is None


@pytest.mark.parametrize("token", ["", "A", "AAAA", "A" * 5000, "=" * 8])
def test_odd_sizes_do_not_open(token: str) -> None:
    assert SIGNER.open("session", token) is None
