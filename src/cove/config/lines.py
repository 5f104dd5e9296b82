"""Which line of a TOML text a key stands on: tomllib keeps that to itself."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import cast

Path = tuple[str, ...]
"""A dotted key, part by part."""


def key_lines(text: str) -> dict[Path, int]:
    """Line of each key and table of a valid TOML text, the first that names it or a key below it.

    Keys of inline tables are found too; those in arrays go by the array's key.
    """
    lines: dict[Path, int] = {}
    for path, line in _Scanner(text):
        for end in range(1, len(path) + 1):
            lines.setdefault(path[:end], line)
    return lines


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
        self._counted, self._lines = 0, 1

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
        self._lines += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._lines
