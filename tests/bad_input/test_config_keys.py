"""A cove.toml with every key wrong in turn: each error names the key and its line."""

from __future__ import annotations

import gzip
from collections.abc import Iterator

import pytest

from bad_input.standing import Refusal, Standing
from bad_input.test_uploads import tarred
from cove.config import FUNCTION_KEYS

Key = tuple[str, ...]
KEYS = sorted(FUNCTION_KEYS)
BEFORE = "# line 1\n# line 2\n"

# What no key takes, but for those that take any text.
NO_KIND = "2026-01-15"
NO_VALUE = '"no such \\u0001 value"'
VALUES: dict[Key, str] = {
    ("name",): '"No Name"',
    ("command",): '"\\u0000"',
    ("env",): '{ "NO-NAME" = "x" }',
}


@pytest.fixture(scope="module", autouse=True)
def _all_of_it(cove: Standing) -> Iterator[None]:
    """Nothing of what is sent here changes anything: looked at once, after all of it."""
    with cove.unchanged():
        yield


def written(key: Key, value: str) -> str:
    """A cove.toml whose third or fourth line says that of the key."""
    *table, name = key
    return BEFORE + (f"[{table[0]}]\n" if table else "") + f"{name} = {value}\n"


def told(cove: Standing, toml: str | bytes) -> Refusal:
    """What a deploy with that cove.toml is told."""
    data = toml.encode() if isinstance(toml, str) else toml
    packed = gzip.compress(tarred(("server.py", {}, b"x = 1\n"), ("cove.toml", {}, data)))
    events = cove.send(packed, name="")
    assert events[-1]["event"] == "error", events
    return Refusal.of(events[-1]["error"])


def line(key: Key) -> str:
    return f"cove.toml line {2 + len(key)}"


@pytest.mark.parametrize("key", KEYS, ids=".".join)
def test_a_value_of_another_kind_is_refused_with_key_line_and_what_it_must_be(
    cove: Standing, key: Key
) -> None:
    refusal = told(cove, written(key, NO_KIND))
    assert refusal.code == "bad_config"
    assert f"{line(key)}: {'.'.join(key)} must be " in refusal.message
    assert refusal.hint


@pytest.mark.parametrize("key", KEYS, ids=".".join)
def test_a_value_that_it_cannot_have_is_refused_with_key_and_line(cove: Standing, key: Key) -> None:
    refusal = told(cove, written(key, VALUES.get(key, NO_VALUE)))
    if key == ("name",):  # which --name may give, too
        assert refusal.code == "bad_name"
        assert "'No Name'" in refusal.message
    else:
        assert refusal.code == "bad_config"
        assert f"{line(key)}: {'.'.join(key)}" in refusal.message
    assert refusal.hint


@pytest.mark.parametrize("key", KEYS, ids=".".join)
def test_a_misspelt_key_is_refused_with_its_line_and_the_right_one(
    cove: Standing, key: Key
) -> None:
    *table, name = key
    misspelt = (*table, name + name[-1])
    refusal = told(cove, written(misspelt, '"x"'))
    assert refusal.code == "bad_config"
    assert f"{line(key)}: {'.'.join(misspelt)} is not a key" in refusal.message
    assert refusal.hint == f"did you mean {'.'.join(key)}?"


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        pytest.param("kind = \n", "cove.toml is not valid TOML: Invalid value (at line 1", id="no"),
        pytest.param("port = 1\nport = 2\n", "line 2", id="twice"),
        pytest.param(b'name = "\xff"\n', "cove.toml is not UTF-8", id="another encoding"),
        pytest.param("#" * 1024**2 + "\n", "cove.toml is larger than 1 MiB", id="huge"),
        pytest.param(f"x = {'[' * 50_000}{']' * 50_000}\n", "nested too deeply", id="deep"),
        pytest.param("limits = 3\n", "cove.toml line 1: limits is a table: [limits]", id="table"),
        pytest.param(
            "[scale]\nmin = 3\nmax = 2\n", "line 2: scale.min is out of order", id="order"
        ),
        pytest.param('entry = "a:b"\ncommand = "c"\n', "line 2: command excludes entry", id="both"),
        pytest.param('runtime = "command"\n', "line 1: runtime 'command' needs a", id="lacks"),
        pytest.param('kind = "web"\npath = "/x"\n', "line 2: path is for kind 'mcp'", id="kind"),
        pytest.param('memory = "1GiB"\n', "line 1: memory is not a key", id="without its table"),
        pytest.param('command = "a \'b"\n', "No closing quotation", id="quotes"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_is_refused_with_what_to_correct(
    cove: Standing, toml: str | bytes, said: str
) -> None:
    refusal = told(cove, toml)
    assert refusal.code in ("bad_config", "bad_source")
    assert said in refusal.message
    assert refusal.hint


def test_what_is_not_built_is_said_rather_than_passed_over(cove: Standing) -> None:
    for toml, said in (
        ('[egress]\nallow = "none"\n', "egress"),
        ('isolation = "microvm"\n', "isolation = 'microvm'"),
        ('runtime = "node22"\n', "runtime = 'node22'"),
    ):
        refusal = told(cove, toml)
        assert refusal.code == "not_built"
        assert f"cove.toml line 1: {said}" in refusal.message
        assert refusal.hint
