"""What each process may ask of the kernel: policy → program. Pure (see cross_check).

Four policies, each a value of :class:`Policy`: lists of calls and, beside every
list and every argument rule, what it is for or which attack it stops.

==========  ==================================================  ===================
policy      who                                                  a call not listed
==========  ==================================================  ===================
default     a job: whole languages with their tools              ENOSYS
compute     a job that only computes: no processes, no sockets   ENOSYS
zygote      PID 1 of a sandbox: a job's policy and a few more    ENOSYS
http        the process that faces the network                   EPERM
==========  ==================================================  ===================

ENOSYS is the answer that C libraries and runtimes are written for: they meet old
kernels, and fall back (clone3 → clone, pidfd_open → threads). Refused *arguments*
get the errno the kernel itself would give (socket → EAFNOSUPPORT, ioctl →
ENOTTY). Calls that no ordinary program makes and that have a history of kernel
holes end the whole process (KILL_PROCESS; KILL would end one thread and leave the
job hanging), as do calls through another ABI: i386, x32, 32-bit ARM.

**Which assembler, and what pyseccomp is for.** libseccomp cannot give a refused
argument its own errno where ENOSYS is the default, so the programs come from
``assembler.py``. libseccomp, through pyseccomp, is the independent second opinion:
:func:`cross_check` compares our number tables with its own for both machines
(``sandrun doctor`` and the tests), and a test lets it build the http policy from
the same lists and compares the two programs call by call.

**Arguments are compared by their low 32 bits.** Every parameter a rule looks at is
``int`` or ``unsigned int`` in the kernel (SYSCALL_DEFINE truncates it) or a flag
word whose meaning lies in its low half (clone, mmap). Comparing 64 bits is the
classical hole: a filter that *forbade* ``ioctl(fd, TIOCSTI)`` was passed by
``TIOCSTI | 1 << 32`` (CVE-2019-10063). These rules list what is allowed, and look
at what the kernel will look at. Pointers cannot be followed by a filter: what
depends on memory (clone3, openat2, sockaddr, msghdr) is decided by refusing the
call or by what else is there (namespaces, Landlock).

**Filters are inherited and add up**; the strictest answer wins. A job's process is
a child of PID 1, so ``zygote`` allows all that ``default`` does. A filter binds
the calling *thread*: load while there is only one, or with
``SECCOMP_FILTER_FLAG_TSYNC``.

**compute and execve.** "execve once, for the interpreter, and then never again"
cannot be said in a filter that is loaded before that execve. So there are two:
``compute`` has no execve and is for a process that is already the interpreter
(modes door and fork); ``compute_exec`` allows it and is for mode exec. Neither can
start a second process, so with ``compute_exec`` a job can at most turn itself into
another program under the same filter.

**http.** libuv keeps an io_uring for its epoll_ctl batches from the moment the
loop is made, whatever UV_USE_IO_URING says (uvloop 0.23, measured), and aborts if
that ring later fails. So :func:`http_program` is loaded *before* the loop is made,
after every import and with the listening sockets already bound: io_uring_setup
is then refused and libuv uses epoll_ctl. It also never has a thread: a host name
given to getaddrinfo or an executor would need one and fails (libuv's own pool
aborts: pass addresses and sockets, not names). Certificates are read before; ssl
takes paths only, so a new certificate means a new http process.

Measured (x86-64, Linux 6.18; instructions counted by the tests' interpreter):
* size: default 312, warm 318, compute 241, zygote 323, http 252 instructions (the trial
  of the job's policy had 580); made in 5 ms, once per process and policy;
* per call in default: read, write, munmap 8, mmap 11, futex 13 or 14, clone 14,
  fcntl 13 to 16, ioctl 14, socket 13 to 19 (the trial: read 13, mmap 19, clone 23,
  futex 29);
* seccomp(2) takes 0.13 ms for each (p50 of 40 forked children; the trial: 0.42 to
  0.56 ms): the kernel runs the filter for every number to fill its bitmap, so depth
  counts there too.
"""

from __future__ import annotations

import errno
import functools
import platform
from dataclasses import dataclass
from typing import Final, NamedTuple

from sandrun.errors import HostError
from sandrun.pool.assembler import (
    ARCH_OFFSET,
    NR_OFFSET,
    Case,
    Node,
    Return,
    Switch,
    argument_offset,
    assemble,
)
from sandrun.pool.syscall_numbers import NUMBERS

MACHINE: Final = platform.machine()

# linux/seccomp.h
KILL_PROCESS: Final = 0x8000_0000
ERRNO: Final = 0x0005_0000
ALLOW: Final = 0x7FFF_0000
USER_NOTIF: Final = 0x7FC0_0000

# linux/audit.h: EM_* | 64 bit | little-endian
AUDIT_ARCH: Final = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
_COLUMN: Final = {"x86_64": 0, "aarch64": 1}
_X32_FIRST, _X32_LAST = (
    0x4000_0000,
    0x7FFF_FFFF,
)  # bit 30; negative numbers are just unknown

_LOW: Final = 0xFFFF_FFFF


class Group(NamedTuple):
    """Calls that belong together. ``why``: what they are for, or what refusing them stops."""

    title: str
    why: str
    calls: str  # names, separated by blanks

    @property
    def names(self) -> tuple[str, ...]:
        """The calls, one by one."""
        return tuple(self.calls.split())


class Refusal(NamedTuple):
    """Calls that are answered with an errno."""

    number: int
    why: str
    calls: str

    @property
    def names(self) -> tuple[str, ...]:
        """The calls, one by one."""
        return tuple(self.calls.split())


@dataclass(frozen=True, slots=True)
class Check:
    """Argument ``index``, masked, is one of ``values``, and one of ``then`` holds too."""

    index: int
    values: tuple[int, ...]
    mask: int = _LOW
    then: tuple[Check, ...] = ()


class Rule(NamedTuple):
    """A call allowed with some arguments. ``checks``: alternatives on one argument."""

    number: int  # the errno of everything else
    why: str
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Policy:
    """One filter: an answer for every call. ``allowed`` wins over ``refused`` and ``killed``."""

    name: str
    allowed: tuple[Group, ...]
    rules: dict[str, Rule]  # by name; every name is in ``allowed``
    refused: tuple[Refusal, ...]
    killed: tuple[Group, ...]
    default: int  # errno of a call that is in no list
    announced: tuple[tuple[str, Check], ...] = ()  # allowed calls that a listener hears of


# --- Arguments, by the kernel's names -------------------------------------------------

CLONE_REFUSED: Final = {
    "CLONE_NEWNS": 0x0002_0000,
    "CLONE_NEWCGROUP": 0x0200_0000,
    "CLONE_NEWUTS": 0x0400_0000,
    "CLONE_NEWIPC": 0x0800_0000,
    "CLONE_NEWUSER": 0x1000_0000,
    "CLONE_NEWPID": 0x2000_0000,
    "CLONE_NEWNET": 0x4000_0000,
    "CLONE_PIDFD": 0x0000_1000,
    "CLONE_PTRACE": 0x0000_2000,
    "CLONE_PARENT": 0x0000_8000,
    "CLONE_UNTRACED": 0x0080_0000,
}
CLONE_THREAD: Final = 0x0001_0000
MAP_HUGETLB: Final = 0x0004_0000
PROT_EXEC: Final = 4
MADVISE: Final = {
    "MADV_NORMAL": 0,
    "MADV_RANDOM": 1,
    "MADV_SEQUENTIAL": 2,
    "MADV_WILLNEED": 3,
    "MADV_DONTNEED": 4,
    "MADV_FREE": 8,
    "MADV_DONTFORK": 10,
    "MADV_HUGEPAGE": 14,
    "MADV_NOHUGEPAGE": 15,
    "MADV_DONTDUMP": 16,
    "MADV_DODUMP": 17,
    "MADV_WIPEONFORK": 18,
    "MADV_COLD": 20,
    "MADV_PAGEOUT": 21,
    "MADV_POPULATE_READ": 22,
    "MADV_POPULATE_WRITE": 23,
}
PRCTL: Final = {
    "PR_SET_PDEATHSIG": 1,
    "PR_GET_PDEATHSIG": 2,
    "PR_GET_DUMPABLE": 3,
    "PR_SET_NAME": 15,
    "PR_GET_NAME": 16,
    "PR_CAPBSET_READ": 23,
    "PR_SET_TIMERSLACK": 29,
    "PR_GET_TIMERSLACK": 30,
    "PR_SET_NO_NEW_PRIVS": 38,
    "PR_GET_NO_NEW_PRIVS": 39,
    "PR_SET_THP_DISABLE": 41,
    "PR_GET_THP_DISABLE": 42,
    "PR_SET_VMA": 0x53564D41,
}
PR_SET_DUMPABLE: Final = 4
ARCH_PRCTL: Final = {"ARCH_SET_FS": 0x1002, "ARCH_GET_FS": 0x1003}
FCNTL: Final = {
    "F_DUPFD": 0,
    "F_GETFD": 1,
    "F_SETFD": 2,
    "F_GETFL": 3,
    "F_SETFL": 4,
    "F_GETLK": 5,
    "F_SETLK": 6,
    "F_SETLKW": 7,
    "F_OFD_GETLK": 36,
    "F_OFD_SETLK": 37,
    "F_OFD_SETLKW": 38,
    "F_DUPFD_CLOEXEC": 1030,
    "F_GETPIPE_SZ": 1032,
    "F_ADD_SEALS": 1033,
    "F_GET_SEALS": 1034,
}
IOCTL: Final = {
    "TCGETS": 0x5401,
    "TCSETS": 0x5402,
    "TCSETSW": 0x5403,
    "TCSETSF": 0x5404,
    "TIOCGPGRP": 0x540F,
    "TIOCGWINSZ": 0x5413,
    "FIONREAD": 0x541B,
    "FIONBIO": 0x5421,
    "FIONCLEX": 0x5450,
    "FIOCLEX": 0x5451,
    "FICLONE": 0x40049409,
}
LISTENER_IOCTL: Final = {
    "SECCOMP_IOCTL_NOTIF_RECV": 0xC0502100,
    "SECCOMP_IOCTL_NOTIF_SEND": 0xC0182101,
}
HTTP_IOCTL: Final = {
    "SIOCOUTQ": 0x5411,  # bytes the peer's TCP has not acknowledged: "delivered"
    "FIONREAD": 0x541B,
    "FIONBIO": 0x5421,
    "FIONCLEX": 0x5450,
    "FIOCLEX": 0x5451,
}
AF_UNIX, AF_INET, AF_INET6 = 1, 2, 10
SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET = 1, 2, 5
SOCK_TYPE_MASK: Final = 0xF  # the rest is SOCK_CLOEXEC and SOCK_NONBLOCK, or EINVAL
IPPROTO_TCP, IPPROTO_UDP = 6, 17
MSG_FASTOPEN: Final = 0x2000_0000
SOL_SOCKET, IPPROTO_IP, IPPROTO_IPV6 = 1, 0, 41
SOCKET_OPTIONS: Final = {
    "SO_REUSEADDR": 2,
    "SO_ERROR": 4,
    "SO_DONTROUTE": 5,
    "SO_BROADCAST": 6,
    "SO_SNDBUF": 7,
    "SO_RCVBUF": 8,
    "SO_KEEPALIVE": 9,
    "SO_LINGER": 13,
    "SO_REUSEPORT": 15,
    "SO_PASSCRED": 16,
    "SO_RCVTIMEO": 20,
    "SO_SNDTIMEO": 21,
}
TCP_OPTIONS: Final = {
    "TCP_NODELAY": 1,
    "TCP_CORK": 3,
    "TCP_KEEPIDLE": 4,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 6,
    "TCP_QUICKACK": 12,
    "TCP_USER_TIMEOUT": 18,
    "TCP_FASTOPEN": 23,
}
IP_OPTIONS: Final = {"IP_TOS": 1, "IP_TTL": 2, "IP_MTU_DISCOVER": 10, "IP_RECVERR": 11}
IPV6_OPTIONS: Final = {"IPV6_UNICAST_HOPS": 16, "IPV6_RECVERR": 25, "IPV6_V6ONLY": 26}
FUTEX: Final = {
    "FUTEX_WAIT": 0,
    "FUTEX_WAKE": 1,
    "FUTEX_REQUEUE": 3,
    "FUTEX_CMP_REQUEUE": 4,
    "FUTEX_WAKE_OP": 5,
    "FUTEX_WAIT_BITSET": 9,
    "FUTEX_WAKE_BITSET": 10,
}
FUTEX_CMD_MASK: Final = _LOW & ~(128 | 256)  # without FUTEX_PRIVATE_FLAG, FUTEX_CLOCK_REALTIME
S_IFMT, S_IFIFO = 0o170000, 0o010000
RENAME_WHITEOUT = 4
AT_EMPTY_PATH: Final = 0x1000
MFD_HUGETLB: Final = 4
SECCOMP_SET_MODE_FILTER, SECCOMP_GET_ACTION_AVAIL = 1, 2
SECCOMP_FILTER_FLAG_NEW_LISTENER: Final = 8


def _any_of(index: int, names: dict[str, int], mask: int = _LOW) -> tuple[Check, ...]:
    return (Check(index, tuple(names.values()), mask),)


def _none_of(index: int, bits: int) -> tuple[Check, ...]:
    return (Check(index, (0,), bits),)


_NO_NAMESPACES: Final = sum(CLONE_REFUSED.values())

# --- A job ----------------------------------------------------------------------------

JOB_ALLOWED: Final = (
    Group(
        "bytes in and out",
        "reading and writing what is already open; a job's descriptors are its own",
        "read write readv writev pread64 pwrite64 preadv pwritev lseek sendfile copy_file_range",
    ),
    Group(
        "descriptors",
        "duplicates and pipes; bounded by RLIMIT_NOFILE",
        "close close_range dup dup2 dup3 pipe pipe2",
    ),
    Group(
        "waiting for descriptors",
        "every event loop",
        "poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait "
        "eventfd2",
    ),
    Group(
        "files by name",
        "what can be reached is decided by the mount namespace and Landlock",
        "open openat creat stat lstat fstat newfstatat statx statfs fstatfs access faccessat "
        "faccessat2 getdents64 getcwd chdir fchdir readlink readlinkat",
    ),
    Group(
        "changing files",
        "everything writable is one tmpfs of bounded size; nosuid, so that chmod is harmless",
        "mkdir mkdirat rmdir unlink unlinkat rename renameat link linkat symlink "
        "symlinkat chmod fchmod fchmodat truncate ftruncate fallocate msync umask "
        "utimensat flock fadvise64",
    ),
    Group(
        "making nodes",
        "by argument: named pipes only, and no whiteout",
        "mknod mknodat renameat2",
    ),
    Group(
        "memory",
        "charged to the job's group; PROT_EXEC stays, V8 and the like compile at run time",
        "mmap munmap mremap mprotect brk madvise",
    ),
    Group(
        "processes",
        "counted by the pids controller, visible in the sandbox's own pid namespace only",
        "fork vfork clone execve exit exit_group wait4 waitid kill tgkill tkill getpid getppid "
        "gettid getpgrp getpgid getsid setsid setpgid",
    ),
    Group(
        "threads",
        "what every C library does for each thread",
        "futex set_tid_address set_robust_list rseq sched_yield sched_getaffinity arch_prctl",
    ),
    Group(
        "limits and usage of its own",
        "hard limits only go down; sysinfo tells the host's load and memory, which bash, ruby, "
        "node and qsort need: an accepted leak",
        "getrlimit prlimit64 getrusage times sysinfo uname getpriority setpriority prctl "
        "personality",
    ),
    Group(
        "identity",
        "one mapped id and no capability, so the setters change nothing; GNU make aborts without",
        "getuid geteuid getgid getegid getgroups getresuid getresgid setuid setgid setresuid "
        "setresgid capget",
    ),
    Group(
        "randomness and clocks",
        "reading clocks, sleeping, timers of its own",
        "getrandom clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time alarm "
        "setitimer getitimer timer_create timer_settime timer_gettime timer_getoverrun "
        "timer_delete",
    ),
    Group(
        "signals",
        "handlers and masks of its own; whom it can reach is the pid namespace's affair",
        "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend "
        "sigaltstack pause restart_syscall",
    ),
    Group(
        "terminal and descriptor flags",
        "by argument",
        "fcntl ioctl",
    ),
    Group(
        "sockets",
        "in a network namespace that has a loopback and nothing else",
        "socket socketpair bind connect listen accept accept4 getsockname getpeername getsockopt "
        "setsockopt sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg shutdown",
    ),
)

SOCKET_OPTION_CHECKS: Final = (
    Check(1, (SOL_SOCKET,), then=_any_of(2, SOCKET_OPTIONS)),
    Check(1, (IPPROTO_TCP,), then=_any_of(2, TCP_OPTIONS)),
    Check(1, (IPPROTO_IP,), then=_any_of(2, IP_OPTIONS)),
    Check(1, (IPPROTO_IPV6,), then=_any_of(2, IPV6_OPTIONS)),
)

# By number: the older options tell of the socket, and what hands out more came later.
SOCKET_FACT_CHECKS: Final = (
    Check(1, (SOL_SOCKET, IPPROTO_IP, IPPROTO_IPV6), then=(Check(2, (0,), _LOW & ~63),)),
    Check(1, (IPPROTO_TCP,), then=(Check(2, (0,), _LOW & ~31),)),
)

JOB_RULES: Final[dict[str, Rule]] = {
    "clone": Rule(
        errno.EPERM,
        "new namespaces open the kernel's whole mount and network surface; CLONE_PARENT would "
        "hand the job's child to PID 1's parent; CLONE_PTRACE and CLONE_UNTRACED touch tracing; "
        "CLONE_PIDFD makes descriptors that outlive their process",
        _none_of(0, _NO_NAMESPACES),
    ),
    "mmap": Rule(
        errno.EINVAL,
        "huge pages of hugetlbfs are not charged to the memory controller",
        _none_of(3, MAP_HUGETLB),
    ),
    "madvise": Rule(
        errno.EINVAL,
        "MERGEABLE joins equal pages across jobs (KSM: a timing channel, Rowhammer); HWPOISON "
        "and SOFT_OFFLINE take pages from the host; REMOVE has a history of races",
        _any_of(2, MADVISE),
    ),
    "prlimit64": Rule(
        errno.EPERM,
        "limits of other processes, PID 1 among them",
        (Check(0, (0,)),),
    ),
    "prctl": Rule(
        errno.EINVAL,
        "the other options set dumpable, keepcaps, securebits, ambient capabilities, seccomp, "
        "speculation control, child subreaper, memory merging, core scheduling",
        _any_of(0, PRCTL),
    ),
    "arch_prctl": Rule(
        errno.EINVAL,
        "thread pointer only; the rest is CPUID faulting, LAM, shadow stacks, AMX state",
        _any_of(0, ARCH_PRCTL),
    ),
    "fcntl": Rule(
        errno.EPERM,
        "F_SETOWN and F_SETSIG send signals to others; F_SETLEASE and F_NOTIFY watch inodes that "
        "jobs share; F_SETPIPE_SZ takes kernel memory that is counted per host user, and "
        "shrinks the log pipe under its reader",
        _any_of(1, FCNTL),
    ),
    "ioctl": Rule(
        errno.ENOTTY,
        "each driver and socket family has a private kernel interface here: TIOCSTI types into "
        "a terminal, TIOCLINUX, TIOCSETD, SIOC*, BLK*, KVM, RNDADDENTROPY",
        _any_of(1, IOCTL),
    ),
    "socket": Rule(
        errno.EAFNOSUPPORT,
        "AF_VSOCK is in no namespace and reaches the hypervisor; AF_ALG, AF_NETLINK, AF_PACKET, "
        "AF_XDP, AF_BLUETOOTH, CAN, RDS, SCTP, MPTCP, UDPLITE, RAW: most of the kernel's holes",
        (
            Check(0, (AF_UNIX,)),
            Check(
                0,
                (AF_INET, AF_INET6),
                then=(
                    Check(1, (SOCK_STREAM,), SOCK_TYPE_MASK, (Check(2, (0, IPPROTO_TCP)),)),
                    Check(1, (SOCK_DGRAM,), SOCK_TYPE_MASK, (Check(2, (0, IPPROTO_UDP)),)),
                ),
            ),
        ),
    ),
    "socketpair": Rule(
        errno.EAFNOSUPPORT,
        "only AF_UNIX has pairs that programs use (TIPC has them too)",
        (Check(0, (AF_UNIX,)),),
    ),
    "setsockopt": Rule(
        errno.ENOPROTOOPT,
        "TCP_ULP (kernel TLS), SO_ATTACH_FILTER and _BPF, TCP_REPAIR, TCP_MD5SIG, netfilter's "
        "and multicast's tables are reached through here",
        SOCKET_OPTION_CHECKS,
    ),
    "getsockopt": Rule(
        errno.ENOPROTOOPT,
        "SO_PEERPIDFD makes a descriptor of a process, TCP_ZEROCOPY_RECEIVE maps the kernel's "
        "pages, netfilter's tables are read through here",
        SOCKET_FACT_CHECKS,
    ),
    "futex": Rule(
        errno.ENOSYS,
        "priority inheritance (LOCK_PI, CMP_REQUEUE_PI) has a history of root holes",
        _any_of(1, FUTEX, FUTEX_CMD_MASK),
    ),
    "mknod": Rule(
        errno.EPERM,
        "a character device 0:0 is an overlay whiteout, and unprivileged users may make it",
        (Check(1, (S_IFIFO,), S_IFMT),),
    ),
    "mknodat": Rule(errno.EPERM, "as mknod", (Check(2, (S_IFIFO,), S_IFMT),)),
    "renameat2": Rule(
        errno.EPERM,
        "RENAME_WHITEOUT makes the same device 0:0, and Landlock does not see it",
        _none_of(4, RENAME_WHITEOUT),
    ),
    "fadvise64": Rule(
        0,
        "not made, and answered as if it were: POSIX_FADV_DONTNEED throws pages of shared files "
        "out of the cache of all, which slows everybody down and lets a job time who reads them",
        _none_of(3, _LOW & ~3),  # NORMAL, RANDOM, SEQUENTIAL, WILLNEED
    ),
    "setpriority": Rule(
        errno.EPERM,
        "its own only (os.nice(0) is a common call); not those of other processes or users",
        (Check(0, (0,), then=(Check(1, (0,)),)),),
    ),
    "personality": Rule(
        errno.EPERM,
        "ADDR_NO_RANDOMIZE and READ_IMPLIES_EXEC undo hardening; 0 and the query do nothing",
        (Check(0, (0, 0xFFFF_FFFF)),),
    ),
}

JOB_REFUSED: Final = (
    Refusal(
        0,
        "not made, and answered as if it were: all that a job can write is memory, where there "
        "is nothing to flush; on a file below /usr, opened to be read, it flushes the cache of "
        "the host's disk, a thousand times a second",
        "fsync fdatasync",
    ),
    Refusal(
        errno.EPERM,
        "changing owners, limits, groups, scheduling, memory placement, the host's names or "
        "flushing the host's disks: what an unprivileged user is told anyway",
        "setrlimit chown fchown lchown fchownat setgroups setreuid setregid capset mlock mlock2 "
        "mlockall munlock sched_setaffinity sched_setscheduler sched_setparam sched_setattr "
        "ioprio_set mbind set_mempolicy get_mempolicy migrate_pages move_pages sync syncfs "
        "sethostname setdomainname quotactl syslog vhangup",
    ),
    Refusal(
        errno.EINVAL,
        "splice, vmsplice, tee: pages of other files and users in pipes (Dirty Pipe); programs "
        "copy instead; seccomp: a filter with a listener can stop other processes",
        "splice vmsplice tee seccomp",
    ),
    Refusal(
        errno.ENOSYS,
        "clone3 and openat2 keep their flags in memory, where no filter can see them; io_uring "
        "makes calls that pass no filter; memfd_create, execveat: code without a file; pidfd, "
        "inotify, signalfd, timerfd: more object types, all with fall-backs; mincore, cachestat "
        "and RWF_NOWAIT (preadv2) tell what others have read",
        "clone3 io_uring_setup io_uring_enter io_uring_register openat2 pidfd_open pkey_alloc "
        "pkey_free pkey_mprotect memfd_create execveat membarrier inotify_init inotify_init1 "
        "signalfd4 timerfd_create preadv2 pwritev2 mincore cachestat",
    ),
    Refusal(
        errno.EOPNOTSUPP,
        "extended attributes: what a file system without them says; overlay and capability "
        "attributes are state that outlives a job",
        "getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr setxattr lsetxattr "
        "fsetxattr removexattr lremovexattr fremovexattr",
    ),
)

KILLED: Final = (
    Group(
        "other processes' memory",
        "tracing and reading other processes; userfaultfd and kcmp make kernel races winnable",
        "ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_getfd userfaultfd",
    ),
    Group(
        "programs for the kernel",
        "verifier and tracer bugs",
        "bpf perf_event_open",
    ),
    Group(
        "keyrings",
        "keys are kept by host user, not by namespace",
        "keyctl add_key request_key",
    ),
    Group(
        "mounts and namespaces",
        "every escape from a mount namespace starts here",
        "mount umount2 pivot_root chroot open_tree open_tree_attr move_mount fsopen fsconfig "
        "fsmount fspick mount_setattr unshare setns",
    ),
    Group(
        "files without names",
        "open_by_handle_at reads any file of a file system (the 'shocker' escape)",
        "open_by_handle_at name_to_handle_at fanotify_init fanotify_mark",
    ),
    Group(
        "the machine",
        "kernel code, swap, clocks, ports, accounting",
        "kexec_load kexec_file_load init_module finit_module delete_module reboot swapon swapoff "
        "acct settimeofday clock_settime adjtimex clock_adjtime iopl ioperm",
    ),
    Group(
        "forgotten calls",
        "old code that nothing uses and few people read",
        "modify_ldt nfsservctl uselib lookup_dcookie _sysctl ustat sysfs quotactl_fd",
    ),
)

DEFAULT: Final = Policy("default", JOB_ALLOWED, JOB_RULES, JOB_REFUSED, KILLED, errno.ENOSYS)

# A warm interpreter that ends with nothing left to do says so in the upper bits of its
# exit status, which the kernel does not keep (exit_group(2): status & 0xff). PID 1 then
# knows the exit before the kernel has freed the memory, 1.2 ms of a hello.py's 3, 5 of
# numpy and pandas' 16. Whoever else does the same just ends: PID 1 lets it go on, or
# kills it. See native/serve.c.
FAREWELL: Final = 0x5EED_5A00

WARM: Final = Policy(
    "warm",
    JOB_ALLOWED,
    JOB_RULES,
    JOB_REFUSED,
    KILLED,
    errno.ENOSYS,
    (("exit_group", Check(0, (FAREWELL,), 0xFFFF_FF00)),),
)

# --- A job that only computes ---------------------------------------------------------

COMPUTE_ALLOWED: Final = (
    Group(
        "bytes in and out",
        "reading and writing what is already open",
        "read write writev pread64 pwrite64 lseek close close_range dup dup2 dup3 poll ppoll "
        "fcntl ioctl",
    ),
    Group(
        "files by name",
        "the two spellings of each are of older and newer C libraries and of aarch64",
        "openat fstat newfstatat fstatfs access faccessat getdents64 getcwd chdir readlink "
        "readlinkat mkdir mkdirat unlink unlinkat rename renameat ftruncate fadvise64 umask",
    ),
    Group("memory", "as for every job", "mmap munmap mremap mprotect brk madvise"),
    Group(
        "threads",
        "clone by argument: threads of this process, no processes",
        "clone futex set_tid_address set_robust_list rseq sched_yield sched_getaffinity "
        "arch_prctl prctl gettid exit exit_group",
    ),
    Group(
        "itself",
        "what start-up code asks; tgkill is abort()",
        "getpid getuid geteuid getgid getegid prlimit64 getrusage sysinfo uname tgkill",
    ),
    Group(
        "randomness, clocks, signals",
        "of its own",
        "getrandom clock_gettime clock_getres clock_nanosleep nanosleep rt_sigaction "
        "rt_sigprocmask rt_sigreturn sigaltstack restart_syscall",
    ),
)

COMPUTE_RULES: Final[dict[str, Rule]] = {
    "clone": Rule(
        errno.EPERM,
        "threads only: no other process, so nothing to exec in and nothing that outlives it",
        (Check(0, (CLONE_THREAD,), CLONE_THREAD | _NO_NAMESPACES),),
    ),
    **{
        name: JOB_RULES[name]
        for name in (
            "mmap",
            "madvise",
            "prlimit64",
            "prctl",
            "arch_prctl",
            "fcntl",
            "ioctl",
            "futex",
            "fadvise64",
        )
    },
}

COMPUTE_REFUSED: Final = (
    *JOB_REFUSED,
    Refusal(errno.EPERM, "no second process, no other program", "fork vfork execve"),
    Refusal(errno.EAFNOSUPPORT, "no sockets", "socket socketpair"),
)

COMPUTE: Final = Policy(
    "compute", COMPUTE_ALLOWED, COMPUTE_RULES, COMPUTE_REFUSED, KILLED, errno.ENOSYS
)

COMPUTE_EXEC: Final = Policy(
    "compute_exec",
    (*COMPUTE_ALLOWED, Group("start", "the interpreter itself (mode exec)", "execve")),
    COMPUTE_RULES,
    COMPUTE_REFUSED,
    KILLED,
    errno.ENOSYS,
)

# --- PID 1 of a sandbox ---------------------------------------------------------------

ZYGOTE: Final = Policy(
    "zygote",
    (
        *JOB_ALLOWED,
        Group(
            "confining its children",
            "a stricter filter and Landlock for the job; both can only take away",
            "seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self",
        ),
    ),
    {
        **JOB_RULES,
        "seccomp": Rule(
            errno.EINVAL,
            "a filter with a listener could stop and answer the calls of other processes",
            (
                Check(
                    0,
                    (SECCOMP_SET_MODE_FILTER,),
                    then=_none_of(1, SECCOMP_FILTER_FLAG_NEW_LISTENER),
                ),
                Check(0, (SECCOMP_GET_ACTION_AVAIL,)),
            ),
        ),
        "prctl": Rule(
            errno.EINVAL,
            "as a job's, and dumpable: a child that changes its uid loses it, and with it its "
            "own /proc/self",
            _any_of(0, {**PRCTL, "PR_SET_DUMPABLE": PR_SET_DUMPABLE}),
        ),
        "ioctl": Rule(
            errno.ENOTTY,
            "as a job's, and the farewell of a warm interpreter: to hear it and to answer",
            _any_of(1, {**IOCTL, **LISTENER_IOCTL}),
        ),
    },
    JOB_REFUSED,
    KILLED,
    errno.ENOSYS,
)

# --- The http process -----------------------------------------------------------------

HTTP_ALLOWED: Final = (
    Group(
        "bytes in and out",
        "connections and memory descriptors; sendfile serves outputs",
        "read write readv writev pread64 pwrite64 preadv pwritev lseek sendfile",
    ),
    Group(
        "connections",
        "of the listeners it was given: without socket, bind and connect there are no others",
        "accept accept4 listen recvfrom recvmsg sendto sendmsg shutdown getsockname getpeername "
        "getsockopt setsockopt",
    ),
    Group("pairs", "by argument: connected AF_UNIX pairs", "socketpair"),
    Group(
        "descriptors",
        "duplicates, flags, pipes of the loop",
        "close close_range dup dup2 dup3 fcntl ioctl pipe2 fstat newfstatat",
    ),
    Group(
        "the event loop",
        "epoll, its wake-up, and poll",
        "epoll_create1 epoll_ctl epoll_wait epoll_pwait eventfd2 poll ppoll",
    ),
    Group(
        "memory descriptors",
        "uploads; sealed, sized, and punched out when they are done with",
        "memfd_create ftruncate fallocate",
    ),
    Group("memory", "never executable", "mmap munmap mremap mprotect brk madvise"),
    Group(
        "itself",
        "locks, clocks, randomness, signals of its own; tgkill is abort()",
        "futex getpid gettid getppid getuid geteuid getgid getegid getrusage prlimit64 uname "
        "prctl sched_yield sched_getaffinity getrandom clock_gettime clock_getres "
        "clock_nanosleep nanosleep gettimeofday time rt_sigaction rt_sigprocmask rt_sigreturn "
        "sigaltstack restart_syscall tgkill exit exit_group",
    ),
)

HTTP_RULES: Final[dict[str, Rule]] = {
    "socketpair": Rule(
        errno.EPERM,
        "a datagram pair can send to any AF_UNIX address (the journal, a service's socket); "
        "stream and seqpacket pairs reach each other only",
        (
            Check(
                0,
                (AF_UNIX,),
                then=(Check(1, (SOCK_STREAM, SOCK_SEQPACKET), SOCK_TYPE_MASK),),
            ),
        ),
    ),
    "sendto": Rule(errno.EPERM, "MSG_FASTOPEN is a connect", _none_of(3, MSG_FASTOPEN)),
    "sendmsg": Rule(errno.EPERM, "MSG_FASTOPEN is a connect", _none_of(2, MSG_FASTOPEN)),
    "setsockopt": Rule(errno.EPERM, JOB_RULES["setsockopt"].why, SOCKET_OPTION_CHECKS),
    "ioctl": Rule(errno.EPERM, JOB_RULES["ioctl"].why, _any_of(1, HTTP_IOCTL)),
    "fcntl": Rule(errno.EPERM, JOB_RULES["fcntl"].why, _any_of(1, FCNTL)),
    "newfstatat": Rule(
        errno.EACCES,
        "glibc 2.33 to 2.38 spell fstat so; it tells a path's metadata at most",
        (Check(3, (AT_EMPTY_PATH,)),),
    ),
    "memfd_create": Rule(
        errno.EPERM, "huge pages escape the memory controller", _none_of(1, MFD_HUGETLB)
    ),
    "mmap": Rule(errno.EPERM, "no new code: an exploit has only ours", _none_of(2, PROT_EXEC)),
    "mprotect": Rule(errno.EPERM, "no new code, as mmap", _none_of(2, PROT_EXEC)),
    "madvise": Rule(errno.EPERM, JOB_RULES["madvise"].why, _any_of(2, MADVISE)),
    "prlimit64": Rule(errno.EPERM, JOB_RULES["prlimit64"].why, (Check(0, (0,)),)),
    "futex": Rule(errno.EPERM, JOB_RULES["futex"].why, _any_of(1, FUTEX, FUTEX_CMD_MASK)),
    "prctl": Rule(
        errno.EPERM,
        "names of threads and of memory only",
        _any_of(
            0,
            {name: PRCTL[name] for name in ("PR_SET_NAME", "PR_GET_NAME", "PR_SET_VMA")},
        ),
    ),
}

HTTP_REFUSED: Final = (
    Refusal(
        errno.EACCES,
        "it opens nothing after start; EACCES rather than death, so that an import that came "
        "too late is an error message",
        "open openat openat2 creat stat lstat statx statfs access faccessat faccessat2 readlink "
        "readlinkat getdents64 getcwd chdir mkdir mkdirat unlink unlinkat rename renameat "
        "renameat2",
    ),
    Refusal(
        errno.ENOSYS,
        "libuv then uses epoll_ctl (io_uring passes no filter), glibc clone",
        "clone3 io_uring_setup io_uring_enter io_uring_register membarrier rseq epoll_pwait2",
    ),
)

HTTP_KILLED: Final = (
    *KILLED,
    Group("programs", "http starts no program, ever", "execve execveat"),
)

HTTP: Final = Policy("http", HTTP_ALLOWED, HTTP_RULES, HTTP_REFUSED, HTTP_KILLED, errno.EPERM)

JOB_PROFILES: Final = {policy.name: policy for policy in (DEFAULT, WARM, COMPUTE, COMPUTE_EXEC)}
POLICIES: Final = {**JOB_PROFILES, ZYGOTE.name: ZYGOTE, HTTP.name: HTTP}

# Calls per second in the recordings, roughly: they shape the search tree. What has no
# argument rule is answered from the kernel's bitmap since 5.11 and matters before only.
_HOT: Final = {
    "read": 20.0,
    "write": 20.0,
    "futex": 30.0,
    "mmap": 20.0,
    "munmap": 8.0,
    "mprotect": 6.0,
    "madvise": 8.0,
    "fcntl": 8.0,
    "ioctl": 8.0,
    "openat": 8.0,
    "newfstatat": 8.0,
    "rt_sigaction": 4.0,
    "rt_sigprocmask": 6.0,
    "epoll_wait": 8.0,
    "epoll_pwait": 8.0,
    "sendmsg": 6.0,
    "sendto": 6.0,
    "recvmsg": 6.0,
    "recvfrom": 6.0,
    "clone": 4.0,
    "setsockopt": 3.0,
    "prctl": 2.0,
    "socket": 2.0,
    "getpid": 3.0,
    "wait4": 3.0,
}


# --- Programs -------------------------------------------------------------------------


def job_program(profile: str = "default", machine: str = MACHINE) -> bytes:
    """A job's filter: ``struct sock_filter[]``. Profiles: :data:`JOB_PROFILES`."""
    return program(JOB_PROFILES[profile], machine)


def zygote_program(machine: str = MACHINE) -> bytes:
    """PID 1's filter, to be loaded when its boot is done; its children inherit it."""
    return program(ZYGOTE, machine)


def http_program(machine: str = MACHINE) -> bytes:
    """The http process's filter, to be loaded before its loop is made (see above)."""
    return program(HTTP, machine)


def program(policy: Policy, machine: str) -> bytes:
    """``policy`` for ``machine``. Raises :class:`HostError` for a machine without tables."""
    _require(machine)
    return _program(policy.name, machine)


@functools.cache
def _program(name: str, machine: str) -> bytes:
    return assemble(decision(POLICIES[name], machine))


def decision(policy: Policy, machine: str) -> Node:
    """``policy`` as a tree: the architecture first, since numbers mean nothing without."""
    kill = Return(KILL_PROCESS)
    cases = tuple(
        Case(number, number, node, _HOT.get(name, 1.0))
        for name, node in _answers(policy).items()
        if (number := NUMBERS[name][_COLUMN[machine]]) is not None
    )
    if machine == "x86_64":
        cases += (Case(_X32_FIRST, _X32_LAST, kill, 0.01),)
    calls = Switch(NR_OFFSET, cases, _refuse(policy.default))
    arch = AUDIT_ARCH[machine]
    return Switch(ARCH_OFFSET, (Case(arch, arch, calls),), kill)


def _answers(policy: Policy) -> dict[str, Node]:
    kill, allow = Return(KILL_PROCESS), Return(ALLOW)
    answers: dict[str, Node] = {name: kill for group in policy.killed for name in group.names}
    for refusal in policy.refused:
        answers |= dict.fromkeys(refusal.names, _refuse(refusal.number))
    for group in policy.allowed:
        answers |= dict.fromkeys(group.names, allow)
    for name, rule in policy.rules.items():
        answers[name] = _checked(rule.checks, _refuse(rule.number))
    for name, check in policy.announced:
        tell = tuple(Case(value, value, Return(USER_NOTIF)) for value in check.values)
        answers[name] = Switch(argument_offset(check.index), tell, answers[name], check.mask)
    return answers


def _checked(checks: tuple[Check, ...], refused: Node) -> Node:
    """Alternatives on one argument → a switch. No checks left: allowed."""
    if not checks:
        return Return(ALLOW)
    first = checks[0]
    if any((check.index, check.mask) != (first.index, first.mask) for check in checks):
        raise ValueError(f"alternatives look at different arguments: {checks}")
    cases = tuple(
        Case(value, value, _checked(check.then, refused))
        for check in checks
        for value in check.values
    )
    return Switch(argument_offset(first.index), cases, refused, first.mask)


def _refuse(number: int) -> Return:
    return Return(ERRNO | number)


def _require(machine: str) -> None:
    if machine not in AUDIT_ARCH:
        raise HostError(
            f"no system call table for machine {machine!r}",
            f"run on one of {', '.join(AUDIT_ARCH)}",
        )


# --- What we publish ------------------------------------------------------------------


class GroupSummary(NamedTuple):
    """One row of the published table. ``calls``: those the machine has."""

    action: str  # "allow", "allow by argument", "kill" or an errno's name
    title: str
    why: str
    calls: tuple[str, ...]


class Description(NamedTuple):
    """A policy in numbers, for docs, /privacy and the doctor."""

    policy: str
    machine: str
    allowed: int  # all that can succeed
    plain: int  # of these, without a look at arguments
    by_argument: int
    refused: int  # named calls answered with an errno
    refused_arguments: int  # allowed ones that answer some arguments with an errno
    killed: int
    default: str  # the errno of all the others
    instructions: int
    groups: tuple[GroupSummary, ...]


def describe(machine: str = MACHINE, policy: str = "default") -> Description:
    """The numbers that we publish, counted from the tables themselves."""
    _require(machine)
    chosen = POLICIES[policy]
    column = _COLUMN[machine]

    def here(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if NUMBERS[name][column] is not None)

    allowed = here(tuple(name for group in chosen.allowed for name in group.names))
    ruled = here(tuple(chosen.rules))
    refused = here(tuple(name for refusal in chosen.refused for name in refusal.names))
    killed = here(tuple(name for group in chosen.killed for name in group.names))
    groups = (
        *(
            GroupSummary(
                "allow",
                group.title,
                group.why,
                tuple(name for name in here(group.names) if name not in chosen.rules),
            )
            for group in chosen.allowed
        ),
        *(
            GroupSummary("allow by argument", name, chosen.rules[name].why, (name,))
            for name in ruled
        ),
        *(
            GroupSummary(errno.errorcode.get(row.number, "0"), "refused", row.why, here(row.names))
            for row in chosen.refused
        ),
        *(
            GroupSummary("kill", group.title, group.why, here(group.names))
            for group in chosen.killed
        ),
    )
    return Description(
        policy=chosen.name,
        machine=machine,
        allowed=len(allowed),
        plain=len(allowed) - len(ruled),
        by_argument=len(ruled),
        refused=len(set(refused) - set(allowed)),
        refused_arguments=len(ruled),
        killed=len(set(killed) - set(allowed)),
        default=errno.errorcode[chosen.default],
        instructions=len(program(chosen, machine)) // 8,
        groups=tuple(group for group in groups if group.calls),
    )


# --- The second opinion ---------------------------------------------------------------


def cross_check(machine: str = MACHINE) -> list[str]:
    """Where libseccomp's tables say otherwise than ours; empty is good.

    Not pure: imports pyseccomp (16 ms), which loads libseccomp.so.2. Raises
    :class:`HostError` with the cure if that is not there. Calls that are newer than
    the host's libseccomp are passed over.
    """
    _require(machine)
    try:
        import pyseccomp  # type: ignore[import-untyped]  # noqa: PLC0415 - only who asks pays
    except (ImportError, OSError, RuntimeError) as error:
        raise HostError(f"libseccomp.so.2: {error}", "apt-get install libseccomp2") from error
    arch = {"x86_64": pyseccomp.Arch.X86_64, "aarch64": pyseccomp.Arch.AARCH64}[machine]
    wrong = []
    for name, numbers in NUMBERS.items():
        ours = numbers[_COLUMN[machine]]
        theirs = pyseccomp.resolve_syscall(arch, name)
        unknown = theirs == -1  # libseccomp is older than the call
        absent = theirs < -1  # a pseudo number: another machine has it
        if not unknown and ours != (None if absent else theirs):
            wrong.append(f"{name}: {ours} here, {theirs} in libseccomp")
    return wrong
