"""cove.toml: what is said is read, what is wrong is said with key and line."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.config import (
    LARGEST_VALUE,
    OperatorConfig,
    check_name,
    check_secret_name,
    check_secret_value,
    key_lines,
    parse_function,
    read_operator,
    slug,
)
from cove.config.operator import LogsConfig
from cove.errors import CoveError
from cove.model import GIB, KIB, MIB, Affinity, FunctionSpec, Limits, Scale, SessionPolicy

WHOLE = """
name = "weather"
kind = "mcp"
runtime = "python3.11"
entry = "server:mcp"
transport = "sse"
port = 8000
path = "/sse"
isolation = "container"
env = { UNITS = "metric" }
secrets = ["WEATHER_KEY", "_MAPS2"]

[limits]
cpu = 0.25
memory = "64MiB"
pids = 64
timeout = "2m"
startup = 45
body = "64KiB"

[scale]
min = 1
max = 3
concurrency = 8
target = 1
idle = "500ms"
queue = 0

[session]
affinity = "header:X-Session"
per_instance = 1
idle = "30m"
lifetime = "6h"

[auth]
require = "none"
"""


def parse(text: str, **options: Any) -> FunctionSpec:
    return parse_function(text, fallback_name="weather", **options)


def refused(text: str, **options: Any) -> CoveError:
    with pytest.raises(CoveError) as caught:
        parse(text, **options)
    return caught.value


def test_every_key_that_is_built_is_read() -> None:
    assert parse(WHOLE) == FunctionSpec(
        name="weather",
        kind="mcp",
        runtime="python3.11",
        entry="server:mcp",
        transport="sse",
        port=8000,
        path="/sse",
        isolation="container",
        env={"UNITS": "metric"},
        secrets=("WEATHER_KEY", "_MAPS2"),
        limits=Limits(0.25, 64 * MIB, 64, 120.0, 45.0, 64 * KIB),
        scale=Scale(1, 3, 8, 1.0, 0.5, 0),
        session=SessionPolicy(Affinity("header", "X-Session"), 1, 1800.0, 21600.0),
        auth="none",
    )


def test_an_empty_file_is_all_defaults() -> None:
    assert parse("") == FunctionSpec(name="weather")


def test_a_web_function_has_no_affinity_unless_it_says_so() -> None:
    assert parse('kind = "web"').session.affinity == Affinity("none")
    assert parse("", default_kind="web").session.affinity == Affinity("none")
    written = parse('kind = "web"\nsession.affinity = "cookie:sid"')
    assert written.session.affinity == Affinity("cookie", "sid")


NOT_BUILT = """
preload = "off" | limits.disk = "1GiB" | scale.spare = 1
scale.zygote_idle = "1h" | session.freeze_after = "1s" | session.archive_after = "1s"
session.keep = "1d" | session.snapshot_every = "1s" | session.exclude = [] | session.mounts = []
hooks.prestop = "x" | egress.allow = "all" | ingress.allow = [] | upstream.maps.url = "x"
mcp.bridge = true | rate.requests = "1/m" | trigger = [{ cron = "x" }]
kind = "event" | kind = "agent" | kind = "sandbox" | transport = "stdio" | runtime = "node22"
runtime = "image" | isolation = "gvisor" | isolation = "microvm" | session.affinity = "url"
auth.require = "jwt" | auth.require = "oauth"
"""


@pytest.mark.parametrize(
    "text", [part.strip() for part in NOT_BUILT.replace("\n", "|").split("|") if part.strip()]
)
def test_what_is_designed_but_not_built_is_refused_as_such(text: str) -> None:
    error = refused("\n\n" + text)
    key = text.split(" =")[0]
    assert error.code == "not_built"
    assert "line 3" in error.message
    assert key.split(".")[0] in error.message
    assert "not built yet" in error.message


def test_every_key_of_the_design_is_known() -> None:
    """DESIGN §8, in keys: each is either read or refused as not built, and none is unknown."""
    keys = """
        name kind runtime entry command transport port path preload isolation env secrets
        limits.cpu limits.memory limits.disk limits.pids limits.timeout limits.startup limits.body
        scale.min scale.max scale.concurrency scale.target scale.spare scale.idle
        scale.zygote_idle scale.queue session.affinity session.per_instance session.idle
        session.lifetime session.freeze_after session.archive_after session.keep
        session.snapshot_every session.exclude session.mounts hooks.initialize hooks.prestop
        hooks.deadline egress.allow ingress.allow upstream.maps.url mcp.bridge mcp.ask
        auth.require rate.requests rate.per trigger.cron
    """
    for key in keys.split():
        # No key takes a date, so each is refused, for what it is.
        error = refused(f"{key} = 2026-01-01")
        assert "is not a key" not in error.message, key


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("prot = 9000", "line 1: prot is not a key", "port"),
        ("\n[limits]\n# x\nmemroy = 1", "line 4: limits.memroy is not a key", "limits.memory"),
        ("memory = 1", "line 1: memory is not a key", "limits.memory"),
        ("[limit]\ncpu = 1", "line 1: limit is not a key", "limits.cpu"),
        ("limits = 3", "line 1: limits is a table", "3"),
        ("port = 80", "line 1: port must be a whole number from 1024 to 65535", "80"),
        ("port = true", "port must be a whole number", "True"),
        ("[limits]\ncpu = 0.05", "line 2: limits.cpu must be a number from 0.1 to 64", "0.05"),
        ("limits.memory = '32MiB'", "from 64MiB to 1TiB", "32MiB"),
        ("limits.memory = '256MB'", "limits.memory must be a size", "256MB"),
        ("limits.timeout = '2 weeks'", "limits.timeout must be a duration from 100ms to 1d", ""),
        ("limits.timeout = nan", "limits.timeout must be a duration", ""),
        ("limits.memory = inf", "limits.memory must be a size", ""),
        ("limits.cpu = nan", "limits.cpu must be a number", ""),
        ("scale.min = 5\nscale.max = 2", "line 1: scale.min is out of order", "above"),
        ("scale.max = 0", "scale.max must be a whole number from 1 to", ""),
        ("kind = 'wbe'", "must be 'mcp' or 'web'; did you mean 'web'?", ""),
        ("runtime = 'python2.7'", 'must be "python3.x" or "command"', ""),
        ("runtime = 'command'", "needs a command", ""),
        ("entry = '../x.py'", "line 1: entry must be", ""),
        ("entry = 'a:b'\ncommand = 'c'", "line 2: command excludes entry", ""),
        ("env = { A = 1 }", "values are strings", ""),
        ('env = { "A B" = "1" }', "no name of an environment variable", ""),
        ("path = 'mcp'", 'must be a path that begins with "/"', ""),
        ("session.affinity = 'header:'", "session.affinity must be", ""),
        ("session.affinity = 'header:a b'", "session.affinity must be", ""),
        (f"session.affinity = 'cookie:{'x' * 65}'", "session.affinity must be", ""),
        ("session.affinity = 'none:x'", "session.affinity must be", ""),
        ("kind = 'web'\n[session]\naffinity = 'mcp'", "line 3: session.affinity 'mcp'", ""),
        ("kind = 'web'\ntransport = 'sse'", "line 2: transport is for kind 'mcp' only", ""),
        ("name = ", "cove.toml is not valid TOML", ""),
    ],
)
def test_what_is_wrong_is_said_with_key_line_and_what_is_right(
    text: str, said: str, hint: str
) -> None:
    error = refused(text)
    assert error.code == "bad_config"
    assert said in error.message
    assert hint in error.hint


def test_durations_and_sizes_are_numbers_or_have_units() -> None:
    limits = parse(
        'limits = { timeout = "1.5m", startup = 2.5, body = "1GiB", memory = 1e9 }'
    ).limits
    assert (limits.timeout, limits.startup, limits.body) == (90.0, 2.5, GIB)
    assert limits.memory == 1_000_000_000
    assert isinstance(limits.memory, int)


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "A", "a_b", "a.b", "x" * 64, "api", "egress", "1-a", "80-x", "ä"]
)
def test_a_name_that_cannot_be_a_host_or_is_coves_own_is_refused(name: str) -> None:
    with pytest.raises(CoveError) as caught:
        check_name(name)
    assert caught.value.code == "bad_name"


@pytest.mark.parametrize("name", ["a", "weather", "a-b", "x" * 63, "2cool", "api2"])
def test_dns_labels_are_names(name: str) -> None:
    assert check_name(name) == name


def test_a_name_is_overridden_then_written_then_made_of_the_file() -> None:
    assert slug("My_Server") == "my-server"
    assert parse_function("", fallback_name="My_Server").name == "my-server"
    assert parse_function('name = "b"', fallback_name="a").name == "b"
    assert parse_function('name = "b"', fallback_name="a", override_name="c").name == "c"
    assert refused("", override_name="My_Server").code == "bad_name"


@given(st.text())
def test_a_slug_is_a_name_or_says_that_it_cannot_be(text: str) -> None:
    made = slug(text)
    assert slug(made) == made
    if made and made not in {"api", "sandbox", "console", "catalog", "egress"}:
        assert check_name(made) == made


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ('"A"', "a list of at most 64 names"),
        ('{ A = "hunter2" }', "a list of at most 64 names"),
        (f"{[f'A{n}' for n in range(65)]}", "a list of at most 64 names"),
        ('["A", "hunter2"]', "no name of a secret at place 2"),
        ('["A", 1]', "no name of a secret at place 2"),
        ('["A", "B", "A"]', "has A twice"),
        ('["PATH"]', "Cove sets itself"),
        ('["B", "LD_PRELOAD"]', "change how programs are run"),
        ('["UNITS"]\nenv = { UNITS = "metric" }', "has UNITS, and so has env"),
    ],
)
def test_secrets_are_names_and_what_is_none_is_not_repeated(written: str, said: str) -> None:
    error = refused(f"\nsecrets = {written}")
    assert error.code == "bad_config"
    assert "line 2: secrets" in error.message
    assert said in error.message
    assert error.hint
    assert "hunter2" not in str(error.to_json())


@pytest.mark.parametrize(
    "name",
    [
        *("", "a", "weather_key", "1A", "A-B", "A.B", "A/B", ".", "..", "Ä", "hunter2", "A" * 65),
        *("A\n", "A=B", "A B", "PATH", "PORT", "HOME", "USER", "TMPDIR", "LANG", "VIRTUAL_ENV"),
        *("FASTMCP_HOST", "COVE_FUNCTION", "COVE_X", "LD_PRELOAD", "LD_LIBRARY_PATH", "ENV"),
        *("PYTHONPATH", "PYTHONSTARTUP", "BASH_ENV", "IFS", "NODE_OPTIONS", "GLIBC_TUNABLES"),
        *("PERL5OPT", "RUBYOPT", "OPENSSL_CONF", "_JAVA_OPTIONS"),
    ],
)
def test_a_name_that_no_secret_may_have_is_refused(name: str) -> None:
    with pytest.raises(CoveError) as caught:
        check_secret_name(name)
    assert caught.value.code == "bad_name"
    assert "hunter2" not in str(caught.value.to_json())


@pytest.mark.parametrize(
    "name", ["A", "_", "A" * 64, "AWS_SECRET_ACCESS_KEY", "PATHS", "_1", "ENV_KEY"]
)
def test_names_of_secrets(name: str) -> None:
    assert check_secret_name(name) == name


@pytest.mark.parametrize("value", ["x", "\n", "日本\n\t\x1b", "é" * (LARGEST_VALUE // 2)])
def test_values_of_secrets(value: str) -> None:
    assert check_secret_value(value) == value


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("", "bad_request"),
        ("hunter2\0", "bad_request"),
        ("hunter2\udcff", "bad_request"),
        ("hunter2" + "é" * (LARGEST_VALUE // 2), "too_large"),
    ],
)
def test_a_value_that_no_variable_can_have_is_refused_and_not_repeated(
    value: str, code: str
) -> None:
    with pytest.raises(CoveError) as caught:
        check_secret_value(value)
    assert caught.value.code == code
    assert "hunter2" not in str(caught.value.to_json())
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_lines_are_found_through_strings_comments_and_inline_tables() -> None:
    text = '''# [limits]
name = "a # b"  # c
note = """
[limits]
cpu = 1
""""
"quoted.key" = 'x = 1'
list = [
  1, # ]
  { inner = [2,
     3], deep.er = "}" },
]

[ limits . "x" ] # there
cpu = 1
env = { A = "1", B = { C = '{' } }
[[trigger]]
cron = "x"
[[trigger]]
cron = "y"
'''
    assert key_lines(text) == {
        ("name",): 2,
        ("note",): 3,
        ("quoted.key",): 7,
        ("list",): 8,
        ("list", "inner"): 10,
        ("list", "deep"): 11,
        ("list", "deep", "er"): 11,
        ("limits",): 14,
        ("limits", "x"): 14,
        ("limits", "x", "cpu"): 15,
        ("limits", "x", "env"): 16,
        ("limits", "x", "env", "A"): 16,
        ("limits", "x", "env", "B"): 16,
        ("limits", "x", "env", "B", "C"): 16,
        ("trigger",): 17,
        ("trigger", "cron"): 18,
    }


def leaves(value: Any, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    if not isinstance(value, dict):
        return {path}
    return set().union(*(leaves(inner, (*path, key)) for key, inner in value.items()))


@pytest.mark.parametrize("path", [Path(__file__).parents[1] / "pyproject.toml"])
def test_every_key_of_a_real_file_has_its_line(path: Path) -> None:
    text = path.read_text()
    lines = key_lines(text)
    for leaf in leaves(tomllib.loads(text)):
        assert leaf[-1] in text.splitlines()[lines[leaf] - 1]


def test_a_written_crlf_file_has_the_same_lines() -> None:
    assert "line 3" in refused("\r\n[limits]\r\ncpu = 0\r\n").message


def test_the_operators_file_is_read_and_checked_alike() -> None:
    assert read_operator("") == OperatorConfig(None, None, 10.0)
    whole = read_operator('domain = "fn.example.com"\nlisten = "[::1]:7070"\ndrain = "30s"')
    assert whole == OperatorConfig("fn.example.com", "[::1]:7070", 30.0)
    for text in ('listen = "7070"', 'listen = "a:99999"', "drain = -1", 'domian = "x"'):
        with pytest.raises(CoveError) as caught:
            read_operator("\n" + text)
        assert "config.toml line 2" in caught.value.message


def test_the_operator_says_how_much_of_logs_is_kept() -> None:
    assert read_operator("").logs == LogsConfig(64 * 1024**2, 7 * 86400.0, True)
    whole = read_operator('[logs]\nsize = "1GiB"\nage = "30d"\naccess = false')
    assert whole.logs == LogsConfig(1024**3, 30 * 86400.0, False)
    for text, said in {
        'size = "1KiB"': "must be a size from 1MiB to 1TiB",
        'age = "1s"': "must be a duration from 1m to 3650d",
        'access = "no"': "must be true or false",
        "access = 1": "must be true or false",
        "sise = 1": "is not a key of this file",
    }.items():
        with pytest.raises(CoveError) as caught:
            read_operator("[logs]\n" + text)
        assert f"config.toml line 2: logs.{text.partition(' ')[0]} {said}" in caught.value.message
