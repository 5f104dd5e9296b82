"""All that the host makes for one container, and how it is taken away again."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

from cove.drivers.base import Launch
from cove.drivers.placeholders import filled
from cove.sandbox.cgroup import Cgroup, Hierarchies
from cove.sandbox.idmap import unmount
from cove.sandbox.layers import Layers
from cove.sandbox.netns import NetworkNamespace
from cove.sandbox.oci import oci_config
from cove.sandbox.rootfs import Skeleton, build, reachable, survey
from cove.sandbox.spec import APP, DEPS, HOME, SERVE, TMP, USER, Bind, Sandbox

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OPEN_FILES = 65536
OOM_SCORE_ABOVE_OURS = 100  # on a full host an instance goes before Cove does


@dataclass(frozen=True, slots=True)
class Ground:
    """What all bundles of a driver stand on."""

    state: Path
    roots: Path
    serve: Path | None
    cgroup_parent: str
    host: Hierarchies
    limit_swap: bool
    layers: Layers


class Bundle:
    """One container's folder, network namespace, mounts and ids."""

    def __init__(self, ground: Ground, launch: Launch, first_id: int) -> None:
        """Names everything, makes nothing."""
        self.folder = ground.state / "bundles" / launch.id
        self.cgroup: Cgroup = ground.host.group(f"{ground.cgroup_parent}/{launch.id}")
        self.first_id = first_id
        self.netns: NetworkNamespace | None = None
        self._ground = ground
        self._launch = launch
        self._mounted: list[str] = []

    def __repr__(self) -> str:
        return f"<Bundle {self._launch.id} ids {self.first_id:#x}>"

    def make(self) -> None:
        """Make all of it, or raise and leave what was made to `remove`. Blocks."""
        self.folder.mkdir(parents=True, mode=0o700)
        skeleton = self._survey()
        root = self._ground.roots / skeleton.digest
        build(skeleton, str(root))
        self.netns = NetworkNamespace()
        binds = self._ground.layers.open_up(
            skeleton.binds, str(self.folder / "layers"), self.first_id, self._mounted
        )
        config = oci_config(self._sandbox(str(root), binds, self.netns.path))
        (self.folder / "config.json").write_text(json.dumps(config))

    def remove(self) -> None:
        """Take all of it away. The container must be gone. Blocks; idempotent."""
        if self.netns is not None:
            self.netns.close()
        while self._mounted:
            unmount(self._mounted.pop())
        shutil.rmtree(self.folder, ignore_errors=True)

    def _survey(self) -> Skeleton:
        python = self._launch.interpreter
        return survey(
            code=self._launch.code,
            deps=self._launch.deps,
            serve=str(self._ground.serve) if self._ground.serve else None,
            executable=python.executable if python else None,
            prefix=python.prefix if python else None,
        )

    def _sandbox(self, root: str, binds: tuple[Bind, ...], netns: str) -> Sandbox:
        launch = self._launch
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
            first_id=self.first_id,
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


def roots_for(state: Path) -> Path:
    """The folder for skeletons, which ids other than root must be able to walk down to.

    Below `state`, or below /run where some folder above `state` is closed to them. Made here.
    """
    if reachable(str(state)):
        ways = [state / "roots"]
    else:
        info = os.stat(state)
        ways = [Path("/run/cove"), Path("/run/cove") / f"{info.st_dev:x}-{info.st_ino:x}"]
    for way in ways:
        way.mkdir(exist_ok=True)
        way.chmod(0o711)
    return ways[-1]
