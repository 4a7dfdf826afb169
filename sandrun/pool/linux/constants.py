"""Names of the kernel's own numbers, as enums. Pure.

Kernel names stay the kernel's; the manual page is in each docstring. Numbers
of system calls are those of x86-64 and aarch64, the machines we support.
"""

from __future__ import annotations

import platform
from enum import IntEnum, IntFlag
from typing import Final

MACHINE: Final = platform.machine()


class CLONE(IntFlag):
    """man: clone(2), unshare(2), setns(2)."""

    NEWTIME = 0x00000080
    PARENT = 0x00008000
    NEWNS = 0x00020000
    NEWCGROUP = 0x02000000
    NEWUTS = 0x04000000
    NEWIPC = 0x08000000
    NEWUSER = 0x10000000
    NEWPID = 0x20000000
    NEWNET = 0x40000000


class MS(IntFlag):
    """man: mount(2)."""

    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    REMOUNT = 32
    NOATIME = 1024
    BIND = 4096
    REC = 16384
    PRIVATE = 1 << 18
    SLAVE = 1 << 19


class MNT(IntFlag):
    """man: umount2(2)."""

    DETACH = 2


class MountAttr(IntFlag):
    """``MOUNT_ATTR_*``. man: mount_setattr(2), fsmount(2)."""

    RDONLY = 0x1
    NOSUID = 0x2
    NODEV = 0x4
    NOEXEC = 0x8
    NOATIME = 0x10


MOUNT_ATTR_ATIME: Final = 0x70  # all of the access-time field


class FSCONFIG(IntEnum):
    """Commands of fsconfig(2)."""

    SET_FLAG = 0
    SET_STRING = 1
    CMD_CREATE = 6
    CMD_RECONFIGURE = 7


class PR(IntEnum):
    """man: prctl(2)."""

    SET_PDEATHSIG = 1
    SET_DUMPABLE = 4
    SET_NAME = 15
    CAPBSET_DROP = 24
    SET_SECUREBITS = 28
    SET_CHILD_SUBREAPER = 36
    SET_NO_NEW_PRIVS = 38
    CAP_AMBIENT = 47


class CAP(IntEnum):
    """Those capabilities that we name. man: capabilities(7)."""

    CHOWN = 0
    DAC_OVERRIDE = 1
    FOWNER = 3
    KILL = 5
    SETGID = 6
    SETUID = 7
    SETPCAP = 8
    NET_ADMIN = 12
    SYS_CHROOT = 18
    SYS_PTRACE = 19
    SYS_ADMIN = 21
    LAST = 63


# SECBIT_NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE, each with its lock.
SECBITS_LOCKED: Final = 0x2F | 0xC0

OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = 0o2000000
AT_RECURSIVE: Final = 0x8000
AT_EMPTY_PATH: Final = 0x1000
AT_FDCWD: Final = -100
MOVE_MOUNT_F_EMPTY_PATH: Final = 4
FSOPEN_CLOEXEC: Final = 1
FSMOUNT_CLOEXEC: Final = 1
FSPICK_CLOEXEC: Final = 1
FSPICK_EMPTY_PATH: Final = 8

SECCOMP_SET_MODE_FILTER: Final = 1

# Numbers that differ between the two machines; those from 424 on are the same.
_NUMBERS: Final = {
    "x86_64": {"clone": 56, "seccomp": 317, "capset": 126, "pivot_root": 155},
    "aarch64": {"clone": 220, "seccomp": 277, "capset": 91, "pivot_root": 41},
}


class SYS:
    """System call numbers of this machine."""

    clone = _NUMBERS[MACHINE]["clone"]
    seccomp = _NUMBERS[MACHINE]["seccomp"]
    capset = _NUMBERS[MACHINE]["capset"]
    pivot_root = _NUMBERS[MACHINE]["pivot_root"]
    open_tree = 428
    move_mount = 429
    fsopen = 430
    fsconfig = 431
    fsmount = 432
    fspick = 433
    mount_setattr = 442
    landlock_create_ruleset = 444
    landlock_add_rule = 445
    landlock_restrict_self = 446


class LandlockFs(IntFlag):
    """``LANDLOCK_ACCESS_FS_*``. man: landlock(7)."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13  # ABI 2
    TRUNCATE = 1 << 14  # ABI 3
    IOCTL_DEV = 1 << 15  # ABI 5


class LandlockScope(IntFlag):
    """``LANDLOCK_SCOPE_*``, ABI 6."""

    ABSTRACT_UNIX_SOCKET = 1
    SIGNAL = 2
