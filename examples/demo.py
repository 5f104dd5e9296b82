"""`make demo`: the whole of Cove on this machine, in under a minute, leaving nothing behind.

Starts Cove in a folder of its own, deploys examples/weather, calls its tool through the official
MCP client, and waits until nothing runs any more. Exits non-zero if any of it is not as said.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mcp import Client

COVE = Path(sys.executable).parent / "cove"
WEATHER = Path(__file__).parent / "weather"


def say(label: str, text: str) -> None:
    print(f"  {label:<10} {text}", flush=True)


def ms(begun: float) -> str:
    return f"{(time.perf_counter() - begun) * 1000:.0f} ms"


class Demo:
    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.address}"
        self.data = folder / "data"
        self.log = folder / "cove.log"
        self.source = folder / "weather"
        self.source.mkdir()
        (self.source / "server.py").write_bytes((WEATHER / "server.py").read_bytes())
        # a minute is the default; nobody watching a demo wants to wait for it
        (self.source / "cove.toml").write_text('[scale]\nidle = "2s"\n')

    def up(self) -> None:
        begun = time.perf_counter()
        command = [str(COVE), "up", "--data", str(self.data), "--listen", self.address]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        while not self.ready():
            if self.process.poll() is not None or time.perf_counter() - begun > 30:
                raise SystemExit("cove up did not get ready:\n" + self.log.read_text())
            time.sleep(0.02)
        say("up", f"Cove answers at {self.url} after {ms(begun)}")

    def ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def cove(self, *arguments: str) -> Any:
        environment = {**os.environ, "COVE_URL": self.url, "COVE_DATA": str(self.data)}
        ran = subprocess.run(
            [str(COVE), *arguments, "--json"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if ran.returncode:
            log = self.log.read_text()[-3000:]
            raise SystemExit(f"cove {' '.join(arguments)}:\n{ran.stdout}{ran.stderr}\n{log}")
        return json.loads(ran.stdout)

    def instances(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.cove("describe", "weather")["instances"]
        return found

    def wait_for_zero(self) -> None:
        deadline = time.monotonic() + 30
        while self.instances():
            if time.monotonic() > deadline:
                raise SystemExit(f"after 30 s there still runs {self.instances()}")
            time.sleep(0.2)

    def deploy(self) -> None:
        begun = time.perf_counter()
        self.cove("deploy", str(self.source), "--name", "weather")
        told = self.cove("describe", "weather")
        say("deployed", f"weather, version {told['version']}, in {ms(begun)} with its dependencies")
        say("url", f"{self.url}/fn/weather/mcp")
        walls = "namespaces, seccomp, limits" if told["isolation"] != "process" else "no isolation"
        say("isolation", f"{told['isolation']}, by the {told['driver']} driver ({walls})")

    async def call(self) -> None:
        begun = time.perf_counter()
        async with Client(f"{self.url}/fn/weather/mcp") as client:
            text = await forecast(client, "Bergen")
            say("cold", f"{text}  ({ms(begun)}, from no process at all)")
            begun = time.perf_counter()
            text = await forecast(client, "Lisbon")
            say("warm", f"{text}  ({ms(begun)})")
        [instance] = self.instances()
        say("running", f"one instance, process {instance['pid']}, {instance['state']}")

    def down(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise SystemExit("cove up did not stop on SIGTERM") from None
        if code:
            raise SystemExit(f"cove up ended with {code}:\n{self.log.read_text()[-2000:]}")


async def forecast(client: Client, city: str) -> str:
    result = await client.call_tool("forecast", {"city": city})
    told = result.structured_content or {}
    if result.is_error or told.get("city") != city:
        raise SystemExit(f"forecast({city!r}) answered {result!r}")
    return f"{city}: {told['celsius']} °C, {told['summary']}"


def main() -> None:
    # told to stop, it still cleans up
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print("Cove: one file becomes an MCP URL that scales from zero")
    with tempfile.TemporaryDirectory(prefix="cove-demo-") as name:
        demo = Demo(Path(name))
        try:
            demo.up()
            demo.deploy()
            demo.wait_for_zero()
            say("at zero", "cove describe shows no instance: nothing runs until somebody calls")
            asyncio.run(demo.call())
            begun = time.perf_counter()
            demo.wait_for_zero()
            say("at zero", f"again, {ms(begun)} after the last call")
        finally:
            demo.down()
    say("down", "Cove has stopped and left nothing behind")
    print("Next: .venv/bin/cove up, and in another shell .venv/bin/cove deploy your_server.py")


if __name__ == "__main__":
    main()
