"""A driver of each kind, programs for it, and a look at what they leave on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cove.drivers.base import Driver, Launch, Running
from cove.drivers.fake import App, FakeDriver
from cove.model import MIB, Interpreter, Limits
from cove.sandbox.cgroup import host_hierarchies

PARENT = f"cove-contract-{os.getpid()}"
BOUND = 20.0  # seconds for anything that is waited for

SERVE = """
import json, os, socket, sys
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
print("ready", flush=True)
count = 0
while True:
    caller, _ = listener.accept()
    if b" /exit " in caller.recv(65536):
        os._exit(7)
    count += 1
    said = {"argv": sys.argv, "env": dict(os.environ), "cwd": os.getcwd(), "count": count}
    said = json.dumps(said).encode()
    caller.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%b" % (len(said), said))
    caller.close()
"""
ONE_CALLER = SERVE.replace("listener.accept()", "listener.accept(); listener.close()")
MUTE = """
import time
print("ready", flush=True)
time.sleep(600)
"""
ELSEWHERE = """
import socket, time
one = socket.create_server((%r, 0), family=socket.%s)
print("ready", flush=True)
while True:
    caller, _ = one.accept()
    caller.recv(65536)
    caller.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}")
    caller.close()
"""
TWO_PORTS = """
import socket, time
listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print("ready", flush=True)
time.sleep(600)
"""
POLITE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
print("ready", flush=True)
time.sleep(600)
"""
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"no\\n"))
print("ready", flush=True)
while True:
    time.sleep(600)
"""
LITTER = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("ready", flush=True)
        time.sleep(600)
    time.sleep(600)
time.sleep(600)
"""

Program = tuple[Running, asyncio.StreamReader]


def interpreter() -> Interpreter:
    return Interpreter(os.path.realpath(sys.executable), sys.base_prefix, "3")


class Rig:
    """A driver, programs for it, and a look at what they leave on this machine."""

    def __init__(self, make: Callable[[], Driver], folder: Path) -> None:
        self.driver = make()
        self.state = folder / "state"
        self._make = make
        self.mark = f"MARK={uuid.uuid4().hex}"
        self._folder = folder
        self._open: list[Any] = []

    @property
    def fake(self) -> bool:
        return isinstance(self.driver, FakeDriver)

    def launch(self, source: str = SERVE, **changes: Any) -> Launch:
        name = uuid.uuid4().hex[:8]
        code = self._folder / name
        code.mkdir()
        (code / "program.py").write_text(source)
        key, _, value = self.mark.partition("=")
        made = Launch(
            id=f"t-{name}",
            function="t",
            version=1,
            argv=(interpreter().executable, "-S", "{app}/program.py"),
            env={key: value},
            port=9000,
            code=str(code),
            deps=None,
            interpreter=interpreter(),
            limits=Limits(cpu=0.5, memory=64 * MIB, pids=32),
            stdout=-1,
            stderr=-1,
        )
        return dataclasses.replace(made, **changes)

    async def start(self, launch: Launch) -> Program:
        """Start, its output a pipe whose reader is returned; not waited for until it is ready."""
        read, write = os.pipe()
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read, "rb")
        )
        self._open.append(transport)
        try:
            running = await self.driver.start(
                dataclasses.replace(launch, stdout=write, stderr=write)
            )
        finally:
            os.close(write)
        return running, reader

    async def ready(self, launch: Launch) -> Program:
        running, lines = await self.start(launch)
        if not self.fake:
            assert await asyncio.wait_for(lines.readline(), BOUND) == b"ready\n"
        return running, lines

    async def again(self, *, adopt: bool = True) -> Sequence[Running]:
        """Another driver takes the place of this one, which has let go of everything."""
        await self.driver.close(keep=True)
        self.driver = self._make()
        return await self.driver.adopt() if adopt else ()

    def alive(self) -> list[int]:
        """Processes of this machine that carry the mark of this test's launches."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if self.mark.encode() in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                    found.append(int(name))
        return found

    def footprint(self) -> dict[str, object]:
        """What starts could leave: mounts, cgroups, folders, namespaces and pidfds held open."""
        fds = []
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                fds.append(os.readlink(f"/proc/self/fd/{fd}"))
        return {
            "processes": self.alive(),
            "mounts": [x for x in mountinfo() if str(self._folder) in x or " /run/cove/" in x],
            "cgroups": sorted(host_hierarchies().group(PARENT).children()),
            "folders": sorted(str(p) for glob in ("*", "[br]u*/*") for p in self.state.glob(glob)),
            "held": sorted(x for x in fds if x.startswith(("net:", "anon_inode:[pidfd]"))),
        }

    def close(self) -> None:
        for one in self._open:
            one.close()


def mountinfo() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


def counting() -> App:
    """An app of the fake driver's that does as `SERVE` does."""
    counts: dict[str, int] = {}

    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.readuntil(b"\r\n\r\n")
        counts[launch.id] = counts.get(launch.id, 0) + 1
        said = json.dumps({"instance": launch.id, "count": counts[launch.id]}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said))
        await writer.drain()

    return app


async def ask(running: Running, path: str = "/") -> dict[str, Any]:
    """One request over one connection of the instance's."""
    made = await running.connect()
    reader, writer = await asyncio.open_connection(sock=made)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: t\r\n\r\n".encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), BOUND)
        size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        answer: dict[str, Any] = json.loads(await reader.readexactly(size))
        return answer
    finally:
        writer.close()


async def gone(running: Running) -> Any:
    return await asyncio.wait_for(asyncio.shield(running.exited), BOUND)


def devnull() -> int:
    return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
