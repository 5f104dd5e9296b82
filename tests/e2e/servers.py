"""MCP servers to deploy, as a person would have written them."""
# ruff: noqa: E501  guests' sources are strings here

EVERY = '''
import os, time
import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from pydantic import BaseModel

mcp = MCPServer("every")
counts = {}


class Answer(BaseModel):
    name: str


@mcp.tool()
def echo(text: str) -> str:
    return text


@mcp.tool()
def pid() -> str:
    return str(os.getpid())


@mcp.tool()
def count() -> str:
    """How often this process was asked."""
    counts["all"] = counts.get("all", 0) + 1
    return str(counts["all"])


@mcp.tool()
async def slow(seconds: float, ctx: Context) -> str:
    """Reports its progress at the beginning and in the middle."""
    for half in (1, 2):
        await ctx.report_progress(half, 2, f"half {half}")
        await anyio.sleep(seconds / 2)
    return "done"


@mcp.tool()
async def silent(seconds: float) -> str:
    await anyio.sleep(seconds)
    return "done"


@mcp.tool()
async def ask(ctx: Context) -> str:
    """Asks the person who they are."""
    answer = await ctx.elicit("Who are you?", Answer)
    return f"{answer.action} {answer.data.name}"


@mcp.tool()
async def change(ctx: Context) -> str:
    """Tells modern listeners and this legacy session that the tools have changed."""
    await ctx.notify_tools_changed()
    try:
        await ctx.session.send_tool_list_changed()
    except Exception:
        pass
    return "told"
'''

HAND = '''
"""Streamable HTTP of the legacy era by hand, without sessions. Starts quickly."""
import json, os, select, socket, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

streams = []
lock = threading.Lock()
REFUSE = os.environ.get("REFUSE")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def reply(self, status, body=b"", kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status in (401, 405):
            self.send_header("WWW-Authenticate", "Bearer realm=hand")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if REFUSE:
            return self.reply(int(REFUSE), b'{"refused": true}')
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b"id: 1\\ndata: {\\"jsonrpc\\":\\"2.0\\",\\"method\\":\\"notifications/last\\","
                         b"\\"params\\":{\\"id\\":\\"" + self.headers.get("Last-Event-ID", "none").encode()
                         + b"\\"}}\\n\\n")
        with lock:
            streams.append(self.wfile)
        select.select([self.connection], [], [])  # until the gateway closes it
        with lock:
            streams.remove(self.wfile)
        self.close_connection = True

    def do_POST(self):
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        method, params = message.get("method"), message.get("params", {})
        if self.headers.get("MCP-Protocol-Version", "2025-03-26") > "2025-11-25":
            return self.reply(400, b'{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"no"}}')
        if "id" not in message:
            return self.reply(202)
        result = {}
        if method == "initialize":
            result = {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}},
                      "serverInfo": {"name": "hand", "version": "1"}}
        elif method == "tools/call":
            result = {"content": [{"type": "text", "text": str(self.call(params["name"]))}]}
        self.reply(200, json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode())

    def call(self, name):
        if name == "notify":
            with lock:
                for stream in streams:
                    stream.write(b'data: {"jsonrpc":"2.0","method":"notifications/tools/list_changed"}\\n\\n')
        elif name == "sleep":
            time.sleep(3)
        elif name == "pid":
            return os.getpid()
        with lock:
            return len(streams)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 100


Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
'''

ODD = '''
"""HTTP+SSE by hand, with the endpoint event that $ENDPOINT names. {port} and {id} are put in."""
import json, os, queue, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

sessions = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        if self.path != os.environ.get("EVENTS", "/sse"):
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        ident = os.urandom(8).hex()
        mine = sessions[ident] = queue.Queue()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.end_headers()
        endpoint = os.environ["ENDPOINT"].replace("{port}", os.environ["PORT"]).replace("{id}", ident)
        self.wfile.write(f": hello\\r\\n\\r\\nevent: endpoint\\r\\ndata: {endpoint}\\r\\n\\r\\n".encode())
        try:
            while True:
                try:
                    data = mine.get(timeout=0.2)
                    self.wfile.write(b"event: message\\r\\ndata: " + data + b"\\r\\n\\r\\n")
                except queue.Empty:
                    self.wfile.write(b": ping\\r\\n\\r\\n")
        except OSError:
            del sessions[ident]

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = [mine for ident, mine in list(sessions.items()) if ident in self.path]
        self.send_response(202 if found else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()
        if not found or "id" not in body:
            return
        method, result = body["method"], {}
        if method == "initialize":
            result = {"protocolVersion": "2024-11-05", "capabilities": {"tools": {}},
                      "serverInfo": {"name": "odd", "version": "1"}}
        elif method == "tools/list":
            result = {"tools": [{"name": "path", "inputSchema": {"type": "object"}}]}
        elif method == "tools/call":
            said = self.path if body["params"]["name"] == "path" else str(len(sessions))
            result = {"content": [{"type": "text", "text": said}]}
        answer = {"jsonrpc": "2.0", "id": body["id"], "result": result}
        found[0].put(json.dumps(answer).encode())


class Server(ThreadingHTTPServer):
    daemon_threads = True


Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
'''

TUTORIAL = '''
from mcp.server.fastmcp import FastMCP

mcp = FastMCP("weather", host="0.0.0.0", port=9000)


@mcp.tool()
def alerts(state: str) -> str:
    """Weather alerts of a state."""
    return f"none in {state}"

'''

LOW = """
from mcp.server.lowlevel import Server
import mcp_types as types


async def tools(context, params):
    return types.ListToolsResult(tools=[types.Tool(name="low", input_schema={"type": "object"})])


async def call(context, params):
    return types.CallToolResult(content=[types.TextContent(type="text", text="low down")])


server = Server("low", on_list_tools=tools, on_call_tool=call)
"""

PROGRAM = """
import os
from mcp.server import MCPServer

mcp = MCPServer("program")


@mcp.tool()
def mode() -> str:
    return os.environ["MODE"]


options = {"stateless": {"stateless_http": True}, "json": {"json_response": True}, "plain": {}}
mcp.run("streamable-http", port=int(os.environ["PORT"]), **options[os.environ["MODE"]])
"""

WEB = """
import os
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute


async def home(request):
    return PlainTextResponse(f"{request.method} {request.url.path} {request.url_for('home').path}")


async def echo(request):
    return Response(await request.body())


async def chat(socket):
    await socket.accept(subprotocol="talk")
    async for text in socket.iter_text():
        await socket.send_text(text.upper())
        if text == "bye":
            await socket.close(4001, "so long")
            return


count = {}


async def visit(request):
    count["n"] = count.get("n", 0) + 1
    return PlainTextResponse(f"{os.getpid()} {count['n']}")


app = Starlette(routes=[Route("/", home, name="home"), Route("/echo", echo, methods=["POST"]),
                        Route("/visit", visit), WebSocketRoute("/chat", chat)])
"""
