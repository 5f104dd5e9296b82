"""What a function cannot be called, and what a name that is taken means."""

from __future__ import annotations

import gzip

import pytest

from bad_input.standing import Standing
from bad_input.test_uploads import tarred
from e2e.servers import HAND

PROGRAM = 'command = "python server.py"\n'

SOURCE = gzip.compress(tarred(("server.py", {}, HAND.encode())))
MALFORMED = {
    "Weather_Station": "'weather-station'",
    "a.b": "'a-b'",
    "-a": "'a'",
    "a b": "'a-b'",
    "a" * 64: repr("a" * 63),
    "../../etc": "'etc'",
    "%2e%2e": "'2e-2e'",
    "Ж": "another name",
    "1-a": "'a'",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_name_is_refused_with_one_that_would_do(cove: Standing, name: str) -> None:
    refusal = cove.refuses_archive(SOURCE, name)
    assert refusal.code == "bad_name"
    assert repr(name) in refusal.message
    assert MALFORMED[name] in refusal.hint


def test_a_malformed_name_is_refused_by_the_command_too(cove: Standing) -> None:
    refusal = cove.refuses(cove.source({"server.py": HAND}, PROGRAM), name="Weather Station")
    assert (refusal.code, refusal.hint) == ("bad_name", "try 'weather-station'")


@pytest.mark.parametrize("name", ["api", "console"])
def test_a_name_that_cove_has_taken_for_itself_is_refused_with_another(
    cove: Standing, name: str
) -> None:
    refusal = cove.refuses_archive(SOURCE, name)
    assert refusal.code == "bad_name"
    assert "keeps for itself" in refusal.message
    assert f"'{name}-server'" in refusal.hint


def test_a_malformed_name_in_cove_toml_is_refused_too(cove: Standing) -> None:
    folder = cove.source({"server.py": HAND}, 'name = "Bad Name"\n' + PROGRAM)
    with cove.unchanged():
        ran = cove.cove("deploy", folder, "--json", code=1)
    assert ran.json["error"]["code"] == "bad_name"
    assert "'bad-name'" in ran.json["error"]["hint"]


def test_a_name_that_is_taken_gets_another_version_and_says_which(cove: Standing) -> None:
    folder = cove.source({"server.py": HAND}, PROGRAM)
    try:
        first = cove.cove("deploy", folder, "--name", "taken", "--json").json
        second = cove.cove("deploy", folder, "--name", "taken").out
        assert first["version"] == 1
        assert "taken version 2" in second
        versions = cove.cove.describe("taken")["versions"]
        assert [(v["number"], v["state"]) for v in versions] == [(1, "ready"), (2, "ready")]
    finally:
        cove.cove("rm", "taken", "--yes")


@pytest.mark.parametrize("command", ["describe", "connect", "rm", "call"])
def test_a_name_that_is_not_there_is_answered_with_those_that_are_near(
    cove: Standing, command: str
) -> None:
    words = {"rm": ["--yes"], "call": ["pid"]}.get(command, [])
    with cove.unchanged():
        ran = cove.cove(command, "stedy", *words, "--json", code=1)
    error = ran.json["error"]
    assert error["code"] == "not_found"
    assert "stedy" in error["message"]
    assert "did you mean steady" in error["hint"]
