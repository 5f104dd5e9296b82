"""Sources in temporary folders, one set of layers for all, and instances of what was planned."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cove.model import FunctionSpec, Plan
from cove.runtimes import SERVE, python, source
from cove.runtimes.layers import Layers

STARTS_WITHIN = 30.0

Write = Callable[[Mapping[str, str]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write files into a folder as a deploy leaves them."""

    def write(files: Mapping[str, str]) -> Path:
        folder = tmp_path / "source"
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return folder

    return write


@pytest.fixture(scope="session")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Layers:
    return Layers(tmp_path_factory.mktemp("layers"))


@dataclass
class Deployed:
    """A planned source, with what was said while it was planned."""

    spec: FunctionSpec
    plan: Plan
    said: list[str] = field(default_factory=list)

    def packages(self) -> dict[str, str]:
        """Name and version of what the dependency layer holds."""
        assert self.plan.deps is not None
        found = Path(self.plan.deps).glob("lib/python*/site-packages/*.dist-info")
        pairs = (path.name.removesuffix(".dist-info").split("-") for path in found)
        return dict(pairs)

    @contextlib.asynccontextmanager
    async def instance(self, deps: str | None = None) -> AsyncIterator[Instance]:
        """The plan as a process on a free port, as the plainest of drivers would start it."""
        port = free_port()
        places = {
            "{deps}": deps or self.plan.deps or "",
            "{serve}": str(SERVE),
            "{app}": self.plan.code,
            "{port}": str(port),
        }
        argv = [filled(word, places) for word in self.plan.argv]
        env = {name: filled(value, places) for name, value in self.plan.env.items()}
        process = await asyncio.create_subprocess_exec(
            *argv,
            cwd=self.plan.code,
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield Instance(process, port)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            await process.wait()


@dataclass
class Instance:
    process: asyncio.subprocess.Process
    port: int

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    async def serving(self) -> Instance:
        """Once its port answers; what it said instead, where it ended."""
        async with asyncio.timeout(STARTS_WITHIN):
            while self.process.returncode is None:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    return self
                await asyncio.sleep(0.02)  # nothing tells when another process listens
            raise AssertionError(await self.output())

    async def output(self) -> str:
        """Everything it said, once it has ended."""
        async with asyncio.timeout(STARTS_WITHIN):
            assert self.process.stdout is not None
            said = await self.process.stdout.read()
            await self.process.wait()
        return said.decode()


@pytest.fixture
def deploy(layers: Layers) -> Callable[..., Awaitable[Deployed]]:
    """Read and plan a folder."""

    async def deploy(folder: Path, name: str = "weather") -> Deployed:
        said: list[str] = []
        found = source.read(folder, name=None, fallback=name)
        spec, plan = await python.plan(found, layers, said.append)
        return Deployed(spec, plan, said)

    return deploy


def filled(text: str, places: Mapping[str, str]) -> str:
    for name, value in places.items():
        text = text.replace(name, value)
    return text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
