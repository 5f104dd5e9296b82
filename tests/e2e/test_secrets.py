"""A secret reaches the program that names it, and nothing else: everything is searched for it."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.conftest import installed
from e2e.installation import Installation, until

# Found nowhere by chance, not in what another run of this has put somewhere either.
MARKER, LATER = f"hunter2-{os.urandom(8).hex()}", f"hunter3-{os.urandom(8).hex()}"
SECOND = "{port} {app}\n" + MARKER + "\nthree"
TOML = """kind = "web"
command = "python server.py"
secrets = ["KEEPER_KEY", "SECOND_KEY"]
[scale]
idle = "1s"
"""
# Tells digests of what it was given, and prints it, as careless programs do.
KEEPER = """
import hashlib, json, os, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NAMES = ("KEEPER_KEY", "SECOND_KEY")
for name in NAMES:
    print("it is", os.environ[name], flush=True)
    print("is it", os.environ[name], file=sys.stderr, flush=True)


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        folder = Path("/run/secrets")
        files = {f.name: digest(f.read_bytes().decode()) for f in folder.glob("*_KEY")}
        mounts = [l.split() for l in Path("/proc/self/mountinfo").read_text().splitlines()]
        kinds = [l[l.index("-") + 1] for l in mounts if l[4] == str(folder)]
        said = {
            "env": {name: digest(os.environ[name]) for name in NAMES},
            "files": files,
            "kinds": kinds,
        }
        body = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
BLABBER = """
import os, sys
raise SystemExit("it was " + os.environ["KEEPER_KEY"])
"""


@pytest.fixture(params=["process", "auto"])
def house(request: pytest.FixtureRequest) -> Iterator[Installation]:
    """An installation of its own: all that it has on the disk is looked through."""
    yield from installed(request.param)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def asked(cove: Installation, path: str, method: str = "GET", body: bytes | None = None) -> Any:
    """What the server answers, errors too; JSON where it is."""
    request = urllib.request.Request(cove.url + path, body, method=method)
    request.add_header("Authorization", f"Bearer {cove.key}")
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            text = response.read().decode()
    except urllib.error.HTTPError as refused:
        text = refused.read().decode()
    return json.loads(text) if text.startswith("{") and text.count("\n") < 2 else text


def on_the_disk(folder: Path, marker: str) -> list[str]:
    """Files below a folder that have the marker in them or in their names.

    Not those that a running container is started from: they are in memory, and for root alone.
    """
    found = []
    memory = in_memory(folder)
    for path in folder.rglob("*"):
        try:
            seen = path.lstat()
            if marker not in path.name and not (
                stat.S_ISREG(seen.st_mode) and marker.encode() in path.read_bytes()
            ):
                continue
        except OSError:
            continue  # gone meanwhile
        if not (seen.st_dev in memory and closed(path, folder)):
            found.append(str(path))
    return found


def in_memory(folder: Path) -> set[int]:
    """The devices of what is mounted below a folder and is no disk."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    kinds = {Path(line[4]): line[line.index("-") + 1] for line in mounts}
    own = folder.stat().st_dev
    inside = [p for p, kind in kinds.items() if kind == "tmpfs" and p.is_relative_to(folder)]
    return {point.stat().st_dev for point in inside} - {own}


def closed(path: Path, folder: Path) -> bool:
    """Whether some folder on the way to it lets nobody else through."""
    way = [each for each in path.parents if each.is_relative_to(folder)]
    return any(each.stat().st_mode & 0o077 == 0 for each in way)


def in_command_lines(marker: str) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if marker.encode() in words:
            found.append(f"{process.name}: {words!r}")
    return found


def nowhere(cove: Installation, marker: str) -> None:
    """The marker is in nothing that is kept, answered, printed or seen from outside."""
    assert on_the_disk(cove.folder, marker) == []
    assert in_command_lines(marker) == []
    assert [line for line in cove.log if marker in line] == []
    paths = [
        *("functions", "functions/keeper", "functions/keeper/versions", "functions/keeper/logs"),
        *("events", "sessions", "secrets", "secrets/KEEPER_KEY", "doctor", "version"),
    ]
    for path in [*(f"/v1/{each}" for each in paths), "/metrics", "/healthz"]:
        assert marker not in str(asked(cove, path)), path


def no_command_tells(cove: Installation, marker: str) -> None:
    for command in ("list", "describe keeper", "versions keeper", "secret list", "session list"):
        for form in ([], ["--json"]):
            ran = cove(*command.split(), *form)
            assert marker not in ran.out + ran.err, command
    for command in ("logs keeper", "events"):
        ran = cove(*command.split(), "--json")
        assert marker not in ran.out + ran.err, command


def keep(cove: Installation, folder: Path, name: str, value: str) -> None:
    file = folder / "value"
    file.write_text(value + "\n")
    ran = cove("secret", "set", name, "--file", file, "--json")
    file.unlink()
    assert ran.json["name"] == name
    assert value not in ran.out + ran.err


def printed(cove: Installation, text: str) -> bool:
    return text in cove("logs", "keeper").out


def test_a_secret_is_where_it_belongs_and_nowhere_else(house: Installation, tmp_path: Path) -> None:
    cove = house
    refused = cove.deploy("keeper", {"server.py": KEEPER}, TOML, code=1)
    assert "keeper names the secrets KEEPER_KEY, SECOND_KEY, which are not set" in refused.err
    assert "cove secret set KEEPER_KEY" in refused.err
    assert list((cove.data / "layers").iterdir()) == []

    keep(cove, tmp_path, "KEEPER_KEY", MARKER)
    keep(cove, tmp_path, "SECOND_KEY", SECOND)
    cove.deploy("keeper", {"server.py": KEEPER}, TOML)
    given = {"KEEPER_KEY": digest(MARKER), "SECOND_KEY": digest(SECOND)}
    seen = asked(cove, "/fn/keeper/")
    assert seen["env"] == given
    if cove.describe("keeper")["isolation"] == "container":
        assert seen["files"] == given
        assert seen["kinds"] == ["tmpfs"]
    until(lambda: printed(cove, "is it"), "what it printed is in its log")
    assert cove.instances("keeper")
    nowhere(cove, MARKER)

    # Errors: of a value that cannot be one, of a program that ends with it on its lips.
    for body in (f'{{"value": "{MARKER}\\u0000"}}', f'{{"value": ["{MARKER}"]}}', MARKER):
        answer = asked(cove, "/v1/secrets/KEEPER_KEY", "PUT", body.encode())
        assert "error" in answer
        assert MARKER not in str(answer)
    failed = cove.deploy("keeper", {"server.py": BLABBER}, TOML, code=1)
    assert "it was" in failed.err
    assert MARKER not in failed.out + failed.err
    nowhere(cove, MARKER)
    no_command_tells(cove, MARKER)

    # A new value: who runs keeps the old one, who starts has the new one.
    before = {each["id"] for each in cove.instances("keeper")}
    keep(cove, tmp_path, "KEEPER_KEY", LATER)
    if before and before == {each["id"] for each in cove.instances("keeper")}:
        assert asked(cove, "/fn/keeper/")["env"]["KEEPER_KEY"] in (digest(MARKER), digest(LATER))
    cove.at_zero("keeper")
    assert asked(cove, "/fn/keeper/")["env"]["KEEPER_KEY"] == digest(LATER)
    nowhere(cove, LATER)

    named = cove("secret", "rm", "KEEPER_KEY", "--yes", code=1)
    assert "KEEPER_KEY is named by keeper" in named.err

    # Over a restart, and after everything has stopped.
    assert cove.stop() == 0
    assert on_the_disk(cove.folder, LATER) == []
    cove.start()
    assert asked(cove, "/fn/keeper/")["env"]["KEEPER_KEY"] == digest(LATER)
    nowhere(cove, LATER)

    cove("rm", "keeper", "--yes")
    cove("secret", "rm", "KEEPER_KEY", "--yes")
    assert [each["name"] for each in cove("secret", "list", "--json").json] == ["SECOND_KEY"]
    assert oct(os.stat(cove.data / "secrets.key").st_mode & 0o777) == "0o600"
