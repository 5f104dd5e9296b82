"""cove.toml and DATA/config.toml: text in, checked data out, every error with its line.

Durations are numbers of seconds or strings with a unit: `500ms`, `2s`, `30m`, `6h`, `7d`.
Sizes are numbers of bytes or strings with a binary unit: `64KiB`, `256MiB`, `1GiB`; `MB` and
the like are refused, because half of their readers mean 1000 and the other half 1024.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from cove.errors import CoveError
from cove.model import (
    GIB,
    KIB,
    MIB,
    Affinity,
    AffinityKind,
    FunctionSpec,
    Kind,
    Limits,
    Scale,
    SessionPolicy,
)

RESERVED_NAMES = frozenset({"api", "sandbox", "console", "catalog", "egress"})

Path = tuple[str, ...]
Check = Callable[[Any], Any]

_DAY = 86400.0
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": _DAY}
_BYTES = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": 1024 * GIB}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OBJECT = re.compile(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_PROGRAM = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*\.py")


class _BadValue(Exception):  # noqa: N818  it never leaves this module
    """What a value must be; says nothing of the key, which the caller knows."""


class _NotBuilt(Exception):  # noqa: N818
    """A value of the design that this version of Cove does not have."""


@dataclass(frozen=True, slots=True)
class OperatorConfig:
    """DATA/config.toml: what belongs to the machine's operator. `None` is "not written"."""

    domain: str | None = None
    listen: str | None = None
    drain: float = 10.0


def check_name(name: str) -> str:
    """`name`, if a function may have it: a DNS label that Cove does not keep for itself."""
    if not _LABEL.fullmatch(name):
        suggestion = slug(name)
        raise CoveError(
            "bad_name",
            f"{name!r} cannot be a function's name: names are DNS labels, "
            "1 to 63 lowercase letters, digits and dashes, with no dash at either end",
            hint=f"try {suggestion!r}" if suggestion else "choose another name",
        )
    if name in RESERVED_NAMES:
        raise CoveError(
            "bad_name",
            f"{name!r} is a name that Cove keeps for itself",
            hint=f"choose another name, {name + '-server'!r} for example",
        )
    if re.match(r"\d+-", name):
        raise CoveError(
            "bad_name",
            f"{name!r} begins with digits and a dash, which Cove's own hosts do",
            hint=f"try {slug(name) or 'a name that begins with a letter'!r}",
        )
    return name


def slug(text: str) -> str:
    """The nearest DNS label to a file's or folder's name; empty if nothing is left of it."""
    label = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return re.sub(r"^(\d+-)+", "", label)[:63].rstrip("-")


def parse_function(
    text: str,
    *,
    fallback_name: str,
    override_name: str | None = None,
    filename: str = "cove.toml",
    default_kind: Kind = "mcp",
) -> FunctionSpec:
    """A cove.toml as a FunctionSpec; an empty text is all defaults.

    The name is `override_name`, else the one written, else the slug of `fallback_name`.
    `default_kind` stands where no kind is written. Errors: `bad_config` with the dotted key and
    its line, `not_built` for what the design has and this version has not, `bad_name`.
    """
    table = _Table(text, filename)
    got = table.read(_FUNCTION, _FUNCTION_NOT_BUILT)
    kind = cast(Kind, got.get(("kind",), default_kind))
    _check_together(table, got, kind)
    name = override_name or got.get(("name",)) or slug(fallback_name)
    if not name:
        raise CoveError(
            "bad_name",
            f"no name can be made of {fallback_name!r}",
            hint="give one: cove deploy --name NAME",
        )
    session = _section(got, "session")
    session.setdefault("affinity", Affinity("mcp" if kind == "mcp" else "none"))
    top = {path[0]: value for path, value in got.items() if len(path) == 1}
    top.update(name=check_name(name), kind=kind)
    return FunctionSpec(
        **top,
        limits=Limits(**_section(got, "limits")),
        scale=Scale(**_section(got, "scale")),
        session=SessionPolicy(**session),
        auth=got.get(("auth", "require")),
    )


def writes_kind(text: str) -> bool:
    """Whether a cove.toml that parses says its kind, rather than leave it to the source."""
    return "kind" in tomllib.loads(text)


def read_operator(text: str, filename: str = "config.toml") -> OperatorConfig:
    """DATA/config.toml; errors are `bad_config` with key and line."""
    got = _Table(text, filename).read(_OPERATOR, _OPERATOR_NOT_BUILT)
    return OperatorConfig(**{path[0]: value for path, value in got.items()})


def key_lines(text: str) -> dict[Path, int]:
    """Line of each key and table of a valid TOML text, the first where one is repeated.

    Keys of inline tables are found too; those in arrays go by the array's key.
    """
    lines: dict[Path, int] = {}
    for path, line in _Scanner(text):
        lines.setdefault(path, line)
    return lines


# What a value may be: each maker returns a check, which returns the value or says what is right.


def _one_of(*values: str, later: tuple[str, ...] = ()) -> Check:
    def check(value: Any) -> Any:
        if value in values:
            return value
        if isinstance(value, str) and value in later:
            raise _NotBuilt
        near = difflib.get_close_matches(str(value), values, 1)
        also = f"; did you mean {near[0]!r}?" if near else ""
        raise _BadValue("must be " + " or ".join(repr(v) for v in values) + also)

    return check


def _number(low: float, high: float, *, whole: bool) -> Check:
    def check(value: Any) -> Any:
        right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not right or not low <= value <= high:
            noun = "a whole number" if whole else "a number"
            raise _BadValue(f"must be {noun} from {low:g} to {high:g}")
        return value if whole else float(value)

    return check


def _duration(low: float, high: float) -> Check:
    def check(value: Any) -> float:
        seconds = _measure(value, _DURATION, _SECONDS)
        if seconds is None or not low <= seconds <= high:
            raise _BadValue(
                f"must be a duration from {_in_units(low)} to {_in_units(high)}, "
                'like "500ms", "2s", "30m", "6h" or a number of seconds'
            )
        return seconds

    return check


def _size(low: int, high: int) -> Check:
    def check(value: Any) -> int:
        size = _measure(value, _SIZE, _BYTES)
        if size is None or not low <= size <= high:
            raise _BadValue(
                f"must be a size from {_in_bytes(low)} to {_in_bytes(high)}, "
                'like "64KiB", "256MiB", "1GiB" or a number of bytes'
            )
        return int(size)

    return check


def _text(pattern: re.Pattern[str], right: str, later: re.Pattern[str] | None = None) -> Check:
    def check(value: Any) -> str:
        if isinstance(value, str) and later is not None and later.fullmatch(value):
            raise _NotBuilt
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise _BadValue(f"must be {right}")
        return value

    return check


def _entry(value: Any) -> str:
    if isinstance(value, str) and (_OBJECT.fullmatch(value) or _PROGRAM.fullmatch(value)):
        return value
    raise _BadValue('must be "module:object" or a file of the folder, like "server.py"')


def _env(value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise _BadValue('must be a table, like { UNITS = "metric" }')
    for name, text in value.items():
        if not _ENV_NAME.fullmatch(name):
            raise _BadValue(f"has {name!r}, which is no name of an environment variable")
        if not isinstance(text, str) or "\0" in text:
            raise _BadValue(f"has {name} = {text!r}: values are strings, in quotes")
    return value


def _affinity(value: Any) -> Affinity:
    if value == "url":
        raise _NotBuilt
    kind, colon, name = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not colon and kind in {"none", "mcp", "principal"}:
        return Affinity(cast(AffinityKind, kind))
    if kind in {"header", "cookie", "query"} and _TOKEN.fullmatch(name):
        return Affinity(cast(AffinityKind, kind), name)
    raise _BadValue(
        'must be "none", "mcp", "principal", "header:NAME", "cookie:NAME" or "query:NAME", '
        "where NAME is 1 to 64 letters, digits and !#$%&'*+-.^_`|~"
    )


_RUNTIME_LATER = re.compile(r"node\d*|image")
_URL_PATH = re.compile(r"/[^\s?#%{}]*")
_LISTEN = re.compile(r"([\w.-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")
_DOMAIN = re.compile(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")


def _listen(value: Any) -> str:
    match = _LISTEN.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match[2]) > 65535:
        raise _BadValue('must be an address and a port, like "127.0.0.1:7070" or "[::1]:7070"')
    return cast(str, value)


_FUNCTION: Mapping[Path, Check] = {
    ("name",): _text(re.compile(r".+"), "a string"),
    ("kind",): _one_of("mcp", "web", later=("event", "agent", "sandbox")),
    ("runtime",): _text(
        re.compile(r"python3\.\d{1,2}|command"), '"python3.x" or "command"', _RUNTIME_LATER
    ),
    ("entry",): _entry,
    ("command",): _text(re.compile(r"[^\0]*\S[^\0]*"), "a command line"),
    ("transport",): _one_of("http", "sse", later=("stdio",)),
    ("port",): _number(1024, 65535, whole=True),
    ("path",): _text(_URL_PATH, 'a path that begins with "/"'),
    ("isolation",): _one_of("container", "process", later=("gvisor", "microvm")),
    ("env",): _env,
    ("limits", "cpu"): _number(0.1, 64, whole=False),
    ("limits", "memory"): _size(64 * MIB, 1024 * GIB),
    ("limits", "pids"): _number(8, 32768, whole=True),
    ("limits", "timeout"): _duration(0.1, _DAY),
    ("limits", "startup"): _duration(0.1, 3600),
    ("limits", "body"): _size(1, GIB),
    ("scale", "min"): _number(0, 1000, whole=True),
    ("scale", "max"): _number(1, 1000, whole=True),
    ("scale", "concurrency"): _number(1, 10000, whole=True),
    ("scale", "target"): _number(0.1, 1, whole=False),
    ("scale", "idle"): _duration(0.1, 7 * _DAY),
    ("scale", "queue"): _number(0, 100000, whole=True),
    ("session", "affinity"): _affinity,
    ("session", "per_instance"): _number(1, 10000, whole=True),
    ("session", "idle"): _duration(0.1, 30 * _DAY),
    ("session", "lifetime"): _duration(0.1, 30 * _DAY),
    ("auth", "require"): _one_of("none", "key", later=("jwt", "oauth")),
}

_FUNCTION_NOT_BUILT: frozenset[Path] = frozenset(
    {
        ("preload",),
        ("secrets",),
        ("limits", "disk"),
        ("scale", "spare"),
        ("scale", "zygote_idle"),
        ("session", "freeze_after"),
        ("session", "archive_after"),
        ("session", "keep"),
        ("session", "snapshot_every"),
        ("session", "exclude"),
        ("session", "mounts"),
        ("hooks",),
        ("egress",),
        ("ingress",),
        ("upstream",),
        ("mcp",),
        ("rate",),
        ("trigger",),
    }
)

_OPERATOR: Mapping[Path, Check] = {
    ("domain",): _text(_DOMAIN, 'a domain name, like "localhost" or "fn.example.com"'),
    ("listen",): _listen,
    ("drain",): _duration(0, 3600),
}

_OPERATOR_NOT_BUILT: frozenset[Path] = frozenset(
    {("plans",), ("prices",), ("folders",), ("mirrors",), ("limits",)}
)


class _Table:
    """One TOML file being read against a list of keys."""

    def __init__(self, text: str, filename: str) -> None:
        self.text, self.filename = text, filename
        try:
            self.values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise CoveError(
                "bad_config", f"{filename} is not valid TOML: {error}", hint="correct that line"
            ) from error

    def read(self, checks: Mapping[Path, Check], later: frozenset[Path]) -> dict[Path, Any]:
        """The checked values of the keys that are written, in the order they are written."""
        tables = {path[0] for path in checks if len(path) > 1}
        out: dict[Path, Any] = {}
        for path, value in self._leaves(tables):
            if path in later:
                raise self.not_built(path)
            if path not in checks:
                raise self._unknown(path, [*checks, *later])
            try:
                out[path] = checks[path](value)
            except _BadValue as error:
                raise self.bad(path, str(error), f"it is {value!r}") from error
            except _NotBuilt:
                raise self.not_built(path, value) from None
        return out

    def _leaves(self, tables: set[str]) -> Iterator[tuple[Path, Any]]:
        for key, value in self.values.items():
            if key not in tables:
                yield (key,), value
            elif isinstance(value, dict):
                yield from (((key, inner), leaf) for inner, leaf in value.items())
            else:
                raise self.bad((key,), f"is a table: [{key}]", f"it is {value!r}")

    def where(self, path: Path) -> str:
        line = key_lines(self.text).get(path)
        return f"{self.filename} line {line}" if line else self.filename

    def bad(self, path: Path, message: str, hint: str) -> CoveError:
        return CoveError("bad_config", f"{self.where(path)}: {'.'.join(path)} {message}", hint=hint)

    def not_built(self, path: Path, value: Any = None) -> CoveError:
        said = f" = {value!r}" if value is not None else ""
        return CoveError(
            "not_built",
            f"{self.where(path)}: {'.'.join(path)}{said} is not built yet",
            hint="remove it: this version of Cove would not do what it says",
        )

    def _unknown(self, path: Path, known: list[Path]) -> CoveError:
        names = [".".join(each) for each in known]
        near = difflib.get_close_matches(".".join(path), names, 1)
        # A right key in the wrong table is nearer than any spelling.
        moved = [name for name in names if name.rpartition(".")[2] == path[-1]]
        best = (moved or near or [""])[0]
        hint = f"did you mean {best}?" if best else f"known keys: {', '.join(sorted(names))}"
        return self.bad(path, "is not a key of this file", hint)


def _check_together(table: _Table, got: Mapping[Path, Any], kind: Kind) -> None:
    """What no key can say alone."""
    if ("entry",) in got and ("command",) in got:
        raise table.bad(("command",), "excludes entry: a function has one of them", "remove one")
    runtime = got.get(("runtime",))
    if runtime == "command" and ("command",) not in got:
        raise table.bad(("runtime",), "'command' needs a command", 'write command = "…"')
    if kind == "web":
        for key in ("transport", "path"):
            if (key,) in got:
                raise table.bad((key,), "is for kind 'mcp' only", "remove it")
        if got.get(("session", "affinity")) == Affinity("mcp"):
            raise table.bad(
                ("session", "affinity"), "'mcp' is for kind 'mcp' only", 'write "none" or another'
            )
    low, high = got.get(("scale", "min"), Scale().min), got.get(("scale", "max"), Scale().max)
    if low > high:
        raise table.bad(
            ("scale", "min") if ("scale", "min") in got else ("scale", "max"),
            f"is out of order: min is {low}, max is {high}",
            "min must not be above max",
        )


def _section(got: Mapping[Path, Any], name: str) -> dict[str, Any]:
    return {path[1]: value for path, value in got.items() if len(path) == 2 and path[0] == name}


def _measure(value: Any, pattern: re.Pattern[str], units: Mapping[str, float]) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = pattern.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[2] not in units:
        return None
    return float(match[1]) * units[match[2]]


def _in_units(seconds: float) -> str:
    unit = next(u for u in ("d", "h", "m", "s", "ms") if seconds >= _SECONDS[u] or u == "ms")
    return f"{seconds / _SECONDS[unit]:g}{unit}"


def _in_bytes(size: int) -> str:
    unit = next(u for u in ("TiB", "GiB", "MiB", "KiB", "B") if size >= _BYTES[u] or u == "B")
    return f"{size / _BYTES[unit]:g}{unit}"


class _Scanner:
    """Walks a TOML text that is known to be valid, for the lines that tomllib keeps to itself."""

    _STRING = re.compile(
        r'"""(?:\\.|[^\\])*?"{3,5}'
        r"|'''.*?'{3,5}"
        r'|"(?:\\.|[^"\\\n])*"'
        r"|'[^'\n]*'",
        re.DOTALL,
    )
    _KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:\\.|[^"\\\n])*"|'[^'\n]*'""")

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def __iter__(self) -> Iterator[tuple[Path, int]]:
        table: Path = ()
        while self._skip(" \t\r\n"):
            line = self._line()
            if self.text[self.at] == "[":
                while self.text[self.at] == "[":
                    self.at += 1
                table = self._path()
                self._skip(" \t]")
                yield table, line
            else:
                yield from self._pair(table)

    def _pair(self, base: Path) -> Iterator[tuple[Path, int]]:
        line = self._line()
        path = base + self._path()
        yield path, line
        self._skip(" \t=")
        yield from self._value(path)

    def _value(self, path: Path) -> Iterator[tuple[Path, int]]:
        """Past one value, with the keys inside it."""
        opening = self.text[self.at]
        if opening == "{" or opening == "[":
            self.at += 1
            while self._skip(" \t\r\n,") and self.text[self.at] not in "}]":
                yield from self._pair(path) if opening == "{" else self._value(path)
            self.at += 1
        elif string := self._STRING.match(self.text, self.at):
            self.at = string.end()
        else:
            while self.at < len(self.text) and self.text[self.at] not in ",]}#\r\n":
                self.at += 1

    def _path(self) -> Path:
        parts: list[str] = []
        while self._skip(" \t.") and (match := self._KEY.match(self.text, self.at)):
            self.at = match.end()
            raw = match[0]
            # Only a quoted key can hold escapes; tomllib reads it as it reads any string.
            parts.append(cast(str, tomllib.loads(f"k = {raw}")["k"]) if raw[0] in "\"'" else raw)
        return tuple(parts)

    def _skip(self, characters: str) -> bool:
        """Past `characters` and comments; whether anything is left."""
        while self.at < len(self.text):
            if self.text[self.at] == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
                if "\n" not in characters:
                    return self.at < len(self.text)
            elif self.text[self.at] in characters:
                self.at += 1
            else:
                return True
        return False

    def _line(self) -> int:
        return self.text.count("\n", 0, self.at) + 1
