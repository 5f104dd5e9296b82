"""A sandbox as an OCI runtime's config.json. Pure: same sandbox, same config."""

from __future__ import annotations

from typing import Any

from cove.sandbox.ids import IDS_EACH
from cove.sandbox.seccomp import seccomp
from cove.sandbox.spec import APP, GID, HOME, HOSTNAME, TMP, UID, Bind, Sandbox

NAMESPACES = ("pid", "mount", "ipc", "uts", "cgroup", "user")

# What /proc tells of the host, or lets a program ask of it, whatever the program's ids.
MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/config.gz",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
)
READ_ONLY = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)


def oci_config(box: Sandbox) -> dict[str, Any]:
    """config.json (OCI runtime specification 1.0.2) for a sandbox."""
    return {
        "ociVersion": "1.0.2",
        "root": {"path": box.root, "readonly": True},
        "hostname": HOSTNAME,
        "process": _process(box),
        "mounts": [*_kernel_mounts(box), *(_bind(b, box.recursive_ro) for b in box.binds)],
        "linux": _linux(box),
    }


def _process(box: Sandbox) -> dict[str, Any]:
    nothing: list[str] = []
    sets = ("bounding", "effective", "inheritable", "permitted", "ambient")
    return {
        "terminal": False,
        "user": {"uid": UID, "gid": GID, "umask": 0o022},
        "args": list(box.argv),
        "env": [f"{name}={value}" for name, value in box.env.items()],
        "cwd": APP,
        "capabilities": dict.fromkeys(sets, nothing),
        "noNewPrivileges": True,
        "oomScoreAdj": box.oom_score,
        "rlimits": [
            {"type": "RLIMIT_NOFILE", "hard": box.open_files, "soft": box.open_files},
            {"type": "RLIMIT_CORE", "hard": 0, "soft": 0},
        ],
    }


def _tmpfs(target: str, size: int, *options: str) -> dict[str, Any]:
    # Sizes keep one folder from eating all of `memory`; the pages count against it anyway.
    return {
        "destination": target,
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "nodev", *options, f"size={max(size, 65536) // 1024}k"],
    }


def _kernel_mounts(box: Sandbox) -> list[dict[str, Any]]:
    """What the kernel makes anew for each sandbox. In order: /tmp may hold a bind's target."""
    return [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "noexec", "strictatime", "mode=755", "size=64k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        _tmpfs("/dev/shm", box.memory // 4, "noexec", "mode=1777"),  # noqa: S108 - its own
        _tmpfs(TMP, box.memory // 2, "mode=1777"),
        _tmpfs(HOME, box.memory // 4, "mode=700", f"uid={UID}", f"gid={GID}"),
    ]


def _bind(bind: Bind, recursive_ro: bool) -> dict[str, Any]:
    # rbind, as in a user namespace a bind may not uncover what lies under a submount; "ro"
    # alone stops at those submounts. A file has none, and crun 1.8 fails on "rro" for one.
    options = ["rbind", "ro", "nosuid", "nodev", *(["rro"] if recursive_ro and bind.folder else [])]
    return {
        "destination": bind.target,
        "type": "bind",
        "source": bind.source,
        "options": options,
    }


def _linux(box: Sandbox) -> dict[str, Any]:
    ids = [{"containerID": 0, "hostID": box.first_id, "size": IDS_EACH}]
    memory: dict[str, Any] = {"limit": box.memory}
    if box.limit_swap:
        memory["swap"] = box.memory  # memory and swap together: no swap
    return {
        "namespaces": [
            *({"type": kind} for kind in NAMESPACES),
            {"type": "network", "path": box.netns},
        ],
        "uidMappings": ids,
        "gidMappings": ids,
        "cgroupsPath": box.cgroup,
        # No CPU quota: starting is not throttled. The driver writes it later.
        "resources": {
            "memory": memory,
            "pids": {"limit": box.pids},
            "devices": [{"allow": False, "access": "rwm"}],
        },
        "seccomp": seccomp(box.machine),
        "maskedPaths": list(MASKED),
        "readonlyPaths": list(READ_ONLY),
    }
