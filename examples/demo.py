"""`make demo`: the whole of Cove on this machine, in under a minute, leaving nothing behind.

Starts Cove in a folder of its own, deploys examples/weather, calls its tool through the official
MCP client, and waits until nothing runs any more. Exits non-zero if any of it is not as said.
"""

from __future__ import annotations

import asyncio
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
        while True:
            try:
                connection = socket.create_connection(("127.0.0.1", self.port), 1)
            except OSError:
                if self.process.poll() is not None or time.perf_counter() - begun > 30:
                    raise SystemExit("cove up did not start:\n" + self.log.read_text()) from None
                time.sleep(0.02)
            else:
                with connection:
                    connection.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
                    if b" 200 " in connection.recv(4096).split(b"\r\n")[0]:
                        break
        say("up", f"Cove answers at {self.url} after {ms(begun)}")

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
            raise SystemExit(f"cove {' '.join(arguments)} failed:\n{ran.stdout}{ran.stderr}")
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
    print("Cove: one file becomes an MCP URL that scales from zero")
    with tempfile.TemporaryDirectory(prefix="cove-demo-") as name:
        demo = Demo(Path(name))
        demo.up()
        try:
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
