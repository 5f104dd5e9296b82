"""What a container of ours holds back, and what it gives, seen from inside and from the host."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from conftest import BOUND, Box

from cove.drivers.oci import OciDriver
from cove.drivers.runtime import Runtime
from cove.errors import CoveError
from cove.model import MIB, Interpreter, Limits

SLEEP = "import time; print('ready', flush=True); time.sleep(600)"
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def look(box: Box, source: str, **changes: Any) -> Any:
    """Run a program that prints JSON, and what it printed."""
    how, said = await box.run(f"import json, os, sys\n{source}", **changes)
    assert how.code == 0, said
    return json.loads(said)


async def test_each_instance_has_a_host_user_of_its_own_and_none_is_root(box: Box) -> None:
    one, _ = await box.start(SLEEP)
    two, _ = await box.start(SLEEP)
    users = [status(running.pid)["Uid"].split()[0] for running in (one, two)]
    assert users[0] != users[1]
    assert all(0x70000000 <= int(user) < 0x80000000 for user in users)
    inside = await look(box, "print(json.dumps([os.getuid(), os.getgid(), os.getgroups()]))")
    assert inside[:2] == [1000, 1000]
    assert set(inside[2]) <= {1000}


async def test_instances_of_another_cove_have_other_users(box: Box, runtime: Runtime) -> None:
    other = Box(
        OciDriver(runtime, box.folder / "other", None, f"cove-other-{os.getpid()}"), box.folder
    )
    try:
        pids = [(await one.start(SLEEP))[0].pid for one in (box, other)]
        assert len({status(pid)["Uid"] for pid in pids}) == 2
    finally:
        await other.driver.close()
        other.close()


async def test_no_capability_no_new_privileges_and_a_filter(box: Box) -> None:
    running, _ = await box.start(SLEEP)
    seen = status(running.pid)
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(seen[kind], 16) == 0, kind
    assert seen["NoNewPrivs"] == "1"
    assert seen["Seccomp"] == "2"


async def test_no_namespace_is_shared_with_the_host_or_another_instance(box: Box) -> None:
    running = [(await box.start(SLEEP))[0].pid for _ in range(2)]
    for kind in NAMESPACES:
        seen = {os.readlink(f"/proc/{pid}/ns/{kind}") for pid in (*running, os.getpid())}
        assert len(seen) == 3, kind


async def test_there_is_loopback_and_nothing_else(box: Box) -> None:
    source = """
import socket
def reach(address):
    try:
        socket.create_connection((address, 80), timeout=5)
    except OSError as e:
        return e.errno
socket.create_server(("127.0.0.1", 80))
print(json.dumps([[name for _, name in socket.if_nameindex()], reach("192.0.2.1")]))
"""
    assert await look(box, source) == [["lo"], 101]  # ENETUNREACH


async def test_the_hosts_loopback_is_not_reached(box: Box) -> None:
    with socket.create_server(("127.0.0.1", 0)) as host:
        port = host.getsockname()[1]
        source = f"""
import socket
print(json.dumps(socket.socket().connect_ex(("127.0.0.1", {port}))))
"""
        assert await look(box, source) == 111  # ECONNREFUSED


async def test_connecting_leaves_this_thread_in_its_own_network(box: Box) -> None:
    before = os.readlink("/proc/thread-self/ns/net")
    source = "import os, socket, time; s = socket.create_server(('127.0.0.1', 9000))\n" + SLEEP
    running, _ = await box.start(source)
    made = await running.connect()
    assert made.getpeername() == ("127.0.0.1", 9000)
    made.close()
    assert os.readlink("/proc/thread-self/ns/net") == before


async def test_only_home_and_tmp_can_be_written(box: Box) -> None:
    source = """
def write(folder):
    try:
        open(folder + "/x", "w").close()
        return 0
    except OSError as e:
        return e.errno
where = ["/", "/usr", "/usr/lib", "/etc", "/app", "/layers/deps", "/var", "/run", "/sys", "/dev"]
print(json.dumps([sorted({write(f) for f in where}), write("/tmp"), write(os.environ["HOME"])]))
"""
    deps = box.folder / "deps"
    deps.mkdir()
    refused, tmp, home = await look(box, source, deps=str(deps))
    assert set(refused) <= {13, 30}  # EACCES, EROFS
    assert (tmp, home) == (0, 0)
    assert list(deps.iterdir()) == []


async def test_filling_tmp_or_home_ends_in_enospc(box: Box) -> None:
    source = """
def fill(folder):
    written = 0
    try:
        with open(folder + "/x", "wb", buffering=0) as f:
            while written < 64 << 20:
                written += f.write(bytes(1 << 20))
    except OSError as e:
        os.unlink(folder + "/x")
        return [e.errno, written >> 20]
print(json.dumps([fill("/tmp"), fill(os.environ["HOME"]), fill("/dev/shm")]))
"""
    assert await look(box, source) == [[28, 32], [28, 16], [28, 16]]


async def test_too_much_memory_ends_in_an_oom_exit(box: Box) -> None:
    how, _ = await box.run("x = bytearray(200 << 20); print('still here')")
    assert (how.signal, how.oom, how.memory) == (9, True, 64 * MIB)


async def test_a_kill_from_outside_is_not_called_oom(box: Box) -> None:
    running, _ = await box.start(SLEEP)
    os.kill(running.pid, 9)
    how = await asyncio.wait_for(asyncio.shield(running.exited), BOUND)
    assert (how.signal, how.oom) == (9, False)


async def test_no_more_processes_than_the_limit(box: Box) -> None:
    source = """
import time
made = 0
try:
    while made < 100:
        if os.fork() == 0:
            time.sleep(600)
        made += 1
except OSError as e:
    print(json.dumps([made, e.errno]), flush=True)
"""
    limits = Limits(cpu=0.5, memory=64 * MIB, pids=16)
    made, error = await look(box, source, limits=limits)
    assert error == 11  # EAGAIN
    assert made < 16


async def test_the_cpu_limit_holds_once_throttled_and_not_before(box: Box) -> None:
    source = "print('ready', flush=True)\nwhile True: pass"
    running, _ = await box.start(source, limits=Limits(cpu=0.1, memory=64 * MIB, pids=32))

    async def share() -> float:
        loop = asyncio.get_running_loop()
        since, before = loop.time(), running.usage().cpu
        await asyncio.sleep(1.0)  # a window to measure in: there is nothing else to wait for
        return (running.usage().cpu - before) / (loop.time() - since)

    free = await share()
    running.throttle()
    held = await share()
    assert held < 0.15
    assert free > 2 * held


async def test_home_folders_of_the_host_are_not_there(box: Box) -> None:
    home = Path.home()
    source = f"""
def names(folder):
    return os.listdir(folder) if os.path.isdir(folder) else []
print(json.dumps([names("/home"), names(os.environ["HOME"]), names({str(home)!r})]))
"""
    homes, own, ours = await look(box, source)
    assert (homes, own) == (["cove"], [])
    prefix = Path(os.path.realpath(sys.base_prefix))
    # On the way to an interpreter that lies in our home, and nothing beside it.
    assert ours == [*prefix.relative_to(home).parts[:1]] if home in prefix.parents else ours == []


async def test_etc_says_nothing_of_the_host(box: Box) -> None:
    source = """
there = [p for p in ("shadow", "gshadow", "machine-id", "ssh", "fstab", "ssl/private", "sudoers")
         if os.path.exists("/etc/" + p)]
print(json.dumps([there, open("/etc/passwd").read().count("\\n"), os.uname().nodename,
    os.path.exists("/etc/ssl/certs") == %r]))
""" % os.path.exists("/etc/ssl/certs")  # noqa: UP031 - braces in the source
    assert await look(box, source) == [[], 3, "cove", True]


async def test_the_program_sees_its_own_processes_only(box: Box) -> None:
    source = "print(json.dumps([os.getpid(), [p for p in os.listdir('/proc') if p.isdigit()]]))"
    assert await look(box, source) == [1, ["1"]]


async def test_no_descriptor_of_ours_is_inside(box: Box) -> None:
    source = """
fds = {fd: os.readlink("/proc/self/fd/" + fd) for fd in os.listdir("/proc/self/fd")
       if os.path.islink("/proc/self/fd/" + fd)}
print(json.dumps(sorted(fds)))
"""
    assert await look(box, source) == ["0", "1", "2"]


async def test_setuid_programs_are_powerless(box: Box) -> None:
    source = """
import subprocess
print(json.dumps(subprocess.run(["/layers/deps/id", "-u"], capture_output=True, text=True).stdout))
"""
    deps = box.folder / "deps"
    deps.mkdir()
    shutil.copy("/usr/bin/id", deps / "id")
    (deps / "id").chmod(0o4755)
    assert await look(box, source, deps=str(deps)) == "1000\n"


async def test_calls_into_dangerous_parts_of_the_kernel_are_refused(box: Box) -> None:
    source = """
import ctypes, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    return 0 if libc.syscall(number, *args) >= 0 else ctypes.get_errno()
def make(*args):
    try:
        socket.socket(*args).close()
        return 0
    except OSError as e:
        return e.errno
print(json.dumps({
    "unshare": call(272, 0x10000000), "setns": call(308, 0, 0), "mount": call(165, 0, 0, 0, 0, 0),
    "ptrace": call(101, 0, 0, 0, 0), "keyctl": call(250, 0, 0), "bpf": call(321, 0, 0, 0),
    "perf": call(298, 0, 0, 0, 0, 0), "userfaultfd": call(323, 0), "io_uring": call(425, 1, 0),
    "chroot": call(161, b"/"), "clone_newuser": call(56, 0x10000011, 0, 0, 0, 0),
    "personality": call(135, 0x40000), "clone3": call(435, 0, 0),
    "packet": make(17, 3), "alg": make(38, 5), "vsock": make(40, 1), "audit": make(16, 3, 9),
    "raw": make(2, 3, 1), "unix": make(1, 1), "inet": make(2, 1), "inet6": make(10, 1),
    "route": make(16, 3, 0),
}))
"""
    if os.uname().machine != "x86_64":
        pytest.skip("the call numbers are those of x86_64")
    said = await look(box, source)
    assert said.pop("clone3") == 38  # ENOSYS
    assert {name for name, error in said.items() if error == 0} == {
        "unix",
        "inet",
        "inet6",
        "route",
    }
    assert set(said.values()) <= {0, 1, 93}  # EPERM, and EPROTONOSUPPORT for raw without ICMP


async def test_an_interpreter_in_a_home_folder_runs_and_the_rest_of_it_stays_out(
    box: Box,
) -> None:
    home = box.folder / "home"
    (home / "versions").mkdir(parents=True)
    (home / "secret").write_text("secret")
    prefix = home / "versions" / "python"
    prefix.symlink_to(sys.base_prefix)
    home.chmod(0o700)
    executable = str(prefix / "bin" / Path(os.path.realpath(sys.executable)).name)
    source = f"import ssl; print(json.dumps([sys.executable, os.listdir({str(home)!r})]))"
    said = await look(
        box,
        source,
        argv=(executable, "{app}/program.py"),
        interpreter=Interpreter(executable, str(prefix), "3"),
    )
    assert said == [executable, ["versions"]]


async def test_code_closed_by_a_umask_is_readable_and_left_as_it_was(box: Box) -> None:
    umask = os.umask(0o077)
    try:
        running, _ = await box.start(SLEEP)
    finally:
        os.umask(umask)
    (code,) = box.folder.glob(f"{running.id.removeprefix('t-')}")
    assert code.stat().st_mode & 0o777 == 0o700
    assert code.stat().st_uid == 0
    layers = str(box.folder / "state" / "bundles" / running.id)
    assert layers in Path("/proc/self/mountinfo").read_text()
    await running.stop(0.0)
    assert layers not in Path("/proc/self/mountinfo").read_text()


async def test_code_that_cannot_be_shown_names_the_path_and_the_command(box: Box) -> None:
    # A folder of mode 0500 on a file system that has no idmapped mounts.
    with pytest.raises(CoveError) as failed:
        await box.run("", code="/proc/self/map_files")
    assert failed.value.code == "start_failed"
    assert "/proc/" in failed.value.message
    assert failed.value.hint.startswith("chmod -R o+rX /proc/")


async def test_secrets_are_files_that_only_the_program_reads_and_nobody_writes(box: Box) -> None:
    source = """
def refused(call, *how):
    try:
        call(*how)
    except OSError as e:
        return e.errno
folder, path = "/run/secrets", "/run/secrets/KEY"
seen, around = os.stat(path), os.stat(folder)
mount = [line.split() for line in open("/proc/self/mountinfo") if f" {folder} " in line]
print(json.dumps([
    sorted(os.listdir(folder)), open(path).read(), open(f"{folder}/OTHER").read(),
    [seen.st_uid, seen.st_gid, oct(seen.st_mode)], [around.st_uid, oct(around.st_mode)],
    refused(os.chmod, path, 0o666), refused(os.mknod, f"{folder}/new"), refused(os.unlink, path),
    [one[one.index("-") + 1] for one in mount], "ro" in mount[0][5].split(","),
    "KEY" in os.environ,
]))
"""
    said = await look(box, source, secrets={"KEY": "one\ntwo\n", "OTHER": "é"})
    assert said[:3] == [["KEY", "OTHER"], "one\ntwo\n", "é"]
    assert said[3:5] == [[1000, 1000, "0o100400"], [1000, "0o40500"]]
    assert said[5:8] == [30, 30, 30]  # EROFS
    assert said[8:] == [["tmpfs"], True, False]


async def test_without_secrets_their_folder_is_there_and_empty(box: Box) -> None:
    assert await look(box, "print(json.dumps(os.listdir('/run/secrets')))") == []


async def test_secrets_go_with_the_instance(box: Box) -> None:
    running, _ = await box.start(SLEEP, secrets={"KEY": "hidden"})
    folder = running.bundle.folder / "secrets"
    assert folder.stat().st_uid == (folder / "KEY").stat().st_uid == uid_of(running.pid)
    await running.stop(0.0)
    assert not folder.exists()


def uid_of(pid: int) -> int:
    return int(status(pid)["Uid"].split()[0])


async def test_a_reachable_state_folder_keeps_everything_within_it(runtime: Runtime) -> None:
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    box = Box(OciDriver(runtime, folder / "state", None, f"cove-test-{os.getpid()}"), folder)
    try:
        await box.start(SLEEP)
        assert len(list((folder / "state" / "roots").iterdir())) == 1
    finally:
        await box.driver.close()
        box.close()
        assert not (folder / "state").exists()
        shutil.rmtree(folder)


async def test_orphans_of_the_runtime_become_children_of_ours(box: Box) -> None:
    running, _ = await box.start(SLEEP)
    assert status(running.pid)["PPid"] == str(os.getpid())


async def test_an_id_that_runs_is_not_started_again(box: Box) -> None:
    running, _ = await box.start(SLEEP, id="t-same")
    with pytest.raises(CoveError, match="t-same"):
        await box.begin(SLEEP, id="t-same")
    assert not running.exited.done()
    with contextlib.suppress(ConnectionRefusedError):
        await running.connect()
