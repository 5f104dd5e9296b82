"""A real `cove up` in a folder of its own: started, killed, asked, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2

from e2e.installation import COVE, free_port

STARTS_WITHIN = 60.0
STOPS_WITHIN = 40.0
_LOOK = 0.01

Json = dict[str, Any]


class RefusedError(Exception):
    """The control API said no; the words are its."""


class Server:
    """At most one process at a time, always on the same folder and port."""

    def __init__(self, folder: Path, driver: str = "auto") -> None:
        self.data, self.temporary = folder / "data", folder / "tmp"
        self.temporary.mkdir(mode=0o755)
        self.log = folder / "cove.log"
        self.driver = driver
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def key(self) -> str:
        return (self.data / "key").read_text().strip()

    @property
    def pid(self) -> int:
        """Of the process that was started last; 0 where none was."""
        return self.process.pid if self.process is not None else 0

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def launch(self) -> None:
        """Start it; `ready` waits until it serves."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("COVE_")}
        env |= {"TMPDIR": str(self.temporary), "NO_PROXY": "127.0.0.1,localhost"}
        argv = [*COVE, "up", "--data", str(self.data), "--listen", f"127.0.0.1:{self.port}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*argv, "--driver", self.driver],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is the campaign's, which ends it in order
            )

    async def ready(self) -> float:
        """Wait until it answers; when that was, by the monotonic clock."""
        async with (
            asyncio.timeout(STARTS_WITHIN),
            httpx2.AsyncClient(timeout=STARTS_WITHIN) as http,
        ):
            while self.running:
                with contextlib.suppress(httpx2.HTTPError):
                    if (await http.get(f"{self.url}/readyz")).status_code == 200:
                        return time.monotonic()
                await asyncio.sleep(_LOOK)
        raise RefusedError(f"cove up ended with {self.process and self.process.returncode}")

    def kill(self) -> None:
        """SIGKILL to the server's process, and to no other."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(STOPS_WITHIN)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(STOPS_WITHIN)

    def last_words(self, count: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])


class Control:
    """The control API of a server, for a deployer and for the checks."""

    def __init__(self, server: Server, http: httpx2.AsyncClient) -> None:
        self._server = server
        self._http = http

    async def ask(self, method: str, path: str, **options: Any) -> httpx2.Response:
        headers = {"authorization": f"Bearer {self._server.key}"}
        return await self._http.request(
            method, f"{self._server.url}/v1/{path}", headers=headers, **options
        )

    async def functions(self) -> list[Json]:
        return list((await self.ask("GET", "functions")).json()["functions"])

    async def describe(self, name: str) -> Json | None:
        """The function, if there is one of that name."""
        found = await self.ask("GET", f"functions/{name}")
        return dict(found.json()) if found.status_code == 200 else None

    async def instances(self) -> dict[str, Json]:
        """All instances of all functions, by id."""
        found: dict[str, Json] = {}
        for function in await self.functions():
            described = await self.describe(function["name"])
            if described is not None:
                found |= {instance["id"]: instance for instance in described["instances"]}
        return found

    async def deploy(self, name: str, source: str, toml: str) -> int:
        """The version that is live now. `RefusedError` with the reason where there is none."""
        body = _archive({"server.py": source, "cove.toml": f'name = "{name}"\n{toml}'})
        answer = await self.ask("POST", "functions", content=body)
        if answer.status_code != 200:
            raise RefusedError(answer.text)
        events = [json.loads(line) for line in answer.text.splitlines() if line.strip()]
        if events and events[-1]["event"] == "deployed":
            return int(events[-1]["function"]["version"])
        raise RefusedError(json.dumps(events[-1:]))

    async def lines(self, name: str, since: str) -> list[Json]:
        """What a function has printed since then, oldest first."""
        query = {"stream": "stdout"} | ({"since": since} if since else {})
        answer = await self.ask("GET", f"functions/{name}/logs", params=query)
        return [json.loads(line) for line in answer.text.splitlines() if line.strip()]


def _archive(files: Mapping[str, str]) -> bytes:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return gzip.compress(plain.getvalue(), 1)
