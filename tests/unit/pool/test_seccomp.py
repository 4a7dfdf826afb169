"""The programs that get loaded, judged as bytes by a machine of our own.

What is expected is spelled here once more, by hand: the lists, the numbers (from
libseccomp and the host's headers) and the arguments (as the kernel's headers name
them), so that a slip in ``sandrun/pool/seccomp.py`` is not its own witness.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import tempfile
from pathlib import Path

import pyseccomp
import pytest
from bpf_interpreter import parse, run, unreachable

from sandrun.errors import HostError
from sandrun.pool import seccomp
from sandrun.pool.syscall_numbers import NUMBERS
from sandrun.pool.zygote import warm_python

ALLOW, KILL = 0x7FFF_0000, 0x8000_0000
X86_64, I386, AARCH64, ARM, RISCV64 = 0xC000003E, 0x40000003, 0xC00000B7, 0x40000028, 0xC00000F3
ARCHES = {"x86_64": X86_64, "aarch64": AARCH64}
LIBSECCOMP = {"x86_64": pyseccomp.Arch.X86_64, "aarch64": pyseccomp.Arch.AARCH64}
NEWER = {"open_tree_attr": 467, "cachestat": 451}  # than libseccomp 2.5.4
X32 = 0x4000_0000
HIGH = 0xDEAD_BEEF << 32


def refused(number: int) -> int:
    return 0x0005_0000 | number


PLAIN = """
read write readv writev pread64 pwrite64 preadv pwritev close close_range lseek dup dup2 dup3 pipe
pipe2 poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait
eventfd2 sendfile copy_file_range open openat creat stat lstat fstat newfstatat statx statfs
fstatfs access faccessat faccessat2 getdents64 getcwd chdir fchdir mkdir mkdirat rmdir unlink
unlinkat rename renameat link linkat symlink symlinkat readlink readlinkat chmod fchmod
fchmodat truncate ftruncate fallocate msync umask utimensat flock munmap
mremap mprotect brk fork vfork execve exit exit_group wait4 waitid kill tgkill tkill getpid getppid
gettid getpgrp getpgid getsid setsid setpgid set_tid_address set_robust_list rseq getrlimit
getrusage times sysinfo uname sched_yield sched_getaffinity getuid geteuid getgid getegid getgroups
getresuid getresgid setuid setgid setresuid setresgid capget getpriority getrandom clock_gettime
clock_getres clock_nanosleep nanosleep gettimeofday time alarm setitimer getitimer timer_create
timer_settime timer_gettime timer_getoverrun timer_delete rt_sigaction rt_sigprocmask rt_sigreturn
rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack pause restart_syscall bind connect listen
accept accept4 getsockname getpeername sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg
shutdown
""".split()

KILLED = """
ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_getfd userfaultfd bpf
perf_event_open keyctl add_key request_key mount umount2 pivot_root chroot open_tree open_tree_attr
move_mount fsopen fsconfig fsmount fspick mount_setattr unshare setns open_by_handle_at
name_to_handle_at fanotify_init fanotify_mark kexec_load kexec_file_load init_module finit_module
delete_module reboot swapon swapoff acct settimeofday clock_settime adjtimex clock_adjtime iopl
ioperm modify_ldt nfsservctl uselib lookup_dcookie _sysctl ustat sysfs quotactl_fd
""".split()

ERRNOS = {
    0: "fsync fdatasync",  # not made, and said to be
    errno.EPERM: """
        setrlimit chown fchown lchown fchownat setgroups setreuid setregid capset mlock mlock2
        mlockall munlock sched_setaffinity sched_setscheduler sched_setparam sched_setattr
        ioprio_set mbind set_mempolicy get_mempolicy migrate_pages move_pages sync syncfs
        sethostname setdomainname quotactl syslog vhangup""",
    errno.EINVAL: "splice vmsplice tee seccomp",
    errno.ENOSYS: """
        clone3 io_uring_setup io_uring_enter io_uring_register openat2 pidfd_open pkey_alloc
        pkey_free pkey_mprotect memfd_create execveat membarrier inotify_init inotify_init1
        signalfd4 timerfd_create preadv2 pwritev2 mincore cachestat""",
    errno.EOPNOTSUPP: """
        getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr setxattr lsetxattr fsetxattr
        removexattr lremovexattr fremovexattr""",
}

TIOCSTI, TIOCLINUX, TIOCSETD, SIOCGIFCONF, RNDADDENTROPY = (
    0x5412,
    0x541C,
    0x5423,
    0x8912,
    0x40085203,
)
PTHREAD_FLAGS = 0x003D_0F00
INET, INET6, UNIX = socket.AF_INET, socket.AF_INET6, socket.AF_UNIX
STREAM, DGRAM, RAW = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW
CLOEXEC, NONBLOCK = socket.SOCK_CLOEXEC, socket.SOCK_NONBLOCK

# (call, arguments, answer); "ok" means allowed, else the errno
JOB_CASES: list[tuple[str, tuple[int, ...], int | str]] = [
    ("clone", (17,), "ok"),  # SIGCHLD
    ("clone", (0x0120_0011,), "ok"),  # glibc's fork
    ("clone", (PTHREAD_FLAGS,), "ok"),
    ("clone", (0x4111,), "ok"),  # VM|VFORK
    ("clone", (0x8000_0011,), "ok"),  # CLONE_IO
    *(
        ("clone", (flag | 17,), errno.EPERM)
        for flag in (
            0x20000,
            0x2000000,
            0x4000000,
            0x8000000,
            0x10000000,
            0x20000000,
            0x40000000,
            0x1000,
            0x2000,
            0x8000,
            0x800000,
            0x7E020000,
        )
    ),
    ("clone", (0x10000000 | PTHREAD_FLAGS,), errno.EPERM),
    ("clone", (0x10000011 | HIGH,), errno.EPERM),
    ("clone", (17 | HIGH,), "ok"),  # the kernel takes the low half
    ("clone3", (0, 88), errno.ENOSYS),
    ("mmap", (0, 4096, 3, 0x22), "ok"),
    ("mmap", (0, 4096, 7, 0x22), "ok"),  # V8
    ("mmap", (0, 4096, 3, 0x20022), "ok"),  # MAP_STACK
    ("mmap", (0, 4096, 3, 0x40022), errno.EINVAL),
    ("mmap", (0, 4096, 3, 0x40022 | HIGH), errno.EINVAL),
    ("mmap", (0x40000, 0x40000, 0x40000, 0x22, 0x40000, 0x40000), "ok"),  # only in flags
    *(("madvise", (0, 4096, advice), "ok") for advice in (*range(5), 8, 10, 14, 15, 16, 17, 18)),
    *(("madvise", (0, 4096, advice), "ok") for advice in (20, 21, 22, 23)),
    *(
        ("madvise", (0, 4096, advice), errno.EINVAL)
        for advice in (5, 7, 9, 11, 12, 13, 19, 24, 25, 100, 101, 2**31, 2**32 - 1)
    ),
    ("madvise", (0, 4096, 12 | HIGH), errno.EINVAL),
    ("prlimit64", (0, 7), "ok"),
    ("prlimit64", (1, 7), errno.EPERM),
    ("prlimit64", (2**32 - 1, 7), errno.EPERM),
    ("prlimit64", (1 | HIGH, 7), errno.EPERM),
    *(("prctl", (o,), "ok") for o in (1, 2, 3, 15, 16, 23, 29, 30, 38, 39, 41, 42, 0x53564D41)),
    *(
        ("prctl", (o,), errno.EINVAL)
        for o in (
            0,
            4,
            8,
            9,
            13,
            21,
            22,
            24,
            26,
            28,
            31,
            35,
            36,
            40,
            43,
            47,
            52,
            53,
            55,
            62,
            67,
            71,
        )
    ),
    ("prctl", (0x59616D61,), errno.EINVAL),  # PR_SET_PTRACER
    ("prctl", (22 | HIGH,), errno.EINVAL),
    *(
        ("fcntl", (0, c), "ok")
        for c in (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032, 1033, 1034)
    ),
    *(
        ("fcntl", (0, c), errno.EPERM)
        for c in (8, 9, 10, 11, 15, 16, 17, 35, 39, 1024, 1025, 1026, 1029, 1031, 1035, 1036, 2**31)
    ),
    ("fcntl", (0, fcntl.F_SETOWN | HIGH), errno.EPERM),
    *(
        ("ioctl", (0, c), "ok")
        for c in (
            0x5401,
            0x5402,
            0x5403,
            0x5404,
            0x540F,
            0x5413,
            0x541B,
            0x5421,
            0x5450,
            0x5451,
            0x40049409,
        )
    ),
    *(
        ("ioctl", (0, c), errno.ENOTTY)
        for c in (
            TIOCSTI,
            TIOCLINUX,
            TIOCSETD,
            SIOCGIFCONF,
            RNDADDENTROPY,
            0,
            0x5405,
            0x540E,
            0x5410,
            0x5422,
            0x5452,
            0x8914,
            0x8946,
            0x1261,
            0xAE01,
            0x4004_9408,
            2**32 - 1,
        )
    ),
    *(("ioctl", (0, c | HIGH), errno.ENOTTY) for c in (TIOCSTI, TIOCLINUX, TIOCSETD)),
    ("socket", (UNIX, STREAM), "ok"),
    ("socket", (UNIX, DGRAM | CLOEXEC), "ok"),
    *(
        ("socket", (family, kind | flags, protocol), "ok")
        for family in (INET, INET6)
        for kind, protocol in ((STREAM, 0), (STREAM, 6), (DGRAM, 0), (DGRAM, 17))
        for flags in (0, CLOEXEC | NONBLOCK)
    ),
    *(
        ("socket", (family, kind, protocol), errno.EAFNOSUPPORT)
        for family in (INET, INET6)
        for kind, protocol in (
            (STREAM, 262),
            (STREAM, 132),
            (DGRAM, 136),
            (DGRAM, 1),
            (DGRAM, 58),
            (RAW, 255),
            (RAW, 0),
            (socket.SOCK_SEQPACKET, 132),
            (10, 0),
            (6, 33),
            (STREAM, 17),
            (DGRAM, 6),
        )
    ),
    *(
        ("socket", (family, kind), errno.EAFNOSUPPORT)
        for family in (0, 3, 4, 9, 15, 16, 17, 21, 29, 30, 31, 38, 40, 43, 44, 45, 2**31)
        for kind in (STREAM, RAW)
    ),
    ("socket", (40 | HIGH, STREAM), errno.EAFNOSUPPORT),
    ("socket", (INET | HIGH, RAW | HIGH), errno.EAFNOSUPPORT),
    ("socketpair", (UNIX, STREAM), "ok"),
    ("socketpair", (30, STREAM), errno.EAFNOSUPPORT),  # TIPC
    *(("setsockopt", (3, 1, o), "ok") for o in (2, 4, 5, 6, 7, 8, 9, 13, 15, 16, 20, 21)),
    *(("setsockopt", (3, 6, o), "ok") for o in (1, 3, 4, 5, 6, 12, 18, 23)),
    *(("setsockopt", (3, 0, o), "ok") for o in (1, 2, 10, 11)),
    *(("setsockopt", (3, 41, o), "ok") for o in (16, 25, 26)),
    *(("setsockopt", (3, 1, o), errno.ENOPROTOOPT) for o in (25, 26, 27, 32, 33, 36, 50, 51, 60)),
    *(("setsockopt", (3, 6, o), errno.ENOPROTOOPT) for o in (13, 14, 19, 31, 35, 38)),
    *(("setsockopt", (3, 0, o), errno.ENOPROTOOPT) for o in (16, 32, 35, 39, 64, 96)),
    *(("setsockopt", (3, level, 1), errno.ENOPROTOOPT) for level in (17, 132, 263, 270, 271, 282)),
    *(
        ("futex", (0, o | private), "ok")
        for o in (0, 1, 3, 4, 5, 9, 10)
        for private in (0, 128, 384)
    ),
    *(("futex", (0, o | 128), errno.ENOSYS) for o in (2, 6, 7, 8, 11, 12, 13, 14, 64)),
    ("futex", (0, 6 | HIGH), errno.ENOSYS),
    ("mknodat", (0, 0, 0o010644), "ok"),
    *(("renameat2", (0, 0, 0, 0, flags), "ok") for flags in (0, 1, 2)),
    *(("renameat2", (0, 0, 0, 0, flags), errno.EPERM) for flags in (4, 5, 6, 4 | 1 << 32)),
    *(
        ("mknodat", (0, 0, mode | 0o644), errno.EPERM)
        for mode in (0, 0o20000, 0o40000, 0o60000, 0o100000, 0o120000, 0o140000, 0o170000)
    ),
    *(("getsockopt", (3, 1, option), "ok") for option in (3, 4, 7, 8, 17, 30, 38, 39, 57, 59)),
    *(("getsockopt", (3, 6, option), "ok") for option in (1, 2, 11, 13)),
    *(("getsockopt", (3, 1, option), errno.ENOPROTOOPT) for option in (64, 77, 76, -1, 77 | HIGH)),
    *(("getsockopt", (3, 6, option), errno.ENOPROTOOPT) for option in (32, 35, 40, 35 | HIGH)),
    *(("getsockopt", (3, level, 64), errno.ENOPROTOOPT) for level in (0, 41, 132, 255, 284)),
    *(("fadvise64", (3, 0, 0, advice), "ok") for advice in (0, 1, 2, 3)),
    *(("fadvise64", (3, 0, 0, advice), 0) for advice in (4, 4 | HIGH, 5, 6, -1)),
    ("setpriority", (0, 0, 5), "ok"),
    ("setpriority", (0, 1, 5), errno.EPERM),
    ("setpriority", (1, 0, 5), errno.EPERM),
    ("setpriority", (2, 0, 5), errno.EPERM),
    ("personality", (0,), "ok"),
    ("personality", (0xFFFFFFFF,), "ok"),
    ("personality", (-1,), "ok"),
    ("personality", (0x0040000,), errno.EPERM),
    ("personality", (0x0400000,), errno.EPERM),
]

X86_CASES: list[tuple[str, tuple[int, ...], int | str]] = [
    ("mknod", (0, 0o010644), "ok"),
    ("mknod", (0, 0o020644), errno.EPERM),
    ("mknod", (0, 0o010000 | HIGH), "ok"),
    ("arch_prctl", (0x1002,), "ok"),
    ("arch_prctl", (0x1003,), "ok"),
    *(("arch_prctl", (o,), errno.EINVAL) for o in (0x1001, 0x1004, 0x1012, 0x1023, 0x4002, 0x5001)),
]

HTTP_CASES: list[tuple[str, tuple[int, ...], int | str]] = [
    *((name, (), errno.EPERM) for name in ("socket", "connect", "bind", "clone", "kill", "wait4")),
    *((name, (), errno.EACCES) for name in ("openat", "openat2", "statx", "faccessat2")),
    *((name, (), errno.ENOSYS) for name in ("io_uring_setup", "io_uring_enter", "clone3")),
    *((name, (), "kill") for name in ("execve", "execveat", "ptrace", "mount", "bpf")),
    ("socketpair", (UNIX, STREAM | CLOEXEC), "ok"),
    ("socketpair", (UNIX, socket.SOCK_SEQPACKET | CLOEXEC | NONBLOCK), "ok"),
    ("socketpair", (UNIX, DGRAM), errno.EPERM),
    ("socketpair", (UNIX, RAW), errno.EPERM),
    ("socketpair", (INET, STREAM), errno.EPERM),
    ("sendto", (3, 0, 0, socket.MSG_NOSIGNAL), "ok"),
    ("sendto", (3, 0, 0, 0x2000_0000), errno.EPERM),
    ("sendmsg", (3, 0, socket.MSG_NOSIGNAL), "ok"),
    ("sendmsg", (3, 0, 0x2000_0000 | HIGH), errno.EPERM),
    ("mmap", (0, 4096, 3, 0x22), "ok"),
    ("mmap", (0, 4096, 5, 0x22), errno.EPERM),
    ("mprotect", (0, 4096, 4), errno.EPERM),
    ("mprotect", (0, 4096, 3), "ok"),
    ("newfstatat", (3, 0, 0, 0x1000), "ok"),
    ("newfstatat", (3, 0, 0, 0), errno.EACCES),
    ("memfd_create", (0, 3), "ok"),
    ("memfd_create", (0, 7), errno.EPERM),
    ("ioctl", (0, 0x5411), "ok"),
    ("ioctl", (0, TIOCSTI), errno.EPERM),
    ("setsockopt", (3, 6, 1), "ok"),
    ("setsockopt", (3, 6, 31), errno.EPERM),  # TCP_ULP
    ("fcntl", (0, 1033), "ok"),
    ("fcntl", (0, 8), errno.EPERM),
    ("prctl", (15,), "ok"),
    ("prctl", (22,), errno.EPERM),
]

ALL = [(policy, machine) for policy in seccomp.POLICIES for machine in ARCHES]


def number(name: str, machine: str) -> int | None:
    """libseccomp's number; ``None`` if the machine lacks the call."""
    if name in NEWER:
        return NEWER[name]
    resolved = pyseccomp.resolve_syscall(LIBSECCOMP[machine], name)
    return resolved if resolved >= 0 else None


def answer(program: bytes, machine: str, name: str, arguments: tuple[int, ...] = ()) -> int:
    nr = number(name, machine)
    assert nr is not None, name
    return run(parse(program), ARCHES[machine], nr, arguments).value


def expect(outcome: int | str) -> int:
    if isinstance(outcome, int):
        return refused(outcome)
    return {"ok": ALLOW, "kill": KILL}[outcome]


@pytest.mark.parametrize(("policy", "machine"), ALL)
def test_a_program_is_well_formed_small_and_has_no_dead_code(policy: str, machine: str) -> None:
    program = seccomp.program(seccomp.POLICIES[policy], machine)
    instructions = parse(program)
    assert len(instructions) <= 330
    assert not unreachable(instructions)


@pytest.mark.parametrize("machine", ARCHES)
def test_every_number_of_a_job_has_the_answer_that_the_lists_say(machine: str) -> None:
    instructions = parse(seccomp.job_program("default", machine))
    expected = dict.fromkeys(range(4096), refused(errno.ENOSYS))
    lists: list[tuple[int, list[str]]] = [(ALLOW, PLAIN), (KILL, KILLED)]
    lists += [(refused(value), names.split()) for value, names in ERRNOS.items()]
    for value, names in lists:
        expected |= {nr: value for name in names if (nr := number(name, machine)) is not None}
    ruled = {number(name, machine) for name in seccomp.JOB_RULES}
    for nr in range(4096):
        outcome = run(instructions, ARCHES[machine], nr)
        if nr in ruled:
            assert outcome.looked_at_arguments, nr
        else:
            assert (outcome.value, outcome.looked_at_arguments) == (expected[nr], False), nr


@pytest.mark.parametrize(("policy", "machine"), ALL)
def test_another_architecture_is_killed_whatever_the_number(policy: str, machine: str) -> None:
    instructions = parse(seccomp.program(seccomp.POLICIES[policy], machine))
    others = {X86_64, I386, AARCH64, ARM, RISCV64, 0, 0xFFFF_FFFF} - {ARCHES[machine]}
    for arch in others:
        assert {run(instructions, arch, nr).value for nr in range(0, 4096, 7)} == {KILL}


@pytest.mark.parametrize("policy", seccomp.POLICIES)
def test_x32_is_killed_and_negative_numbers_are_unknown(policy: str) -> None:
    chosen = seccomp.POLICIES[policy]
    instructions = parse(seccomp.program(chosen, "x86_64"))
    assert {run(instructions, X86_64, X32 | nr).value for nr in range(4096)} == {KILL}
    for nr in (-1, -2, 0x8000_0000):
        assert run(instructions, X86_64, nr).value == refused(chosen.default)


@pytest.mark.parametrize("machine", ARCHES)
def test_every_argument_case_of_a_job(machine: str) -> None:
    cases = JOB_CASES + (X86_CASES if machine == "x86_64" else [])
    assert len(cases) > 150
    program = seccomp.job_program("default", machine)
    for name, arguments, outcome in cases:
        assert answer(program, machine, name, arguments) == expect(outcome), (name, arguments)


@pytest.mark.parametrize("machine", ARCHES)
def test_every_argument_case_of_http(machine: str) -> None:
    program = seccomp.http_program(machine)
    for name, arguments, outcome in HTTP_CASES:
        assert answer(program, machine, name, arguments) == expect(outcome), (name, arguments)


@pytest.mark.parametrize("machine", ARCHES)
def test_the_zygote_differs_from_a_job_only_where_it_is_said(machine: str) -> None:
    job, zygote = seccomp.job_program("default", machine), seccomp.zygote_program(machine)
    more = {"landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"}
    arch = ARCHES[machine]
    changed = {
        name
        for name, numbers in NUMBERS.items()
        if (nr := numbers[0 if machine == "x86_64" else 1]) is not None
        and run(parse(job), arch, nr)[0] != run(parse(zygote), arch, nr)[0]
    }
    assert changed == more  # seccomp(0) = strict mode stays refused
    for arguments, outcome in (
        ((1, 0), "ok"), ((1, 1), "ok"), ((2, 0), "ok"), ((1, 8), errno.EINVAL),
        ((1, 9 | HIGH), errno.EINVAL), ((0,), errno.EINVAL), ((3,), errno.EINVAL),
    ):  # fmt: skip
        assert answer(zygote, machine, "seccomp", arguments) == expect(outcome)
    assert answer(zygote, machine, "prctl", (4,)) == ALLOW  # PR_SET_DUMPABLE
    for name, arguments, outcome in JOB_CASES:
        if (name, arguments) != ("prctl", (4,)):
            assert answer(zygote, machine, name, arguments) == expect(outcome), (name, arguments)
    for request in seccomp.LISTENER_IOCTL.values():
        assert answer(zygote, machine, "ioctl", (0, request)) == ALLOW
        assert answer(job, machine, "ioctl", (0, request)) == refused(errno.ENOTTY)


@pytest.mark.parametrize("machine", ARCHES)
def test_a_warm_interpreter_is_a_job_whose_farewell_is_heard(machine: str) -> None:
    job, warm = (seccomp.job_program(name, machine) for name in ("default", "warm"))
    arch = ARCHES[machine]
    for nr in range(4096):
        assert run(parse(warm), arch, nr).value == run(parse(job), arch, nr).value
    for name, arguments, outcome in JOB_CASES:
        assert answer(warm, machine, name, arguments) == expect(outcome), (name, arguments)
    told = seccomp.FAREWELL
    for status in (0, 1, 0xFF, HIGH):
        assert answer(warm, machine, "exit_group", (told | status,)) == seccomp.USER_NOTIF
        assert answer(warm, machine, "exit_group", (status,)) == ALLOW
        assert answer(warm, machine, "exit", (told | status,)) == ALLOW
    for near in (told - 1, told + 0x100, told >> 8, -told):
        assert answer(warm, machine, "exit_group", (near,)) == ALLOW
    assert told == warm_python.FAREWELL  # runs without sandrun beside it


@pytest.mark.parametrize("machine", ARCHES)
def test_compute_makes_threads_but_no_process_program_or_socket(machine: str) -> None:
    program = seccomp.job_program("compute", machine)
    assert answer(program, machine, "clone", (PTHREAD_FLAGS,)) == ALLOW
    for flags in (17, 0x0120_0011, 0x4111, PTHREAD_FLAGS | 0x10000000):
        assert answer(program, machine, "clone", (flags,)) == refused(errno.EPERM)
    assert answer(program, machine, "execve") == refused(errno.EPERM)
    assert answer(program, machine, "socket", (UNIX, STREAM)) == refused(errno.EAFNOSUPPORT)
    assert answer(program, machine, "ptrace") == KILL
    started = seccomp.job_program("compute_exec", machine)
    assert answer(started, machine, "execve") == ALLOW
    assert answer(started, machine, "clone", (17,)) == refused(errno.EPERM)


@pytest.mark.parametrize("machine", ARCHES)
def test_compute_allows_nothing_that_a_job_may_not(machine: str) -> None:
    column = 0 if machine == "x86_64" else 1
    allowed = {name for group in seccomp.COMPUTE_EXEC.allowed for name in group.names}
    assert allowed < {name for group in seccomp.DEFAULT.allowed for name in group.names}
    full = parse(seccomp.job_program("default", machine))
    small = parse(seccomp.job_program("compute_exec", machine))
    for numbers in NUMBERS.values():
        nr = numbers[column]
        if nr is not None and run(small, ARCHES[machine], nr).value == ALLOW:
            assert run(full, ARCHES[machine], nr).value == ALLOW


@pytest.mark.parametrize("policy", seccomp.POLICIES.values(), ids=lambda policy: policy.name)
def test_no_call_is_in_two_lists_of_a_policy(policy: seccomp.Policy) -> None:
    allowed = [name for group in policy.allowed for name in group.names]
    killed = [name for group in policy.killed for name in group.names]
    assert len(allowed) == len(set(allowed))
    assert len(killed) == len(set(killed))
    assert not set(killed) & set(allowed)
    assert set(policy.rules) <= set(allowed)


def test_every_list_and_rule_says_why() -> None:
    for policy in seccomp.POLICIES.values():
        rows = (*policy.allowed, *policy.refused, *policy.killed, *policy.rules.values())
        assert all(row.why for row in rows)


def test_the_tables_hold_just_the_calls_that_are_named() -> None:
    named = {
        name
        for policy in seccomp.POLICIES.values()
        for row in (*policy.allowed, *policy.refused, *policy.killed)
        for name in row.names
    }
    assert set(NUMBERS) == named


def test_the_published_numbers_are_those_of_the_documents() -> None:
    here = seccomp.describe("x86_64")
    assert (here.allowed, here.plain, here.by_argument) == (170, 151, 19)
    assert (here.killed, here.default) == (53, "ENOSYS")
    assert here.instructions == len(seccomp.job_program("default", "x86_64")) // 8
    listed = [name for group in here.groups if group.action == "allow" for name in group.calls]
    assert sorted(listed) == sorted(PLAIN)
    assert seccomp.describe("aarch64").allowed == 143


def test_an_unknown_machine_is_refused_with_what_there_is() -> None:
    with pytest.raises(HostError, match=r"riscv64.*x86_64, aarch64"):
        seccomp.job_program("default", "riscv64")


@pytest.mark.parametrize("machine", ARCHES)
def test_libseccomp_knows_the_same_numbers(machine: str) -> None:
    assert seccomp.cross_check(machine) == []


def test_a_host_without_libseccomp_is_told_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyseccomp", None)
    with pytest.raises(HostError, match="apt-get install libseccomp2"):
        seccomp.cross_check("x86_64")


HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")


@pytest.mark.skipif(not HEADER.exists(), reason="this host has no kernel headers for x86-64")
def test_the_kernel_headers_have_the_same_numbers() -> None:
    found = dict(re.findall(r"#define __NR_(\w+) (\d+)", HEADER.read_text()))
    for name, (ours, _) in NUMBERS.items():
        if name in found:
            assert ours == int(found[name]), name


@pytest.mark.parametrize("machine", ARCHES)
def test_libseccomp_builds_an_equal_filter_for_http(machine: str) -> None:
    """The given library, asked for the same policy, answers every call the same way."""
    newer = {number(name, machine) for name in NEWER}
    theirs = parse(_built_by_libseccomp(machine))
    ours = parse(seccomp.http_program(machine))
    arch = ARCHES[machine]
    calls: list[tuple[int | None, tuple[int, ...]]] = [(nr, ()) for nr in range(4096)]
    calls += [(number(name, machine), words) for name, words, _ in HTTP_CASES + JOB_CASES]
    fstatat = number("newfstatat", machine)
    for nr, arguments in calls:
        assert nr is not None
        if nr in newer:
            continue
        words = tuple(argument & 0xFFFF_FFFF for argument in arguments)
        mine, other = (run(program, arch, nr, words).value for program in (ours, theirs))
        if nr == fstatat and mine == refused(errno.EACCES):
            mine = refused(errno.EPERM)  # it has no errno for refused arguments, but the default
        assert mine == other, (nr, arguments)


def _built_by_libseccomp(machine: str) -> bytes:
    policy = seccomp.HTTP
    built = pyseccomp.SyscallFilter(refused(policy.default))
    if LIBSECCOMP[machine] != pyseccomp.system_arch():
        built.add_arch(LIBSECCOMP[machine])
        built.remove_arch(pyseccomp.system_arch())
    built.set_attr(pyseccomp.Attr.ACT_BADARCH, KILL)
    rows = [(KILL, group.names) for group in policy.killed]
    rows += [(refused(row.number), row.names) for row in policy.refused]
    rows += [(ALLOW, group.names) for group in policy.allowed]
    for action, names in rows:
        for name in names:
            if name in NEWER or number(name, machine) is None:
                continue
            # it wants the number of the machine it runs on, and translates
            nr = pyseccomp.resolve_syscall(pyseccomp.system_arch(), name)
            rule = policy.rules.get(name)
            for conditions in _alternatives(rule.checks) if rule else [[]]:
                built.add_rule(action, nr, *conditions)
    with tempfile.TemporaryFile() as file:
        built.export_bpf(file)
        return os.pread(file.fileno(), 1 << 20, 0)


def _alternatives(checks: tuple[seccomp.Check, ...]) -> list[list[pyseccomp.Arg]]:
    found = []
    for check in checks:
        for value in check.values:
            here = pyseccomp.Arg(check.index, pyseccomp.MASKED_EQ, check.mask, value)
            found += [[here, *rest] for rest in (_alternatives(check.then) or [[]])]
    return found


# Instructions per call: what a program pays where the kernel has no bitmap (before 5.11,
# or because the call has a rule). A change that makes the hot ones dearer should be seen.
HOT = {
    "read": ((), 8), "write": ((), 8), "futex": ((0, 128), 14), "mmap": ((0, 0, 3, 0x22), 12),
    "clone": ((17,), 16), "fcntl": ((0, 3), 16), "ioctl": ((0, 0x5401), 16),
}  # fmt: skip


@pytest.mark.parametrize("name", HOT)
def test_hot_calls_are_decided_in_few_instructions(name: str) -> None:
    arguments, at_most = HOT[name]
    nr = number(name, "x86_64")
    assert nr is not None
    outcome = run(parse(seccomp.job_program("default", "x86_64")), X86_64, nr, arguments)
    assert outcome.value == ALLOW
    assert outcome.steps <= at_most
