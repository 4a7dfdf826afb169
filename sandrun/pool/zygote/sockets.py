"""Connections that nobody has accepted. Runs as: PID 1 of the sandbox, confined. I/O.

The kernel makes the far end of a connection over loopback, and takes what is sent to it,
in an interrupt's name: no control group is charged until somebody accepts it, on v1 as on
v2. So a job that connects to itself, sends, closes and never accepts had 4 KiB a connection
and megabytes of data that counted as nobody's: in 16 s of CPU time 680 MB at a charge of 10,
and, with data, all that TCP has on the whole host.

The namespace's own tables show them: a socket that no descriptor leads to has no inode.
What is accepted is charged by the kernel, but for the socket itself (before Linux 6.12),
of which a job can have as many as descriptors. man: proc(5), Documentation/networking/proc_net_tcp
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from sandrun.job import UNCHARGED_MOST

NET: Final = "/proc/self/net"
LISTED_FROM: Final = 16  # fewer cannot hold much
CONNECTION_BYTES: Final = 4096  # struct tcp_sock, its request, a page of what it may send
SMALL_BYTES: Final = 1024  # what a closed connection leaves for a minute, or one that is open
_TIME_WAIT: Final = 6
_LISTEN: Final = 10
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def uncharged_bytes() -> tuple[int, bool]:
    """What they hold, and whether there are many sockets at all: look again soon."""
    try:
        if not may_hold_much(_read("sockstat"), _read("sockstat6")):
            return 0, False
        return sum(map(_held_in, ("tcp", "tcp6"))), True
    except OSError:  # no IPv6 here, or no descriptor left on the host: look again later
        return 0, False


def may_hold_much(sockstat: str, sockstat6: str, page_bytes: int = _PAGE_BYTES) -> bool:
    """Whether a list is worth its millisecond, or four: they are many, or TCP holds as much
    on the whole host, which is the only sum that the kernel shows. Pure.
    """
    sockets = pages = 0
    for line in (sockstat + sockstat6).splitlines():
        words = line.split()
        if words[0] in ("TCP:", "TCP6:"):
            numbers = dict(zip(words[1::2], map(int, words[2::2]), strict=True))
            sockets += numbers["inuse"] + numbers.get("tw", 0)
            pages += numbers.get("mem", 0)
    held = max(pages * page_bytes, sockets * CONNECTION_BYTES)
    return sockets >= LISTED_FROM and held > UNCHARGED_MOST


def held_in(rows: Iterable[str]) -> int:
    """Bytes of the rows of /proc/net/tcp or tcp6 that nobody is charged with, until they are
    too many. Pure.
    """
    held = 0
    for row in rows:
        words = row.split()
        if len(words) < 10 or held > UNCHARGED_MOST:
            continue
        state = int(words[3], 16) if words[3] != "st" else _LISTEN
        if words[9] == "0" and state != _TIME_WAIT:
            sends, _, receives = words[4].partition(":")
            held += CONNECTION_BYTES + int(sends, 16) + int(receives, 16)
        elif state != _LISTEN:
            held += SMALL_BYTES
    return held


def _held_in(name: str) -> int:
    with open(f"{NET}/{name}", encoding="utf-8") as file:
        return held_in(file)


def _read(name: str) -> str:
    with open(f"{NET}/{name}", encoding="utf-8") as file:
        return file.read()
