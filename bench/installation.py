"""A Cove of its own for the benchmarks: started, deployed to, asked, stopped."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peers import free_port, stop
from processes import tree

COVE = Path(sys.executable).parent / "cove"


class Installation:
    """`with Installation(folder) as cove:` runs `cove up` on a free loopback port."""

    def __init__(self, folder: Path, driver: str = "auto") -> None:
        self.data = folder / "data"
        self.driver = driver
        self.port = free_port()
        self.log = folder / "cove.log"

    def __enter__(self) -> Installation:
        self.data.mkdir(parents=True)
        listen = f"127.0.0.1:{self.port}"
        command = [str(COVE), "up", "--data", str(self.data), "--listen", listen]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--driver", self.driver], stdout=log, stderr=log
            )
        deadline = time.monotonic() + 30
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"cove up did not get ready:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        stop(self.process, 30)

    def _ready(self) -> bool:
        try:
            return self.request("GET", "/readyz").status == 200
        except OSError:
            return False

    def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> http.client.HTTPResponse:
        """One request on a connection of its own; the body is read, as `response.body`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        response.body = response.read()  # type: ignore[attr-defined]
        connection.close()
        return response

    @property
    def key(self) -> str:
        return (self.data / "key").read_text().strip()

    def cli(self, *arguments: str) -> Any:
        """A `cove` command's `--json` answer."""
        environment = {
            **os.environ,
            "COVE_URL": f"http://127.0.0.1:{self.port}",
            "COVE_DATA": str(self.data),
        }
        ran = subprocess.run(
            [str(COVE), *arguments, "--json"], env=environment, capture_output=True, timeout=300
        )
        if ran.returncode:
            raise RuntimeError(
                f"cove {' '.join(arguments)}: {ran.stdout.decode()}{ran.stderr.decode()}"
            )
        return json.loads(ran.stdout)

    def deploy(self, source: Path, name: str) -> str:
        """Deploy a folder or file; the path its MCP endpoint answers at."""
        self.cli("deploy", str(source), "--name", name)
        return f"/fn/{name}/mcp"

    def instances(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.cli("describe", name)["instances"]
        return found

    def wait_for_zero(self, name: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while self.instances(name):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name} still has instances: {self.instances(name)}")
            time.sleep(0.1)

    def own_pids(self, *names: str) -> set[int]:
        """All of Cove's processes but the instances."""
        guests = [each["pid"] for name in names for each in self.instances(name)]
        return tree(self.process.pid, without=guests)
