"""A deployed tar.gz becomes a folder, and nothing else on this machine changes."""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, cast

from cove.errors import CoveError

_HEADERS_PER_FILE = 4096
"""Bytes of tar headers and padding that one honest entry may take, long names included."""


def unpack(data: BinaryIO | Path, into: Path, *, limit_bytes: int, limit_files: int) -> None:
    """Unpack a tar.gz into the folder `into`, which must exist and be empty.

    Modes become a+rX, u+w; owners and times are dropped. `CoveError("bad_source")` for paths and
    links that lead out, devices, fifos, more than `limit_bytes` or `limit_files` unpacked, and
    damaged archives; what was unpacked by then is the caller's to throw away. Blocks.
    """
    if isinstance(data, Path):
        with data.open("rb") as file:
            return unpack(file, into, limit_bytes=limit_bytes, limit_files=limit_files)
    ceiling = limit_bytes + (limit_files + 1) * _HEADERS_PER_FILE
    try:
        with gzip.GzipFile(fileobj=data) as plain:
            stream = _Bounded(plain, ceiling, limit_bytes)
            # Stream mode reads forward only, so nothing is read twice and nothing is sought.
            with tarfile.open(mode="r|", fileobj=cast(IO[bytes], stream)) as archive:
                _Unpacking(archive, into, limit_bytes, limit_files).run()
    except (tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise CoveError(
            "bad_source",
            f"the archive cannot be read: {error}",
            hint="send a tar compressed with gzip, as `cove deploy` does",
        ) from error


class _Bounded:
    """A stream that refuses to be longer than said, so that a bomb costs no more than the limit."""

    def __init__(self, stream: gzip.GzipFile, ceiling: int, limit: int) -> None:
        self.stream, self.left, self.limit = stream, ceiling, limit

    def read(self, size: int) -> bytes:
        chunk = self.stream.read(size)
        self.left -= len(chunk)
        if self.left < 0:
            raise _too_big(self.limit)
        return chunk


class _Unpacking:
    """One archive on its way into one folder.

    Links are made last: while files are written there is no link that a path could pass through.
    """

    def __init__(
        self, archive: tarfile.TarFile, into: Path, limit_bytes: int, limit_files: int
    ) -> None:
        self.archive, self.root = archive, into.resolve()
        self.limit_bytes, self.limit_files = limit_bytes, limit_files
        self.bytes = self.files = 0
        self.links: list[tuple[Path, str]] = []

    def run(self) -> None:
        for member in self.archive:
            self.files += 1
            if self.files > self.limit_files:
                raise CoveError(
                    "bad_source",
                    f"the source has more than {self.limit_files} files",
                    hint="leave out what the function does not need, like .venv or node_modules",
                )
            self._place(member)
        for path, target in self.links:
            try:
                path.symlink_to(target)
            except OSError as error:
                raise self._refused_link(path, error.strerror or str(error)) from error
        for path, target in self.links:
            # realpath, because Path.resolve raises for links in a circle, which are harmless.
            if not Path(os.path.realpath(path)).is_relative_to(self.root):
                raise self._refused_link(path, f"links out, to {target}")

    def _refused_link(self, path: Path, why: str) -> CoveError:
        return _refused(str(path.relative_to(self.root)), why)

    def _place(self, member: tarfile.TarInfo) -> None:
        parts = _inside(member.name)
        path = self.root.joinpath(*parts)
        try:
            if member.isdir():
                self._folder(path)
            elif not parts:
                raise _refused(member.name, "is the folder itself")
            elif member.isreg() and not member.issparse():
                self._file(member, path)
            elif member.issym():
                self._link(member, path)
            elif member.islnk():
                self._hardlink(member, path)
            else:
                raise _refused(member.name, "is neither file, folder nor link")
        except OSError as error:
            raise _refused(member.name, error.strerror or str(error)) from error

    def _folder(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        while path != self.root:
            path.chmod(0o755)
            path = path.parent

    def _file(self, member: tarfile.TarInfo, path: Path) -> None:
        self._count(member.size)
        self._folder(path.parent)
        content = self.archive.extractfile(member)
        assert content is not None
        path.unlink(missing_ok=True)
        with content, path.open("xb") as file:
            shutil.copyfileobj(content, file)
        path.chmod(0o755 if member.mode & 0o111 else 0o644)

    def _link(self, member: tarfile.TarInfo, path: Path) -> None:
        if PurePosixPath(member.linkname).is_absolute():
            raise _refused(member.name, f"links out, to {member.linkname}")
        self._folder(path.parent)
        self.links.append((path, member.linkname))

    def _hardlink(self, member: tarfile.TarInfo, path: Path) -> None:
        target = self.root.joinpath(*_inside(member.linkname))
        if not target.is_file():
            raise _refused(member.name, f"links to {member.linkname}, which is no file before it")
        # One file here, but a layer is a copy in which each name has its own.
        self._count(target.stat().st_size)
        self._folder(path.parent)
        os.link(target, path)

    def _count(self, size: int) -> None:
        self.bytes += size
        if self.bytes > self.limit_bytes:
            raise _too_big(self.limit_bytes)


def _inside(name: str) -> tuple[str, ...]:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise _refused(name, "leads out of the folder")
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
