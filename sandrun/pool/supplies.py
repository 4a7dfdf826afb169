"""What the pool takes from the host: files, mounts, groups, processes, memory. Runs as: root. I/O.

Every call here may fail on a host that has run out of something, and whoever calls
it must live through that. This is the seam for faults, too: a test gives the
supervisor an object of this shape that fails when it is told to.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import subprocess
from typing import Final

from sandrun.pool.cgroup.hierarchy import Hierarchy
from sandrun.pool.cgroup.job_group import JobGroup
from sandrun.pool.linux import libc
from sandrun.pool.linux.constants import MountAttr
from sandrun.pool.pressure import HostMemory, parse_meminfo, parse_stall

# For what must not fail for want of a descriptor: a message of http's that brings one
# would be lost, and http with it, if sandboxes had taken all.
KEPT_FDS: Final = 256
_SEALS: Final = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class Supplies:
    """The real host. Methods raise OSError, and :meth:`group` SetupError."""

    def memory_file(self, name: str, size: int) -> tuple[int, int]:
        """A sealed memory file of fixed size: a writable and a read-only description."""
        writable = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            _keep_some(writable)
            os.ftruncate(writable, size)
            fcntl.fcntl(writable, fcntl.F_ADD_SEALS, _SEALS)
            readable = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            os.close(writable)
            raise
        return writable, readable

    def tmpfs(self, options: dict[str, str]) -> int:
        """A detached tmpfs that nobody has mounted."""
        return libc.detached_tmpfs(options, MountAttr.NOSUID | MountAttr.NODEV)

    def resize(self, tmpfs: int, options: dict[str, str]) -> None:
        """Another size for a tmpfs."""
        libc.reconfigure(tmpfs, options)

    def group(self, hierarchy: Hierarchy, number: int) -> JobGroup:
        """A control group for one sandbox."""
        return hierarchy.create_slot(number)

    def watch(self, pid: int) -> int:
        """A descriptor that tells of a process's end."""
        return os.pidfd_open(pid)

    def start(self, argv: list[str], fds: tuple[int, ...]) -> subprocess.Popen[bytes]:
        """A process of ours with these descriptors, named on its command line, and
        nothing else.
        """
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            pass_fds=fds,
            env={"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8"},
        )

    def memory(self, hierarchy: Hierarchy) -> HostMemory:
        """What new jobs may still use: of the host's memory and of all jobs' common cap."""
        total, available = parse_meminfo(_read("/proc/meminfo"))
        cap, used = hierarchy.jobs_memory()
        try:
            stalled = parse_stall(_read("/proc/pressure/memory"))
        except OSError:  # not built in, or switched off
            stalled = None
        for_jobs = min(available, max(0, cap - used))
        return HostMemory(min(total, cap), for_jobs, stalled, available)


def _keep_some(fd: int) -> None:
    """Raises EMFILE if hardly any descriptor is left. The kernel gives the lowest that is
    free, so a high one says that those below are taken.
    """
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if fd >= most - min(KEPT_FDS, most // 4):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def _read(path: str) -> str:
    """Twenty times a second: a Path would intern its parts, and fill Python's table of
    such strings with those that are gone, until it is made a megabyte larger.
    """
    with open(path, encoding="ascii") as file:
        return file.read()
