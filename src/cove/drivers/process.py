"""Instances as plain processes of Cove's own user. Isolates nothing: for development and macOS."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from cove.drivers.base import Launch
from cove.drivers.exits import Orphans
from cove.drivers.held import HAS_PIDFDS, hold, hold_same
from cove.drivers.placeholders import filled
from cove.drivers.procfs import home_of, process, settle
from cove.drivers.program import BURIAL, HAS_PROC, ProcessRunning, carriers, end, home_in
from cove.drivers.record import Record, boot_id, read_record
from cove.drivers.whole import Starts
from cove.errors import CoveError
from cove.model import Isolation

DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
ADOPTS = HAS_PROC and HAS_PIDFDS


class ProcessDriver:
    """Starts programs as they are. Every start may read and write what Cove's user may."""

    name = "process"
    isolation: Isolation = "process"

    def __init__(self, serve: Path, state: Path) -> None:
        """`state` is a folder of the driver's own, in which instances have their HOME."""
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._state = state.resolve()
        self._serve = serve
        self._boot = boot_id()
        self._running: set[ProcessRunning] = set()
        self._ports: set[int] = set()
        self._starts = Starts()
        self._orphans = Orphans()

    def __repr__(self) -> str:
        return f"<ProcessDriver [{len(self._running)} running]>"

    async def start(self, launch: Launch) -> ProcessRunning:
        # A driver beside this one may have made Cove a subreaper: daemons' remains land here too.
        self._orphans.start()
        return await self._starts.run(self._start(launch))

    async def _start(self, launch: Launch) -> ProcessRunning:
        folder = self._state / launch.id
        port = self._free_port()
        record = Record.of(launch, port=port)
        try:
            argv, env = filled(
                launch, app=launch.code, deps=launch.deps, serve=str(self._serve), port=port
            )
            env = _environment(env, home_in(folder), port)
            pid, pidfd = await asyncio.to_thread(_begin, launch, folder, argv, env)
        except BaseException:
            self._ports.discard(port)
            raise
        running = self._watch(record, folder, pid, pidfd)
        begun = replace(record, pid=pid, started=running.held.started, boot=self._boot)
        try:
            begun.write(folder)
        except OSError as e:
            await running.stop(0.0)
            raise _failed(launch.id, e) from e
        return running

    def _watch(self, record: Record, folder: Path, pid: int, pidfd: int) -> ProcessRunning:
        running = ProcessRunning(record, folder, pid, pidfd)
        self._running.add(running)
        self._ports.add(running.port)
        running.exited.add_done_callback(lambda _: self._forget(running))
        return running

    def _forget(self, running: ProcessRunning) -> None:
        self._running.discard(running)
        self._ports.discard(running.port)

    def _free_port(self) -> int:
        """One that nobody listens on now, and that no instance of ours was told."""
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port: int = probe.getsockname()[1]
            if port not in self._ports:
                self._ports.add(port)
                return port

    async def adopt(self) -> Sequence[ProcessRunning]:
        """Nothing is adopted, nor removed, where it cannot be told whose a process is."""
        if not ADOPTS:
            return []
        self._orphans.start()
        folders = await asyncio.to_thread(lambda: sorted(self._state.iterdir()))
        adopted = []
        for folder in folders:
            record = read_record(folder)
            pidfd = self._whole(record, folder) if record is not None else None
            if record is not None and pidfd is not None:
                adopted.append(self._watch(record, folder, record.pid, pidfd))
        whole = {one.folder for one in adopted}
        await asyncio.to_thread(_clean, [folder for folder in folders if folder not in whole])
        return adopted

    def _whole(self, record: Record, folder: Path) -> int | None:
        """A pidfd of the first process that a record names, if it runs and is what it says.

        It leads a session, and carries the HOME that was made for it, unless it has written over
        its environment.
        """
        if record.boot != self._boot:
            return None
        pidfd = hold_same(record.pid, record.started)
        if pidfd is None:
            return None
        found = process(record.pid)
        home = home_of(record.pid)
        if (
            found is not None
            and found.started == record.started
            and found.session == record.pid
            and home in (None, str(home_in(folder)))
        ):
            return pidfd
        os.close(pidfd)
        return None

    async def close(self, *, keep: bool = False) -> None:
        await self._starts.settled()
        for one in list(self._running):
            if keep and ADOPTS and not one.stopping and one.held.runs:
                one.let_go()
                self._running.discard(one)
        await asyncio.gather(*(one.stop(0.0) for one in list(self._running)))
        self._orphans.stop()
        try:
            self._state.rmdir()
        except OSError:
            return  # what is kept, or was never asked for, lies there


def _begin(launch: Launch, folder: Path, argv: list[str], env: dict[str, str]) -> tuple[int, int]:
    """An instance's folder with a HOME in it, and its process: its id and a pidfd.

    `CoveError("start_failed")` where it cannot be; nothing is left then. Blocks.
    """
    try:
        folder.mkdir(mode=0o700)
        try:
            (home_in(folder) / "temporary").mkdir(parents=True)
            return _spawn(launch, argv, env)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as e:
        raise _failed(argv[0], e) from e


def _spawn(launch: Launch, argv: list[str], env: dict[str, str]) -> tuple[int, int]:
    """Start the program in a session of its own.

    Nobody waits for it but its pidfd: an object that stood for it would end it when it is
    forgotten, or wait for it in its own time.
    """
    child = subprocess.Popen(
        argv,
        cwd=launch.code,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=launch.stdout,
        stderr=launch.stderr,
        start_new_session=True,
    )
    try:
        pidfd = hold(child.pid)
    except OSError:
        child.kill()
        child.wait()
        raise
    child.returncode = 0
    return child.pid, pidfd


def _clean(folders: Iterable[Path]) -> None:
    """Remove what no whole instance owns: whoever carries a HOME in it, then the folder."""
    folders = list(folders)
    deadline = time.monotonic() + BURIAL
    if folders:
        settle()
    while folders and (left := carriers(folders)) and time.monotonic() < deadline:
        for one in left:
            end(one)
        time.sleep(0.002)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _failed(what: str, error: OSError) -> CoveError:
    return CoveError(
        "start_failed",
        f"{what} could not be started: {error.strerror or error}: {error.filename}",
        hint="check that the command exists and may be executed",
    )


def _environment(wanted: dict[str, str], home: Path, port: int) -> dict[str, str]:
    """A program's whole environment: nothing of Cove's own but where programs are found."""
    defaults = {
        "PATH": DEFAULT_PATH,
        "USER": "cove",
        "LOGNAME": "cove",
        "LANG": "C.UTF-8",
        "TMPDIR": f"{home}/temporary",
    }
    return {**defaults, **wanted, "HOME": str(home), "PORT": str(port)}
