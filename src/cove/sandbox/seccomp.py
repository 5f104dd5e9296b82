"""The system calls that a sandbox may make: a list of what is allowed, the rest is EPERM.

Grouped by what a call is for, so that a review can ask of each group whether a function
needs it. What is absent on purpose, each a way to kernel code that a function has no use
for: mounting, namespaces and chroot; ptrace and reading other processes' memory; keyrings;
bpf, perf, userfaultfd and io_uring; modules, kexec, reboot, swap, quotas, clocks; file
handles; memory_secret; NUMA placement. TIOCSTI stays reachable: no terminal of the host is
ever inside, so there is nobody's keyboard to fake.
"""

from __future__ import annotations

from typing import Any

EPERM = 1
ENOSYS = 38

# All namespace flags of clone(2): CLONE_NEWNS|NEWCGROUP|NEWUTS|NEWIPC|NEWUSER|NEWPID|NEWNET.
# NEWTIME shares its bit with the exit signal here and is only reachable through clone3.
NAMESPACE_FLAGS = 0x7E020000

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
NETLINK_ROUTE = 0

# 32-bit and x32 calls have numbers of their own and none of these rules: absent, so refused.
ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}

# PER_LINUX, PER_LINUX32, UNAME26 alone and with each, and the query for the current one.
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)

ALLOWED: dict[str, str] = {
    "files: opening, reading, writing, naming; the mount table and file modes decide what": """
        access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3
        faccessat faccessat2 fadvise64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat
        fcntl fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstatfs fsync
        ftruncate futimesat getcwd getdents getdents64 getxattr lchown lgetxattr link linkat
        listxattr llistxattr lremovexattr lseek lsetxattr lstat mkdir mkdirat mknod mknodat
        newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read
        readahead readlink readlinkat readv removexattr rename renameat renameat2 rmdir sendfile
        setxattr splice stat statfs statx symlink symlinkat sync sync_file_range syncfs tee
        truncate umask unlink unlinkat utime utimensat utimes vmsplice write writev cachestat""",
    "memory of its own": """
        brk madvise membarrier mincore mlock mlock2 mlockall mmap mprotect mremap msync munlock
        munlockall munmap pkey_alloc pkey_free pkey_mprotect map_shadow_stack mseal""",
    "processes and threads of its own; clone has a rule below": """
        arch_prctl capget capset execve execveat exit exit_group fork futex futex_requeue
        futex_wait futex_waitv futex_wake get_robust_list get_thread_area getegid geteuid getgid
        getgroups getpgid getpgrp getpid getppid getpriority getresgid getresuid getrlimit
        getrusage getsid gettid getuid ioprio_get ioprio_set kill pidfd_open pidfd_send_signal
        prctl prlimit64 rseq sched_get_priority_max sched_get_priority_min sched_getaffinity
        sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity
        sched_setattr sched_setparam sched_setscheduler sched_yield set_robust_list
        set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setpgid setpriority
        setregid setresgid setresuid setreuid setrlimit setsid setuid tgkill times tkill vfork
        wait4 waitid""",
    "signals, timers, clocks read but never set": """
        alarm clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep pause
        restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
        rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo setitimer sigaltstack signalfd signalfd4
        time timer_create timer_delete timer_getoverrun timer_gettime timer_settime
        timerfd_create timerfd_gettime timerfd_settime""",
    "waiting for many things at once": """
        epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2
        inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy
        io_getevents io_pgetevents io_setup io_submit poll ppoll pselect6 select""",
    "sockets once made; socket has rules below": """
        accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg
        recvmsg sendmmsg sendmsg sendto setsockopt shutdown socketpair""",
    "pipes and System V or POSIX IPC, all within its own namespaces": """
        memfd_create mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink
        msgctl msgget msgrcv msgsnd pipe pipe2 semctl semget semop semtimedop shmat shmctl shmdt
        shmget""",
    "facts, randomness, terminals of its own": """
        getcpu getrandom ioctl sysinfo uname""",
    "walls that a program may build around itself": """
        landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp""",
}


def _equals(index: int, value: int) -> dict[str, Any]:
    return {"index": index, "value": value, "op": "SCMP_CMP_EQ"}


def _allow(name: str, *args: dict[str, Any]) -> dict[str, Any]:
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": list(args)}


def seccomp(machine: str) -> dict[str, Any]:
    """`linux.seccomp` of an OCI config for a machine as uname(1) -m names it.

    `KeyError` for a machine whose call numbers nobody has looked at.
    """
    names = sorted({name for group in ALLOWED.values() for name in group.split()})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": [ARCHITECTURES[machine]],
        "syscalls": [
            {"names": names, "action": "SCMP_ACT_ALLOW"},
            # Its flags lie in memory, where a filter cannot look. ENOSYS makes glibc use clone.
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS},
            _allow(
                "clone",
                {
                    "index": 0,
                    "value": NAMESPACE_FLAGS,
                    "valueTwo": 0,
                    "op": "SCMP_CMP_MASKED_EQ",
                },
            ),
            *(_allow("socket", _equals(0, family)) for family in (AF_UNIX, AF_INET, AF_INET6)),
            # getifaddrs(3) needs route; audit, netfilter and the rest of netlink are the host's.
            _allow("socket", _equals(0, AF_NETLINK), _equals(2, NETLINK_ROUTE)),
            *(_allow("personality", _equals(0, value)) for value in PERSONALITIES),
        ],
    }
