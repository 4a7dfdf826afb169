"""Beside every hostile Python program of the bank. Runs inside the sandbox, as the job.

Each attempt is made in a child, so that one that ends with a signal does not end
the others. ``NUMBERS`` (system calls of both machines) is filled in by the bank.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
from collections.abc import Callable, Sequence
from typing import Any

NUMBERS: dict[str, tuple[int | None, int | None]] = {}

ARM = platform.machine() == "aarch64"
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
problems: list[str] = []

# How a refusal may look: a kill by the filter, or one of these errors.
REFUSALS = [
    "SIGSYS",
    "EPERM",
    "EACCES",
    "ENOENT",
    "ENOSYS",
    "EROFS",
    "EINVAL",
    "ENOTTY",
    "EAFNOSUPPORT",
    "ENOTSUP",
    "ESRCH",
    "ENODEV",
    "ENXIO",
    "EBADF",
    "EXDEV",
    "ENOTDIR",
    "ELOOP",
    "EPROTONOSUPPORT",
    "ESOCKTNOSUPPORT",
    "ENOPROTOOPT",
]


def raw(name: str | int, *args: Any) -> int:
    """The system call itself. Raises OSError."""
    number = NUMBERS[name][ARM] if isinstance(name, str) else name
    if number is None:
        raise OSError(errno.ENOSYS, name)
    ctypes.set_errno(0)
    passed = [
        ctypes.c_long(a if a < 1 << 63 else a - (1 << 64)) if isinstance(a, int) else a
        for a in args
    ]
    result: int = libc.syscall(ctypes.c_long(number), *passed)
    if result == -1:
        raise OSError(ctypes.get_errno(), str(name))
    return result


def outcome(function: Callable[..., Any], *args: Any) -> str:
    """What becomes of a child that does this: "ok", an error's name or a signal's."""
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = "ok"
        try:
            function(*args)
        except OSError as error:
            text = errno.errorcode.get(error.errno or 0, str(error))
        except BaseException as error:  # noqa: BLE001 - told to the parent
            text = repr(error)
        os.write(w, text.encode()[:500])
        os._exit(0)
    os.close(w)
    text = os.read(r, 500).decode(errors="replace")
    os.close(r)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return text


def note(problem: Any) -> None:
    """Something that should not be."""
    problems.append(str(problem))


def expect(what: Any, got: Any, *allowed: Any) -> None:
    """``got`` must be one of ``allowed``."""
    if got not in allowed:
        note(f"{what}: {got}, not {'/'.join(map(str, allowed))}")


def refused(
    what: Any, function: Callable[..., Any], *args: Any, by: str | Sequence[str] = REFUSALS
) -> None:
    """A child that does this must be refused, in one of the ways ``by``."""
    expect(what, outcome(function, *args), *([by] if isinstance(by, str) else by))


def works(what: Any, function: Callable[..., Any], *args: Any) -> None:
    """A child that does this must not be hindered."""
    expect(what, outcome(function, *args), "ok")


def status(name: str, pid: Any = "self") -> str | None:
    """A field of /proc/PID/status."""
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key == name:
                return value.strip()
    return None


def done() -> None:
    """Print the verdict."""
    print("held" if not problems else "\n".join(problems), flush=True)
