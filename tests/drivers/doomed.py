"""Drivers that are killed, in processes of their own: run by test_killed.py.

    doomed.py '{"runtime": ["crun", "/usr/bin/crun"] or null, "state": ..., "parent": ...,
                "code": ..., "output": ..., "buries": true, "steps": false, "mark": ...}'

The process that is started is the parent of all, and takes in whatever is orphaned below it, as
an init does. Without `steps` one driver starts two instances, says so, and waits for its end.
With `steps` driver after driver is killed one step further on its way to a first instance, and
the last one after it; then the number of steps is said.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from cove.drivers.base import Launch
from cove.drivers.exits import become_subreaper
from cove.drivers.oci import OciDriver
from cove.drivers.process import ProcessDriver
from cove.drivers.runtime import Runtime
from cove.model import MIB, Interpreter, Limits

CHANGES = {
    *("os.mkdir", "os.rename", "os.chmod", "os.chown", "os.symlink", "os.rmdir", "os.remove"),
    *("subprocess.Popen", "fcntl.flock"),
}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
WHILE_A_RUNTIME_WORKS = (0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.013, 0.016, 0.02, 0.03, 0.05)


def driver(asked: dict[str, Any]) -> OciDriver | ProcessDriver:
    state = Path(asked["state"])
    if asked["runtime"] is None:
        return ProcessDriver(Path("serve.py"), state)
    return OciDriver(Runtime(*asked["runtime"]), state, None, asked["parent"])


def launch(asked: dict[str, Any], ident: str) -> Launch:
    output = os.open(asked["output"], os.O_RDWR | os.O_CLOEXEC)
    python = os.path.realpath(sys.executable)
    return Launch(
        id=ident,
        function="t",
        version=3,
        argv=(python, "-S", "{app}/program.py"),
        env={"MARK": asked["mark"]},
        port=9000,
        code=asked["code"],
        deps=None,
        interpreter=Interpreter(python, sys.base_prefix, "3"),
        limits=Limits(cpu=0.5, memory=64 * MIB, pids=32),
        stdout=output,
        stderr=output,
        secrets={"KEY": "value"},
    )


async def start_two(asked: dict[str, Any]) -> None:
    made = driver(asked)
    await made.adopt()
    started = [await made.start(launch(asked, ident)) for ident in ("t-1", "t-2")]
    say({"pid": os.getpid(), "instances": {one.id: one.pid for one in started}})
    await asyncio.sleep(600)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def start_until(asked: dict[str, Any], step: int, delay: float) -> None:
    """Start one instance, and be killed before the change of this number, or then."""
    count = 0

    def seen(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event == "open" and isinstance(args[2], int) and args[2] & WRITES
        if delay and event == "subprocess.Popen" and "run" in args[1]:
            threading.Timer(delay, die).start()
        if writes or event in CHANGES:
            count += 1
            if count == step:
                die()

    wanted = launch(asked, f"t-{step}-{delay:g}")
    sys.addaudithook(seen)
    await driver(asked).start(wanted)
    if step:
        os.write(asked["whole"], wanted.id.encode())
    die()


def step_by_step(asked: dict[str, Any]) -> None:
    whole, asked["whole"] = os.pipe()
    step = 0
    while True:
        step += 1
        os.waitpid(forked(start_until, asked, step, 0.0), 0)
        os.set_blocking(whole, False)
        try:
            said = os.read(whole, 4096).decode()
            break
        except BlockingIOError:
            continue
    for delay in WHILE_A_RUNTIME_WORKS if asked["runtime"] else ():
        os.waitpid(forked(start_until, asked, 0, delay), 0)
    say({"steps": step, "whole": said})


def forked(work: Any, *args: Any) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(work(*args))
        finally:
            os._exit(1)
    return pid


def say(what: object) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def main(asked: dict[str, Any]) -> None:
    become_subreaper()
    if asked["steps"]:
        step_by_step(asked)
    else:
        forked(start_two, asked)
    while True:
        if not asked["buries"]:
            signal.pause()
        try:
            os.wait()
        except ChildProcessError:
            return


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
