"""The composition root: fits drivers, store, engine, gateway and API into one process.

The only module that names concrete drivers and stores. Run by `cove up`:
`python -m cove.server [doctor] --data DIR --listen HOST:PORT --domain D --driver auto|oci|process`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hashlib
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import structlog
import uvloop

from cove import __version__, runtimes
from cove.api.app import create_app
from cove.api.serving import serving
from cove.config import OperatorConfig, read_operator
from cove.drivers import probe
from cove.drivers.base import Check, Driver
from cove.drivers.oci import OciDriver
from cove.drivers.process import ProcessDriver
from cove.engine.control import Addresses, EngineControl
from cove.engine.datafolder import hold
from cove.engine.functions import Functions
from cove.engine.keys import project_keys
from cove.engine.ledger import LEDGER, Ledger
from cove.engine.output import Outputs
from cove.engine.pool import Pool
from cove.engine.recovery import Recovered, recover
from cove.engine.sessions import Sessions
from cove.engine.supervisor import Supervisor
from cove.errors import CoveError
from cove.events import Event
from cove.gateway.affinity import Affinity
from cove.gateway.gateway import Gateway
from cove.gateway.listener import BACKLOG, is_loopback, listen, most_connections
from cove.gateway.policy import Policy
from cove.gateway.probe import look
from cove.gateway.routes import Route, RouteTable
from cove.gateway.tokens import Signer
from cove.gateway.upstream import Upstream
from cove.logs.keeper import Keeper, living
from cove.metrics import Metrics
from cove.model import Isolation
from cove.paths import KEY, URL, default_data
from cove.runtimes.layers import Layers
from cove.store.base import Store
from cove.store.sql import open_store

log = structlog.get_logger("cove.server")

_FLUSH_SECONDS = 0.25
_EXPIRE_SECONDS = 0.25
_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    """What `cove up` was told, with DATA/config.toml and the defaults below it."""

    data: Path
    host: str
    port: int
    domain: str
    driver: str
    drain: float
    keep: bool
    json: bool

    @property
    def loopback(self) -> bool:
        return is_loopback(self.host)

    @property
    def url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; or print this machine's checks. The exit code."""
    parser = argparse.ArgumentParser(prog="cove up")
    parser.add_argument("what", nargs="?", choices=["up", "doctor"], default="up")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--listen", default=None)
    parser.add_argument("--domain", default=None)
    parser.add_argument("--driver", choices=["auto", "oci", "process"], default="auto")
    parser.add_argument("--keep-instances", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    _log_to_stderr(as_json=given.json)
    try:
        if given.what == "doctor":
            print(json.dumps(uvloop.run(_doctor())))  # noqa: T201
            return 0
        uvloop.run(_serve(_options(given)))
    except CoveError as error:
        sys.stderr.write(f"error: {error.message}\n")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        return 1
    return 0


def _options(given: argparse.Namespace) -> Options:
    data = (given.data or Path(os.environ.get("COVE_DATA") or default_data())).absolute()
    file = data / "config.toml"
    operator = read_operator(file.read_text(), str(file)) if file.exists() else OperatorConfig()
    listen = given.listen or operator.listen or "127.0.0.1:7070"
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise CoveError(
            "bad_config", f"--listen {listen} is not HOST:PORT", hint="such as 127.0.0.1:7070"
        )
    return Options(
        data=data,
        host=host.strip("[]") or "127.0.0.1",
        port=int(port),
        domain=(given.domain or operator.domain or "localhost").lower().strip("."),
        driver=given.driver,
        drain=operator.drain,
        keep=given.keep_instances,
        json=given.json,
    )


async def _serve(options: Options) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        stack.enter_context(hold(options.data))
        run = options.data / "run"
        run.mkdir(mode=0o711, exist_ok=True)
        stack.callback(_leave, run)
        stack.enter_context(living(run / "alive"))
        listener = listen(options.host, options.port)
        stack.callback(listener.close)
        options = replace(options, port=listener.getsockname()[1])  # port 0 asks for a free one
        drivers, checks = await _drivers(options)
        for driver in drivers.values():
            stack.push_async_callback(driver.close, keep=options.keep)
        store = await open_store(options.data / "cove.db")
        stack.push_async_callback(store.close)
        secret = await store.secret("tokens", secrets.token_bytes(32))
        outputs = Outputs(
            run / "output", lambda printed: None, Keeper(run / "output", run / "alive")
        )
        stack.callback(outputs.close)
        cove = _Cove(options, drivers, checks, store, secret, outputs)
        stack.callback(cove.ledger.close)
        recovered = await cove.load()
        _banner(options, drivers, checks, recovered)
        await cove.serve(listener, stop)


class _Cove:
    """One Cove's parts, fitted together."""

    def __init__(
        self,
        options: Options,
        drivers: dict[Isolation, Driver],
        checks: list[Check],
        store: Store,
        secret: bytes,
        outputs: Outputs,
    ) -> None:
        self.options = options
        self.store = store
        self.drivers = drivers
        self.outputs = outputs
        self.ledger = Ledger(options.data / "run" / LEDGER)
        self.sessions = Sessions(self.ledger.note)
        self.metrics = Metrics(lambda: _gauges(self.functions, self.sessions))
        self.routes = RouteTable(options.domain)
        self.policy = Policy(loopback=options.loopback, domain=options.domain)
        self.affinity = Affinity(self.sessions, Signer(secret))
        self.supervisor = Supervisor(
            drivers,
            outputs=outputs,
            parallel_starts=2 * (os.cpu_count() or 1),
            on_start=self._started,
            on_event=self._event,
        )
        self.functions = Functions(
            store=store,
            layers=Layers(options.data / "layers"),
            supervisor=self.supervisor,
            sessions=self.sessions,
            drivers=drivers,
            probe=look,
            on_live=self._live,
            scratch=_emptied(options.data / "run" / "deploys"),
            on_event=self._event,
        )
        self.control = EngineControl(
            self.functions,
            self.sessions,
            Addresses(options.url, options.domain),
            checks,
            self.policy.subject,
            key_by_default=not options.loopback,
        )

    def _started(self, pool: Pool, seconds: float) -> None:
        self.metrics.function(pool.version.function).starts.observe(seconds)

    def _event(self, event: Event) -> None:
        log.debug(event.kind, function=event.function, reason=event.reason)

    def _live(self, name: str, pool: Pool | None) -> None:
        if pool is None:
            self.routes.remove(name)
            self.metrics.forget(name)
        else:
            key = not self.options.loopback
            self.routes.put(Route(pool, self.metrics.function(name), key_by_default=key))

    async def load(self) -> Recovered:
        """What earlier runs left in the store, and running."""
        self.policy.trust(await project_keys(self.store, self.options.data / KEY))
        await self.functions.load()
        return await recover(
            drivers=self.drivers.values(),
            functions=self.functions,
            sessions=self.sessions,
            outputs=self.outputs,
            store=self.store,
            ledger=self.ledger,
            on_event=self._event,
        )

    async def serve(self, listener: socket.socket, stop: asyncio.Event) -> None:
        """Until `stop`; then let requests finish, and end everything."""
        uploads = _emptied(self.options.data / "uploads")
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
            )
            server = await asyncio.get_running_loop().create_server(
                gateway.accept, sock=listener, backlog=BACKLOG
            )
            async with self._working(gateway):
                await stop.wait()
                log.info("draining", seconds=self.options.drain)
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


# The parts.


async def _drivers(options: Options) -> tuple[dict[Isolation, Driver], list[Check]]:
    """The driver of the best tier that is allowed here, and what was found out on the way."""
    state = options.data / "run"
    runtime, checks = None, probe.machine()
    if options.driver != "process":
        runtime, found = await probe.probe(state)
        checks += found
    if options.driver == "oci" and runtime is None:
        raise CoveError(
            "isolation_unavailable",
            "--driver oci: no OCI runtime passed the probe: "
            + "; ".join(f"{check.name}: {check.detail}" for check in checks if not check.ok),
            hint="`cove doctor` says more; --driver process needs none and isolates nothing",
        )
    if runtime is None:
        return {"process": ProcessDriver(runtimes.SERVE)}, checks
    # Not both: authors of functions are hostile, and cove.toml, which they write, may demand a
    # tier. What isolates nothing is for the operator to choose.
    parent = cgroup_parent(options.data)
    return {"container": OciDriver(runtime, state / "oci", runtimes.SERVE, parent)}, checks


def cgroup_parent(data: Path) -> str:
    """The group that a data folder's instances are in, of which no other Cove has one.

    A path alone would not do: where Coves have file systems of their own and the host's groups in
    common, all of them may keep their data at the same one.
    """
    info = data.stat()
    proof = f"{data} {info.st_dev} {info.st_ino}"
    return "cove-" + hashlib.sha256(proof.encode()).hexdigest()[:12]


async def _doctor() -> list[dict[str, object]]:
    with tempfile.TemporaryDirectory(prefix="cove-doctor-") as folder:
        _, checks = await probe.probe(Path(folder))
    return [asdict(check) for check in [*probe.machine(), *checks]]


def _leave(run: Path) -> None:
    """Of what outlives a process nothing is needed where no instance is left."""
    output = run / "output"
    if not output.is_dir() or not any(not p.name.startswith(".") for p in output.iterdir()):
        shutil.rmtree(run, ignore_errors=True)


def _emptied(folder: Path) -> Path:
    """A folder of Cove's own, for what does not outlive a process."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder


def _banner(
    options: Options,
    drivers: dict[Isolation, Driver],
    checks: list[Check],
    recovered: Recovered,
) -> None:
    tiers = ", ".join(f"{isolation} ({driver.name})" for isolation, driver in drivers.items())
    if options.json:
        log.info(
            "cove is up", version=__version__, url=options.url, data=str(options.data), tiers=tiers
        )
    else:
        sys.stdout.write(
            f"Cove {__version__} is up at {options.url}\n"
            f"  data       {options.data}\n"
            f"  isolation  {tiers}\n"
            "  deploy     cove deploy server.py\n"
            "  stop       Ctrl-C\n"
        )
        if recovered.instances:
            sys.stdout.write(
                f"  took over  {recovered.instances} instances, {recovered.sessions} sessions\n"
            )
        sys.stdout.flush()
    if "container" not in drivers:
        reasons = "; ".join(f"{check.name}: {check.detail}" for check in checks if not check.ok)
        log.warning(
            "functions run as plain processes: nothing is isolated",
            reason=reasons or "--driver process",
            hint="`cove doctor` says what isolation needs",
        )


def _log_to_stderr(*, as_json: bool) -> None:
    renderer = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


if __name__ == "__main__":
    sys.exit(main())
