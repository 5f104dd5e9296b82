"""What of a folder is not deployed: what tools leave behind, secrets, and its .coveignore.

.coveignore reads as .gitignore does, with fnmatch for patterns: a line without a slash names a
file or folder at any depth, one with a slash a path from the top, a slash at the end only
folders, `!` takes back what an earlier line left out, `#` begins a comment. `*` crosses
slashes. What lies in a folder that is left out cannot be taken back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

FILE = ".coveignore"

ALWAYS = (
    ".git",
    ".hg",
    ".svn",
    ".venv/",
    "venv/",
    "node_modules/",
    "__pycache__/",
    "*.pyc",
    ".mypy_cache/",
    ".pytest_cache/",
    ".ruff_cache/",
    ".tox/",
    ".DS_Store",
    # Secrets do not belong into a layer, where every version keeps them for ever.
    ".env",
    ".env.*",
    "!.env.example",
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One line: what it matches, and whether that is left out or taken back."""

    pattern: str
    anywhere: bool
    folders_only: bool
    out: bool

    def matches(self, path: str, folder: bool) -> bool:
        if self.folders_only and not folder:
            return False
        return fnmatchcase(path.rpartition("/")[2] if self.anywhere else path, self.pattern)


class Ignore:
    """Decides which paths below a folder are left out."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._rules = [rule for line in lines if (rule := _parse(line))]

    @classmethod
    def of(cls, folder: Path) -> Ignore:
        """The rules for that folder: those for all, then its own."""
        file = folder / FILE
        own = file.read_text("utf-8").splitlines() if file.is_file() else []
        return cls([*ALWAYS, *own])

    def leaves_out(self, path: str, folder: bool) -> bool:
        """Whether that path (relative, with slashes) itself is; its parents are not asked."""
        out = False
        for rule in self._rules:
            if rule.matches(path, folder):
                out = rule.out
        return out

    def leaves_out_below(self, path: str) -> bool:
        """Whether that file or one of the folders it is in is left out."""
        parts = path.split("/")
        parents = ("/".join(parts[:n]) for n in range(1, len(parts)))
        return self.leaves_out(path, False) or any(self.leaves_out(p, True) for p in parents)


def _parse(line: str) -> Rule | None:
    text = line.strip()
    if not text or text.startswith("#"):
        return None
    out = not text.startswith("!")
    text = text.removeprefix("!")
    folders_only = text.endswith("/")
    text = text.rstrip("/")
    pattern = text.removeprefix("/").removeprefix("**/")
    anywhere = "/" not in text or (text.startswith("**/") and "/" not in pattern)
    return Rule(pattern, anywhere, folders_only, out) if pattern else None
