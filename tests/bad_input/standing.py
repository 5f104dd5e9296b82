"""A server that stands while bad things are sent to it, and what must be as it was afterwards."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cove.server.tiers import cgroup_parent
from e2e.conftest import left_behind
from e2e.installation import PATIENCE, Installation, until
from e2e.servers import HAND

STEADY = "steady"
PID = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "pid"}}


@dataclass(frozen=True)
class Refusal:
    """What a refused person or program is told."""

    code: str
    message: str
    hint: str = ""
    lines: list[str] = field(default_factory=list)
    retry: bool = False

    @classmethod
    def of(cls, error: Mapping[str, Any]) -> Refusal:
        return cls(**error)

    @property
    def text(self) -> str:
        return "\n".join((self.message, *self.lines, self.hint))


@dataclass
class Tuned(Installation):
    """An installation whose server's environment has more."""

    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        return {**super().env, **self.settings}


@dataclass
class Standing:
    """An installation with one function, `steady`, whose instance stays."""

    cove: Installation

    @classmethod
    def at(cls, cove: Installation) -> Standing:
        cove.deploy(STEADY, {"server.py": HAND}, 'command = "python server.py"\n[scale]\nmin = 1\n')
        return cls(cove)

    @property
    def data(self) -> Path:
        return self.cove.data

    def source(self, files: Mapping[str, str | bytes], toml: str | None = None) -> Path:
        """A folder to deploy as another version of `steady`; `toml` None is no cove.toml."""
        folder = self.cove.folder / "sources" / "bad"
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            (folder / name).write_bytes(data)
        if toml is not None:
            (folder / "cove.toml").write_text(toml)
        return folder

    def refuses(self, *args: str | Path, name: str = STEADY) -> Refusal:
        """What `cove deploy` says, which must fail and change nothing."""
        with self.unchanged():
            ran = self.cove("deploy", *args, "--name", name, "--json", code=1)
        return Refusal.of(ran.json["error"])

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Whatever happens in the block, `steady` goes on and nothing is left behind."""
        version, pid, before = self.version(), self.pid(), footprint(self.cove)
        yield
        assert (self.version(), self.pid()) == (version, pid)
        until(
            lambda: footprint(self.cove) == before,
            f"nothing is left: {footprint(self.cove) ^ before}",
            5,
        )

    def version(self) -> int:
        """The version of `steady` that serves."""
        described = self.cove.describe(STEADY)
        assert described["state"] == "ready"
        return int(described["version"])

    def pid(self) -> str:
        """What `steady` says of itself: no other process has taken its place."""
        status, body = self.post(f"/fn/{STEADY}/mcp", json.dumps(PID).encode())
        assert status == 200, body
        return str(json.loads(body)["result"]["content"][0]["text"])

    def post(self, path: str, body: bytes, **headers: str) -> tuple[int, bytes]:
        """One POST; status and body."""
        status, _, answer = self.ask(path, body, headers)
        return status, answer

    def ask(
        self, path: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str], bytes]:
        """One POST; status, headers in small letters and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.cove.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("POST", path, body, {"content-type": "application/json", **headers})
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return response.status, found, response.read()

    def send(self, archive: bytes, name: str = STEADY) -> list[dict[str, Any]]:
        """An archive straight to the API, as no `cove deploy` would make it; what is answered."""
        status, body = self.post(
            f"/v1/functions?name={quote(name)}", archive, authorization=f"Bearer {self.cove.key}"
        )
        events = [json.loads(line) for line in body.splitlines() if line.strip()]
        return events if status == 200 else [{"event": "error", **events[0]}]

    def refuses_archive(self, archive: bytes, name: str = STEADY) -> Refusal:
        """What the API says of an archive, which it must refuse and change nothing."""
        with self.unchanged():
            events = self.send(archive, name)
        assert events[-1]["event"] == "error", events
        return Refusal.of(events[-1]["error"])


@contextlib.contextmanager
def standing(
    folder: Path, driver: str, settings: Mapping[str, str] | None = None
) -> Iterator[Standing]:
    """A server in `folder` while the block runs, of which nothing is left afterwards."""
    cove = Tuned(folder, driver, settings=settings or {})
    try:
        cove.start()
        yield Standing.at(cove)
        assert cove.stop() == 0, "\n".join(cove.log[-30:])
        until(lambda: not left(cove), f"nothing is left: {left(cove)}", 5)
        assert list(cove.temporary.iterdir()) == []
        assert not cove.says("task failed"), "\n".join(cove.log)
    finally:
        if cove.process is not None and cove.process.poll() is None:
            cove.process.kill()
            cove.process.wait()


def left(cove: Installation) -> list[str]:
    """What is left of it, but a data folder that is a disk of its own."""
    return [each for each in left_behind(cove.data) if f" {cove.data} " not in each]


def footprint(cove: Installation) -> set[str]:
    """Everything of an installation that a failed deploy could leave behind on this machine.

    Layers only while they are made: a version that failed is kept for a while, with its layers.
    """
    found = {f"upload {path.name}" for path in (cove.data / "uploads").glob("*")}
    found |= {f"unfinished {path.name}" for path in (cove.data / "layers").glob(".*")}
    found |= {f"temporary {path.name}" for path in cove.temporary.iterdir()}
    found |= {f"run {path}" for path in (cove.data / "run").rglob("*")}
    found |= {f"process {pid}" for pid in processes(cove)}
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found |= {f"mount {line.split()[4]}" for line in mounts if str(cove.data) in line}
    parent = cgroup_parent(cove.data)
    found |= {f"cgroup {path}" for path in Path("/sys/fs/cgroup").glob(f"*/{parent}/*/")}
    return found


def processes(cove: Installation) -> Iterator[int]:
    """The processes that an installation's server started, and theirs, by their groups' names."""
    parent = cgroup_parent(cove.data)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            words += (process / "cgroup").read_bytes()
        except OSError:
            continue
        if (str(cove.data).encode() in words or parent.encode() in words) and int(
            process.name
        ) != os.getpid():
            yield int(process.name)
