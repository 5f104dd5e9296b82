"""What this machine can do for containers: tried with a real one, and said for `cove doctor`."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from cove.drivers.base import Check, Launch
from cove.drivers.oci import OciDriver
from cove.drivers.runtime import Runtime
from cove.errors import CoveError
from cove.model import MIB, Limits
from cove.sandbox.cgroup import host_hierarchies
from cove.sandbox.seccomp import ARCHITECTURES

CANDIDATES = ("crun", "runc")
PREFIX = "cove-probe-"
PATIENCE = 20.0
WELL = 42

# Run inside: every wall that can be seen from there stands, or the exit code is another.
LOOK = f"""
test "$(id -u)" = 1000 || exit 1
grep -q '^CapEff:[[:space:]]*0*$' /proc/self/status || exit 2
grep -q '^NoNewPrivs:[[:space:]]*1$' /proc/self/status || exit 3
grep -q '^Seccomp:[[:space:]]*2$' /proc/self/status || exit 4
test "$(grep -c : /proc/net/dev)" = 1 || exit 5
touch /tmp/x "$HOME/x" || exit 6
touch /usr/x 2>/dev/null && exit 7
exit {WELL}
"""
AMISS = {
    1: "the program ran as another user",
    2: "the program kept capabilities",
    3: "no_new_privs was not set",
    4: "the seccomp filter was not in place",
    5: "the network namespace was not the one given",
    6: "HOME or its temporary folder could not be written",
    7: "/usr could be written",
}


async def probe(state: Path) -> tuple[Runtime | None, list[Check]]:
    """The first of crun and runc that runs a container with every wall, and a line on each.

    `state` is a folder that the probe may use and leaves as it found it; what probes that were
    killed have left there is removed.
    """
    if os.geteuid() != 0:
        lack = "Cove runs as an ordinary user; containers need root"
        return None, [Check("container runtime", False, lack, "sudo cove up")]
    chosen: Runtime | None = None
    checks: list[Check] = []
    for name in CANDIDATES:
        path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin")
        if path is None:
            checks.append(Check(name, False, "not on PATH", f"apt-get install {name}"))
            continue
        runtime = Runtime(name, path, await asyncio.to_thread(_version, path))
        trouble = await _try(runtime, state)
        checks.append(_check(runtime, trouble))
        if trouble is None and chosen is None:
            chosen = runtime
    return chosen, checks


def _check(runtime: Runtime, trouble: str | None) -> Check:
    if trouble is None:
        return Check(runtime.name, True, f"{runtime} at {runtime.path} runs containers")
    hint = "the other runtime may do: one of crun and runc is enough"
    if "hybrid" in trouble:
        hint = "crun refuses hosts with both cgroup versions: apt-get install runc"
    return Check(runtime.name, False, f"{runtime}: {trouble}", hint)


def _version(path: str) -> str:
    """The version in `runc version 1.1.5+ds1`; empty where it says none."""
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout.partition("version ")[2].split("\n")[0].strip()


async def _try(runtime: Runtime, state: Path) -> str | None:
    """Run one container with it, as instances will be; what went wrong, if anything."""
    for left, lock in _left(state):
        try:
            await _clear(runtime, left)
        finally:
            os.close(lock)
    folder, lock = _folder(state)
    driver: OciDriver | None = None
    try:
        code = folder / "app"
        code.mkdir()
        driver = _driver(runtime, folder)
        return await asyncio.wait_for(_look(driver, str(code)), PATIENCE)
    except CoveError as e:
        return e.lines[-1] if e.lines else e.message
    except (OSError, KeyError) as e:
        return f"{type(e).__name__}: {e}"
    finally:
        if driver is not None:
            await driver.close()
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _driver(runtime: Runtime, folder: Path) -> OciDriver:
    return OciDriver(runtime, folder / "state", None, folder.name)


def _left(state: Path) -> list[tuple[Path, int]]:
    """Folders of probes that were killed, each with its lock."""
    found = ((folder, _locked(folder)) for folder in state.glob(f"{PREFIX}*"))
    return [(folder, lock) for folder, lock in found if lock is not None]


def _folder(state: Path) -> tuple[Path, int]:
    """A folder for one probe, and the lock that shows that it is at work."""
    state.mkdir(parents=True, exist_ok=True)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=state))
        lock = _locked(folder)
        if lock is not None:
            return folder, lock


def _locked(folder: Path) -> int | None:
    """The lock of a probe's folder; None where it is not ours, is gone, or its probe works."""
    with contextlib.suppress(OSError):
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_uid == os.geteuid() and folder.exists():
                return lock
        os.close(lock)
    return None


async def _clear(runtime: Runtime, folder: Path) -> None:
    """Remove what a probe that was killed has left: it may even still run."""
    with contextlib.suppress(CoveError):
        driver = _driver(runtime, folder)
        await driver.adopt()
        await driver.close()
    shutil.rmtree(folder, ignore_errors=True)


async def _look(driver: OciDriver, code: str) -> str | None:
    silent = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        launch = Launch(
            id="probe",
            function="probe",
            version=0,
            argv=("/bin/sh", "-c", LOOK),
            env={},
            port=9000,
            code=code,
            deps=None,
            interpreter=None,
            limits=Limits(cpu=0.1, memory=64 * MIB, pids=32),
            stdout=silent,
            stderr=silent,
        )
        running = await driver.start(launch)
        running.throttle()
        how = await running.exited
    finally:
        os.close(silent)
    if how.code == WELL:
        return None
    return AMISS.get(how.code or 0, f"the container ended otherwise than it should: {how}")


def machine() -> list[Check]:
    """Facts of this machine that decide what Cove can do on it. Reads only."""
    return [_user(), _kernel(), _cgroups(), _user_namespaces(), _seccomp()]


def _user() -> Check:
    if os.geteuid() == 0:
        return Check("user", True, "root")
    return Check(
        "user",
        False,
        f"an ordinary user (uid {os.geteuid()}): functions run as plain processes",
        "run Cove as root to isolate functions from each other and from this machine",
    )


def _kernel() -> Check:
    known = platform.system() == "Linux" and platform.machine() in ARCHITECTURES
    detail = f"{platform.system()} {platform.release()} {platform.machine()}"
    hint = "" if known else f"containers need Linux on {' or '.join(ARCHITECTURES)}"
    return Check("kernel", known, detail, hint)


def _cgroups() -> Check:
    try:
        host = host_hierarchies()
    except OSError as e:
        return Check("cgroups", False, f"cannot be read: {e.strerror}", "containers need Linux")
    if host.mode == "none":
        return Check("cgroups", False, "not mounted", "mount cgroup2 at /sys/fs/cgroup")
    swap = "swap is limited too" if host.limits_swap() else "swap is not accounted"
    detail = {"v1": "version 1", "v2": "version 2", "hybrid": "versions 1 and 2 (hybrid)"}
    hint = "crun before 1.9 may refuse this; runc copes" if host.mode == "hybrid" else ""
    return Check("cgroups", True, f"{detail[host.mode]}; {swap}", hint)


def _user_namespaces() -> Check:
    try:
        most = int(Path("/proc/sys/user/max_user_namespaces").read_text())
    except (OSError, ValueError):
        most = 0
    if most > 0:
        return Check("user namespaces", True, f"up to {most}")
    return Check(
        "user namespaces",
        False,
        "the kernel has none, or allows none",
        "sysctl user.max_user_namespaces=15000",
    )


def _seccomp() -> Check:
    if Path("/proc/sys/kernel/seccomp/actions_avail").exists():
        return Check("seccomp", True, "system calls can be filtered")
    return Check(
        "seccomp", False, "the kernel has no seccomp filter", "boot a kernel with SECCOMP_FILTER"
    )
