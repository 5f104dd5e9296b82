"""PEP 723 metadata is found as the specification says, whatever else a file holds."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cove.runtimes.requirements import _script_lines

REFERENCE = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
LINES = st.lists(
    st.sampled_from(["# /// script", "# ///", "#", "# x = 1", "#x", "", "code"]), max_size=12
)


@given(LINES)
@example(["# /// script", "# x = 1", "# ///", "# x = 1", "# ///", "code"])
def test_the_block_is_the_one_that_the_specification_finds(lines: list[str]) -> None:
    text = "\n".join(lines) + "\n"
    match = REFERENCE.search(text)
    found = _script_lines(text)
    assert found == (match["content"].splitlines() if match else None)


@pytest.mark.parametrize(
    "text",
    [
        "# /// script\r\n" + "# a\r\n" * 5000,
        "# /// script\n" * 20_000,
        "# /// script\n# x = 1\n" + "#" + " " * 100_000,
    ],
)
def test_texts_that_cost_a_pattern_all_time_are_read_through(text: str) -> None:
    assert _script_lines(text) is None
