"""A real `cove up` and the program `cove` beside it, for tests that come in through the door."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COVE = [sys.executable, "-m", "cove.cli.main"]
PATIENCE = 20.0
IDLE = 1.0
"""`scale.idle` of most functions here, in seconds."""


@dataclass(frozen=True)
class Ran:
    """What one run of the program left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def until(seen: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """What `seen` returns once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := seen()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return found


async def until_async(seen: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """The same from a coroutine, whose clients go on meanwhile."""
    return await asyncio.to_thread(until, seen, what, seconds)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass
class Installation:
    """One server in a data folder of its own, and commands to it."""

    folder: Path
    driver: str
    port: int = field(default_factory=free_port)
    log: list[str] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None
    options: list[str] = field(default_factory=list)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def temporary(self) -> Path:
        """Where the server and its programs put what is temporary."""
        return self.folder / "tmp"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        return (self.data / "key").read_text().strip()

    @property
    def env(self) -> dict[str, str]:
        kept = {n: os.environ[n] for n in ("PATH", "LANG", "HOME", "PYTHONPATH") if n in os.environ}
        kept |= {n: v for n, v in os.environ.items() if n.startswith(("UV_", "SSL_", "PIP_"))}
        kept |= {n: v for n, v in os.environ.items() if n.lower().endswith("_proxy")}
        own = {"COVE_DATA": str(self.data), "TMPDIR": str(self.temporary)}
        return {**kept, **own, "NO_PROXY": "127.0.0.1,localhost"}

    def start(self) -> None:
        self.temporary.mkdir(mode=0o755, exist_ok=True)
        self.log.clear()
        self.process = subprocess.Popen(
            [
                *(*COVE, "up", "--listen", f"127.0.0.1:{self.port}", "--driver", self.driver),
                *self.options,
            ],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()
        process = self.process
        until(lambda: self.says("is up") or process.poll() is not None, "cove is up")
        assert process.poll() is None, "\n".join(self.log)

    def says(self, *parts: str) -> bool:
        """Whether a line of the server's log has all of these."""
        return any(all(part in line for part in parts) for line in list(self.log))

    def _read(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.log.append(line.rstrip())

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def __call__(self, *args: str | Path, code: int | None = 0) -> Ran:
        done = subprocess.run(
            [*COVE, *map(str, args)],
            env=self.env,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )
        if code is not None:
            assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback (most recent call last)" not in done.stderr or "cove/" not in done.stderr
        return Ran(done.returncode, done.stdout, done.stderr)

    def describe(self, name: str) -> dict[str, Any]:
        """As `cove describe NAME --json`, without the program's start."""
        from cove.sdk.client import CoveClient

        return dict(CoveClient(self.url, self.key).describe(name))

    def instances(self, name: str) -> list[dict[str, Any]]:
        return list(self.describe(name)["instances"])

    def at_zero(self, name: str) -> None:
        """Wait until the function has no instance."""
        until(lambda: not self.instances(name), f"{name} is at zero")

    def deploy(self, name: str, files: dict[str, str], toml: str = "", code: int = 0) -> Ran:
        """Deploy a folder of these files; `toml` is what cove.toml has beside the name."""
        folder = self.folder / "sources" / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        for path, text in files.items():
            (folder / path).write_text(text)
        (folder / "cove.toml").write_text(f'name = "{name}"\n{toml}')
        return self("deploy", folder, code=code)

    def mcp(self, name: str) -> str:
        return f"{self.url}/fn/{name}/mcp"

    def sse(self, name: str) -> str:
        return f"{self.url}/fn/{name}/sse"
