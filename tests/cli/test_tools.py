"""`cove tools` and `cove call`, through the official client to a real MCP server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from api.served import KEY, MemoryControl
from cove.cli.arguments import arguments
from cove.errors import CoveError

from .conftest import Cove, Guarded


@pytest.fixture
def deployed(cove: Cove, source: Path) -> Cove:
    cove("deploy", source)
    return cove


def test_tools_are_listed_with_their_arguments(deployed: Cove) -> None:
    out = deployed("tools", "weather").out
    assert "forecast  city [days] [units]" in out
    assert "Tomorrow, and after." in out
    assert "second line" not in out
    found = {tool["name"]: tool for tool in deployed("tools", "weather", "--json").json}
    assert found["forecast"]["inputSchema"]["required"] == ["city"]


def test_a_call_prints_what_the_tool_says(deployed: Cove, weather: Guarded) -> None:
    assert deployed("call", "weather", "forecast", "city=Oslo").out == "'Oslo' 1 None\n"
    assert f"Bearer {KEY}" in weather.seen


def test_values_are_what_the_tools_schema_wants(deployed: Cove) -> None:
    ran = deployed("call", "weather", "forecast", "city=5", "days=3", "units=null")
    assert ran.out == "'5' 3 None\n"
    ran = deployed("call", "weather", "mean", "values=[1, 2]", 'options={"a": true}', "--json")
    assert ran.json["structuredContent"] == {"mean": 1.5, "options": {"a": True}}


def test_a_tools_own_error_exits_1(deployed: Cove) -> None:
    ran = deployed("call", "weather", "fail", "why=because", code=1)
    assert "because" in ran.err
    assert ran.out == ""
    assert deployed("call", "weather", "fail", "why=x", "--json", code=1).json["isError"] is True


def test_an_unknown_tool_is_an_error_with_near_names(deployed: Cove) -> None:
    ran = deployed("call", "weather", "forcast", "city=Oslo", code=1)
    assert "error: weather has no tool 'forcast'" in ran.err
    assert "hint: did you mean forecast?" in ran.err


def test_a_function_that_does_not_answer_is_said_so(
    cove: Cove, source: Path, control: MemoryControl
) -> None:
    control.mcp_url = "http://127.0.0.1:1/mcp"
    cove("deploy", source)
    ran = cove("tools", "weather", code=1)
    assert "error: http://127.0.0.1:1/mcp does not answer" in ran.err
    assert "hint:" in ran.err
    control.mcp_url = (cove.data / "url").read_text() + "/v1/none"
    cove("deploy", source)
    assert cove("tools", "weather", "--json", code=1).json["error"]["code"] == "bad_gateway"


SCHEMA: dict[str, Any] = {
    "properties": {
        "text": {"type": "string"},
        "number": {"type": "number"},
        "whole": {"type": "integer"},
        "flag": {"type": "boolean"},
        "perhaps": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "either": {"type": ["string", "integer"]},
        "free": {},
        "place": {"$ref": "#/$defs/Place"},
        "level": {"enum": [1, 2, "high"]},
        "lost": {"$ref": "#/$defs/Nowhere"},
    },
    "$defs": {"Place": {"type": "object"}},
}


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("text=5", "5"),
        ("text=null", "null"),
        ('text="quoted"', '"quoted"'),
        ("text=", ""),
        ("text=a=b", "a=b"),
        ("number=5", 5),
        ("number=5.5", 5.5),
        ("number=five", "five"),
        ("whole=-3", -3),
        ("whole=3.5", "3.5"),
        ("whole=true", "true"),
        ("flag=true", True),
        ("flag=1", "1"),
        ("perhaps=null", None),
        ("perhaps=5", "5"),
        ("either=5", 5),
        ("either=5.5", "5.5"),
        ("free=5", 5),
        ("free=[1]", [1]),
        ("free=five", "five"),
        ('place={"x": 1}', {"x": 1}),
        ("place=[1]", "[1]"),
        ("level=2", 2),
        ("level=high", "high"),
        ("lost=5", 5),
        ("unknown=5", 5),
        ("text=@@home", "@home"),
    ],
)
def test_a_word_becomes_the_value_that_the_schema_has_room_for(word: str, value: object) -> None:
    found = arguments([word], None, SCHEMA)[word.partition("=")[0]]
    assert found == value
    assert type(found) is type(value)


def test_words_win_over_the_whole_object() -> None:
    assert arguments(["text=b"], '{"text": "a", "flag": true}', SCHEMA) == {
        "text": "b",
        "flag": True,
    }


def test_a_value_may_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "v").write_text('{"x": 1}\n')
    assert arguments([f"place=@{tmp_path}/v"], None, SCHEMA) == {"place": {"x": 1}}
    assert arguments([f"text=@{tmp_path}/v"], None, SCHEMA) == {"text": '{"x": 1}\n'}


@pytest.mark.parametrize(
    ("words", "whole"),
    [(["city"], None), (["=x"], None), (["a=@/no/such"], None), ([], "{"), ([], "[1]")],
)
def test_what_is_no_argument_is_refused(words: list[str], whole: str | None) -> None:
    with pytest.raises(CoveError) as refused:
        arguments(words, whole, SCHEMA)
    assert refused.value.code == "bad_request"


def test_a_schema_that_refers_to_itself_ends() -> None:
    loop = {"properties": {"a": {"$ref": "#/properties/a"}}}
    assert arguments(["a=5"], None, loop) == {"a": 5}
