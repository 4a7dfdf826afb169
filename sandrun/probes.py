"""What this host can isolate, tried and not guessed. Runs as: root. I/O.

Every probe does in a forked child, in small, what a sandbox does later, and looks
whether it took effect: a kernel version says little when a container runtime, a
sysctl or a security module stands between. Standard library only, so that the
doctor runs before anything is installed.

A probe returns a detail for the reader or raises OSError or :class:`Missing`.
Probes that change the process share a child (:data:`GROUPS`), one after the other;
if the child is killed in one of them (a container's filter may answer with
SIGSYS), that one is missing and a new child goes on with the next. Nothing a
probe makes outlives its child: no mount, no name, no group.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import platform
import resource
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NoReturn

from sandrun.errors import HostError
from sandrun.pool.cgroup.layout import CONTROLLERS, Layout, find
from sandrun.pool.disks import disks
from sandrun.pool.linux import libc
from sandrun.pool.linux.constants import (
    CLONE,
    MS,
    PR,
    SECBITS_LOCKED,
    LandlockFs,
    LandlockScope,
    MountAttr,
)

if TYPE_CHECKING:
    from sandrun.config import Config

Status = Literal["ok", "missing", "optional_missing"]

UID_BASE: Final = 1_879_048_192  # the config's default
OUTER_IDS: Final = 65_536  # ids of one spawner's user namespace
FDS_PER_SANDBOX: Final = 21  # control files, two sockets, log, outputs, process descriptor
_PLACE: Final = "/tmp"  # covered by a mount in a namespace of the probe's own


class Missing(Exception):
    """The layer cannot be had. ``cure`` may be empty: then the check's own is used."""

    def __init__(self, cause: str, cure: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.cure = cure


@dataclass(frozen=True, slots=True)
class Needs:
    """What the probes need to know of the config."""

    uid_base: int = UID_BASE
    descriptors: int = 16_384
    disk_read_mb: int = 100
    job_files: int = 64 * 256 * 1024

    @classmethod
    def of(cls, config: Config | None) -> Needs:
        """From a config, or the defaults."""
        if config is None:
            return cls()
        sandboxes = config.pool.capacity + config.pool.ready_max
        descriptors = config.http.max_connections + FDS_PER_SANDBOX * sandboxes + 1024
        most = config.limits.maximum
        job_files = config.pool.capacity * most.processes * most.open_files
        return cls(config.pool.uid_base, descriptors, config.pool.disk_read_mb, job_files)


@dataclass(frozen=True, slots=True)
class Check:
    """One layer: how to try it, and what helps when nothing more is known."""

    name: str
    layer: str  # the heading it belongs under; "" if it isolates nothing by itself
    run: Callable[[Needs], str]
    cure: str = ""
    mandatory: bool = True


@dataclass(frozen=True, slots=True)
class Probe:
    """What came out. ``name`` is what an operator may waive."""

    name: str
    layer: str
    status: Status
    detail: str
    cause: str
    cure: str
    mandatory: bool


# ── namespaces ───────────────────────────────────────────────────────────────


def pid_namespace(_: Needs) -> str:
    """The next child is process 1."""
    libc.unshare(CLONE.NEWPID)
    _in_fork(lambda: _expect(os.getpid() == 1, "the first process is not process 1"))
    return "the first process is 1"


def net_namespace(_: Needs) -> str:
    """Only a loopback interface, and it can be switched on."""
    libc.unshare(CLONE.NEWNET)
    names = [name for _, name in socket.if_nameindex()]
    _expect(names == ["lo"], f"interfaces inside: {', '.join(names)}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sH14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
    return "only its own loopback"


def mount_namespace(_: Needs) -> str:
    """Mounts of our own that the host does not see."""
    _private_mounts()
    return "private"


def ipc_namespace(_: Needs) -> str:
    """System V objects and message queues of our own."""
    libc.unshare(CLONE.NEWIPC)
    return "private"


def uts_namespace(_: Needs) -> str:
    """A host name of our own."""
    libc.unshare(CLONE.NEWUTS)
    libc.set_hostname("sandrun")
    return "private"


def cgroup_namespace(_: Needs) -> str:
    """Our own group is the root of what a job sees."""
    libc.unshare(CLONE.NEWCGROUP)
    groups = Path("/proc/self/cgroup").read_text().splitlines()
    _expect(all(line.endswith(":/") for line in groups), "the host's groups are still seen")
    return "private"


def user_namespace(needs: Needs) -> str:
    """Root inside is nobody outside, and a range of ids can be mapped."""
    _enter_user_namespace(0, needs.uid_base, OUTER_IDS)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    return f"{OUTER_IDS} ids from {needs.uid_base} on"


def nested_user_namespace(needs: Needs) -> str:
    """A sandbox's own namespace with two ids, inside a spawner's, with all the others."""
    user_namespace(needs)
    libc.prctl(PR.SET_DUMPABLE, 1)  # the change of ids made our /proc files root's
    _enter_user_namespace(1000, 1000, 2)
    libc.unshare(
        CLONE.NEWPID | CLONE.NEWNS | CLONE.NEWNET | CLONE.NEWIPC | CLONE.NEWUTS | CLONE.NEWCGROUP
    )
    os.setresuid(1001, 1000, 1001)
    return "two ids, all namespaces"


def _enter_user_namespace(inside: int, outside: int, count: int) -> None:
    """The map of a namespace is written from outside of it, here by a child."""
    entered_r, entered_w = os.pipe()
    parent = os.getpid()
    line = f"{inside} {outside} {count}\n".encode()

    def write_maps() -> None:
        os.close(entered_w)
        os.read(entered_r, 1)
        for name in ("gid_map", "uid_map"):
            fd = os.open(f"/proc/{parent}/{name}", os.O_WRONLY)
            os.write(fd, line)

    writer = _fork(write_maps)
    try:
        libc.unshare(CLONE.NEWUSER)
    finally:
        os.close(entered_r)
        os.close(entered_w)
        problem = writer()
    if problem:
        raise OSError(problem.errno, f"the id map could not be written: {problem.cause}")


# ── file system ──────────────────────────────────────────────────────────────


def _private_mounts() -> None:
    """Raises before anything is mounted if the mounts would be the host's."""
    libc.unshare(CLONE.NEWNS)
    # systemd mounts / shared: without this our mounts would appear on the host.
    libc.mount("none", "/", "none", MS.REC | MS.PRIVATE)


def tmpfs(_: Needs) -> str:
    """A tmpfs mounted nowhere, that can be passed along and limited."""
    fd = libc.detached_tmpfs(
        {"size": "1048576", "nr_inodes": "16", "mode": "755"},
        MountAttr.NOSUID | MountAttr.NODEV,
    )
    _private_mounts()
    libc.move_mount(fd, _PLACE)
    _expect(
        os.statvfs(_PLACE).f_blocks * os.statvfs(_PLACE).f_bsize == 1 << 20,
        "not limited",
    )
    return "detached, limited in size and inodes"


def tmpfs_noswap(_: Needs) -> str:
    """Files that are never swapped, whatever the host does (Linux 6.4)."""
    os.close(libc.detached_tmpfs({"size": "1048576", "noswap": ""}, MountAttr.NOSUID))
    return "files are never swapped"


def detached_mounts(_: Needs) -> str:
    """A read-only copy of a tree of the host (open_tree, mount_setattr, move_mount)."""
    _private_mounts()
    tree = libc.open_tree("/usr")
    libc.mount_setattr(tree, MountAttr.RDONLY | MountAttr.NOSUID | MountAttr.NODEV)
    libc.move_mount(tree, _PLACE)
    _expect(bool(os.statvfs(_PLACE).f_flag & os.ST_RDONLY), "the copy is not read-only")
    return "/usr read-only"


def pivot(_: Needs) -> str:
    """A root of our own, with the host's tree gone from sight."""
    _private_mounts()
    libc.mount("probe", _PLACE, "tmpfs", MS.NOSUID, "mode=755,size=1m")
    os.mkdir(f"{_PLACE}/inside")
    os.chdir(_PLACE)
    libc.pivot_root(".", ".")
    libc.umount(".")
    os.chdir("/")
    _expect(os.listdir("/") == ["inside"], "the host's tree is still there")
    return "the host's tree is gone"


def device_nodes(_: Needs) -> str:
    """/dev/null and its like can be made and opened."""
    _private_mounts()
    libc.mount("probe", _PLACE, "tmpfs", MS.NOSUID, "mode=755,size=1m")
    os.mknod(f"{_PLACE}/null", 0o20666, os.makedev(1, 3))
    os.close(os.open(f"{_PLACE}/null", os.O_RDWR))
    return "null, zero, full, random"


def proc_mount(_: Needs) -> str:
    """A /proc that shows nothing but the sandbox's processes (Linux 5.8)."""
    _private_mounts()
    libc.unshare(CLONE.NEWPID)

    def mount() -> None:
        options = "subset=pid,hidepid=invisible"
        libc.mount("proc", "/proc", "proc", MS.NOSUID | MS.NODEV | MS.NOEXEC, options)
        _expect(not os.path.exists("/proc/sys"), "/proc/sys is there")

    _in_fork(mount)
    return "processes only"


# ── system calls and privileges ──────────────────────────────────────────────


def no_new_privs(_: Needs) -> str:
    """A set-uid program gives nothing."""
    libc.prctl(PR.SET_NO_NEW_PRIVS, 1)
    _expect(_status("NoNewPrivs") == "1", "the kernel did not keep it")
    return "set-uid programs give nothing"


def capabilities(_: Needs) -> str:
    """Every set can be emptied, the bounding set included."""
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    libc.drop_bounding_set(frozenset(), last)
    libc.prctl(PR.SET_SECUREBITS, SECBITS_LOCKED)
    libc.capset(0, 0, 0)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        _expect(int(_status(name), 16) == 0, f"{name} is not empty")
    return f"all {last + 1} gone from every set"


def landlock(_: Needs) -> str:
    """A second wall around the file system."""
    abi = libc.landlock_abi()
    if not abi:
        raise Missing("the kernel has no Landlock or it is not in its list of security modules")
    libc.prctl(PR.SET_NO_NEW_PRIVS, 1)
    ruleset = libc.landlock_ruleset(LandlockFs.READ_DIR, 0, LandlockScope(0), 8)
    libc.landlock_restrict(ruleset)
    try:
        os.listdir("/")
    except PermissionError:
        return f"ABI {abi}"
    raise Missing(f"Landlock ABI {abi} is there and does not confine")


def seccomp(_: Needs) -> str:
    """A filter of system calls takes effect."""
    libc.prctl(PR.SET_NO_NEW_PRIVS, 1)
    # man: seccomp(2). Load the number; getppid answers EXDEV, which it never does by
    # itself; all others pass.
    getppid = {"x86_64": 110, "aarch64": 173}[platform.machine()]
    program = b"".join(
        struct.pack("<HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 0),  # BPF_LD | BPF_W | BPF_ABS: seccomp_data.nr
            (0x15, 0, 1, getppid),  # BPF_JMP | BPF_JEQ
            (0x06, 0, 0, 0x00050000 | errno.EXDEV),  # SECCOMP_RET_ERRNO
            (0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
        )
    )
    libc.load_filter(program)
    _expect(_status("Seccomp") == "2", "the kernel did not load it")
    _expect(os.getppid() in (-1, -errno.EXDEV), "the filter has no effect")
    return "filters take effect"


def libseccomp(_: Needs) -> str:
    """The library that gives the second opinion on our filter."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise Missing(f"libseccomp.so.2 cannot be loaded ({error})") from error

    class Version(ctypes.Structure):
        _fields_ = (
            ("major", ctypes.c_uint),
            ("minor", ctypes.c_uint),
            ("micro", ctypes.c_uint),
        )

    library.seccomp_version.restype = ctypes.POINTER(Version)
    version = library.seccomp_version().contents
    return f"{version.major}.{version.minor}.{version.micro}"


# ── limits ───────────────────────────────────────────────────────────────────


def cgroup(_: Needs) -> str:
    """The controllers are there and can be handed to groups of ours. Makes nothing."""
    layout = own_layout()
    if layout.version == 1:
        for name, directory in layout.directories.items():
            if name != "blkio":  # see disk_reads
                _expect_writable(directory)
        return f"v1{' with v2 beside it' if layout.companion else ''}: {', '.join(CONTROLLERS)}"
    own, ceiling = layout.directories["unified"], layout.ceilings["unified"]
    lacking = set(CONTROLLERS) - _words(f"{own}/cgroup.controllers")
    if lacking and not any(
        set(CONTROLLERS) <= _words(f"{directory}/cgroup.subtree_control")
        for directory in _above(own, ceiling)
    ):
        raise Missing(f"controllers {', '.join(sorted(lacking))} are not handed on to {own}")
    _expect_writable(own)
    return f"v2: {', '.join(CONTROLLERS)}"


def own_layout() -> Layout:
    """Where this process's groups are. Raises HostError."""
    mountinfo = Path("/proc/self/mountinfo").read_text()
    return find(mountinfo, Path("/proc/self/cgroup").read_text())


def _above(own: str, ceiling: str) -> Iterator[str]:
    while own not in (ceiling, "/"):
        own = os.path.dirname(own)
        yield own


def _expect_writable(directory: str) -> None:
    _expect(os.path.isdir(directory), f"{directory} is not there")
    if not os.access(directory, os.W_OK):
        raise PermissionError(errno.EACCES, "not writable", directory)


def descriptors(needs: Needs) -> str:
    """Enough descriptors for the configured connections and sandboxes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needs.descriptors:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, needs.descriptors))
        except (OSError, ValueError) as error:
            cause = f"RLIMIT_NOFILE is {hard}, the configuration may need {needs.descriptors}"
            cure = f"LimitNOFILE={needs.descriptors} in the unit, or lower http.max_connections"
            raise Missing(cause, cure) from error
    return f"{needs.descriptors} of {'any number' if hard == resource.RLIM_INFINITY else hard}"


# ── memory ───────────────────────────────────────────────────────────────────


def memfd_sealing(_: Needs) -> str:
    """Memory descriptors that nobody can change any more."""
    fd = os.memfd_create("probe", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, b"x")
    fcntl.fcntl(
        fd,
        fcntl.F_ADD_SEALS,
        fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK,
    )
    try:
        os.write(fd, b"y")
    except PermissionError:
        return "sealed against writing"
    raise Missing("a sealed descriptor can be written to")


def pidfd(_: Needs) -> str:
    """Process descriptors: a signal never meets another process by the same number."""
    fd = os.pidfd_open(os.getpid())
    signal.pidfd_send_signal(fd, signal.SIGCONT)
    return "processes are named by descriptor"


def swap(_: Needs) -> str:
    """Job data never reaches a disk by swapping."""
    disks = swap_devices(Path("/proc/swaps").read_text())
    if not disks:
        return "no swap on a disk"
    layout = own_layout()
    if layout.version == 2 and _swap_accounted(layout.directories["unified"]):
        return f"swap is on ({', '.join(disks)}), our groups may not use it (memory.swap.max=0)"
    raise Missing(
        f"swap is on ({', '.join(disks)}) and cgroup v1 cannot keep a group out of it"
        if layout.version == 1
        else f"swap is on ({', '.join(disks)}) and the kernel does not account for it"
    )


def swap_devices(swaps: str) -> list[str]:
    """/proc/swaps → what may write to a disk; zram stays in memory. Pure."""
    names = [line.split()[0] for line in swaps.splitlines()[1:] if line.strip()]
    return [name for name in names if not name.startswith("/dev/zram")]


def _swap_accounted(own: str) -> bool:
    # The root group has no such file; any group below it tells.
    candidates = [Path(own, "memory.swap.max"), *Path(own).glob("*/memory.swap.max")]
    return any(path.exists() for path in candidates)


def network_buffers(_: Needs) -> str:
    """Whether jobs can take from everybody what the kernel has for TCP on the whole host."""
    if any("nosocket" in word for word in _told("cgroup.memory")):
        raise Missing(
            "the kernel was told not to count network buffers, and jobs can hold all it has",
            "boot without cgroup.memory=nosocket",
        )
    layout = own_layout()
    if layout.version == 1:  # see Hierarchy._cap_sockets
        if not os.path.exists(f"{layout.directories['memory']}/memory.kmem.tcp.limit_in_bytes"):
            raise Missing(
                "the kernel counts them for nobody: jobs can hold all that TCP has on this host",
                "a kernel with CONFIG_MEMCG_KMEM, or cgroup v2",
            )
        return "limited for each job, and for all of them together"
    tcp_mem = Path("/proc/sys/net/ipv4/tcp_mem").read_text()
    pages = os.sysconf("SC_PHYS_PAGES")
    if cure := larger_tcp_mem(tcp_mem, pages):
        raise Missing(
            "a job's buffers count as its memory, but jobs can hold all that TCP has on this host",
            cure,
        )
    return "a job's count as its memory, and TCP has room for all jobs"


def larger_tcp_mem(tcp_mem: str, pages: int) -> str:
    """What makes the kernel's limit of TCP no smaller than a memory of ``pages``. Pure.

    Each group's memory limit then bounds its buffers, and the host's own are not refused.
    "" if it is so already.
    """
    if int(tcp_mem.split()[2]) >= pages:
        return ""
    return f"sysctl -w net.ipv4.tcp_mem='{pages // 2} {pages * 3 // 4} {pages}'"


def open_files(needs: Needs) -> str:
    """Whether jobs can have opened all the files that the host's programs together may."""
    most = int(Path("/proc/sys/fs/file-max").read_text())
    if needs.job_files * 2 > most:
        raise Missing(
            f"jobs can have {needs.job_files} files open, all programs of this host {most}",
            f"sysctl -w fs.file-max={max(needs.job_files * 2, 1 << 30)}",
        )
    return "the host has room for those of all jobs"


def refused_calls(_: Needs) -> str:
    """Whether jobs can fill the host's log with the calls that end a process."""
    path = Path("/proc/sys/kernel/seccomp/actions_logged")
    actions = path.read_text().split() if path.exists() else []
    keepers = [name for name in _LOG_KEEPERS if name in _running()]
    if "kill_process" not in actions or not keepers:
        return "no more than the kernel's own limit of messages lets through"
    quiet = " ".join(action for action in actions if not action.startswith("kill_"))
    raise Missing(
        f"{keepers[0]} keeps a line for each refused call that ends a process: a job can make "
        "a thousand a second, which push out others",
        f"sysctl -w kernel.seccomp.actions_logged='{quiet}'",
    )


_LOG_KEEPERS: Final = ("auditd", "systemd-journal")  # the kernel keeps 15 letters of a name


def _running() -> set[str]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):  # it has ended
            found.add(path.read_text().strip())
    return found


def disk_reads(needs: Needs) -> str:
    """Whether jobs that read /usr in a circle leave the disk to others."""
    if not needs.disk_read_mb:
        raise Missing(
            "[pool] disk_read_mb is 0: jobs read as fast as the disks are",
            "a rate that leaves the host its part, such as 100",
        )
    found = disks()
    if not found:
        raise Missing("there is no disk here; what /usr comes from has no such limit")
    layout = own_layout()
    if layout.version == 1:
        _expect_throttle(layout.directories.get("blkio"))
    else:
        own, ceiling = layout.directories["unified"], layout.ceilings["unified"]
        above = (_words(f"{place}/cgroup.subtree_control") for place in _above(own, ceiling))
        if "io" not in _words(f"{own}/cgroup.controllers") and not any("io" in a for a in above):
            raise Missing(f"the io controller is not handed on to {own}")
    return f"{needs.disk_read_mb} MiB/s for all jobs together, of {', '.join(found)}"


def _expect_throttle(own: str | None) -> None:
    if own is None:
        raise Missing(
            "cgroup controller blkio is not mounted by itself",
            "mount -t cgroup -o blkio cgroup /sys/fs/cgroup/blkio",
        )
    _expect_writable(own)
    if not os.path.exists(f"{own}/blkio.throttle.read_bps_device"):
        raise Missing("the kernel cannot limit them", "a kernel with CONFIG_BLK_DEV_THROTTLING")


def core_dumps(_: Needs) -> str:
    """Where a crash would write memory to. Jobs have RLIMIT_CORE 1, which stops both kinds."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    kind = "a program" if pattern.startswith("|") else "a file"
    return f"off for jobs (the host's would go to {kind}: {pattern})"


def init_on_free(_: Needs) -> str:
    """Whether the kernel overwrites memory when it is freed."""
    if setting := _told("init_on_free"):
        on = setting[-1] in ("1", "on", "y", "Y")
    else:
        on = "CONFIG_INIT_ON_FREE_DEFAULT_ON=y" in _kernel_config()
    if not on:
        raise Missing("the kernel does not overwrite freed memory")
    return "freed memory is overwritten"


def _told(name: str) -> list[str]:
    """The values of a parameter that the kernel was booted with."""
    words = (word.partition("=") for word in Path("/proc/cmdline").read_text().split())
    return [value for key, _, value in words if key == name]


def _kernel_config() -> str:
    path = Path(f"/boot/config-{platform.release()}")
    try:
        if path.exists():
            return path.read_text()
        import gzip  # noqa: PLC0415 - rarely needed, and 3 ms

        return gzip.decompress(Path("/proc/config.gz").read_bytes()).decode()
    except (OSError, EOFError):
        return ""


# ── the list ─────────────────────────────────────────────────────────────────

_LANDLOCK: Final = "Linux 5.13 or later, booted with landlock in lsm="
_APT: Final = "apt-get install libseccomp2"
_NAMESPACES: Final = (
    "a kernel with CONFIG_NAMESPACES and each of its kinds; no container runtime, security "
    "module or SystemCallFilter= in between"
)
_MOUNTS: Final = "CAP_SYS_ADMIN, and no container runtime or security module that forbids mounts"
_DELEGATE: Final = "start in a systemd unit with Delegate=yes, or with systemd-run -p Delegate=yes"

# Each tuple shares a child. Order matters: what narrows the process comes last.
GROUPS: Final[tuple[tuple[Check, ...], ...]] = (
    (
        Check("ipc_namespace", "namespaces", ipc_namespace, _NAMESPACES),
        Check("uts_namespace", "namespaces", uts_namespace, _NAMESPACES),
        Check("net_namespace", "namespaces", net_namespace, _NAMESPACES),
        Check("mount_namespace", "namespaces", mount_namespace, _NAMESPACES),
        Check("cgroup_namespace", "namespaces", cgroup_namespace, _NAMESPACES),
        Check("pid_namespace", "namespaces", pid_namespace, _NAMESPACES),
    ),
    (Check("user_namespace", "namespaces", user_namespace, _NAMESPACES),),
    (Check("nested_user_namespace", "namespaces", nested_user_namespace, _NAMESPACES),),
    (
        Check("tmpfs", "file system", tmpfs, _MOUNTS),
        Check(
            "tmpfs_noswap",
            "file system",
            tmpfs_noswap,
            "Linux 6.4 or later",
            mandatory=False,
        ),
        Check(
            "detached_mounts",
            "file system",
            detached_mounts,
            "Linux 5.12 or later",
        ),
        Check("device_nodes", "file system", device_nodes, _MOUNTS),
        Check("proc_subset", "file system", proc_mount, "Linux 5.8 or later"),
    ),
    (Check("pivot_root", "file system", pivot, _MOUNTS),),
    (
        Check("pidfd", "", pidfd, "Linux 5.3 or later"),
        Check("memfd_sealing", "memory", memfd_sealing, "Linux 3.17 or later"),
        Check("descriptors", "", descriptors, "a higher LimitNOFILE= in the unit", mandatory=False),
        Check("no_new_privs", "privileges", no_new_privs, "Linux 3.5 or later"),
        Check("capabilities", "privileges", capabilities, "start with CAP_SETPCAP"),
        Check("landlock", "file system", landlock, _LANDLOCK, mandatory=False),
        Check(
            "seccomp",
            "system calls",
            seccomp,
            "a kernel with CONFIG_SECCOMP_FILTER",
        ),
    ),
)

# These only read: no child.
READ_ONLY: Final = (
    Check("libseccomp", "", libseccomp, _APT, mandatory=False),
    Check("cgroup", "limits", cgroup, _DELEGATE),
    Check(
        "network_buffers",
        "limits",
        network_buffers,
        "a larger net.ipv4.tcp_mem",
        mandatory=False,
    ),
    Check("disk_reads", "limits", disk_reads, _DELEGATE, mandatory=False),
    Check("open_files", "limits", open_files, "a larger fs.file-max", mandatory=False),
    Check(
        "refused_calls",
        "system calls",
        refused_calls,
        "sysctl kernel.seccomp.actions_logged",
        mandatory=False,
    ),
    Check("swap", "memory", swap, "swapoff -a, or boot with cgroup v2"),
    Check(
        "core_dumps", "memory", core_dumps, "sysctl -w kernel.core_pattern=core", mandatory=False
    ),
    Check(
        "init_on_free",
        "memory",
        init_on_free,
        "boot with init_on_free=1",
        mandatory=False,
    ),
)


def probe_all(needs: Needs) -> tuple[Probe, ...]:
    """Every probe, in the order of the lists. About 45 ms here."""
    found = [probe for group in GROUPS for probe in _run_group(group, needs)]
    return (*found, *(_judge(check, _outcome(check, needs)) for check in READ_ONLY))


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one probe: ``cause`` is empty if it worked."""

    detail: str = ""
    cause: str = ""
    cure: str = ""
    errno: int = 0


def _outcome(check: Check, needs: Needs) -> Outcome:
    try:
        return Outcome(detail=check.run(needs))
    except Missing as error:
        return Outcome(cause=error.cause, cure=error.cure)
    except HostError as error:
        return Outcome(cause=error.what, cure=error.cure)
    except OSError as error:
        number = error.errno or 0
        text = error.strerror or str(error)
        cause = f"{text} ({error.filename})" if error.filename else text
        return Outcome(cause=cause, errno=number)
    except Exception as error:  # noqa: BLE001 - what cannot be tried is not there: fail closed
        return Outcome(cause=f"the probe itself failed: {error!r}")


def _judge(check: Check, outcome: Outcome) -> Probe:
    status: Status = "ok"
    cure = outcome.cure
    if outcome.cause:
        status = "missing" if check.mandatory else "optional_missing"
        cure = cure or explain(check.name, outcome.errno, facts()) or check.cure
    return Probe(
        name=check.name,
        layer=check.layer,
        status=status,
        detail=outcome.detail or outcome.cause,
        cause=outcome.cause,
        cure=cure,
        mandatory=check.mandatory,
    )


# ── causes and cures ─────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Facts:
    """What explains a refusal."""

    root: bool
    container: str  # its kind, or ""
    filtered: bool  # a seccomp filter is on this process already
    sys_admin: bool
    sysctls: dict[str, str]


_SYSCTLS: Final = (
    "kernel.unprivileged_userns_clone",
    "kernel.apparmor_restrict_unprivileged_userns",
    *(
        f"user.max_{kind}_namespaces"
        for kind in ("user", "pid", "net", "mnt", "ipc", "uts", "cgroup")
    ),
)
_SYS_ADMIN: Final = 1 << 21


def facts() -> Facts:
    """Read them from /proc and the usual marks of container runtimes."""
    sysctls = {}
    for name in _SYSCTLS:
        path = Path("/proc/sys", *name.split(".", 1))
        if path.exists():
            sysctls[name] = path.read_text().strip()
    return Facts(
        root=os.geteuid() == 0,
        container=_container(),
        filtered=_status("Seccomp") == "2",
        sys_admin=bool(int(_status("CapEff"), 16) & _SYS_ADMIN),
        sysctls=sysctls,
    )


_SYSTEMD_SAYS: Final = "container"  # set by systemd-nspawn, lxc, podman


def _container() -> str:
    for mark, kind in (("/.dockerenv", "docker"), ("/run/.containerenv", "podman")):
        if os.path.exists(mark):
            return kind
    return os.environ.get(_SYSTEMD_SAYS, "")


def explain(name: str, number: int, known: Facts) -> str:
    """The likely cure for a refusal with this errno; "" if there is no guess. Pure."""
    if not number:
        return ""
    if not known.root:
        return "run as root"
    kind = name.removesuffix("_namespace").replace("nested_", "").replace("mount", "mnt")
    limit = f"user.max_{kind}_namespaces"
    if number == errno.ENOSPC and limit in known.sysctls:
        return f"sysctl -w {limit}=65536 (it is {known.sysctls[limit]}), or fewer nested namespaces"
    if number == errno.EINVAL and name.endswith("_namespace"):
        return f"a kernel with CONFIG_{kind.upper()}_NS"
    bounded = known.filtered or not known.sys_admin
    if number in (errno.EPERM, errno.EACCES, errno.ENOSYS) and known.container and bounded:
        return (
            f"start the {known.container} container with --privileged, or with --cap-add SYS_ADMIN "
            "--security-opt seccomp=unconfined --security-opt apparmor=unconfined"
        )
    if number in (errno.EPERM, errno.EACCES):
        return _permission_cure(name, known)
    return ""


def _permission_cure(name: str, known: Facts) -> str:
    if "user_namespace" in name:
        for sysctl, bad in (
            ("kernel.unprivileged_userns_clone", "0"),
            ("kernel.apparmor_restrict_unprivileged_userns", "1"),
        ):
            if known.sysctls.get(sysctl) == bad:
                return f"sysctl -w {sysctl}={1 - int(bad)}"
    if not known.sys_admin:
        return "give the process CAP_SYS_ADMIN (in a unit: no CapabilityBoundingSet=)"
    if known.filtered:
        return "a seccomp filter is on this process already: start it without (SystemCallFilter=)"
    return "a security module refuses it: look at dmesg and the audit log"


# ── children ─────────────────────────────────────────────────────────────────


def _run_group(checks: tuple[Check, ...], needs: Needs) -> Iterator[Probe]:
    """Run them in one child, and in a new one behind each that killed it."""
    pending = checks
    while pending:
        outcomes, status = _run_in_child(pending, needs)
        for check, outcome in zip(pending, outcomes, strict=False):
            yield _judge(check, outcome)
        if len(outcomes) < len(pending):
            code = os.waitstatus_to_exitcode(status)
            cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            yield _judge(pending[len(outcomes)], Outcome(cause=cause, errno=errno.EPERM))
        pending = pending[len(outcomes) + 1 :]


def _run_in_child(checks: tuple[Check, ...], needs: Needs) -> tuple[list[Outcome], int]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(checks, needs, writing)
    os.close(writing)
    with open(reading, "rb") as pipe:
        lines = pipe.read().splitlines()
    _, status = os.waitpid(pid, 0)
    return [Outcome(**json.loads(line)) for line in lines], status


def _child(checks: tuple[Check, ...], needs: Needs, writing: int) -> NoReturn:
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for check in checks:
            outcome = _outcome(check, needs)
            record = {
                "detail": outcome.detail,
                "cause": outcome.cause,
                "cure": outcome.cure,
                "errno": outcome.errno,
            }
            os.write(writing, json.dumps(record).encode() + b"\n")
        code = 0
    finally:
        os._exit(code)


def _fork(body: Callable[[], None]) -> Callable[[], Outcome | None]:
    """Start ``body`` in a child; the result waits for it and tells what went wrong."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            body()
        except Exception as error:  # noqa: BLE001 - a fork must not return into the caller
            number = getattr(error, "errno", None) or 0
            os.write(writing, f"{number} {error}".encode())
        finally:
            os._exit(0)
    os.close(writing)

    def wait() -> Outcome | None:
        with open(reading, "rb") as pipe:
            number, _, text = pipe.read().decode().partition(" ")
        _, status = os.waitpid(pid, 0)
        if not number:
            return Outcome(cause=f"wait status {status}") if status else None
        return Outcome(cause=text or "failed", errno=int(number))

    return wait


def _in_fork(body: Callable[[], None]) -> None:
    if problem := _fork(body)():
        if problem.errno:
            raise OSError(problem.errno, problem.cause)
        raise Missing(problem.cause)


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise Missing(otherwise)


def _status(field: str) -> str:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return value.strip()
    return "0"


def _words(path: str) -> set[str]:
    return set(Path(path).read_text().split())
