"""What a source says it needs: PEP 723 metadata, requirements.txt or pyproject.toml.

Lines are read and checked here rather than handed to the installer as they are. An editable or
local requirement would run the deployer's code on this machine (uv runs setup.py for `-e .` even
where only wheels are asked for), and `-r /etc/…` would show its lines in an error.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from cove.errors import CoveError
from cove.runtimes.source import Source

_MAX_BYTES = 1024**2
_COMMENT = re.compile(r"(^|\s)#.*$")
_INDEX = re.compile(r"(-i|--index-url|--extra-index-url)[\s=]+(https?://\S+)")
_NESTED = re.compile(r"(-r|--requirement|-c|--constraint)[\s=]*(\S+)")
_HASHES = re.compile(r"\s--hash[=\s]\S+")


@dataclass(frozen=True, slots=True)
class Requirements:
    """`origin` is the file that spoke, empty if none did. Strings are PEP 508."""

    origin: str = ""
    lines: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    index: str = ""
    extra_indexes: tuple[str, ...] = ()
    python: str = ""
    """A version specifier of the Pythons it runs on; empty for any."""
    notes: tuple[str, ...] = ()

    def get(self, name: str) -> list[Requirement]:
        """What is asked of the package `name`, possibly under several markers."""
        wanted = canonicalize_name(name)
        every = (Requirement(line) for line in self.lines)
        return [each for each in every if canonicalize_name(each.name) == wanted]


def declared(source: Source) -> Requirements:
    """The entry's PEP 723 metadata, else requirements.txt, else pyproject.toml's dependencies.

    `CoveError("bad_source")` with file and line for what cannot be read or is not allowed.
    """
    entry = source.entry
    if entry is not None and (found := _script(entry.text, str(entry.path))) is not None:
        return found
    folder = source.folder
    python = _project_python(folder)
    if (folder / "requirements.txt").is_file():
        return replace(_RequirementsFile(folder).read("requirements.txt"), python=python)
    return _project(folder) or Requirements(python=python)


def _script_lines(text: str) -> list[str] | None:
    """The comment lines of the `script` block, if there is a whole one (PEP 723).

    A block ends at the last closing line of the comment that it is. Read line by line: the
    specification's pattern takes exponential time on some texts, and the texts are anybody's.
    """
    block: list[str] | None = None
    closed = 0
    for line in [*text.splitlines(), ""]:
        bare = line.rstrip(" \t")
        if block is None:
            if bare == "# /// script":
                block, closed = [], 0
        elif bare == "# ///" and block:
            closed = len(block)
            block.append(line)
        elif line == "#" or line.startswith("# "):
            block.append(line)
        elif closed:
            break
        else:
            block = None
    return block[:closed] if block is not None and closed else None


def _script(text: str, path: str) -> Requirements | None:
    lines = _script_lines(text)
    if lines is None:
        return None
    content = "\n".join(line[2:] if line.startswith("# ") else line[1:] for line in lines)
    origin = f"{path} (PEP 723)"
    table = _toml(content, origin)
    return Requirements(
        origin,
        _checked(table.get("dependencies", []), origin),
        python=_specifier(table.get("requires-python", ""), origin),
    )


def _project(folder: Path) -> Requirements | None:
    project = _project_table(folder)
    if "dependencies" in project.get("dynamic", []):
        raise CoveError(
            "bad_source",
            "pyproject.toml says its dependencies are dynamic, which would mean to build it",
            hint="list them under [project] dependencies, or in requirements.txt",
        )
    if "dependencies" not in project:
        return None
    return Requirements(
        "pyproject.toml",
        _checked(project["dependencies"], "pyproject.toml"),
        python=_project_python(folder),
    )


def _project_python(folder: Path) -> str:
    return _specifier(_project_table(folder).get("requires-python", ""), "pyproject.toml")


def _project_table(folder: Path) -> dict[str, Any]:
    path = folder / "pyproject.toml"
    if not path.is_file() or path.is_symlink():
        return {}
    table = _toml(_text(_content(path, "pyproject.toml", _MAX_BYTES)), "pyproject.toml").get(
        "project", {}
    )
    return table if isinstance(table, dict) else {}


class _RequirementsFile:
    """requirements.txt and the files of the folder that it names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.lines: list[str] = []
        self.constraints: list[str] = []
        self.index = ""
        self.extra: list[str] = []
        self.notes: list[str] = []
        self.seen: set[Path] = set()
        self.left = _MAX_BYTES

    def read(self, name: str) -> Requirements:
        self._file(self.folder / name, self.lines, "")
        return Requirements(
            name,
            tuple(self.lines),
            tuple(self.constraints),
            self.index,
            tuple(self.extra),
            notes=tuple(dict.fromkeys(self.notes)),
        )

    def _file(self, path: Path, into: list[str], named_at: str) -> None:
        path = path.resolve()
        if not path.is_relative_to(self.folder) or not path.is_file():
            raise CoveError(
                "bad_source",
                f"{named_at or path.name} is no file of what was deployed",
                hint="requirements are read from files inside the folder",
            )
        if path in self.seen:
            return
        self.seen.add(path)
        here = str(path.relative_to(self.folder))
        content = _content(path, here, self.left)
        self.left -= len(content)
        for number, line in _logical(_text(content)):
            self._line(line, f"{here} line {number}", path.parent, into)

    def _line(self, line: str, where: str, beside: Path, into: list[str]) -> None:
        if index := _INDEX.fullmatch(line):
            if index[1] == "--extra-index-url":
                self.extra.append(index[2])
            else:
                self.index = index[2]
        elif nested := _NESTED.fullmatch(line):
            target = into if nested[1] in {"-r", "--requirement"} else self.constraints
            self._file(beside / nested[2], target, f"{where}: {nested[2]!r}")
        else:
            if _HASHES.search(line):
                self.notes.append(f"{where.split()[0]}: hashes are not checked yet")
            into += _checked([_HASHES.sub("", line).strip()], where)


def _content(path: Path, name: str, left: int) -> bytes:
    """A file's content, if it has at most `left` bytes."""
    with path.open("rb") as file:
        data = file.read(left + 1)
    if len(data) > left:
        raise CoveError(
            "bad_source",
            f"{name} takes the requirements beyond {_MAX_BYTES // 1024**2} MiB",
            hint="name what the source imports itself; what that needs is found by resolving",
        )
    return data


def _text(content: bytes) -> str:
    return content.decode("utf-8", errors="replace")


def _logical(text: str) -> Iterator[tuple[int, str]]:
    """Lines without comments, continuations joined, with the number of their first."""
    pending, first = "", 0
    for number, raw in enumerate(text.splitlines(), 1):
        first = first if pending else number
        line = _COMMENT.sub("", raw).rstrip()
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        whole, pending = (pending + line).strip(), ""
        if whole:
            yield first, whole
    if pending.strip():
        yield first, pending.strip()


def _checked(lines: Iterable[Any], where: str) -> tuple[str, ...]:
    """The lines, if each is a requirement that can be installed without running its code."""
    if not isinstance(lines, list):
        raise CoveError(
            "bad_source", f"{where}: dependencies is no list", hint='write ["name>=1", …]'
        )
    for line in lines:
        try:
            url = Requirement(line).url
        except (InvalidRequirement, TypeError) as error:
            raise CoveError(
                "bad_source",
                f"{where}: {line!r} is no requirement that Cove installs",
                hint="packages are asked for by name, like httpx>=0.27; the folder itself is on "
                "the path anyway, and local, editable and git requirements would have to be "
                "built: wheels only until builds are sandboxed",
            ) from error
        if url and not re.fullmatch(r"https://[^\s@]+\.whl(#\S*)?", url):
            raise CoveError(
                "bad_source",
                f"{where}: {line!r} is not the https address of a wheel",
                hint="wheels only until builds are sandboxed",
            )
    return tuple(lines)


def _specifier(text: Any, where: str) -> str:
    try:
        return str(SpecifierSet(text))
    except (InvalidSpecifier, TypeError, AttributeError) as error:
        raise CoveError(
            "bad_source",
            f"{where}: requires-python = {text!r} is no version specifier",
            hint='write it like ">=3.11"',
        ) from error


def _toml(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CoveError(
            "bad_source", f"{where} is not valid TOML: {error}", hint="correct that line"
        ) from error
    except RecursionError as error:
        raise CoveError(
            "bad_source", f"{where} is nested too deeply", hint="no tool reads it so deeply"
        ) from error
