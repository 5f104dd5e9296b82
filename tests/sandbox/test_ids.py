"""Ranges of host ids."""

from __future__ import annotations

import pytest

from cove.errors import CoveError
from cove.sandbox.ids import FIRST_ID, IDS_EACH, SLOTS, IdRanges


def test_ranges_do_not_overlap_and_stay_below_two_to_the_31() -> None:
    ids = IdRanges()
    taken = [ids.take() for _ in range(SLOTS)]
    assert len(set(taken)) == SLOTS
    assert all((first - FIRST_ID) % IDS_EACH == 0 for first in taken)
    assert max(taken) + IDS_EACH <= 2**31


def test_a_freed_range_is_taken_again() -> None:
    ids = IdRanges()
    first, _ = ids.take(), ids.take()
    ids.free(first)
    assert ids.take() == first


def test_running_out_is_an_error_that_a_retry_may_mend() -> None:
    ids = IdRanges()
    for _ in range(SLOTS):
        ids.take()
    with pytest.raises(CoveError) as full:
        ids.take()
    assert full.value.code == "overloaded"
    assert full.value.retry


def test_ranges_that_somebody_else_uses_are_left_alone() -> None:
    others = [0, 1000, FIRST_ID + 1000, FIRST_ID + IDS_EACH + 33]
    assert IdRanges().take(others) == FIRST_ID + 2 * IDS_EACH


def test_a_range_that_is_in_use_already_is_not_handed_out() -> None:
    ids = IdRanges()
    ids.hold(FIRST_ID)
    assert ids.take() == FIRST_ID + IDS_EACH
    ids.free(FIRST_ID)
    assert ids.take() == FIRST_ID
