"""One Cove's parts, fitted together, and the work behind its requests."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from cove import __version__, clock
from cove.api.app import create_app
from cove.api.serving import serving
from cove.drivers.base import Check, Driver
from cove.engine.control import Addresses, EngineControl
from cove.engine.functions import Functions
from cove.engine.keys import project_keys
from cove.engine.ledger import LEDGER, Ledger
from cove.engine.output import Outputs
from cove.engine.pool import Pool
from cove.engine.recovery import Recovered, recover
from cove.engine.secrets import Secrets
from cove.engine.sessions import Sessions
from cove.engine.supervisor import Supervisor
from cove.events import Event
from cove.gateway.affinity import Affinity
from cove.gateway.gateway import Gateway
from cove.gateway.listener import BACKLOG, most_connections
from cove.gateway.policy import Policy
from cove.gateway.probe import look
from cove.gateway.routes import Route, RouteTable
from cove.gateway.tokens import Signer
from cove.gateway.upstream import Upstream
from cove.logs.logs import Logs
from cove.metrics import Metrics
from cove.model import Isolation
from cove.paths import KEY, URL
from cove.runtimes.layers import Layers
from cove.server.options import Options
from cove.store.base import Store

log = structlog.get_logger("cove.server")

_FLUSH_SECONDS = 0.25
_EXPIRE_SECONDS = 0.25
_LOOK_SECONDS = 1.0


class House:
    """One Cove's parts, fitted together."""

    def __init__(
        self,
        options: Options,
        drivers: dict[Isolation, Driver],
        checks: list[Check],
        store: Store,
        secret: bytes,
        outputs: Outputs,
        logs: Logs,
        secrets: Secrets,
    ) -> None:
        self.options = options
        self.store = store
        self.drivers = drivers
        self.outputs = outputs
        self.logs = logs
        self.ledger = Ledger(options.data / "run" / LEDGER)
        self.sessions = Sessions(self.ledger.note)
        self.metrics = Metrics(lambda: _gauges(self.functions, self.sessions))
        self.routes = RouteTable(options.domain)
        self.policy = Policy(loopback=options.loopback, domain=options.domain)
        self.affinity = Affinity(self.sessions, Signer(secret))
        self.secrets = secrets
        self.supervisor = Supervisor(
            drivers,
            outputs=outputs,
            secrets=self.secrets.values,
            parallel_starts=2 * (os.cpu_count() or 1),
            on_start=self._started,
            on_event=logs.event,
        )
        self.functions = Functions(
            store=store,
            layers=Layers(options.data / "layers"),
            supervisor=self.supervisor,
            sessions=self.sessions,
            drivers=drivers,
            probe=look,
            on_live=self._live,
            require=self.secrets.require,
            scratch=emptied(options.data / "run" / "deploys"),
            on_event=logs.event,
        )
        self.control = EngineControl(
            self.functions,
            self.sessions,
            Addresses(options.url, options.domain),
            checks,
            self.policy.subject,
            key_by_default=not options.loopback,
            logs=logs,
            secrets=self.secrets,
        )

    def _started(self, pool: Pool, seconds: float) -> None:
        self.metrics.function(pool.version.function).starts.observe(seconds)

    def _live(self, name: str, pool: Pool | None) -> None:
        if pool is None:
            self.routes.remove(name)
            self.metrics.forget(name)
            self.logs.forget(name)
        else:
            key = not self.options.loopback
            self.routes.put(Route(pool, self.metrics.function(name), key_by_default=key))

    async def load(self) -> Recovered:
        """What earlier runs left in the store, and running."""
        self.policy.trust(await project_keys(self.store, self.options.data / KEY))
        await self.secrets.load()
        self.supervisor.pause()  # what runs already is not known yet
        await self.functions.load()
        await self.logs.retain({entry.name for entry in self.functions.all()})
        recovered = await recover(
            drivers=self.drivers.values(),
            functions=self.functions,
            sessions=self.sessions,
            outputs=self.outputs,
            store=self.store,
            ledger=self.ledger,
            on_event=self.logs.event,
        )
        self.supervisor.resume()
        self.logs.event(Event(clock.wall(), "cove.started", reason=f"version {__version__}"))
        return recovered

    async def serve(self, listener: socket.socket, stop: asyncio.Event) -> None:
        """Until `stop`; then let requests finish, and end everything."""
        uploads = emptied(self.options.data / "uploads")
        socket_path = self.options.data / "run" / "api.sock"
        async with serving(create_app(self.control, uploads=uploads), socket_path) as path:
            api = Upstream(lambda: _dial(path))
            gateway = Gateway(
                routes=self.routes,
                policy=self.policy,
                affinity=self.affinity,
                metrics=self.metrics,
                api=api,
                most_connections=most_connections(),
                access=self.logs.access,
            )
            server = await asyncio.get_running_loop().create_server(
                gateway.accept, sock=listener, backlog=BACKLOG
            )
            async with self._working(gateway):
                await stop.wait()
                self.logs.event(Event(clock.wall(), "cove.stopping"))
                log.info("draining", seconds=self.options.drain)
                self.logs.end_follows()  # or they would be waited for
                gateway.draining = True
                server.close()
                await gateway.drain(self.options.drain)
                api.close()
            await self.supervisor.close(keep=self.options.keep)
            await _flush_once(self.sessions, self.store, self.ledger)
            log.info("stopped")

    @asynccontextmanager
    async def _working(self, gateway: Gateway) -> AsyncIterator[None]:
        """The work behind the requests goes on, and clients of this machine find the URL."""
        work = (
            gateway.run(),
            self.supervisor.run(),
            _expire(self.sessions),
            _flush(self.sessions, self.store, self.ledger),
            _look(self.outputs),
            self.logs.run(),
        )
        tasks = [asyncio.create_task(each) for each in work]
        url = self.options.data / URL
        url.write_text(self.options.url + "\n")
        # What was made to start stays; the request path makes no cycles.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        try:
            yield
        finally:
            url.unlink(missing_ok=True)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _expire(sessions: Sessions) -> None:
    while True:
        await asyncio.sleep(_EXPIRE_SECONDS)
        sessions.expire(asyncio.get_running_loop().time())


async def _look(outputs: Outputs) -> None:
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        try:
            outputs.look()
        except OSError as error:
            log.error("nothing holds instances' output", reason=str(error))


async def _flush(sessions: Sessions, store: Store, ledger: Ledger) -> None:
    """Sessions reach the store behind the requests that change them."""
    while True:
        await asyncio.sleep(_FLUSH_SECONDS)
        try:
            await _flush_once(sessions, store, ledger)
        except Exception as error:
            log.error("sessions are only in the ledger yet", reason=str(error))


async def _flush_once(sessions: Sessions, store: Store, ledger: Ledger) -> None:
    changed = sessions.take_changed()
    if not changed:
        return
    ledger.turn()
    try:
        await store.put_sessions(changed)
    except BaseException:
        sessions.put_back(changed)  # for the next time
        raise
    ledger.settle()


def _gauges(
    functions: Functions, sessions: Sessions
) -> Iterable[tuple[str, str, dict[str, float]]]:
    entries = functions.all()
    yield (
        "cove_instances",
        "Instances that exist",
        {entry.name: len(entry.instances) for entry in entries},
    )
    yield (
        "cove_sessions",
        "Sessions that run",
        {entry.name: sessions.count(entry.name) for entry in entries},
    )
    yield (
        "cove_waiting",
        "Requests that wait for an instance",
        {entry.name: sum(pool.waiting for pool in entry.pools.values()) for entry in entries},
    )


async def _dial(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, path)
    return sock


def emptied(folder: Path) -> Path:
    """A folder of Cove's own, for what does not outlive a process."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder
