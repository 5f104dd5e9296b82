"""What is deployed to be loaded: small servers by hand, that start quickly and say who they are."""
# ruff: noqa: E501  guests' sources are strings here

from __future__ import annotations

from e2e.servers import EVERY, ODD

COUNTER = '''
"""Streamable HTTP of the legacy era: each session has a count, and a stream of numbered events."""
import json, os, threading, time, uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WHO = uuid.uuid4().hex[:8]
counts = {}
lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def reply(self, status, message=None, **headers):
        body = json.dumps(message).encode() if message is not None else b""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def session(self):
        """The caller's session; None, and a 404, where it is unknown."""
        session = self.headers.get("Mcp-Session-Id")
        if session in counts:
            return session
        error = {"code": -32001, "message": f"{WHO} knows no such session"}
        self.reply(404, {"jsonrpc": "2.0", "id": None, "error": error})

    def do_POST(self):
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers.get("MCP-Protocol-Version", "2025-03-26") > "2025-11-25":
            error = {"code": -32000, "message": "legacy only"}
            return self.reply(400, {"jsonrpc": "2.0", "id": None, "error": error})
        if message.get("method") == "initialize":
            session = uuid.uuid4().hex
            with lock:
                counts[session] = 0
            result = {"protocolVersion": message["params"]["protocolVersion"],
                      "capabilities": {"tools": {}}, "serverInfo": {"name": "counter", "version": "1"}}
            answer = {"jsonrpc": "2.0", "id": message["id"], "result": result}
            return self.reply(200, answer, Mcp_Session_Id=session)
        session = self.session()
        if session is None:
            return
        if "id" not in message:
            return self.reply(202)
        time.sleep(message["params"].get("arguments", {}).get("seconds", 0))
        with lock:
            counts[session] += 1
            said = f"{WHO} {counts[session]}"
        result = {"content": [{"type": "text", "text": said}]}
        self.reply(200, {"jsonrpc": "2.0", "id": message["id"], "result": result})

    def do_GET(self):
        if self.session() is None:
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.close_connection = True
        number = 0
        try:
            while True:
                params = {"who": WHO, "number": number}
                data = {"jsonrpc": "2.0", "method": "notifications/number", "params": params}
                self.wfile.write(f"data: {json.dumps(data)}\\n\\n".encode())
                number += 1
                time.sleep(0.05)
        except OSError:
            pass

    def do_DELETE(self):
        session = self.session()
        if session is not None:
            with lock:
                counts.pop(session, None)
            self.reply(200)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 100


Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
'''

WEB = '''
"""Pages, digests of what is posted, and a WebSocket that says everything again."""
import base64, hashlib, os, struct, uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

EDITION = 0
WHO = uuid.uuid4().hex[:8]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def reply(self, text):
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.headers.get("Upgrade", "").lower() == "websocket":
            return self.chat()
        self.reply(f"{EDITION} {WHO} {self.path}")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.reply(hashlib.sha256(body).hexdigest())

    def chat(self):
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.close_connection = True
        while head := self.rfile.read(2):
            size = head[1] & 127
            if size == 126:
                size = struct.unpack("!H", self.rfile.read(2))[0]
            mask = self.rfile.read(4)
            data = bytes(byte ^ mask[at % 4] for at, byte in enumerate(self.rfile.read(size)))
            length = bytes([size]) if size < 126 else b"\\x7e" + struct.pack("!H", size)
            self.wfile.write(bytes([head[0]]) + length + data)
            if head[0] & 15 == 8:
                return


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 100


Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
'''

PRINTER = '''
"""Prints numbered lines for as long as it lives: a few at a time, now and then many at once."""
import os, threading, time
from http.server import HTTPServer, SimpleHTTPRequestHandler


def lines():
    number = 0
    while True:
        for _ in range(60 if number % 100 < 3 else 3):
            print("line", number, flush=True)
            number += 1
        time.sleep(0.02)


threading.Thread(target=lines, daemon=True).start()
HTTPServer(("127.0.0.1", int(os.environ["PORT"])), SimpleHTTPRequestHandler).serve_forever()
'''

PROGRAM = 'command = "python server.py"\n'
PAGES = 'kind = "web"\n' + PROGRAM


def edition(number: int) -> str:
    """The web program, of which a page says this number."""
    return WEB.replace("EDITION = 0", f"EDITION = {number}")


STANDING: dict[str, tuple[str, str]] = {
    "counter": (COUNTER, PROGRAM + "[session]\nper_instance = 3\n"),
    "modern": (EVERY, ""),
    "events": (ODD, PROGRAM + 'transport = "sse"\nenv = { ENDPOINT = "/post/{id}" }\n'),
    "web": (WEB, PAGES),
    "printer": (PRINTER, PAGES + "[scale]\nmin = 1\nmax = 1\n"),
    "moving": (edition(1), PAGES),
}
"""The functions that stand all the while, with what cove.toml has beside the name."""
