"""A sandbox as data: everything a runtime needs to be told, nothing it has to find out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

UID = 1000
GID = 1000
USER = "cove"
HOSTNAME = "cove"

APP = "/app"
DEPS = "/layers/deps"
SERVE = "/cove/serve.py"
SECRETS = "/run/secrets"
HOME = "/home/cove"
TMP = "/tmp"  # noqa: S108 - the sandbox's own tmpfs, not the host's folder


@dataclass(frozen=True, slots=True)
class Bind:
    """A host path seen inside, always read-only. `source` is absolute and exists.

    `folder` says whether it is one, or a single file.
    """

    source: str
    target: str
    folder: bool = True


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One sandbox: what runs in it, what it sees, and what it may use.

    `root` is the host folder of its skeleton; `first_id` the host id that its id 0 maps to,
    the first of 65536. `netns` is a path that the runtime can open. `cgroup` is absolute
    within each hierarchy. Sizes are bytes. `limit_swap` says that the kernel accounts swap;
    `open_files` and `oom_score` are what Cove itself may set without a capability.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    root: str
    binds: tuple[Bind, ...]
    first_id: int
    netns: str
    cgroup: str
    memory: int
    pids: int
    limit_swap: bool
    recursive_ro: bool
    open_files: int
    oom_score: int
    machine: str
