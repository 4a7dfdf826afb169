"""A process gives up what it no longer needs, for good. I/O; runs as whoever calls it.

http may import neither ``sandrun.pool`` nor ctypes, and still has to load its own
seccomp filter. This is the only place outside ``pool/linux`` that uses ctypes: it
is imported before the filter is loaded, and :func:`confine` is its only verb. The
filter itself is compiled elsewhere and arrives as bytes.

The process must still be single-threaded: without TSYNC a filter binds only the
thread that loads it, and a thread left outside would be the way around it.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

from sandrun.errors import SetupError

PR_SET_DUMPABLE: Final = 4
PR_SET_NO_NEW_PRIVS: Final = 38
PR_SET_SECCOMP: Final = 22
SECCOMP_MODE_FILTER: Final = 2
INSTRUCTION_BYTES: Final = 8  # struct sock_filter
MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS


class _SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_libc.prctl.restype = ctypes.c_int


def confine(program: bytes | None) -> None:
    """No new privileges, not dumpable, then the seccomp filter, in this order.

    ``program`` is an array of ``struct sock_filter``; None (tests only) loads
    none. Raises :class:`SetupError`: a step has happened or the process must end.
    man: prctl(2), seccomp(2)
    """
    _require_single_thread()
    _prctl("no_new_privs", PR_SET_NO_NEW_PRIVS, 1)
    # Not dumpable: no core file with clients' bytes, and no ptrace by our own uid.
    _prctl("not dumpable", PR_SET_DUMPABLE, 0)
    if program is not None:
        _load(program)


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
