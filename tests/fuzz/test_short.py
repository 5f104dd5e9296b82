"""A short campaign with every change; `make fuzz` is the long one."""

from __future__ import annotations

import pytest

from fuzz.campaign import KINDS, SHARES, run

COUNT = 20_000
SEED = 20_250_101

# What a generator that has lost its way would no longer come to.
REACHED = {
    "front": {
        *("between", "closed", "head", "body", "tunnel", "refused 400", "refused 431"),
    },
    "answers": {"done", "lost", "open", "tunnel"},
    "rewriting": {"rewritten", "refused"},
    "ways": {"served", "no route", "bad_request", "session_not_found", "forbidden", "refused"},
    "sockets": {"closed", "refused"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_input_does_nothing_that_it_must_not(kind: str) -> None:
    result = run(kind, SEED, round(COUNT * SHARES[kind]))
    assert result.failure is None, str(result.failure)
    assert result.inputs >= COUNT * SHARES[kind] * 0.99
    assert set(result.outcomes) >= REACHED[kind]


def test_a_case_is_the_same_every_time() -> None:
    first, second = (run("front", 5, 500) for _ in range(2))
    assert (first.outcomes, first.inputs) == (second.outcomes, second.inputs)
    assert run("front", 6, 500).outcomes != first.outcomes


def test_the_shares_are_everything() -> None:
    assert SHARES.keys() == KINDS.keys()
    assert abs(sum(SHARES.values()) - 1) < 1e-9
