"""Going back, as the people do who have just deployed a mistake."""

from __future__ import annotations

from e2e.installation import Installation
from e2e.test_secrets import asked

SERVER = """
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"this is number %d"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
TOML = 'kind = "web"\ncommand = "python server.py"\n[scale]\nidle = "1s"\n'


def test_the_version_before_serves_again_also_after_a_restart(plain: Installation) -> None:
    cove = plain
    for number in (1, 2):
        cove.deploy("mistaken", {"server.py": SERVER % number}, TOML)
    cove.deploy("mistaken", {"server.py": "raise SystemExit('no')\n"}, TOML, code=1)
    assert asked(cove, "/fn/mistaken/") == "this is number 2"
    ran = cove("rollback", "mistaken")
    assert ran.out == "mistaken:1 is live, mistaken:2 no longer\n"
    assert asked(cove, "/fn/mistaken/") == "this is number 1"
    states = [
        (v["number"], v["state"], v["live"]) for v in cove("versions", "mistaken", "--json").json
    ]
    assert states == [(3, "failed", False), (2, "ready", False), (1, "ready", True)]
    refused = cove("rollback", "mistaken", "3", code=1)
    assert "version 3 of mistaken is failed and cannot go live" in refused.err
    assert "no version below 1" in cove("rollback", "mistaken", code=1).err
    assert "is live already" in cove("rollback", "mistaken", "1").out
    assert cove.stop() == 0
    cove.start()
    assert asked(cove, "/fn/mistaken/") == "this is number 1"
    assert cove("rollback", "mistaken", "2", "--json").json["was"] == 1
    assert asked(cove, "/fn/mistaken/") == "this is number 2"
    cove("rm", "mistaken", "--yes")
