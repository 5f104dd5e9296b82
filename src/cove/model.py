"""The nouns as data: what a function is, what was deployed, who calls, who visits.

Everything here is immutable and knows nothing of sockets, disks or time.
Sizes are bytes, durations seconds, times seconds since the epoch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cove.states import SessionState, VersionState

Kind = Literal["mcp", "web"]
Transport = Literal["http", "sse"]
Isolation = Literal["container", "process"]
AffinityKind = Literal["none", "mcp", "header", "cookie", "query", "principal"]

KIB, MIB, GIB = 1024, 1024**2, 1024**3


@dataclass(frozen=True, slots=True)
class Limits:
    """`[limits]`: what one instance may use and one request may take."""

    cpu: float = 0.5
    memory: int = 256 * MIB
    pids: int = 256
    timeout: float = 120.0
    startup: float = 30.0
    body: int = 4 * MIB


@dataclass(frozen=True, slots=True)
class Scale:
    """`[scale]`: how many instances, how full, for how long."""

    min: int = 0
    max: int = 100
    concurrency: int = 32
    target: float = 0.7
    idle: float = 60.0
    queue: int = 1000


@dataclass(frozen=True, slots=True)
class Affinity:
    """`session.affinity`: where a caller's key is found. `name` for header, cookie, query."""

    kind: AffinityKind = "mcp"
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """`[session]`: how callers stick to instances, and for how long."""

    affinity: Affinity = Affinity()
    per_instance: int = 20
    idle: float = 1800.0
    lifetime: float = 21600.0


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """A cove.toml, whole and checked; what a version is an immutable copy of.

    `None` means "not written": entry and command are then looked for in the
    source, transport is learnt from the program, isolation is the best there is,
    and auth follows the listener (open on loopback, key elsewhere).
    """

    name: str
    kind: Kind = "mcp"
    runtime: str | None = None
    entry: str | None = None
    command: str | None = None
    transport: Transport | None = None
    port: int = 9000
    path: str | None = None
    isolation: Isolation | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = Limits()
    scale: Scale = Scale()
    session: SessionPolicy = SessionPolicy()
    auth: Literal["none", "key"] | None = None
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python that functions may run on. `prefix` is mounted read-only where it lies."""

    executable: str
    prefix: str
    version: str


PLACE = re.compile(r"(\{+)(app|deps|serve|port)\}")
"""A place in a plan's words. After more than one brace it is none, and one brace is dropped."""


def literal(text: str) -> str:
    """`text` for a plan's words, in which nothing of it is taken for a place."""
    return PLACE.sub(r"{\g<0>", text)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a folder runs: layers below, a command above. Made by a runtime, run by a driver.

    `argv` and the values of `env` may hold `{app}`, `{deps}`, `{serve}`: each driver puts
    in where code, dependencies and Cove's own serving program lie for its instances, and
    `{port}`. What a deployer wrote stands as `literal` makes it, and arrives as written.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    code: str
    deps: str | None
    interpreter: Interpreter | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """What a version's first start showed of its protocol. For `web`, all at their defaults.

    `transport` and `path` are where the program serves MCP; `modern` and `legacy` which
    eras it speaks (mcp.md §3); `stateful` whether its initialize hands out a session id.
    """

    transport: Transport = "http"
    path: str = "/mcp"
    modern: bool = False
    legacy: bool = True
    stateful: bool = True


@dataclass(frozen=True, slots=True)
class Version:
    """One deploy of a function, immutable but for `state`."""

    function: str
    number: int
    spec: FunctionSpec
    plan: Plan
    facts: Facts
    isolation: Isolation
    driver: str
    state: VersionState
    created_at: float
    error: str = ""

    def __repr__(self) -> str:
        return f"<Version {self.function}:{self.number} {self.state}>"


@dataclass(frozen=True, slots=True)
class Function:
    """A named deployable. `live` is the version that its `live` alias names, if any."""

    name: str
    created_at: float
    live: int | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """A project key as kept: only its SHA-256, the secret itself is shown once."""

    id: str
    subject: str
    sha256: str
    created_at: float


@dataclass(frozen=True, slots=True)
class SealedSecret:
    """A value that functions may name, as kept: only the install's key file opens `sealed`."""

    name: str
    sealed: bytes = field(repr=False)
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session as the store keeps it. `key` as its caller sent it; `remote` is the id that the
    program itself gave an MCP session, as it gave it."""

    id: str
    function: str
    version: int
    principal: str
    affinity: str
    key: str
    instance: str
    state: SessionState
    created_at: float
    last_at: float
    remote: str = ""
