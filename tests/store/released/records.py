"""What the databases in this folder hold, as the code reads it back. Every field is spelled out:
a default that changes later must not change what was kept.

`0001.sql` is the dump of a database that the code of revision 0001 made of these records. Dumps
are never made again; a new revision that is released gets a file of its own.
"""

from __future__ import annotations

from cove.model import (
    Affinity,
    Facts,
    Function,
    FunctionSpec,
    Interpreter,
    Key,
    Limits,
    Plan,
    Scale,
    SessionPolicy,
    SessionRecord,
    Version,
)
from cove.states import SessionState, VersionState

FUNCTIONS = [Function("site", 40.5, None), Function("weather", 10.25, 2)]

_WEATHER = FunctionSpec(
    name="weather",
    kind="mcp",
    runtime="python3.11",
    entry="server:mcp",
    command=None,
    transport="http",
    port=9100,
    path="/mcp",
    isolation="container",
    env={"UNITS": "metric", "Ω": "ohm"},
    limits=Limits(cpu=0.25, memory=2**28, pids=99, timeout=7.5, startup=9.0, body=1024),
    scale=Scale(min=1, max=7, concurrency=3, target=0.5, idle=11.0, queue=13),
    session=SessionPolicy(Affinity("header", "X-Thread"), per_instance=2, idle=5.0, lifetime=50.0),
    auth="key",
)
_SITE = FunctionSpec(
    name="site",
    kind="web",
    runtime="command",
    entry=None,
    command="python -m http.server $PORT",
    transport=None,
    port=9000,
    path=None,
    isolation=None,
    env={},
    limits=Limits(cpu=0.5, memory=2**28, pids=256, timeout=120.0, startup=30.0, body=2**22),
    scale=Scale(min=0, max=100, concurrency=32, target=0.7, idle=60.0, queue=1000),
    session=SessionPolicy(Affinity("none", ""), per_instance=20, idle=1800.0, lifetime=21600.0),
    auth=None,
)
_PLAN = Plan(
    argv=("{serve}", "server:mcp"),
    env={"A": "{app}"},
    code="/layers/code-1",
    deps="/layers/deps-1",
    interpreter=Interpreter("/usr/bin/python3", "/usr", "3.11.2"),
    notes=("mcp<2",),
)
_BARE = Plan(argv=("sh", "-c", "x"), env={}, code="/layers/code-2", deps=None, interpreter=None)
_FACTS = Facts(transport="sse", path="/sse", modern=True, legacy=False, stateful=False)
_UNKNOWN = Facts(transport="http", path="/mcp", modern=False, legacy=True, stateful=True)

VERSIONS = [
    Version("site", 1, _SITE, _BARE, _UNKNOWN, "process", "process", VersionState.STARTING, 40.5),
    Version("weather", 1, _WEATHER, _PLAN, _FACTS, "container", "oci", VersionState.READY, 10.25),
    Version("weather", 2, _WEATHER, _PLAN, _FACTS, "container", "oci", VersionState.READY, 20.0),
    Version(
        "weather",
        3,
        _WEATHER,
        _PLAN,
        _UNKNOWN,
        "container",
        "oci",
        VersionState.FAILED,
        30.0,
        "it's not there: \u65e5\u672c\n",
    ),
]

KEYS = [Key("k1", "project", "ab" * 32, 1.5), Key("k2", "project", "cd" * 32, 2.5)]

SESSIONS = [
    SessionRecord(
        "s2",
        "weather",
        2,
        "a\0b",
        "header:X-Thread",
        "\udcff",
        "i-2",
        SessionState.RUNNING,
        21.0,
        22.5,
    ),
    SessionRecord(
        "s1", "weather", 1, "anonymous", "mcp", "", "i-1", SessionState.RUNNING, 11.0, 12.5
    ),
]

INSTALL_SECRETS = {"tokens": bytes(range(32)), "ids": b"\0\xff"}
