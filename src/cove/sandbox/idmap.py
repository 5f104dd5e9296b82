"""A folder seen through another mapping of ids, so that a sandbox may read what is its own.

Where a layer is closed to other users (a umask of 077), its owner is shown to the sandbox
as the sandbox's user. The files themselves are not touched. Needs Linux 5.12 and a file
system that knows idmapped mounts (ext4, xfs, btrfs, erofs, tmpfs from 6.3, overlay from 5.19).
"""

from __future__ import annotations

import ctypes
import os
import subprocess

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 0x1, os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOUNT_ATTR_RDONLY, MOUNT_ATTR_IDMAP = 0x1, 0x100000

# The same numbers on every architecture (asm-generic from 424 on).
SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 428, 429, 442

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount_as(source: str, target: str, host_uid: int, host_gid: int) -> None:
    """Mount `source` read-only at `target`, its owner and group shown as these host ids.

    Blocks about 4 ms. `OSError` where kernel or file system cannot; nothing is left then.
    """
    info = os.stat(source)
    mapping = _user_namespace(f"{info.st_uid} {host_uid} 1", f"{info.st_gid} {host_gid} 1")
    try:
        tree = _call(SYS_OPEN_TREE, AT_FDCWD, source.encode(), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
        try:
            attr = _MountAttr(MOUNT_ATTR_RDONLY | MOUNT_ATTR_IDMAP, 0, 0, mapping)
            size = ctypes.sizeof(attr)
            _call(SYS_MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH, ctypes.byref(attr), size)
            empty = ctypes.c_char_p(b"")
            where = target.encode()
            _call(SYS_MOVE_MOUNT, tree, empty, AT_FDCWD, where, MOVE_MOUNT_F_EMPTY_PATH)
        finally:
            os.close(tree)
    finally:
        os.close(mapping)


def _call(number: int, *args: object) -> int:
    result: int = _libc.syscall(number, *args)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _user_namespace(uid_map: str, gid_map: str) -> int:
    """A descriptor of a user namespace with these maps. No process is left in it."""
    holder = subprocess.Popen(
        ["unshare", "--user", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        # cat echoes only once unshare has made the namespace and become it.
        holder.stdin.write(b"\n")
        holder.stdin.flush()
        if not holder.stdout.read(1):
            raise OSError(holder.wait(), "unshare --user failed")
        for name, text in (("uid_map", uid_map), ("gid_map", gid_map)):
            with open(f"/proc/{holder.pid}/{name}", "w") as f:
                f.write(text)
        return os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        holder.stdin.close()
        holder.stdout.close()
        holder.wait()
