"""The skeleton that a sandbox's read-only root is: mount points, links, and a small /etc.

Decided by looking at the host (`survey`), then made (`build`). One skeleton serves every
instance with the same set of mounts: none of them can write to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from cove.sandbox.spec import (
    APP,
    DEPS,
    GID,
    HOME,
    HOSTNAME,
    SECRETS,
    SERVE,
    TMP,
    UID,
    USER,
    Bind,
)

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")

# What programs of the system read in /etc, and nothing that says who or what this host is.
ETC = (
    "alternatives",
    "ca-certificates",
    "ca-certificates.conf",
    "debian_version",
    "gai.conf",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "os-release",
    "pki/ca-trust",
    "pki/tls/certs",
    "protocols",
    "services",
    "ssl/cert.pem",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
    "timezone",
)

FILES = {
    "/etc/passwd": (
        "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\n"
        f"{USER}:x:{UID}:{GID}::{HOME}:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    ),
    "/etc/group": f"root:x:0:\ntty:x:5:\n{USER}:x:{GID}:\nnogroup:x:65534:\n",
    "/etc/hostname": f"{HOSTNAME}\n",
    "/etc/hosts": f"127.0.0.1 localhost {HOSTNAME}\n::1 localhost ip6-localhost ip6-loopback\n",
    # Nobody answers there yet: a lookup fails at once instead of after a timeout.
    "/etc/resolv.conf": "nameserver 127.0.0.1\noptions attempts:1 timeout:5\n",
    "/etc/nsswitch.conf": (
        "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"
        "networks: files\nprotocols: files\nservices: files\n"
    ),
}

# Runtimes give a tmpfs the mode of the folder it covers, whatever its options say.
FOLDERS = {
    "/proc": 0o755,
    "/dev": 0o755,
    "/sys": 0o755,
    "/run": 0o755,
    SECRETS: 0o755,
    HOME: 0o700,
    TMP: 0o1777,
}
LINKS = (("/var/tmp", TMP),)  # noqa: S108 - inside
LOOK_AT = 2000  # entries of a layer: a umask that closes it shows in the first ones
MADE_BY_THE_KERNEL = (TMP, HOME, "/dev", "/proc")


@dataclass(frozen=True, slots=True)
class Skeleton:
    """What a root consists of before anything is mounted, and what is then bound into it."""

    links: tuple[tuple[str, str], ...]
    binds: tuple[Bind, ...]

    @property
    def digest(self) -> str:
        """Names the skeleton: equal for equal mount points, whatever is bound there."""
        points = [(bind.target, bind.folder) for bind in self.binds]
        made = [sorted(FOLDERS.items()), sorted(FILES.items())]
        text = json.dumps([sorted(self.links), sorted(points), *made])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def survey(
    *, code: str, deps: str | None, serve: str | None, executable: str | None, prefix: str | None
) -> Skeleton:
    """What a sandbox on this host sees. Reads links and existence, writes nothing.

    Of home folders only the interpreter's own prefix is ever bound.
    """
    links, binds = _system()
    if executable and prefix:
        more_links, more_binds = _interpreter(executable, prefix, [bind.target for bind in binds])
        links += more_links
        binds += more_binds
    binds.append(_bind(code, APP))
    if deps is not None:
        binds.append(_bind(deps, DEPS))
    if serve is not None:
        binds.append(_bind(serve, SERVE))
    return Skeleton(tuple(links), tuple(binds))


def _bind(path: str, target: str) -> Bind:
    source = os.path.realpath(path)
    return Bind(source, target, os.path.isdir(source))


def _system() -> tuple[list[tuple[str, str]], list[Bind]]:
    links: list[tuple[str, str]] = []
    binds: list[Bind] = []
    for path in (*SYSTEM, *(f"/etc/{name}" for name in ETC)):
        if not os.path.exists(path):
            continue
        # A link into /usr is kept as a link: what it names is there under the same name.
        if os.path.islink(path) and _under(os.path.realpath(path), "/usr"):
            links.append((path, os.readlink(path)))
        else:
            binds.append(_bind(path, path))
    return links, binds


def _interpreter(
    executable: str, prefix: str, seen: Iterable[str]
) -> tuple[list[tuple[str, str]], list[Bind]]:
    """The interpreter's prefix at the place it has and at each that links lead from."""
    covered = list(seen)
    links: list[tuple[str, str]] = []
    binds: list[Bind] = []
    real = os.path.realpath(prefix)
    for place in dict.fromkeys((real, os.path.abspath(prefix))):
        if any(_under(place, target) for target in covered):
            continue
        for part in _parts(real):
            binds.append(_bind(real + part, place + part))
            covered.append(place + part)
    for hop in _hops(executable):
        if not any(_under(hop, target) for target in (*covered, *MADE_BY_THE_KERNEL)):
            links.append((hop, os.path.realpath(hop)))
    return links, binds


def _parts(prefix: str) -> tuple[str, ...]:
    """A prefix whole, or where it is shared with a person's other files, only Python's part."""
    shared = prefix == "/" or prefix.endswith("/.local") or os.path.exists(f"{prefix}/.profile")
    if not shared:
        return ("",)
    return tuple(part for part in ("/bin", "/lib", "/lib64") if os.path.isdir(prefix + part))


def _hops(path: str) -> list[str]:
    """A file's links, each with the folder it lies in resolved, up to the file itself."""
    hops: list[str] = []
    path = os.path.abspath(path)
    while os.path.islink(path) and path not in hops:
        hops.append(path)
        path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
    return hops


def _under(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def build(skeleton: Skeleton, folder: str) -> None:
    """Make the skeleton at `folder`, whole or not at all; one that stands is left as it is.

    Mount points below what the kernel makes anew (/tmp, HOME) are left to the runtime.
    """
    if os.path.isdir(folder):
        return
    draft = tempfile.mkdtemp(prefix=".draft-", dir=os.path.dirname(folder))
    try:
        _fill(skeleton, draft)
        _open_up(draft)
        os.rename(draft, folder)
    except BaseException as e:
        shutil.rmtree(draft, ignore_errors=True)
        # Another start may have made the same one meanwhile.
        if not (isinstance(e, OSError) and os.path.isdir(folder)):
            raise


def _fill(skeleton: Skeleton, root: str) -> None:
    for path in FOLDERS:
        os.makedirs(root + path, exist_ok=True)
    for path, text in FILES.items():
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        with open(root + path, "w") as f:
            f.write(text)
    for bind in skeleton.binds:
        if any(_under(bind.target, made) for made in MADE_BY_THE_KERNEL):
            continue
        if bind.folder:
            os.makedirs(root + bind.target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(root + bind.target), exist_ok=True)
            open(root + bind.target, "a").close()
    for link, target in (*LINKS, *skeleton.links):
        os.makedirs(os.path.dirname(root + link), exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.symlink(target, root + link)


def _open_up(root: str) -> None:
    """Let any id read the skeleton, whatever Cove's umask is."""
    for path, _, files in os.walk(root):
        os.chmod(path, 0o755)  # noqa: S103 - holds nothing but mount points and public facts
        for name in files:
            if not os.path.islink(f"{path}/{name}"):
                os.chmod(f"{path}/{name}", 0o644)
    for place, mode in FOLDERS.items():
        os.chmod(root + place, mode)


def unreadable(path: str) -> str | None:
    """The first file or folder below `path` that other users may not read, if any.

    Looks from the top down, at no more than `LOOK_AT` entries, and follows no links. Blocks.
    """
    if not _open_to_others(os.stat(path)):
        return path
    pending = deque([path] if os.path.isdir(path) else [])
    looked = 0
    while pending and looked < LOOK_AT:
        with os.scandir(pending.popleft()) as entries:
            for entry in entries:
                looked += 1
                if entry.is_symlink():
                    continue
                if not _open_to_others(entry.stat()):
                    return entry.path
                if entry.is_dir():
                    pending.append(entry.path)
    return None


def _open_to_others(info: os.stat_result) -> bool:
    if stat.S_ISDIR(info.st_mode):
        return info.st_mode & 0o005 == 0o005
    # What the owner may run and others may only read would not start either.
    wanted = 0o005 if info.st_mode & 0o100 else 0o004
    return info.st_mode & wanted == wanted


def reachable(folder: str) -> bool:
    """Whether any user may walk down to `folder`: each part above it lets others pass."""
    path = os.path.realpath(folder)
    while True:
        if not os.stat(path).st_mode & 0o001:
            return False
        if path == "/":
            return True
        path = os.path.dirname(path)
