"""The tables of states: every move they have, and no other."""

from __future__ import annotations

from enum import StrEnum

import pytest

from cove.states import MOVES, IllegalMoveError, move

ALL = [(old, new) for noun in MOVES for old in noun for new in noun]


@pytest.mark.parametrize(("old", "new"), ALL)
def test_a_move_is_the_tables_or_an_error(old: StrEnum, new: StrEnum) -> None:
    if new in MOVES[type(old)][old]:
        assert move("it", old, new) is new
    else:
        with pytest.raises(IllegalMoveError, match=f"it cannot go from {old} to {new}"):
            move("it", old, new)


@pytest.mark.parametrize("noun", list(MOVES))
def test_every_state_has_a_row_and_some_end(noun: type[StrEnum]) -> None:
    assert set(MOVES[noun]) == set(noun)
    assert any(not after for after in MOVES[noun].values())
    assert all(isinstance(new, noun) for after in MOVES[noun].values() for new in after)


@pytest.mark.parametrize("noun", list(MOVES))
def test_no_state_comes_back(noun: type[StrEnum]) -> None:
    def reachable(state: StrEnum) -> set[StrEnum]:
        after = set(MOVES[noun][state])
        return after.union(*(reachable(new) for new in after)) if after else after

    assert all(state not in reachable(state) for state in noun)
