"""Programs that want more memory than they may have, at their start and at a request."""

from __future__ import annotations

import json

from bad_input.standing import Standing
from e2e.installation import until

TOO_MUCH = "print('weighing', flush=True)\nheap = bytearray(200 * 1024**2)\nprint('never')\n"
LIMITED = 'command = "python server.py"\n[limits]\nmemory = "64MiB"\n'
AT_A_REQUEST = """
import json, os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

heap = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        method, params = message.get("method"), message.get("params", {})
        result = {}
        if method == "initialize":
            result = {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}},
                      "serverInfo": {"name": "heap", "version": "1"}}
        elif method == "tools/call":
            if params["name"] == "fill":
                heap.append(bytearray(200 * 1024**2))
            result = {"content": [{"type": "text", "text": str(len(heap))}]}
        body = json.dumps({"jsonrpc": "2.0", "id": message.get("id"), "result": result}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


def test_a_program_over_its_memory_at_the_start_is_told_the_figure(contained: Standing) -> None:
    refusal = contained.refuses(contained.source({"server.py": TOO_MUCH}, LIMITED))
    assert refusal.code == "deploy_failed"
    assert "out of memory" in refusal.message
    assert "64 MiB" in refusal.message
    assert "weighing" in refusal.lines
    assert "never" not in refusal.lines


def test_a_request_that_takes_too_much_memory_is_told_the_figure_and_others_are_served(
    contained: Standing,
) -> None:
    def call(tool: str) -> tuple[int, dict[str, object]]:
        message = {"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": {"name": tool}}
        status, body = contained.post("/fn/heap/mcp", json.dumps(message).encode())
        return status, json.loads(body)

    contained.cove.deploy("heap", {"server.py": AT_A_REQUEST}, LIMITED)
    try:
        assert call("look")[0] == 200
        status, answer = call("fill")
        assert status == 502
        assert answer["id"] == 3 or answer["id"] is None
        said = str(answer["error"])
        assert "out of memory" in said
        assert "64 MiB" in said
        assert until(lambda: call("look")[0] == 200, "another instance serves")
        assert contained.pid()
    finally:
        contained.cove("rm", "heap", "--yes")
