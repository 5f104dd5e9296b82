"""What was planned really starts and answers, with the SDK it was planned for."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.client.sse import sse_client

from .conftest import Instance

TUTORIAL = """
from mcp.server.fastmcp import FastMCP
mcp = FastMCP("weather", host="0.0.0.0", port=9000)

@mcp.tool()
def forecast(city: str) -> str:
    return f"sun in {city}"

if __name__ == "__main__":
    mcp.run(transport="sse")
"""

CURRENT = TUTORIAL.replace("fastmcp import FastMCP", "mcpserver import MCPServer").replace(
    'FastMCP("weather", host="0.0.0.0", port=9000)', 'MCPServer("weather")'
)

FASTMCP = TUTORIAL.replace("mcp.server.fastmcp", "fastmcp").replace(
    ', host="0.0.0.0", port=9000', ""
)

LOW_LEVEL_V1 = """
import mcp.types as types
from mcp.server.lowlevel import Server

server = Server("weather")

@server.list_tools()
async def list_tools():
    return [types.Tool(name="forecast", inputSchema={"type": "object"})]

@server.call_tool()
async def call_tool(name, arguments):
    return [types.TextContent(type="text", text=f"sun in {arguments['city']}")]
"""

LOW_LEVEL = """
from mcp import types
from mcp.server import Server

async def list_tools(ctx, params):
    tool = types.Tool(name="forecast", input_schema={"type": "object"})
    return types.ListToolsResult(tools=[tool])

async def call_tool(ctx, params):
    text = f"sun in {params.arguments['city']}"
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)])

server = Server("weather", on_list_tools=list_tools, on_call_tool=call_tool)
"""


async def forecast(target: Any) -> str:
    async with asyncio.timeout(20), Client(target) as client:
        result = await client.call_tool("forecast", {"city": "Bergen"})
    return "".join(getattr(part, "text", "") for part in result.content)


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        pytest.param(TUTORIAL, "mcp", id="mcp 1 FastMCP"),
        pytest.param(CURRENT, "mcp", id="mcp 2 MCPServer"),
        pytest.param(FASTMCP, "fastmcp", id="fastmcp"),
        pytest.param(LOW_LEVEL_V1, "mcp", id="mcp 1 low-level"),
        pytest.param(LOW_LEVEL, "mcp", id="mcp 2 low-level"),
    ],
)
async def test_a_server_object_answers_over_both_transports(
    text: str, needs: str, write: Any, deploy: Any
) -> None:
    folder = write({"server.py": text, "requirements.txt": needs})
    over_http = await deploy(folder)
    (folder / "cove.toml").write_text('transport = "sse"')
    over_sse = await deploy(folder)
    async with over_http.instance() as one, over_sse.instance() as other:
        await one.serving()
        await other.serving()
        assert await forecast(one.url + "/mcp") == "sun in Bergen"
        assert await forecast(sse_client(other.url + "/sse")) == "sun in Bergen"


async def test_the_tutorials_program_serves_where_its_own_port_says(
    write: Any, deploy: Any
) -> None:
    text = TUTORIAL.replace('if __name__ == "__main__":\n    ', "").replace(
        'host="0.0.0.0", port=9000', 'host="127.0.0.1", port=int(__import__("os").environ["PORT"])'
    )
    deployed = await deploy(write({"server.py": text, "requirements.txt": "mcp"}))
    assert deployed.spec.entry == "server.py"
    assert deployed.spec.transport == "sse"
    async with deployed.instance() as instance:
        await instance.serving()
        assert await forecast(sse_client(instance.url + "/sse")) == "sun in Bergen"


async def test_a_run_over_stdio_on_import_is_passed_over(write: Any, deploy: Any) -> None:
    text = CURRENT.replace('if __name__ == "__main__":\n    mcp.run(transport="sse")', "mcp.run()")
    deployed = await deploy(write({"server.py": text}))
    assert any("run() is passed over" in note for note in deployed.plan.notes)
    async with deployed.instance() as instance:
        await instance.serving()
        assert await forecast(instance.url + "/mcp") == "sun in Bergen"


async def test_the_dependency_layer_works_from_another_place(
    write: Any, deploy: Any, tmp_path: Path
) -> None:
    deployed = await deploy(
        write(
            {
                "main.py": CURRENT,
                "cove.toml": 'command = "uvicorn main:app --port $PORT"',
                "app.py": "",
            }
        )
    )
    text = (Path(deployed.plan.code) / "main.py").read_text()
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(deployed.plan.deps, elsewhere, symlinks=True)
    assert "uvicorn" in deployed.plan.argv[-1]
    assert (elsewhere / "bin/python").readlink() == Path(deployed.plan.interpreter.executable)
    for program in (["python", "-c", "import mcp; print(mcp.__file__)"], ["uvicorn", "--version"]):
        process = await asyncio.create_subprocess_exec(
            str(elsewhere / "bin" / program[0]),
            *program[1:],
            env={"PATH": "/usr/bin:/bin"},
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0
        assert program[0] == "uvicorn" or str(elsewhere) in out.decode()
    assert text == CURRENT


WEB = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

def hello(request):
    return PlainTextResponse(f"{request.url_for('in:hello').path} {request.url.path}")

inner = [Route("/hello", hello, name="hello")]
site = Starlette(routes=[Mount("/in", routes=inner, name="in")])
"""


async def test_a_web_app_answers_and_knows_the_prefix_its_callers_see(
    write: Any, deploy: Any
) -> None:
    deployed = await deploy(write({"site.py": WEB}))
    assert (deployed.spec.kind, deployed.spec.entry) == ("web", "site:site")
    async with deployed.instance() as instance:
        await instance.serving()
        assert await body(instance, "/in/hello") == "/in/hello /in/hello"
        prefixed = await body(instance, "/in/hello", "X-Forwarded-Prefix: /fn/site\r\n")
        assert prefixed == "/fn/site/in/hello /fn/site/in/hello"


async def test_a_web_program_without_dependencies_runs_on_the_base_python(
    write: Any, deploy: Any
) -> None:
    text = 'import http.server\nprint("no packages needed")\n'
    command = "python -m http.server --bind 127.0.0.1 $PORT"
    deployed = await deploy(write({"index.html": "hello", "a.py": text, "cove.toml": web(command)}))
    assert deployed.packages() == {}
    async with deployed.instance() as instance:
        await instance.serving()
        assert await body(instance, "/index.html") == "hello"


async def test_sigterm_ends_an_instance_in_spite_of_open_streams(write: Any, deploy: Any) -> None:
    folder = write({"server.py": CURRENT, "cove.toml": 'transport = "sse"'})
    deployed = await deploy(folder)
    async with deployed.instance() as instance:
        await instance.serving()
        reader, writer = await asyncio.open_connection("127.0.0.1", instance.port)
        writer.write(
            b"GET /sse HTTP/1.1\r\nHost: localhost\r\n\r\n".replace(
                b"localhost", f"localhost:{instance.port}".encode()
            )
        )
        async with asyncio.timeout(10):
            await reader.readuntil(b"endpoint")
            instance.process.send_signal(signal.SIGTERM)
            assert await instance.process.wait() == 0
        writer.close()


@pytest.mark.parametrize(
    ("text", "entry", "said"),
    [
        ("mcp = {}", "server:mcp", "server.py: mcp is a dict, not an MCP server"),
        ("import nowhere\nmcp = 1", "server:mcp", "server.py needs 'nowhere', which is not among"),
        ("mcp = 1 / 0", "server:mcp", "server.py failed while it was imported"),
        ("def __getattr__(n): raise AttributeError", "server:mcp", "has no object 'mcp'"),
        ("", "other:mcp", "there is no module 'other'"),
    ],
)
async def test_a_wrong_object_is_one_clear_line_and_exit_one(
    text: str, entry: str, said: str, write: Any, deploy: Any
) -> None:
    deployed = await deploy(write({"server.py": text, "cove.toml": f'entry = "{entry}"'}))
    async with deployed.instance() as instance:
        output = await instance.output()
        assert instance.process.returncode == 1
    assert said in output.splitlines()[-1]
    assert "serve.py" not in output.replace("server.py", "")


async def test_the_example_answers(deploy: Any) -> None:
    deployed = await deploy(Path(__file__).parents[2] / "examples/weather")
    async with deployed.instance() as instance:
        await instance.serving()
        async with asyncio.timeout(20), Client(instance.url + "/mcp") as client:
            told = await client.call_tool("forecast", {"city": "bergen", "day": "2026-07-15"})
            compared = await client.call_tool(
                "compare", {"a": "Hamburg", "b": "Lisbon", "day": "2026-01-15"}
            )
            missing = await client.call_tool("forecast", {"city": "Atlantis"})
            cities = await client.read_resource("weather://cities")
    assert told.structured_content["summary"] == "mild, rain"
    assert "Lisbon is 9.5 °C warmer" in json.dumps(compared.structured_content, ensure_ascii=False)
    assert missing.is_error
    assert "Lisbon" in cities.contents[0].text


def web(command: str) -> str:
    return f'kind = "web"\ncommand = "{command}"'


async def body(instance: Instance, path: str, headers: str = "") -> str:
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", instance.port)
        writer.write(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n{headers}\r\n".encode())
        whole = await reader.read()
        writer.close()
    return whole.decode().partition("\r\n\r\n")[2]
