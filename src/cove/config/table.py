"""One TOML file, read against a list of keys."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from cove.config.checks import BadValueError, Check, NotBuiltError
from cove.config.lines import Path, key_lines
from cove.errors import CoveError


class Table:
    """One TOML file being read against a list of keys."""

    def __init__(self, text: str, filename: str) -> None:
        self.text, self.filename = text, filename
        try:
            self.values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise CoveError(
                "bad_config", f"{filename} is not valid TOML: {error}", hint="correct that line"
            ) from error
        except RecursionError as error:
            raise CoveError(
                "bad_config",
                f"{filename} is nested too deeply",
                hint="no key of it takes more than a list or a table",
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
            except BadValueError as error:
                raise self.bad(path, str(error), error.hint or f"it is {value!r}") from error
            except NotBuiltError:
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
