"""The list of allowed system calls, as a table to be held against what must never be in it."""

from __future__ import annotations

from typing import Any

import pytest

from cove.sandbox.seccomp import ALLOWED, seccomp

NEVER = """
    acct add_key bpf chroot clock_adjtime clock_settime create_module delete_module
    fanotify_init finit_module fsconfig fsmount fsopen fspick get_mempolicy init_module
    io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load
    kexec_load keyctl lookup_dcookie mbind memfd_secret migrate_pages modify_ldt mount
    mount_setattr move_mount move_pages name_to_handle_at open_by_handle_at open_tree
    perf_event_open pidfd_getfd pivot_root process_madvise process_vm_readv
    process_vm_writev ptrace quotactl quotactl_fd reboot request_key set_mempolicy
    setdomainname sethostname setns settimeofday swapoff swapon syslog umount umount2
    unshare userfaultfd uselib vhangup
"""


def rules(name: str) -> list[dict[str, Any]]:
    return [rule for rule in seccomp("x86_64")["syscalls"] if name in rule["names"]]


def test_what_is_not_listed_is_refused_as_not_permitted() -> None:
    profile = seccomp("x86_64")
    assert (profile["defaultAction"], profile["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 1)
    assert profile["architectures"] == ["SCMP_ARCH_X86_64"]


@pytest.mark.parametrize("name", NEVER.split())
def test_a_dangerous_call_is_never_allowed(name: str) -> None:
    assert rules(name) == []


@pytest.mark.parametrize("name", ["clone", "clone3", "socket", "personality"])
def test_calls_that_are_allowed_in_part_are_in_no_group(name: str) -> None:
    assert all(name not in group.split() for group in ALLOWED.values())


def test_no_call_is_listed_twice() -> None:
    names = [name for group in ALLOWED.values() for name in group.split()]
    assert sorted(names) == sorted(set(names))


def test_clone_is_allowed_without_any_namespace_flag_and_clone3_is_not_there() -> None:
    (clone,) = rules("clone")
    (flags,) = clone["args"]
    assert flags["op"] == "SCMP_CMP_MASKED_EQ"
    assert (flags["index"], flags["valueTwo"]) == (0, 0)
    new = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
    assert flags["value"] == sum(new)
    (clone3,) = rules("clone3")
    assert (clone3["action"], clone3["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)


def test_sockets_are_of_four_families() -> None:
    allowed = {tuple((arg["index"], arg["value"]) for arg in r["args"]) for r in rules("socket")}
    assert allowed == {((0, 1),), ((0, 2),), ((0, 10),), ((0, 16), (2, 0))}


def test_a_machine_nobody_has_looked_at_is_an_error() -> None:
    with pytest.raises(KeyError):
        seccomp("vax")
