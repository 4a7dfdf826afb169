"""What all jobs together may have of this host. Runs as: root. I/O: reads only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandrun.job import MIB
from sandrun.pool.cgroup import kernfs
from sandrun.pool.cgroup.layout import Layout
from sandrun.pool.cgroup.tree import limits_upwards

# Of the TCP and UDP buffers of one job, on v1, which charges them to no memory limit but
# to one of their own. v2 charges them with the rest.
SOCKET_BYTES: Final = 32 * MIB


@dataclass(frozen=True, slots=True)
class Caps:
    """Ceilings of all jobs together, and what is kept for the service."""

    memory_bytes: int
    processes: int
    service_memory_bytes: int


def host_caps(memory_bytes: int, tasks: int) -> Caps:
    """Caps for a host that has so much memory and so many task ids. Pure.

    A quarter, at most 1 GiB, is left to the host and to us; jobs together get at
    most 3/4 of the task ids: a taken-over http may lease every slot and still
    neither starve the host nor keep an operator from logging in.
    """
    reserve = min(1024 * MIB, memory_bytes // 4)
    return Caps(memory_bytes - reserve, tasks * 3 // 4, reserve // 4)


def socket_caps(tcp_mem: str, page_bytes: int) -> tuple[int, int]:
    """Bytes of network buffers for all jobs together and for one, on v1. Pure.

    ``tcp_mem``: /proc/sys/net/ipv4/tcp_mem, in pages. The kernel has one sum for the whole
    host: over the first of its numbers it begins to take memory from every connection, over
    the last no connection of anybody gets any. Jobs get half of the first.
    """
    together = int(tcp_mem.split(maxsplit=1)[0]) * page_bytes // 2
    return together, min(SOCKET_BYTES, together // 2)


def caps_here(layout: Layout) -> Caps:
    """:func:`host_caps` of what this host has, and of what the groups above leave us of it."""
    own = layout.directories
    memory = int(kernfs.table("/proc/meminfo")["MemTotal"]) * 1024
    if layout.version == 1:
        memory = min(
            memory,
            int(kernfs.table(f"{own['memory']}/memory.stat")["hierarchical_memory_limit"]),
        )
    else:
        memory = min(
            [
                memory,
                *limits_upwards(own["unified"], layout.ceilings["unified"]),
            ]
        )
    tasks = min(
        int(Path("/proc/sys/kernel/pid_max").read_text()),
        int(Path("/proc/sys/kernel/threads-max").read_text()),
    )
    return host_caps(memory, tasks)
