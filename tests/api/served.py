"""A real API on a real socket, over a small `Control` that keeps its functions in memory."""

from __future__ import annotations

import asyncio
import socket
import tarfile
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from cove.clock import iso
from cove.config import check_secret_name, check_secret_value
from cove.errors import CoveError
from cove.logs.logs import Logs
from cove.logs.records import Record, Wanted

KEY = "cove_test-key"
PATIENCE = 20.0


class MemoryControl:
    """Compiles what it is given instead of running it, and remembers that."""

    def __init__(self, mcp_url: str = "http://127.0.0.1:1/fn/x/mcp") -> None:
        self.mcp_url = mcp_url
        self.auth = "none"
        self.made: dict[str, dict[str, Any]] = {}
        self.archives: list[tuple[Path, list[str]]] = []
        self.kept: dict[str, str] = {}
        self.live = 3
        self.journals: Logs | None = None  # of a test that reads logs
        self._writing: asyncio.Task[None] | None = None
        self.finished = threading.Event()
        self.holding = threading.Event()
        self.go = threading.Event()
        self.go.set()

    async def deploy(
        self, archive: Path, *, name: str | None, fallback: str, progress: Callable[[str], None]
    ) -> str:
        called = name or fallback
        progress(f"building {called}")
        self.holding.set()
        try:
            await asyncio.to_thread(self.go.wait, PATIENCE)
            self._keep(called, archive)
        finally:
            self.finished.set()
        progress("it answers")
        return called

    def _keep(self, called: str, archive: Path) -> None:
        with tarfile.open(archive, "r:gz") as tar:
            files = {m.name: tar.extractfile(m) for m in tar.getmembers() if m.isfile()}
            self.archives.append((archive, sorted(files)))
            for name, file in files.items():
                if name.endswith(".py") and file is not None:
                    self._compile(name, file.read().decode())
        old = self.made.get(called, {}).get("version", 0)
        self.made[called] = {
            "name": called,
            "kind": "web" if "web.txt" in files else "mcp",
            "version": old + 1,
            "state": "ready",
            "urls": {"url" if "web.txt" in files else "mcp": self.mcp_url},
            "auth": self.auth,
            "isolation": "process",
            "driver": "process",
            "notes": ["process isolates nothing"],
            "instances": [
                {
                    "id": "i-1",
                    "state": "ready",
                    "pid": 4242,
                    "started_at": iso(time.time() - 90),
                    "started_by": "deploy",
                    "sessions": 1,
                    "requests": 3,
                    "version": old + 1,
                }
            ],
            "sessions": 1,
            "versions": [],
        }

    def _compile(self, name: str, text: str) -> None:
        if "RuntimeError" in text:
            raise RuntimeError("a defect, with a secret in it")
        try:
            compile(text, name, "exec")
        except SyntaxError as fault:
            raise CoveError(
                "deploy_failed",
                f"{name} does not start",
                hint="run it yourself first",
                lines=["Traceback:", f"SyntaxError: {fault.msg}"],
            ) from fault

    def functions(self) -> list[dict[str, Any]]:
        return [f | {"instances": len(f["instances"])} for _, f in sorted(self.made.items())]

    def describe(self, name: str) -> dict[str, Any]:
        if name not in self.made:
            raise CoveError("not_found", f"there is no function {name!r}", hint="cove list")
        if name == "defect":
            raise RuntimeError("a defect, with a secret in it")
        return self.made[name]

    def sessions(self, name: str | None) -> list[dict[str, Any]]:
        names = [self.describe(name)["name"]] if name else sorted(self.made)
        return [
            {
                "id": f"s-{function}",
                "function": function,
                "version": 1,
                "principal": "anony\x1b[31mmous\udcff",
                "affinity": "mcp",
                "key": "k",
                "instance": "i-1",
                "created_at": iso(time.time() - 7200),
                "last_at": iso(time.time()),
            }
            for function in names
        ]

    def logs(
        self, name: str, wanted: Wanted, *, tail: int | None, follow: bool
    ) -> AsyncGenerator[list[Record], None]:
        self.describe(name)
        return self._running_logs().read(name, wanted, tail=tail, follow=follow)

    def events(
        self, wanted: Wanted, *, tail: int | None, follow: bool
    ) -> AsyncGenerator[list[Record], None]:
        return self._running_logs().read_events(wanted, tail=tail, follow=follow)

    def _running_logs(self) -> Logs:
        assert self.journals is not None
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self.journals.run())
        return self.journals

    def versions(self, name: str) -> list[dict[str, Any]]:
        self.describe(name)
        return [
            {
                "number": number,
                "state": state,
                "live": number == self.live,
                "created_at": iso(time.time() - 90),
                "error": error,
            }
            for number, state, error in (
                (3, "ready", ""),
                (2, "failed", "no\x1b"),
                (1, "ready", ""),
            )
        ]

    async def rollback(self, name: str, number: int | None) -> dict[str, Any]:
        self.describe(name)
        if number == 2:
            raise CoveError("conflict", f"version 2 of {name} is failed", hint="another")
        was, self.live = self.live, number or 1
        return {"function": name, "version": self.live, "was": was, "changed": was != self.live}

    def secrets(self) -> list[dict[str, Any]]:
        return [self._secret(name) for name in sorted(self.kept)]

    async def set_secret(self, name: str, value: str) -> dict[str, Any]:
        if value == "defect":
            raise RuntimeError("a defect, with a secret in it")
        self.kept[check_secret_name(name)] = check_secret_value(value)
        return self._secret(name)

    async def remove_secret(self, name: str) -> None:
        if name not in self.kept:
            raise CoveError("not_found", f"there is no secret {name}", hint="cove secret list")
        if named := self._secret(name)["functions"]:
            raise CoveError("conflict", f"{name} is named by {named}", hint="cove rm")
        del self.kept[name]

    def _secret(self, name: str) -> dict[str, Any]:
        functions = ["weather"] if name == "NAMED" else []
        at = iso(time.time() - 90)
        return {"name": name, "created_at": at, "updated_at": at, "functions": functions}

    async def remove(self, name: str) -> None:
        self.describe(name)
        del self.made[name]

    def doctor(self) -> list[dict[str, Any]]:
        return [
            {"name": "crun", "ok": False, "detail": "refuses hybrid", "hint": "runc is used"},
            {"name": "runc", "ok": True, "detail": "1.1.5", "hint": ""},
        ]

    def authenticate(self, token: str) -> str | None:
        return "project" if token == KEY else None


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


@contextmanager
def serving(app: ASGIApp, unix: Path | None = None) -> Iterator[str]:
    """The app on loopback or on a unix socket while the block runs; its URL."""
    kind = socket.AF_INET if unix is None else socket.AF_UNIX
    with socket.socket(kind, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0) if unix is None else str(unix))
        listener.listen(64)
        config = uvicorn.Config(
            app, log_level="critical", lifespan="on", timeout_graceful_shutdown=5, ws="none"
        )
        server = _Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            assert server.up.wait(PATIENCE)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}" if unix is None else str(unix)
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()
