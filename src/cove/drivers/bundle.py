"""All that the host makes for one container, and how it is taken away again."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace

from cove.drivers.base import Launch
from cove.drivers.ground import CGROUP_PATIENCE, Ground
from cove.drivers.placeholders import filled
from cove.drivers.record import Record
from cove.sandbox.mounts import unmount
from cove.sandbox.netns import NetworkNamespace
from cove.sandbox.oci import oci_config
from cove.sandbox.rootfs import Skeleton, build, survey
from cove.sandbox.spec import (
    APP,
    DEPS,
    GID,
    HOME,
    SECRETS,
    SERVE,
    TMP,
    UID,
    USER,
    Bind,
    Sandbox,
)

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OPEN_FILES = 65536
OOM_SCORE_ABOVE_OURS = 100  # on a full host an instance goes before Cove does


class Bundle:
    """One container's folder, control group, network namespace, mounts and ids."""

    def __init__(
        self,
        ground: Ground,
        record: Record,
        *,
        netns: NetworkNamespace | None = None,
        mounted: Sequence[str] = (),
    ) -> None:
        """Names everything, makes nothing. Of one that stands already, what has been made."""
        self.record = record
        self.folder = ground.bundles / record.id
        self.cgroup = ground.cgroup(record.id)
        self.netns = netns
        self._ground = ground
        self._mounted = list(mounted)

    def __repr__(self) -> str:
        return f"<Bundle {self.record.id} ids {self.record.first_id:#x}>"

    def make(self, launch: Launch) -> None:
        """Make all of it, or raise and leave what was made to `remove`. Blocks."""
        self.folder.mkdir(mode=0o700)
        skeleton = self._survey(launch)
        root = self._ground.roots / skeleton.digest
        build(skeleton, str(root))
        self.netns = NetworkNamespace()
        binds = self._ground.layers.open_up(
            skeleton.binds, str(self.folder / "layers"), self.record.first_id, self._mounted
        )
        binds += self._secrets(launch.secrets)
        config = oci_config(self._sandbox(launch, str(root), binds, self.netns.path))
        (self.folder / "config.json").write_text(json.dumps(config))

    def begun(self, pid: int, started: int, boot: str) -> None:
        """Its first process runs: from now on it is whole, and a later driver may adopt it."""
        self.record = replace(self.record, pid=pid, started=started, boot=boot)
        self.record.write(self.folder)

    def let_go(self) -> None:
        """Keep nothing of it open; it stands."""
        if self.netns is not None:
            self.netns.close()

    def remove(self) -> None:
        """End what is left in it, and take all of it away. Blocks; idempotent."""
        self.cgroup.kill(CGROUP_PATIENCE)
        self.cgroup.remove(CGROUP_PATIENCE)
        self.let_go()
        while self._mounted:
            unmount(self._mounted.pop())
        # The runtime has been told to forget it; one that is not installed any more cannot.
        for folder in (self._ground.runtime / self.record.id, self.folder):
            shutil.rmtree(folder, ignore_errors=True)

    def _survey(self, launch: Launch) -> Skeleton:
        python, serve = launch.interpreter, self._ground.serve
        return survey(
            code=launch.code,
            deps=launch.deps,
            serve=str(serve) if serve else None,
            executable=python.executable if python else None,
            prefix=python.prefix if python else None,
        )

    def _secrets(self, secrets: Mapping[str, str]) -> tuple[Bind, ...]:
        """Files that the sandbox's user may read, and nobody else."""
        if not secrets:
            return ()
        folder = self.folder / "secrets"
        folder.mkdir(mode=0o500)
        user, group = self.record.first_id + UID, self.record.first_id + GID
        for name, value in secrets.items():
            assert "/" not in name
            with open(folder / name, "x", encoding="utf-8", opener=_private) as file:
                file.write(value)
            os.chown(folder / name, user, group)
        os.chown(folder, user, group)
        return (Bind(str(folder), SECRETS),)

    def _sandbox(self, launch: Launch, root: str, binds: tuple[Bind, ...], netns: str) -> Sandbox:
        argv, env = filled(
            launch,
            app=APP,
            deps=DEPS if launch.deps is not None else None,
            serve=SERVE if self._ground.serve is not None else None,
            port=launch.port,
        )
        return Sandbox(
            argv=tuple(argv),
            env=environment(env, launch.port),
            root=root,
            binds=binds,
            first_id=self.record.first_id,
            netns=netns,
            cgroup=f"/{self.cgroup.path}",
            memory=launch.limits.memory,
            pids=launch.limits.pids,
            limit_swap=self._ground.limit_swap,
            recursive_ro=_kernel() >= (5, 12),
            open_files=_open_files(),
            oom_score=_oom_score(),
            machine=platform.machine(),
        )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o400)


def environment(wanted: dict[str, str], port: int) -> dict[str, str]:
    """A program's whole environment inside: nothing of Cove's own, and the port is ours to say."""
    return {
        "PATH": DEFAULT_PATH,
        "HOME": HOME,
        "USER": USER,
        "LOGNAME": USER,
        "TMPDIR": TMP,
        "LANG": "C.UTF-8",
        **wanted,
        "PORT": str(port),
    }


def _kernel() -> tuple[int, int]:
    major, minor, *_ = platform.release().split(".")
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


def _open_files() -> int:
    """The hard limit, or less: raising it may need a capability that root lacks here."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)


def _oom_score() -> int:
    with contextlib.suppress(OSError, ValueError), open("/proc/self/oom_score_adj") as f:
        return min(int(f.read()) + OOM_SCORE_ABOVE_OURS, 1000)
    return OOM_SCORE_ABOVE_OURS
