"""Read-only trees under DATA/layers, named by what is in them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import stat
import tempfile
import weakref
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from cove.errors import CoveError

_UNFINISHED = ".unfinished-"
_KEY = re.compile(r"[a-z0-9][a-z0-9-]{0,126}")


class Layers:
    """The layers of one Cove. A layer is whole or not there: it is made aside, then renamed."""

    def __init__(self, root: Path) -> None:
        """Open or make `root`, and clear away what an interrupted process left in it. Blocks."""
        self.root = root.absolute()
        self.root.mkdir(parents=True, exist_ok=True)
        # Weak: a key's lock lives as long as somebody holds or waits for it.
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._unrecorded: set[str] = set()
        for unfinished in self.root.glob(_UNFINISHED + "*"):
            _discard(unfinished)

    def __repr__(self) -> str:
        return f"<Layers {self.root} [{len(list(self._keys()))}]>"

    def add_tree(self, folder: Path) -> str:
        """Copy a folder's files, folders and links into a layer; its path. Blocks.

        Equal trees are one layer: the key is a digest of relative paths, modes and contents.
        `CoveError("bad_source")` for anything that is neither file, folder nor link.
        """
        unfinished = self._unfinished()
        try:
            digest = hashlib.sha256()
            for source, name in _walk(folder):
                _copy(source, name, unfinished / name, digest)
            return self._finish(unfinished, "code-" + digest.hexdigest()[:40])
        finally:
            _discard(unfinished)

    async def build(self, key: str, make: Callable[[Path], Awaitable[None]]) -> tuple[str, bool]:
        """The path of the layer `key`, and whether this call made it.

        Where it is missing, `make` fills an empty folder. Callers of one key wait for the first;
        if that one fails or is cancelled nothing is left and the next makes it.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no layer key")
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            path = self.root / key
            if path.is_dir():
                self._unrecorded.add(str(path))
                return str(path), False
            unfinished = self._unfinished()
            try:
                await make(unfinished)
                return self._finish(unfinished, key), True
            finally:
                await asyncio.to_thread(_discard, unfinished)

    def prune(self, keep: set[str]) -> list[str]:
        """Remove the layers whose paths are not in `keep`; the paths removed. Blocks.

        One that this process handed out and that no `keep` has named since belongs to a deploy
        that has yet to record it, and stays.
        """
        self._unrecorded -= keep
        spared = keep | self._unrecorded
        gone = [
            path for path in (str(self.root / key) for key in self._keys()) if path not in spared
        ]
        for path in gone:
            # Renamed first: a removal cut short must not leave half a layer under its name.
            doomed = self._unfinished()
            os.rename(path, doomed)
            _discard(doomed)
        return gone

    def _keys(self) -> Iterator[str]:
        return (p.name for p in sorted(self.root.iterdir()) if _KEY.fullmatch(p.name))

    def _unfinished(self) -> Path:
        path = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self.root))
        path.chmod(0o755)
        return path

    def _finish(self, unfinished: Path, key: str) -> str:
        path = self.root / key
        if not path.is_dir():
            unfinished.rename(path)
        self._unrecorded.add(str(path))
        return str(path)


def _walk(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Everything below `folder`, parents first, in an order that does not depend on the disk."""
    pending = [folder]
    while pending:
        entries = sorted(pending.pop().iterdir())
        for entry in entries:
            yield entry, entry.relative_to(folder)
        pending += [entry for entry in reversed(entries) if _is_folder(entry)]


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _copy(source: Path, name: Path, target: Path, digest: hashlib._Hash) -> None:
    mode = source.lstat().st_mode
    record = [os.fsencode(name)]
    if stat.S_ISDIR(mode):
        target.mkdir()
        target.chmod(0o755)
        record.append(b"d")
    elif stat.S_ISLNK(mode):
        link = os.readlink(source)
        target.symlink_to(link)
        record += [b"l", os.fsencode(link)]
    elif stat.S_ISREG(mode):
        shutil.copyfile(source, target)
        runs = bool(mode & 0o111)
        target.chmod(0o755 if runs else 0o644)
        with target.open("rb") as file:
            record += [b"x" if runs else b"f", hashlib.file_digest(file, "sha256").digest()]
    else:
        raise CoveError(
            "bad_source",
            f"{str(name)!r} is neither file, folder nor link",
            hint="deploy a folder of plain files, folders and links",
        )
    for part in record:
        digest.update(len(part).to_bytes(8, "big") + part)


def _discard(path: Path) -> None:
    """Remove a folder that may be gone already: renamed into place, or cleared by another."""
    shutil.rmtree(path, ignore_errors=True)
