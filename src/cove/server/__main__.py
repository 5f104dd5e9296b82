"""The server's process: from its command line to its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import shutil
import signal
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import structlog
import uvloop

from cove import __version__
from cove.drivers.base import Check, Driver
from cove.engine.datafolder import hold
from cove.engine.output import Outputs, Printed
from cove.engine.recovery import Recovered
from cove.engine.secrets import Secrets
from cove.errors import CoveError
from cove.gateway.listener import listen
from cove.logs.keeper import Keeper, living
from cove.logs.logs import Logs
from cove.model import Isolation
from cove.paths import SECRETS_KEY
from cove.server.house import House, emptied
from cove.server.options import Options, options_of, parse
from cove.server.tiers import doctor, drivers_of
from cove.store.sql import open_store

log = structlog.get_logger("cove.server")


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; or print this machine's checks. The exit code."""
    given = parse(argv)
    _log_to_stderr(as_json=given.json)
    try:
        if given.what == "doctor":
            print(json.dumps(uvloop.run(doctor())))  # noqa: T201
            return 0
        uvloop.run(_serve(options_of(given)))
    except CoveError as error:
        sys.stderr.write(f"error: {error.message}\n")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        return 1
    except OSError as error:
        sys.stderr.write(
            f"error: {error.filename or 'the data folder'}: {error.strerror or error}\n"
        )
        sys.stderr.write("hint: Cove's user must be able to make files and folders in --data\n")
        return 1
    return 0


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
        # What a killed Cove leaves half made is found there, and nowhere else.
        tempfile.tempdir = str(emptied(run / "tmp"))
        stack.enter_context(living(run / "alive"))
        listener = listen(options.host, options.port)
        stack.callback(listener.close)
        options = replace(options, port=listener.getsockname()[1])  # port 0 asks for a free one
        drivers, checks = await drivers_of(options)
        served = asyncio.Event()
        for driver in drivers.values():
            stack.push_async_callback(_let_go, driver, options, served)
        store = await open_store(options.data / "cove.db")
        stack.push_async_callback(store.close)
        secret = await store.secret("tokens", secrets.token_bytes(32))
        kept = options.logs
        logs = Logs(options.data / "logs", size=kept.size, age=kept.age, access=kept.access)
        stack.push_async_callback(logs.close)
        keeper = Keeper(run / "output", run / "alive")
        vault = Secrets(store, options.data / SECRETS_KEY)
        outputs = Outputs(run / "output", lambda printed: _keep(logs, printed), keeper, vault)
        stack.callback(outputs.close)
        cove = House(options, drivers, checks, store, secret, outputs, logs, vault)
        stack.callback(cove.ledger.close)
        recovered = await cove.load()
        _banner(options, drivers, checks, recovered)
        await cove.serve(listener, stop)
        served.set()


async def _let_go(driver: Driver, options: Options, served: asyncio.Event) -> None:
    """A start that fails is no reason to end what it had taken over."""
    await driver.close(keep=options.keep or not served.is_set())


def _keep(logs: Logs, printed: Printed) -> None:
    logs.printed(
        printed.function,
        printed.version,
        printed.instance,
        printed.stream,
        printed.lines,
        session=printed.session,
        request=printed.request,
    )


def _leave(run: Path) -> None:
    """Of what outlives a process nothing is needed where no instance is left."""
    output = run / "output"
    if not output.is_dir() or not any(not p.name.startswith(".") for p in output.iterdir()):
        shutil.rmtree(run, ignore_errors=True)


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
        logger_factory=_Writer,
        cache_logger_on_first_use=True,
    )


class _Writer:
    """Writes log lines; where nobody takes them they are lost, and nothing else is."""

    def __init__(self, *args: object) -> None: ...

    def msg(self, message: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(message + "\n")
            sys.stderr.flush()

    debug = info = warning = error = critical = exception = log = msg


if __name__ == "__main__":
    sys.exit(main())
