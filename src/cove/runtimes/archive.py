"""A deployed tar.gz becomes a folder, and nothing else on this machine changes."""

from __future__ import annotations

import errno
import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from cove.errors import CoveError
from cove.runtimes.tar import DamagedError, Entry, Tar

_HEADERS_PER_FILE = 4096
"""Bytes of tar headers and padding that one honest entry may take, long names included."""

_MOST_RATIO = 100
_RATIO_FROM = 64 * 1024**2
"""Bytes; what is smaller unpacked may have been packed as tightly as it can be."""

_DEEPEST = 64


def unpack(data: BinaryIO | Path, into: Path, *, limit_bytes: int, limit_files: int) -> None:
    """Unpack a tar.gz into the folder `into`, which must exist and be empty.

    Modes become a+rX, u+w; owners and times are dropped. `CoveError("bad_source")` for paths and
    links that lead out, devices, fifos, two entries of one name, more than `limit_bytes` or
    `limit_files` unpacked or 100 times the archive, and damaged archives; `OSError` where this
    machine cannot keep it. What was unpacked by then is the caller's to throw away. Blocks.
    """
    if isinstance(data, Path):
        with data.open("rb") as file:
            return unpack(file, into, limit_bytes=limit_bytes, limit_files=limit_files)
    packed = data.seek(0, os.SEEK_END)
    data.seek(0)
    ceiling = limit_bytes + (limit_files + 1) * _HEADERS_PER_FILE
    try:
        with gzip.GzipFile(fileobj=data) as plain:
            stream = _Bounded(plain, packed, ceiling, limit_bytes)
            _Unpacking(Tar(stream.read), into, limit_bytes, limit_files).run()
    except (DamagedError, zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise CoveError(
            "bad_source",
            f"the archive cannot be read: {error}",
            hint="send a tar compressed with gzip, as `cove deploy` does",
        ) from error


class _Bounded:
    """A stream that refuses to be longer than said, so that a bomb costs no more than the limit."""

    def __init__(self, stream: gzip.GzipFile, packed: int, ceiling: int, limit: int) -> None:
        self.stream, self.packed, self.ceiling, self.limit = stream, packed, ceiling, limit
        self.length = 0

    def read(self, size: int) -> bytes:
        chunk = self.stream.read(size)
        self.length += len(chunk)
        if self.length > self.ceiling:
            raise _too_big(self.limit)
        if self.length > max(_RATIO_FROM, _MOST_RATIO * self.packed):
            raise CoveError(
                "bad_source",
                f"the archive unpacks to more than {_MOST_RATIO} times its size",
                hint="leave out files that are mostly empty; the program can make them itself",
            )
        return chunk


class _Unpacking:
    """One archive on its way into one folder.

    Links are made last: while files are written there is no link that a path could pass through.
    """

    def __init__(self, tar: Tar, into: Path, limit_bytes: int, limit_files: int) -> None:
        self.tar, self.root = tar, into.resolve()
        self.limit_bytes, self.limit_files = limit_bytes, limit_files
        self.bytes = self.files = 0
        self.links: list[tuple[Path, Entry]] = []

    def run(self) -> None:
        for entry in self.tar:
            self._one_more()
            with _naming(entry):
                self._place(entry)
        for path, entry in self.links:
            with _naming(entry):
                path.symlink_to(entry.target)
        for path, entry in self.links:
            # realpath, because Path.resolve raises for links in a circle, which are harmless.
            if not Path(os.path.realpath(path)).is_relative_to(self.root):
                raise _refused(entry.name, f"links out, to {entry.target}")

    def _place(self, entry: Entry) -> None:
        parts = _inside(entry.name)
        path = self.root.joinpath(*parts)
        match entry.kind:
            case "folder" if not parts:
                pass
            case "folder":
                self._folder(path.parent)
                path.mkdir(exist_ok=True)
                path.chmod(0o755)
            case _ if not parts:
                raise _refused(entry.name, "is the folder itself")
            case "file":
                self._file(entry, path)
            case "link":
                self._link(entry, path)
            case "hardlink":
                self._hardlink(entry, path)
            case "other":
                raise _refused(entry.name, "is neither file, folder nor link")

    def _folder(self, path: Path) -> None:
        """What an entry is in, and counts for as much: a path may bring many folders."""
        missing = []
        while path != self.root and not path.is_dir():
            missing.append(path)
            path = path.parent
        for each in reversed(missing):
            self._one_more()
            each.mkdir()
            each.chmod(0o755)

    def _file(self, entry: Entry, path: Path) -> None:
        self._count(entry.size)
        self._folder(path.parent)
        with path.open("xb") as file:
            for chunk in self.tar.content():
                file.write(chunk)
        path.chmod(0o755 if entry.mode & 0o111 else 0o644)

    def _link(self, entry: Entry, path: Path) -> None:
        if PurePosixPath(entry.target).is_absolute():
            raise _refused(entry.name, f"links out, to {entry.target}")
        self._folder(path.parent)
        self.links.append((path, entry))

    def _hardlink(self, entry: Entry, path: Path) -> None:
        target = self.root.joinpath(*_inside(entry.target))
        if not target.is_file():
            raise _refused(entry.name, f"links to {entry.target}, which is no file before it")
        # One file here, but a layer is a copy in which each name has its own.
        self._count(target.stat().st_size)
        self._folder(path.parent)
        os.link(target, path)

    def _one_more(self) -> None:
        self.files += 1
        if self.files > self.limit_files:
            raise CoveError(
                "bad_source",
                f"the source has more than {self.limit_files} files and folders",
                hint="leave out what the function does not need, like .venv or node_modules",
            )

    def _count(self, size: int) -> None:
        self.bytes += size
        if self.bytes > self.limit_bytes:
            raise _too_big(self.limit_bytes)


@contextmanager
def _naming(entry: Entry) -> Iterator[None]:
    """What the entry itself makes impossible is told with its name."""
    try:
        yield
    except FileExistsError as error:
        raise _refused(entry.name, "clashes with an entry before it") from error
    except (NotADirectoryError, IsADirectoryError) as error:
        raise _refused(entry.name, "is below a file, or a file that is a folder too") from error
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENOENT):
            raise
        raise _refused(entry.name, error.strerror or str(error)) from error


def _inside(name: str) -> tuple[str, ...]:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise _refused(name, "leads out of the folder")
    if len(path.parts) > _DEEPEST:
        raise _refused(f"{name[:60]}…", f"lies more than {_DEEPEST} folders deep")
    return path.parts


def _refused(name: str, why: str) -> CoveError:
    return CoveError(
        "bad_source",
        f"the archive's {name!r} {why}",
        hint="deploy a folder of plain files, folders and links between them",
    )


def _too_big(limit: int) -> CoveError:
    return CoveError(
        "bad_source",
        f"the source is larger than {limit // 1024**2} MiB unpacked",
        hint="leave out what the function does not need, like .venv, node_modules or data",
    )
