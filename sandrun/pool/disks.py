"""What jobs may read from this host's disks. Runs as: root. I/O: reads /sys/block.

Standard library only, because the doctor reads it before anything is installed.

A job cannot write to a disk, but it can read ``/usr`` and its environment, again and
again: what a group has read pushes out what it read before, so a job of 512 MiB that
reads 6 GiB in a circle always reads from the disk, as fast as that is, and everybody
else on the host waits for it. So all jobs together have a rate.

Every disk gets it, not only the one below ``/usr``: what a file's tree is on cannot be
told where file systems stand on others (overlays, btrfs, RAID, device mapper). One
more disk than needed costs nothing, since jobs see no other trees. The kernel wants
whole disks, not partitions. man: cgroup-v2.rst (IO), blkio-controller.rst
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

SYS_BLOCK: Final = "/sys/block"
_IN_MEMORY: Final = ("ram", "zram")
# A reading of less counts as so much: disks have a limit of readings per second, too.
READ_UNIT_BYTES: Final = 64 * 1024


def disks(sys_block: str = SYS_BLOCK) -> tuple[str, ...]:
    """``MAJOR:MINOR`` of each that has a size and is not memory itself."""
    found = []
    with contextlib.suppress(OSError):  # no /sys in this container
        for name in sorted(os.listdir(sys_block)):
            with contextlib.suppress(OSError, ValueError):  # it has just been taken away
                size = int(_read(f"{sys_block}/{name}/size"))
                if size and not name.startswith(_IN_MEMORY):
                    found.append(_read(f"{sys_block}/{name}/dev"))
    return tuple(found)


def readings(bytes_per_s: int) -> int:
    """How many readings a second go with so many bytes."""
    return max(1, bytes_per_s // READ_UNIT_BYTES)


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()
