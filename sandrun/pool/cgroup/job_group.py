"""One slot's group: its files, its limits, used again or removed. Runs as: root. I/O."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Final, NamedTuple

from sandrun.job import MIB
from sandrun.pool.cgroup import kernfs
from sandrun.pool.cgroup.nodes import GroupNode
from sandrun.pool.cgroup.tree import processes_of, remove

CPU_PERIOD_US: Final = 100_000  # the kernel's default

ROOM_FOR_FDS: Final = 16  # a message carries 24 descriptors, 4 to 8 are for other things


class ControlFile(NamedTuple):
    """A file of a job group that is opened once and kept."""

    name: str  # as PID 1 knows it
    hierarchy: str
    file: str
    flags: int
    needed: bool = True


_READ, _WRITE, _BOTH = os.O_RDONLY, os.O_WRONLY, os.O_RDWR

# In order of use: what does not fit into a message is dropped from the end.
V1_FILES: Final = (
    ControlFile("attach.memory", "memory", "tasks", _WRITE),
    ControlFile("attach.pids", "pids", "tasks", _WRITE),
    ControlFile("attach.cpu", "cpu", "tasks", _WRITE),
    ControlFile("memory.limit_in_bytes", "memory", "memory.limit_in_bytes", _BOTH),
    ControlFile("pids.max", "pids", "pids.max", _BOTH),
    ControlFile("memory.max_usage_in_bytes", "memory", "memory.max_usage_in_bytes", _BOTH),
    ControlFile("memory.oom_control", "memory", "memory.oom_control", _READ),
    ControlFile("pids.events", "pids", "pids.events", _READ),
    ControlFile("pids.current", "pids", "pids.current", _READ),
)

# In the group of all jobs: v1 does not let the limit of a group hold for those below it.
V1_DISK: Final = (ControlFile("attach.blkio", "blkio", "tasks", _WRITE),)
V1_CPU_BY_COMPANION: Final = (
    ControlFile("attach.unified", "unified", "cgroup.procs", _WRITE),
    ControlFile("cpu.stat", "unified", "cpu.stat", _READ),
)
V1_CPU_BY_CPUACCT: Final = (
    ControlFile("attach.cpuacct", "cpuacct", "tasks", _WRITE),
    ControlFile("cpuacct.usage", "cpuacct", "cpuacct.usage", _BOTH),
)
V1_CPU_ALONG: Final = (ControlFile("cpuacct.usage", "cpu", "cpuacct.usage", _BOTH),)
V1_LAST: Final = (ControlFile("pids.peak", "pids", "pids.peak", _READ, needed=False),)
V2_FILES: Final = (
    ControlFile("attach.unified", "unified", "cgroup.procs", _WRITE),
    ControlFile("memory.max", "unified", "memory.max", _BOTH),
    ControlFile("pids.max", "unified", "pids.max", _BOTH),
    ControlFile("memory.events", "unified", "memory.events", _READ),
    ControlFile("cpu.stat", "unified", "cpu.stat", _READ),
    ControlFile("pids.events", "unified", "pids.events", _READ),
    ControlFile("memory.current", "unified", "memory.current", _READ),
    ControlFile("memory.peak", "unified", "memory.peak", _BOTH, needed=False),
    ControlFile("pids.current", "unified", "pids.current", _READ),
    ControlFile("pids.peak", "unified", "pids.peak", _READ, needed=False),
)


class Defaults(NamedTuple):
    """What every job group starts with."""

    memory_bytes: int
    processes: int
    cpus: float


# Memory that an unused group may still be charged with: the kernel charges in
# batches of which each CPU keeps a rest (64 pages), and a few inodes outlive
# their processes.
RESIDUE_MAX: Final = MIB + (os.cpu_count() or 1) * 64 * 4096


class JobGroup:
    """One slot's group in every hierarchy. Owns its descriptors, but for the ``shared`` ones.

    Made by :meth:`Hierarchy.create_slot`, which has the costs.
    """

    def __init__(
        self,
        slot: int,
        nodes: dict[str, GroupNode],
        files: dict[str, int],
        defaults: Defaults,
        shared: frozenset[int],
    ) -> None:
        self.slot = slot
        self._nodes = nodes
        self._files = files
        self._shared = shared
        self._defaults = defaults
        self._tally = nodes["pids" if "pids" in nodes else "unified"]  # where we count
        self._memory_usage = (
            f"{nodes['memory'].directory}/memory.usage_in_bytes"
            if "memory" in nodes
            else f"{nodes['unified'].directory}/memory.current"
        )

    def control_files(self, room: int = ROOM_FOR_FDS) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Names and descriptors for PID 1's ``GroupFiles``, at most ``room`` of them.

        The descriptors stay ours: they are to be sent, not closed.
        """
        chosen = tuple(self._files.items())[:room]
        return tuple(name for name, _ in chosen), tuple(fd for _, fd in chosen)

    def directory(self, hierarchy: str) -> str:
        """The group's path in "memory", "pids", "cpu" (v1) or "unified" (v2, hybrid)."""
        return self._nodes[hierarchy].directory

    def processes(self) -> tuple[int, ...]:
        """Ids of the processes in the group."""
        return processes_of(self._tally.directory)

    def kill(self) -> None:
        """Kill every process in the group; none can escape by forking."""
        if "unified" in self._nodes:
            self._nodes["unified"].controller.kill = 1
            return
        # v1 has no such call. Without room for one more task nothing forks, so one
        # look finds all. reset() gives the room back.
        self._nodes["pids"].controller.pids_max = 0
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def reset(self) -> bool:
        """Make a used, empty group like new. False: it is not, destroy it.

        False while a process (an unreaped one too) or more than a trace of memory
        is charged to it, and where the kernel cannot set the memory peak back (v2
        before Linux 6.12). PID 1's ``GroupFiles`` counts the rest from zero.
        """
        if not self._files or self._residue() is not None:  # no files: destroy() was tried
            return False
        try:
            self._set_peak_back()
            self.write_defaults()
        except OSError:
            return False
        return True

    def _residue(self) -> str | None:
        """What keeps this group from being used again."""
        try:
            if tasks := kernfs.read_number(f"{self._tally.directory}/pids.current"):
                return f"{tasks} tasks"
            memory = kernfs.read_number(self._memory_usage)
        except OSError as error:
            return str(error)
        return f"{memory} bytes" if memory > RESIDUE_MAX else None

    def _set_peak_back(self) -> None:
        for name in ("memory.max_usage_in_bytes", "memory.peak"):
            if name in self._files:  # "memory.peak": refused before Linux 6.12
                os.pwrite(self._files[name], b"0", 0)
        if "oom.event" in self._files:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._files["oom.event"])

    def write_defaults(self) -> None:
        """Write the default limits of memory and processes. Raises OSError."""
        memory = self._files.get("memory.max", self._files.get("memory.limit_in_bytes"))
        assert memory is not None  # both tables have one
        os.pwrite(memory, b"%d" % self._defaults.memory_bytes, 0)
        os.pwrite(self._files["pids.max"], b"%d" % self._defaults.processes, 0)

    def close(self) -> None:
        """Close the descriptors. The group stays."""
        files, self._files = self._files, {}
        for fd in files.values():
            if fd not in self._shared:
                os.close(fd)

    def destroy(self) -> bool:
        """Remove the group everywhere. False while a process is in it: ask again.

        When PID 1 of the sandbox has been reaped, everything in its pid namespace
        is gone, so the caller asks then; it costs nothing to ask too early.
        """
        self.close()
        gone = [remove(node.directory) for node in self._nodes.values()]
        return all(gone)


def limit_cpu(nodes: dict[str, GroupNode], cpus: float, version: int) -> None:
    """Processor time of a job; on v2 the end of one that is out of memory, too."""
    quota = int(cpus * CPU_PERIOD_US)
    if version == 1:
        kernfs.write(f"{nodes['cpu'].directory}/cpu.cfs_quota_us", str(quota))
        return
    directory = nodes["unified"].directory
    kernfs.write(f"{directory}/cpu.max", f"{quota} {CPU_PERIOD_US}")
    # A job that ran out of memory ends as a whole: a half-dead one helps nobody.
    kernfs.write(f"{directory}/memory.oom.group", "1")
