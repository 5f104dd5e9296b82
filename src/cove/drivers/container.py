"""A container that runs: reached in its network namespace, watched by pidfd, judged at its end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable

from cove.drivers.base import Exit, Usage
from cove.drivers.bundle import Bundle
from cove.drivers.held import Held
from cove.drivers.loopback import dial, only_other
from cove.drivers.procfs import catches, listeners


class OciRunning:
    """A container, started here or adopted, until its exit."""

    def __init__(
        self, bundle: Bundle, pid: int, pidfd: int, ended: Callable[[OciRunning, Exit], None]
    ) -> None:
        """Takes over `pidfd`. `ended` is told of the first process's end, and sets `exited`."""
        record = bundle.record
        self.id, self.function, self.version = record.id, record.function, record.version
        self.pid = pid
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.bundle = bundle
        self.stopping = False
        self.held = Held(pid, pidfd, self._on_end)
        self._port = record.port
        self._tell = ended

    def __repr__(self) -> str:
        return f"<OciRunning {self.id} pid {self.pid}>"

    async def connect(self) -> socket.socket:
        made = await self._dial(self._port)
        if made is None and (other := self._other()) is not None:
            made = await self._dial(other)
        if made is None:
            raise ConnectionRefusedError(f"{self.id} does not listen")
        return made

    def _other(self) -> int | None:
        if not self.held.runs:
            return None
        return only_other((one.port for one in listeners(self.pid)), self._port)

    async def _dial(self, port: int) -> socket.socket | None:
        netns = self.bundle.netns
        if not self.held.runs or netns is None:
            return None
        return await dial(netns.socket, port)

    async def stop(self, grace: float) -> Exit:
        self.stopping = True
        # The first process of a pid namespace does not even see a SIGTERM it has no handler for.
        if grace > 0 and catches(self.pid, signal.SIGTERM):
            self.held.send(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.held.ended.wait(), grace)
        self.held.send(signal.SIGKILL)
        return await asyncio.shield(self.exited)

    def throttle(self) -> None:
        self.bundle.cgroup.throttle(self.bundle.record.cpu)

    def usage(self) -> Usage:
        if self.exited.done():
            return Usage(0.0, 0)
        cgroup = self.bundle.cgroup
        return Usage(cgroup.cpu_seconds(), cgroup.memory_bytes())

    def ports(self) -> list[int]:
        if not self.held.runs:
            return []
        return sorted({listener.port for listener in listeners(self.pid)})

    def let_go(self) -> None:
        """Leave it to a later driver: it goes on, and this object knows nothing more of it."""
        self.held.release()
        self.bundle.let_go()

    def _on_end(self) -> None:
        self._tell(self, self._judged(self.held.exit()))

    def _judged(self, how: Exit) -> Exit:
        """The kernel says only that it killed something; it counts if the instance failed by it."""
        failed = how.signal is not None or how.code != 0
        if failed and not self.stopping and self.bundle.cgroup.oom_kills():
            memory = self.bundle.record.memory
            return Exit(code=how.code, signal=how.signal, oom=True, memory=memory)
        return how
