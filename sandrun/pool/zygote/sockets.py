"""Connections that nobody has accepted. Runs as: PID 1 of the sandbox, confined. I/O.

The kernel makes the far end of a connection over loopback, and takes what is sent to it,
in an interrupt's name: no control group is charged until somebody accepts it, on v1 as on
v2. So a job that connects to itself, sends, closes and never accepts had 4 KiB a connection
and megabytes of data that counted as nobody's: in 16 s of CPU time 680 MB at a charge of 10,
and, with data, all that TCP has on the whole host.

The namespace's own tables show them: a socket that no descriptor leads to has no inode.
What is accepted is charged by the kernel. man: proc(5), Documentation/networking/proc_net_tcp
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

NET: Final = "/proc/self/net"
LISTED_FROM: Final = 16  # fewer cannot hold much, and listing takes the kernel a millisecond
CONNECTION_BYTES: Final = 4096  # struct tcp_sock, its request, a page of what it may send
WAITING_BYTES: Final = 1024  # 256 and more; what a closed connection leaves for a minute
_TIME_WAIT: Final = 6


def unaccepted_bytes() -> tuple[int, bool]:
    """What they hold, and whether there are many sockets at all: look again soon."""
    try:
        if sum(sockets_in(_read(name)) for name in ("sockstat", "sockstat6")) < LISTED_FROM:
            return 0, False
        return sum(held_in(_read(name).splitlines()) for name in ("tcp", "tcp6")), True
    except OSError:  # no IPv6 here, or no descriptor left on the host: look again later
        return 0, False


def sockets_in(sockstat: str) -> int:
    """TCP sockets of /proc/net/sockstat or sockstat6, those in TIME_WAIT included. Pure."""
    for line in sockstat.splitlines():
        words = line.split()
        if words[0] in ("TCP:", "TCP6:"):
            numbers = dict(zip(words[1::2], map(int, words[2::2]), strict=True))
            return numbers["inuse"] + numbers.get("tw", 0)
    return 0


def held_in(rows: Iterable[str]) -> int:
    """Bytes of those rows of /proc/net/tcp or tcp6 that have no inode. Pure."""
    held = 0
    for row in rows:
        words = row.split()
        if len(words) < 10 or words[9] != "0":
            continue
        sends, _, receives = words[4].partition(":")
        waiting = int(words[3], 16) == _TIME_WAIT
        held += WAITING_BYTES if waiting else CONNECTION_BYTES + int(sends, 16) + int(receives, 16)
    return held


def _read(name: str) -> str:
    with open(f"{NET}/{name}", encoding="utf-8") as file:
        return file.read()
