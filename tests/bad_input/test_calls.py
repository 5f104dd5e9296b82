"""`cove call` with a tool or arguments that the function does not have."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from bad_input.standing import Standing
from cove.cli.arguments import arguments
from cove.cli.call import check
from cove.errors import CoveError

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}},
    "required": ["city"],
}
WEATHER = f"""
import json, os
from http.server import BaseHTTPRequestHandler, HTTPServer

FORECAST = {{"name": "forecast", "inputSchema": {SCHEMA}}}
FORGET = {{"name": "forget", "inputSchema": {{"type": "object"}}}}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = self.answer(message.get("method"), message.get("params", {{}}))
        body = json.dumps({{"jsonrpc": "2.0", "id": message.get("id"), **answer}}).encode()
        self.send_response(200 if "id" in message else 202)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, method, params):
        if method == "initialize":
            return {{"result": {{"protocolVersion": params["protocolVersion"],
                               "capabilities": {{"tools": {{}}}},
                               "serverInfo": {{"name": "weather", "version": "1"}}}}}}
        if method == "tools/list":
            return {{"result": {{"tools": [FORECAST, FORGET]}}}}
        if method == "tools/call":
            failed = params["name"] == "forget"
            given = params.get("arguments", {{}})
            text = "no barometer" if failed else f"{{given['city']}} {{given.get('days', 1)}}"
            content = [{{"type": "text", "text": text}}]
            return {{"result": {{"content": content, "isError": failed}}}}
        return {{"error": {{"code": -32601, "message": "no such method"}}}}

    def log_message(self, *args):
        pass


HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
PROGRAM = 'command = "python server.py"\n[scale]\nmin = 1\n'

BAD: dict[str, tuple[list[str], str, str]] = {
    "a tool misspelt": (
        ["forecst", "city=Oslo"],
        "weather has no tool 'forecst'",
        "did you mean forecast",
    ),
    "a tool unlike any": (["zzz"], "weather has no tool 'zzz'", "`cove tools weather`"),
    "nothing given": (["forecast"], "forecast needs city", "forecast takes city [days]"),
    "an argument misspelt": (
        ["forecast", "citty=Oslo"],
        "forecast needs city",
        "did you mean city for citty? forecast takes city [days]",
    ),
    "another kind": (
        ["forecast", "city=Oslo", "days=three"],
        'forecast does not take days = "three"',
        '"type": "integer"',
    ),
    "another kind in JSON": (
        ["forecast", "--args", '{"city": 3}'],
        "forecast does not take city = 3",
        '"type": "string"',
    ),
    "no key": (["forecast", "Oslo"], "'Oslo' is not key=value", "city=Oslo"),
    "no JSON": (["forecast", "--args", "{"], "--args is not JSON", '{"city": "Oslo"}'),
    "no object": (["forecast", "--args", "3"], "--args is not a JSON object", '{"city": "Oslo"}'),
    "no file": (["forecast", "city=@/no/such/file"], "/no/such/file cannot be read", "@@"),
}


@pytest.fixture(scope="module")
def weather(cove: Standing) -> Iterator[Standing]:
    cove.cove.deploy("weather", {"server.py": WEATHER}, PROGRAM)
    yield cove
    cove.cove("rm", "weather", "--yes")


@pytest.mark.parametrize("kind", ["a tool misspelt", "a tool unlike any", "an argument misspelt"])
def test_a_call_that_cannot_be_made_says_what_can(weather: Standing, kind: str) -> None:
    words, said, hint = BAD[kind]
    with weather.unchanged():
        ran = weather.cove("call", "weather", *words, "--json", code=1)
    error = ran.json["error"]
    assert error["code"] == "bad_request"
    assert said in error["message"]
    assert hint in error.get("hint", "")


@pytest.mark.parametrize("kind", [kind for kind in BAD if not kind.startswith("a tool")])
def test_arguments_that_the_schema_has_no_room_for_are_told(kind: str) -> None:
    (tool, *words), said, hint = BAD[kind]
    whole = words.pop() if words[:1] == ["--args"] else None
    with pytest.raises(CoveError) as refused:
        check(tool, arguments([] if whole else words, whole, SCHEMA), SCHEMA)
    assert refused.value.code == "bad_request"
    assert said in refused.value.message
    assert hint in refused.value.hint


def test_an_argument_that_the_tool_would_pass_over_is_told_and_the_call_is_made(
    weather: Standing,
) -> None:
    ran = weather.cove("call", "weather", "forecast", "city=Oslo", "dayz=3")
    assert ran.out == "Oslo 1\n"
    assert ran.err == "note: forecast says nothing of dayz; did you mean days?\n"


def test_a_tool_that_fails_is_the_tools_own_answer_and_exit_code_1(weather: Standing) -> None:
    with weather.unchanged():
        people = weather.cove("call", "weather", "forget", code=1)
        program = weather.cove("call", "weather", "forget", "--json", code=1)
    assert people.out == ""
    assert people.err == "no barometer\n"
    assert json.loads(program.out)["isError"] is True


def test_a_function_without_tools_is_said_to_be_one(cove: Standing) -> None:
    web = "import http.server, os\nhttp.server.HTTPServer(('127.0.0.1', int(os.environ['PORT'])),"
    web += " http.server.SimpleHTTPRequestHandler).serve_forever()\n"
    cove.cove.deploy("page", {"server.py": web}, 'kind = "web"\ncommand = "python server.py"\n')
    try:
        for words in (["call", "page", "x"], ["tools", "page"], ["connect", "page"]):
            error = cove.cove(*words, "--json", code=1).json["error"]
            assert error["code"] == "bad_request"
            assert "page is a web function and has no tools" in error["message"]
            assert "/fn/page/" in error["hint"]
    finally:
        cove.cove("rm", "page", "--yes")
