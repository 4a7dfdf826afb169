"""Network namespaces, used again as long as nothing has happened in them. Runs as: the
spawner, root of its outer user namespace. I/O.

To make one and to take it down costs the kernel 1.9 ms of CPU time (Linux 6.18, 2
cores), an eighth of what a small job costs in all, and others wait for its locks
meanwhile. Most jobs never open a socket of the network.

Each is the spawner's, in the outer user namespace O: a sandbox has no power over its
own. It has ``lo``, which is up, and nothing else, and it is kept for the *slot* of the
sandbox, which the supervisor gives away again only when every process in it has been
reaped. Before the next sandbox gets it, all that the kernel shows of it must be what it
showed of the first one when that was new (:data:`SHOWN`): no socket of any family is
left, one that waits in TIME_WAIT or for the garbage collector included, nothing has
passed ``lo``, and not one counter has moved. A job that sent a single packet has had a
namespace of its own, like before. What a job could change without being seen, it cannot
reach: settings and routes need capabilities in O, memberships and flow labels socket
options that its filter refuses. That two jobs read the same number under
``/proc/self/ns/net`` tells them nothing of each other.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from typing import Final

from sandrun.errors import SetupError
from sandrun.pool.linux import libc
from sandrun.pool.linux.constants import CLONE

# Beyond those of sandboxes that exist. An idle one costs the kernel 180 KiB.
KEPT_IDLE: Final = 64
# Descriptors from here on are not copied for the compiled PID 1: native/launch.c.
KEPT_FROM: Final = 512
CLOSED_AT_ONCE: Final = 2  # the kernel's work for each is that of a small job
# Below /proc/self/net: the device, the counters, and the sockets.
SHOWN: Final = ("dev", "snmp", "netstat", "snmp6", "sockstat", "sockstat6", "unix")
_HOST_WIDE: Final = (b"orphan", b"alloc", b"mem")  # in sockstat: of all namespaces
_READ_BYTES: Final = 64 * 1024
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_INTERFACE: Final = "16sH14x"  # struct ifreq: ifr_name, ifr_flags


class Networks:
    """The spawner's own namespace, and those of its sandboxes by slot."""

    def __init__(self) -> None:
        """Leaves the host's network. Raises OSError."""
        libc.unshare(CLONE.NEWNET)
        self._home = _current()
        self._kept: dict[int, int] = {}  # slot → descriptor, the one used last at the end
        self._new = b""  # what the kernel shows of a new one

    def of(self, slot: int, living: int) -> Inside:
        """A context: whoever is cloned in it is in the slot's namespace."""
        return Inside(self, slot, living)

    def enter(self, slot: int, living: int) -> None:
        """Go into the slot's namespace: the kept one, or one that is new.

        ``living``: how many sandboxes there are; what we keep follows it. Raises
        :class:`SetupError`, and we are home then.
        """
        try:
            if not self._enter_kept(slot):
                self._enter_new(slot)
            self._close_some(living + KEPT_IDLE)
        except OSError as error:
            self.leave()
            raise SetupError("network", error.errno or 0, str(error)) from error

    def _enter_kept(self, slot: int) -> bool:
        kept = self._kept.pop(slot, -1)
        if kept < 0:
            return False
        libc.setns(kept, CLONE.NEWNET)
        if _shown() != self._new:
            os.close(kept)
            return False
        self._kept[slot] = kept
        return True

    def _enter_new(self, slot: int) -> None:
        libc.unshare(CLONE.NEWNET)
        raise_loopback()
        self._new = self._new or _shown()
        network = _current()
        self._kept[slot] = fcntl.fcntl(network, fcntl.F_DUPFD_CLOEXEC, KEPT_FROM)
        os.close(network)

    def _close_some(self, most: int) -> None:
        """Those used longest ago, until ``most`` are left or it would take too long."""
        for _ in range(min(CLOSED_AT_ONCE, len(self._kept) - most)):
            os.close(self._kept.pop(next(iter(self._kept))))

    def leave(self) -> None:
        """Back home. Raises OSError."""
        libc.setns(self._home, CLONE.NEWNET)

    def close(self) -> None:
        """In a sandbox: it has no way to another one's."""
        for fd in (self._home, *self._kept.values()):
            os.close(fd)


class Inside:
    """``with``: in a slot's namespace, and back home after it. Raises SetupError."""

    def __init__(self, networks: Networks, slot: int, living: int) -> None:
        self._networks = networks
        self._slot = slot
        self._living = living

    def __enter__(self) -> None:
        self._networks.enter(self._slot, self._living)

    def __exit__(self, *_: object) -> None:
        self._networks.leave()


def raise_loopback() -> None:
    """Switch ``lo`` on. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        flags = _flags(sock) | _IFF_UP
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack(_INTERFACE, b"lo", flags))


def is_loopback_up() -> bool:
    """Whether ``lo`` is on. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        return bool(_flags(sock) & _IFF_UP)


def _flags(sock: socket.socket) -> int:
    asked = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack(_INTERFACE, b"lo", 0))
    flags: int = struct.unpack(_INTERFACE, asked)[1]
    return flags


def _current() -> int:
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _shown() -> bytes:
    return b"".join(_own(_read(f"/proc/self/net/{name}")) for name in SHOWN)


def _own(text: bytes) -> bytes:
    """Without the numbers of other namespaces: ``TCP: inuse 0 orphan 5`` → ``TCP: inuse 0``."""
    if not text.startswith(b"sockets:"):
        return text
    words = text.split()
    return b" ".join(
        word for before, word in zip([b"", *words], words, strict=False) if before not in _HOST_WIDE
    )


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, _READ_BYTES):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)
