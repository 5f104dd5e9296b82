"""A path as the tar.gz that a deploy sends. The same files make the same bytes."""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cove.config import slug
from cove.errors import CoveError
from cove.sdk.ignore import Ignore

# A file of one of these names says nothing about what it serves; its folder does.
NAMELESS = {"server", "main", "app", "__main__", "index"}
CONFIG = "cove.toml"
BESIDE = ("requirements.txt", "pyproject.toml", CONFIG)


def pack(path: Path) -> IO[bytes]:
    """A tar.gz of that file alone, or of the folder without what `Ignore` leaves out.

    An unnamed temporary file at its start: closing it removes it. Links that leave the folder
    are `bad_source`, since where they lead does not travel; sockets and devices are skipped.
    """
    path = existing(path)
    made = tempfile.TemporaryFile(prefix="cove-")  # noqa: SIM115  the caller closes it
    try:
        with (
            gzip.GzipFile(fileobj=made, mode="wb", filename="", mtime=0, compresslevel=6) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for file, name in _files(path):
                tar.add(file, name, recursive=False, filter=_anonymous)
    except OSError as fault:
        made.close()
        raise CoveError(
            "bad_source",
            f"{fault.filename or path} cannot be read: {fault.strerror}",
            hint="make it readable, or leave it out with a .coveignore file",
        ) from fault
    except BaseException:
        made.close()
        raise
    made.seek(0)
    return made


def fallback_name(path: Path) -> str:
    """The function's name where nothing else gives one: the file's or folder's, as a DNS label."""
    path = path.resolve()
    name = path.name
    if path.is_file():
        name = path.parent.name if path.stem.lower() in NAMELESS else path.stem
    return slug(name) or "function"


def expected_name(path: Path) -> str:
    """What deploying the path will be called, as far as can be told from here."""
    try:
        written = tomllib.loads((path / CONFIG).read_text("utf-8")).get("name")
    except (OSError, ValueError):  # whoever reads it to deploy says what is wrong with it
        written = None
    return written if isinstance(written, str) and written else fallback_name(path)


def left_beside(path: Path) -> list[str]:
    """Files next to a single deployed file that would matter, were its folder deployed."""
    return [name for name in BESIDE if path.is_file() and (path.parent / name).is_file()]


def existing(path: Path) -> Path:
    """The path without links. `bad_source` if nothing is there."""
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError) as fault:
        raise CoveError(
            "bad_source",
            f"there is no {path}",
            hint="give a Python file with an MCP server in it, or a folder",
        ) from fault


def _files(path: Path) -> Iterator[tuple[Path, str]]:
    if not path.is_dir():
        yield path, path.name
        return
    ignore = Ignore.of(path)
    found = False
    for at, folders, names in os.walk(path, onerror=_raise):
        below = Path(at).relative_to(path)
        # Links to folders are listed among the folders, and travel as the links they are.
        links = [name for name in folders if os.path.islink(os.path.join(at, name))]
        folders[:] = sorted(
            name
            for name in folders
            if name not in links and not ignore.leaves_out((below / name).as_posix(), True)
        )
        for name in sorted([*names, *links]):
            file, relative = Path(at, name), (below / name).as_posix()
            if not ignore.leaves_out(relative, name in links) and _travels(path, file):
                found = True
                yield file, relative
    if not found:
        raise CoveError(
            "bad_source",
            f"there is nothing to deploy in {path}",
            hint="is it the right folder, and does its .coveignore leave everything out?",
        )


def _travels(top: Path, file: Path) -> bool:
    mode = file.lstat().st_mode
    if stat.S_ISREG(mode):
        return True
    if not stat.S_ISLNK(mode):
        return False
    target = os.readlink(file)
    lands = os.path.normpath(os.path.join(file.parent, target))
    if os.path.isabs(target) or not Path(lands).is_relative_to(top):
        raise CoveError(
            "bad_source",
            f"{file} is a link to {target}, outside of what is deployed",
            hint="copy what it leads to into the folder, or leave it out with .coveignore",
        )
    return True


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without owner and time; other people may read, so that any uid can run it."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    if member.isreg():
        member.type = tarfile.REGTYPE
        member.mode = 0o755 if member.mode & 0o100 else 0o644
    return member


def _raise(fault: OSError) -> None:
    raise fault
