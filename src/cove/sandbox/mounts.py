"""Mounts of this machine: read from the kernel, a tmpfs of Cove's own, and how they are undone."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

MS_NOSUID, MS_NODEV = 0x2, 0x4
MNT_DETACH = 0x2

_libc = ctypes.CDLL(None, use_errno=True)
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/PID/mountinfo (proc(5)). `options` are the file system's own."""

    target: str
    kind: str
    options: tuple[str, ...]


def parse_mounts(mountinfo: str) -> list[Mount]:
    """In the order in which the kernel lists them: what covers something comes after it."""
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        found.append(Mount(_plain(before.split(" ")[4]), kind, tuple(options.split(","))))
    return found


def _plain(path: str) -> str:
    """The kernel writes space, tab, newline and backslash as octal numbers."""
    return _ESCAPE.sub(lambda code: chr(int(code[1], 8)), path)


def mounts() -> list[Mount]:
    """This machine's, now, as this process sees them."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
        return parse_mounts(f.read())


def below(folder: str, among: Iterable[Mount] | None = None) -> list[str]:
    """Where something is mounted below `folder`, itself not counted; the last mounted first."""
    found = mounts() if among is None else among
    return [one.target for one in found if one.target.startswith(f"{folder}/")][::-1]


def is_tmpfs(folder: str) -> bool:
    """Whether a tmpfs is mounted right there. `folder` is a real path."""
    kinds = [one.kind for one in mounts() if one.target == folder]
    return bool(kinds) and kinds[-1] == "tmpfs"


def mount_tmpfs(target: str, size: int, mode: int) -> None:
    """Mount a tmpfs of at most `size` bytes, that is never swapped out where the kernel can.

    `OSError` where it is refused.
    """
    options = f"size={size},mode={mode:o}"
    try:
        _mount_tmpfs(target, f"{options},noswap")  # from Linux 6.4
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        _mount_tmpfs(target, options)


def _mount_tmpfs(target: str, options: str) -> None:
    where, flags = os.fsencode(target), MS_NOSUID | MS_NODEV
    if _libc.mount(b"cove", where, b"tmpfs", flags, options.encode()):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), target)


def unmount(target: str) -> None:
    """Take a mount away, if it is there; files still open in it stay readable to who has them."""
    with contextlib.suppress(OSError):
        if _libc.umount2(os.fsencode(target), MNT_DETACH):
            raise OSError(ctypes.get_errno(), "umount2", target)
