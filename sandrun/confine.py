"""A process gives up what it no longer needs, for good. I/O; runs as whoever calls it.

http may import neither ``sandrun.pool`` nor ctypes, and still has to load its own
seccomp filter. This is the only place outside ``pool/linux`` that uses ctypes: it
is imported before the filter is loaded, and :func:`confine` is its only verb. The
filter itself is compiled elsewhere and arrives as bytes.

Two walls, neither of which needs the other. The filter knows calls: nothing is
opened, executed, connected or bound by number. Landlock knows objects, whatever
the call: a ruleset without a single rule, so that no path can be opened, made,
removed, truncated or executed, no TCP port bound or connected to, no abstract
socket outside reached, no process outside signalled or traced. Descriptors that
are open stay as they are, and memory files are none of its business.

The process must still be single-threaded: without TSYNC a filter binds only the
thread that loads it, and a thread left outside would be the way around it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path
from typing import Final

from sandrun.errors import SetupError

PR_SET_DUMPABLE: Final = 4
PR_SET_NO_NEW_PRIVS: Final = 38
PR_SET_SECCOMP: Final = 22
SECCOMP_MODE_FILTER: Final = 2
INSTRUCTION_BYTES: Final = 8  # struct sock_filter
MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS
# Landlock came when numbers were already the same on all machines. man: landlock(7)
LANDLOCK_CREATE_RULESET: Final = 444
LANDLOCK_RESTRICT_SELF: Final = 446
LANDLOCK_CREATE_RULESET_VERSION: Final = 1
# From which ABI on the kernel knows how many rights on files (the first so many bits).
_FILE_RIGHTS: Final = ((5, 16), (3, 15), (2, 14), (1, 13))
_TCP_BIND_CONNECT: Final = 3  # ABI 4
_SCOPE_ABSTRACT_SIGNAL: Final = 3  # ABI 6


class _SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_libc.prctl.restype = ctypes.c_int
_libc.syscall.restype = ctypes.c_long


def confine(program: bytes | None) -> None:
    """No new privileges, not dumpable, Landlock, then the seccomp filter, in this order.

    ``program`` is an array of ``struct sock_filter``; None (tests only) loads
    none. Raises :class:`SetupError`: a step has happened or the process must end.
    A kernel without Landlock is the one exception; ``sandrun doctor`` tells it.
    man: prctl(2), landlock(7), seccomp(2)
    """
    _require_single_thread()
    _prctl("no_new_privs", PR_SET_NO_NEW_PRIVS, 1)
    # Not dumpable: no core file with clients' bytes, and no ptrace by our own uid.
    _prctl("not dumpable", PR_SET_DUMPABLE, 0)
    _close_the_paths()
    if program is not None:
        _load(program)


def _close_the_paths() -> None:
    """A Landlock domain in which nothing is allowed, as far as this kernel's goes."""
    abi = _syscall(LANDLOCK_CREATE_RULESET, None, 0, LANDLOCK_CREATE_RULESET_VERSION)
    if abi < 0:
        if ctypes.get_errno() in (errno.ENOSYS, errno.EOPNOTSUPP):
            return  # not built in, or switched off at boot
        raise SetupError("landlock", ctypes.get_errno())
    files = next(rights for since, rights in _FILE_RIGHTS if abi >= since)
    tcp = _TCP_BIND_CONNECT if abi >= 4 else 0
    scope = _SCOPE_ABSTRACT_SIGNAL if abi >= 6 else 0
    # The struct as long as this kernel knows it: files; TCP; scopes.
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    attr = struct.pack("<QQQ", (1 << files) - 1, tcp, scope)[:size]
    ruleset = _syscall(LANDLOCK_CREATE_RULESET, ctypes.c_char_p(attr), len(attr), 0)
    if ruleset < 0:
        raise SetupError("landlock", ctypes.get_errno())
    try:
        if _syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0) != 0:
            raise SetupError("landlock", ctypes.get_errno())
    finally:
        os.close(ruleset)


def _syscall(number: int, *arguments: int | ctypes.c_char_p | None) -> int:
    passed = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *passed)
    return result


def _load(program: bytes) -> None:
    count, rest = divmod(len(program), INSTRUCTION_BYTES)
    if rest or not 0 < count <= MAX_INSTRUCTIONS:
        raise SetupError("seccomp", 0, f"a filter of {len(program)} bytes")
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = _SockFprog(count, ctypes.cast(buffer, ctypes.c_void_p))
    _prctl("seccomp", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(fprog))


def _prctl(step: str, option: int, *values: int) -> None:
    arguments = (*values, *(0,) * (4 - len(values)))
    if _libc.prctl(option, *arguments) != 0:
        raise SetupError(step, ctypes.get_errno())


def _require_single_thread() -> None:
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise SetupError("seccomp", 0, f"{threads} threads; expected 1 in process {os.getpid()}")
