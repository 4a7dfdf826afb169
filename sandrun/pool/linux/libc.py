"""The system calls that Python lacks: the only ctypes of the pool. I/O.

Prototypes once at import, three lines a call. Each raises :class:`OSError` whose
text names the call and its object; callers turn that into a ``SetupError``.

``clone`` deserves a word. We need CLONE_PARENT and namespaces in one fork, which
``os.fork`` cannot do. A raw clone without a stack behaves like fork, but skips
the C library's and Python's at-fork handlers. That is sound here because the
caller is single-threaded, holds no lock, and calls through ``PyDLL`` (the GIL
stays held), and because everything that becomes a job goes through one more
``os.fork``, which runs the handlers.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from typing import Final

from sandrun.pool.linux.constants import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    CLONE,
    FSCONFIG,
    FSMOUNT_CLOEXEC,
    FSOPEN_CLOEXEC,
    FSPICK_CLOEXEC,
    FSPICK_EMPTY_PATH,
    MNT,
    MOUNT_ATTR_ATIME,
    MOVE_MOUNT_F_EMPTY_PATH,
    MS,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
    PR,
    SECCOMP_SET_MODE_FILTER,
    SYS,
    LandlockFs,
    LandlockScope,
    MountAttr,
)

_libc: Final = ctypes.PyDLL(None, use_errno=True)
_syscall: Final = _libc.syscall
_syscall.restype = ctypes.c_long
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.prctl.argtypes = (ctypes.c_int,) + (ctypes.c_ulong,) * 4
_libc.sethostname.argtypes = (ctypes.c_char_p, ctypes.c_size_t)

_long: Final = ctypes.c_long
_ulong: Final = ctypes.c_ulong


class _SockFprog(ctypes.Structure):
    """``struct sock_fprog``. man: seccomp(2)."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


class _MountAttr(ctypes.Structure):
    """``struct mount_attr``. man: mount_setattr(2)."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _check(result: int, what: str, about: object = None) -> int:
    # The text is made only for a failure: formatting the name of a flag costs more
    # than most of these calls.
    if result < 0:
        number = ctypes.get_errno()
        if isinstance(about, CLONE):
            about = _names(about)
        elif isinstance(about, PR | FSCONFIG):
            about = about.name
        elif about is not None:
            about = repr(about)
        where = what if about is None else f"{what}({about})"
        raise OSError(number, f"{where}: {os.strerror(number)}")
    return result


def _names(flags: CLONE) -> str:
    return "|".join(flag.name or "" for flag in CLONE if flag in flags)


def clone(flags: CLONE, signal: int) -> int:
    """A fork into new namespaces: 0 in the child, its pid in the caller. See above."""
    return _check(
        _syscall(
            _long(SYS.clone), _ulong(flags | signal), _ulong(0), _ulong(0), _ulong(0), _ulong(0)
        ),
        "clone",
        flags,
    )


def unshare(flags: CLONE) -> None:
    """man: unshare(2)."""
    _check(_libc.unshare(flags), "unshare", flags)


def setns(fd: int, flags: CLONE) -> None:
    """man: setns(2); ``fd`` is a namespace or a pidfd."""
    _check(_libc.setns(fd, flags), "setns", flags)


def mount(source: str, target: str, fstype: str, flags: MS, data: str = "") -> None:
    """man: mount(2)."""
    _check(
        _libc.mount(
            source.encode(), target.encode(), fstype.encode(), flags, data.encode() or None
        ),
        "mount",
        target,
    )


def umount(target: str, flags: MNT = MNT.DETACH) -> None:
    """man: umount2(2)."""
    _check(_libc.umount2(target.encode(), flags), "umount", target)


def pivot_root(new_root: str, put_old: str) -> None:
    """man: pivot_root(2)."""
    _check(
        _syscall(
            _long(SYS.pivot_root),
            ctypes.c_char_p(new_root.encode()),
            ctypes.c_char_p(put_old.encode()),
        ),
        "pivot_root",
    )


def open_tree(path: str, *, recursive: bool = True) -> int:
    """A detached copy of a mounted tree, as a descriptor. man: open_tree(2)."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    return _check(
        _syscall(
            _long(SYS.open_tree), _long(AT_FDCWD), ctypes.c_char_p(path.encode()), _ulong(flags)
        ),
        "open_tree",
        path,
    )


def mount_setattr(fd: int, attributes: MountAttr, *, recursive: bool = True) -> None:
    """Set attributes on a detached tree. man: mount_setattr(2)."""
    # The access-time flags are one field: the kernel wants it cleared to set it.
    clear = MOUNT_ATTR_ATIME if attributes & MountAttr.NOATIME else 0
    attr = _MountAttr(attr_set=attributes, attr_clr=clear)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _check(
        _syscall(
            _long(SYS.mount_setattr),
            _long(fd),
            ctypes.c_char_p(b""),
            _ulong(flags),
            ctypes.byref(attr),
            _ulong(ctypes.sizeof(attr)),
        ),
        "mount_setattr",
    )


def move_mount(fd: int, target: str) -> None:
    """Attach a detached mount. man: move_mount(2)."""
    _check(
        _syscall(
            _long(SYS.move_mount),
            _long(fd),
            ctypes.c_char_p(b""),
            _long(AT_FDCWD),
            ctypes.c_char_p(target.encode()),
            _ulong(MOVE_MOUNT_F_EMPTY_PATH),
        ),
        "move_mount",
        target,
    )


def detached_tmpfs(options: dict[str, str], attributes: MountAttr) -> int:
    """A new tmpfs that is mounted nowhere; an option with value "" is a flag.

    man: fsopen(2), fsconfig(2), fsmount(2).
    """
    context = _check(
        _syscall(_long(SYS.fsopen), ctypes.c_char_p(b"tmpfs"), _ulong(FSOPEN_CLOEXEC)), "fsopen"
    )
    try:
        for name, value in options.items():
            _fsconfig(context, FSCONFIG.SET_STRING if value else FSCONFIG.SET_FLAG, name, value)
        _fsconfig(context, FSCONFIG.CMD_CREATE)
        return _check(
            _syscall(
                _long(SYS.fsmount), _long(context), _ulong(FSMOUNT_CLOEXEC), _ulong(attributes)
            ),
            "fsmount(tmpfs)",
        )
    finally:
        os.close(context)


def reconfigure(mount_fd: int, options: dict[str, str]) -> None:
    """Change options of the file system behind a mount. man: fspick(2)."""
    context = _check(
        _syscall(
            _long(SYS.fspick),
            _long(mount_fd),
            ctypes.c_char_p(b""),
            _ulong(FSPICK_CLOEXEC | FSPICK_EMPTY_PATH),
        ),
        "fspick",
    )
    try:
        for name, value in options.items():
            _fsconfig(context, FSCONFIG.SET_STRING, name, value)
        _fsconfig(context, FSCONFIG.CMD_RECONFIGURE)
    finally:
        os.close(context)


def _fsconfig(context: int, command: FSCONFIG, name: str = "", value: str = "") -> None:
    _check(
        _syscall(
            _long(SYS.fsconfig),
            _long(context),
            _ulong(command),
            ctypes.c_char_p(name.encode() or None),
            ctypes.c_char_p(value.encode() or None),
            _long(0),
        ),
        "fsconfig",
        name or command,
    )


def prctl(option: PR, argument: int = 0, argument2: int = 0) -> int:
    """man: prctl(2)."""
    return _check(_libc.prctl(option, argument, argument2, 0, 0), "prctl", option)


def set_name(name: str) -> None:
    """What ``ps`` shows. man: prctl(2), PR_SET_NAME."""
    _libc.prctl(PR.SET_NAME, ctypes.addressof(_process_name(name)), 0, 0, 0)


@functools.cache
def _process_name(name: str) -> ctypes.Array[ctypes.c_char]:
    # Kept: each length is a new type to ctypes, which is dear to make.
    return ctypes.create_string_buffer(name.encode()[:15])


def set_hostname(name: str) -> None:
    """man: sethostname(2)."""
    _check(_libc.sethostname(name.encode(), len(name)), "sethostname")


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the three sets of this thread, as bit masks. man: capset(2)."""
    header = struct.pack("<IiI", 0x20080522, 0, 0)[:8]  # _LINUX_CAPABILITY_VERSION_3, self
    low = (effective & 0xFFFFFFFF, permitted & 0xFFFFFFFF, inheritable & 0xFFFFFFFF)
    high = (effective >> 32, permitted >> 32, inheritable >> 32)
    data = struct.pack("<6I", *low, *high)
    _check(
        _syscall(_long(SYS.capset), ctypes.c_char_p(header), ctypes.c_char_p(data)),
        "capset",
    )


def drop_bounding_set(keep: frozenset[int], last: int) -> None:
    """Empty the bounding set but for ``keep``; ``last`` is /proc's cap_last_cap."""
    drop, option = _libc.prctl, int(PR.CAPBSET_DROP)
    for capability in range(last + 1):
        if capability not in keep and drop(option, capability, 0, 0, 0):
            _check(-1, "prctl", PR.CAPBSET_DROP)


def load_filter(program: bytes) -> None:
    """Load a seccomp filter: packed ``struct sock_filter``. man: seccomp(2)."""
    fprog = _SockFprog(len(program) // 8, program)
    _check(
        _syscall(
            _long(SYS.seccomp), _ulong(SECCOMP_SET_MODE_FILTER), _ulong(0), ctypes.byref(fprog)
        ),
        "seccomp(SET_MODE_FILTER)",
    )


def landlock_abi() -> int:
    """The kernel's Landlock version, 0 without it. man: landlock_create_ruleset(2)."""
    found: int = _syscall(_long(SYS.landlock_create_ruleset), None, _ulong(0), _ulong(1))
    return max(found, 0)


def landlock_ruleset(fs: LandlockFs, net: int, scope: LandlockScope, size: int) -> int:
    """A new ruleset; ``size`` is that of the struct the running ABI knows (8, 16 or 24)."""
    attr = struct.pack("<QQQ", fs, net, scope)[:size]
    return _check(
        _syscall(
            _long(SYS.landlock_create_ruleset), ctypes.c_char_p(attr), _ulong(size), _ulong(0)
        ),
        "landlock_create_ruleset",
    )


def landlock_allow(ruleset: int, path_fd: int, access: LandlockFs) -> None:
    """Allow ``access`` beneath a directory or on a file."""
    attr = struct.pack("<Qi", access, path_fd)
    _check(
        _syscall(
            _long(SYS.landlock_add_rule),
            _long(ruleset),
            _ulong(1),
            ctypes.c_char_p(attr),
            _ulong(0),
        ),
        "landlock_add_rule",
    )


def landlock_restrict(ruleset: int) -> None:
    """Confine this thread (and what it forks). Needs no_new_privs."""
    _check(
        _syscall(_long(SYS.landlock_restrict_self), _long(ruleset), _ulong(0)),
        "landlock_restrict_self",
    )
