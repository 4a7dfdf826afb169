"""Control groups, v1 and v2, behind one interface. Runs as: root (supervisor). I/O.

::

    <the group we were started in>
    └── sandrun-<pid>-<start time>     all of ours; swap is off from here on down
        ├── service                    supervisor, http, spawners, every PID 1
        └── jobs                       caps of all jobs together, of disk reads too
            ├── 0                      one job's processes, its tmpfs pages, its limits
            └── 1 …

Why two leaves: PID 1 of a sandbox must live to tell that its job ran out of
memory, so the limits bite beside it. Why the name: a supervisor that was killed
leaves its groups behind; the next start takes those whose process is gone and
nothing else. Why a top group: v2 lets only groups without processes hand
controllers on, so we move ourselves into a leaf first.

If the group we were started in has other processes (an ordinary shell does), v2
refuses to hand on controllers there. We then nest under the nearest group above
that hands them on already; we never change a setting of a group that others use.

Files are opened once for each job group and kept: a write through a kept
descriptor is 1 µs and the kernel's work, through open and close 6, through
cgroupspy's attributes 16 (read: 25). So cgroupspy's ``Node`` and ``Controller``
are the object model and serve all that is done once, and PID 1 gets descriptors
(:mod:`sandrun.pool.zygote.group`). Its ``Tree`` walks other tenants' groups and
its ``create_cgroup`` gets slower with every sibling: neither is used.

man: cgroups(7); Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Self

from cgroupspy.controllers import Controller  # type: ignore[import-untyped]
from cgroupspy.interfaces import (  # type: ignore[import-untyped]
    BaseFileInterface,
    DictFile,
    IntegerFile,
)
from cgroupspy.nodes import Node  # type: ignore[import-untyped]

from sandrun.errors import HostError, SetupError
from sandrun.job import MIB, Limits
from sandrun.pool.cgroup_layout import CONTROLLERS, CURE_CONTAINER, Layout, find
from sandrun.pool.directory_lock import try_lock
from sandrun.pool.disks import disks, readings

CPU_PERIOD_US: Final = 100_000  # the kernel's default
SERVICE_WEIGHT: Final = 4  # CPU share of the service against all jobs together
# Of the TCP and UDP buffers of one job, on v1, which charges them to no memory limit but
# to one of their own. v2 charges them with the rest.
SOCKET_BYTES: Final = 32 * MIB
DISK_READ_BYTES: Final = 100 * MIB  # a second; the config's default
KILL_DEADLINE_S: Final = 5.0  # for killed processes to be gone; they end in milliseconds
ROOM_FOR_FDS: Final = 16  # a message carries 24 descriptors, 4 to 8 are for other things

CURE_DELEGATE: Final = (
    "start sandrun in a group of its own: a systemd unit with Delegate=yes, or "
    "systemd-run --scope -p Delegate=yes python -m sandrun"
)


# ── cgroupspy, extended ──────────────────────────────────────────────────────


class MaxFile(BaseFileInterface):  # type: ignore[misc]  # cgroupspy has no types
    """A number or "max", which reads as None."""

    def sanitize_get(self, value: str) -> int | None:
        """Text → number."""
        return None if value == "max" else int(value)

    def sanitize_set(self, value: int | None) -> str:
        """Number → text."""
        return "max" if value is None else str(value)


class PidsController(Controller):  # type: ignore[misc]
    """The pids controller; the same files on v1 and v2."""

    pids_max = MaxFile("pids.max")
    pids_current = IntegerFile("pids.current", readonly=True)
    pids_events = DictFile("pids.events", readonly=True)


class UnifiedController(PidsController):
    """The files of a v2 group, whichever controllers it has."""

    controllers = BaseFileInterface("cgroup.controllers", readonly=True)
    subtree_control = BaseFileInterface("cgroup.subtree_control")
    events = DictFile("cgroup.events", readonly=True)
    kill = IntegerFile("cgroup.kill", writeonly=True)
    cpu_max = BaseFileInterface("cpu.max")
    cpu_weight = IntegerFile("cpu.weight")
    memory_max = MaxFile("memory.max")
    memory_low = MaxFile("memory.low")
    memory_current = IntegerFile("memory.current", readonly=True)
    swap_max = MaxFile("memory.swap.max")


Node.CONTROLLERS[b"pids"] = PidsController
Node.CONTROLLERS[b"unified"] = UnifiedController


class GroupNode(Node):  # type: ignore[misc]
    """A group whose controller is told, not guessed from a mount's name.

    cgroupspy knows a controller by the name of its mount point, which is
    "cpu,cpuacct" on many hosts and anything in a container.
    """

    def __init__(self, name: str, controller: str, parent: GroupNode | None = None) -> None:
        self._told = controller.encode()
        super().__init__(name, parent)
        # cgroupspy joins the whole path at every access, which is 10 µs.
        self.directory: str = f"{parent.directory}/{name}" if parent else name

    def _get_controller_type(self) -> bytes:
        return self._told

    def child(self, name: str) -> GroupNode:
        """The node below, which need not exist yet."""
        return GroupNode(name, self._told.decode(), self)


# ── one job's group ──────────────────────────────────────────────────────────


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
_SOCKETS: Final = "memory.kmem.tcp.limit_in_bytes"  # of UDP as well, whatever its name
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
            if tasks := _read_number(f"{self._tally.directory}/pids.current"):
                return f"{tasks} tasks"
            memory = _read_number(self._memory_usage)
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
        gone = [_remove(node.directory) for node in self._nodes.values()]
        return all(gone)


# ── all of ours ──────────────────────────────────────────────────────────────


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


class Hierarchy:
    """Our subtree in every hierarchy. ``detect`` looks, ``create`` makes.

    Costs on a 2-core VM, Linux 6.18, v1 with a v2 companion (four hierarchies), in
    microseconds of median (p99), CPU time the same: create_slot 410 to 500 (1,500),
    reset 60 (200), destroy 230 (3,000 to 5,000), PID 1 making its GroupFiles 40,
    four counters read 15. A process that attaches itself: 150 (11,000: the kernel
    waits for a grace period now and then, so it belongs into the boot, not on the
    job's way). A group used again saves 0.6 ms of a refill; nothing here grows with
    the number of groups.
    """

    def __init__(
        self, layout: Layout, limits: Limits, cpus: float, disk_read_bytes: int = DISK_READ_BYTES
    ) -> None:
        self.version = layout.version
        self.layout = layout
        self.name = own_name(os.getpid())
        self._defaults = Defaults(limits.memory_bytes, limits.processes, cpus)
        self._homes: dict[str, str] = {}  # hierarchy → the directory we nest in
        self._tops: dict[str, GroupNode] = {}
        self._jobs: dict[str, GroupNode] = {}
        self._files: tuple[ControlFile, ...] = ()
        self._shared: dict[str, int] = {}  # of the files: those that are the same for every job
        self._locks: dict[str, int] = {}  # hierarchy → what says that we live
        self._handed_on = False  # we switched controllers on in the v2 home
        self._socket_bytes = 0  # for each job; v1 only
        self._disk_read_bytes = disk_read_bytes  # a second, of all jobs; 0: any number
        self.limited_disks: tuple[str, ...] = ()  # that jobs read no faster than this

    @classmethod
    def detect(
        cls,
        limits: Limits | None = None,
        cpus: float = 2.0,
        disk_read_bytes: int = DISK_READ_BYTES,
    ) -> Self:
        """Find the hierarchies of this process. Changes nothing. Raises HostError."""
        mountinfo = Path("/proc/self/mountinfo").read_text()
        layout = find(mountinfo, Path("/proc/self/cgroup").read_text())
        return cls(layout, limits or Limits(), cpus, disk_read_bytes)

    def __str__(self) -> str:
        kind = "v1+v2" if self.layout.companion else f"v{self.version}"
        home = next(iter((self._homes or self.layout.directories).values()))
        return f"cgroup {kind}, {home}/{self.name}"

    # ── making ───────────────────────────────────────────────────────────────

    def create(self, caps: Caps | None = None) -> None:
        """Make the subtree and move this process into ``service``. Raises HostError.

        To be called before the first child is started, which then inherits.
        """
        try:
            if self.version == 1:
                self._create_v1(caps or self._host_caps())
            else:
                self._create_v2(caps or self._host_caps())
        except OSError as error:
            self._withdraw()
            what = f"cgroup {error.filename}: {error.strerror}"
            raise HostError(what, _cure(error)) from error
        except HostError:
            self._withdraw()
            raise

    def _create_v1(self, caps: Caps) -> None:
        for hierarchy, home in self.layout.directories.items():
            # cpu and cpuacct are often one
            if home not in self._homes.values() and hierarchy != "blkio":
                self._make_top(hierarchy, home)
        memory = self._tops["memory"].controller
        # Inherited by every group made below. v1 has no way to forbid swap outright.
        memory.swappiness = 0
        for leaf in ("service", "jobs"):
            for top in self._tops.values():
                os.mkdir(top.child(leaf).directory)
        self._tops["memory"].child("jobs").controller.limit_in_bytes = caps.memory_bytes
        self._cap_sockets(self._tops["memory"].child("jobs").directory)
        self._tops["pids"].child("jobs").controller.pids_max = caps.processes
        self._tops["cpu"].child("service").controller.shares = SERVICE_WEIGHT * 1024
        cpu_files = self._cpu_files()
        self._enter_service()
        self._files = V1_FILES + self._disk_files() + cpu_files + V1_LAST

    def _disk_files(self) -> tuple[ControlFile, ...]:
        """What puts a job into the group that reads from disks at a limited rate.

        Nobody else is in our part of that hierarchy. Done without where it cannot be had.
        """
        home = self.layout.directories.get("blkio")
        if home is None or not self._disk_read_bytes:
            return ()
        try:
            self._make_top("blkio", home)
        except OSError:
            return ()
        with contextlib.suppress(OSError):
            os.mkdir(self._tops["blkio"].child("jobs").directory)
            self._limit_disks(self._tops["blkio"])
        if self.limited_disks:
            (file,) = V1_DISK
            path = f"{self._tops['blkio'].child('jobs').directory}/{file.file}"
            self._shared[file.name] = os.open(path, file.flags | os.O_CLOEXEC)
            return V1_DISK
        self._remove_top("blkio")
        return ()

    def _limit_disks(self, top: GroupNode) -> None:
        """Give all jobs together their rate of readings."""
        v1 = self.version == 1
        if not self._disk_read_bytes:
            return
        rates = {"bps": self._disk_read_bytes, "iops": readings(self._disk_read_bytes)}
        jobs, limited = top.child("jobs").directory, []
        for disk in disks():
            with contextlib.suppress(OSError):  # not a disk for this controller
                if v1:
                    for kind, rate in rates.items():
                        _write(f"{jobs}/blkio.throttle.read_{kind}_device", f"{disk} {rate}")
                else:
                    _write(f"{jobs}/io.max", f"{disk} rbps={rates['bps']} riops={rates['iops']}")
                limited.append(disk)
        self.limited_disks = tuple(limited)

    def _cap_sockets(self, jobs: str) -> None:
        if not os.path.exists(f"{jobs}/{_SOCKETS}"):
            return  # no worse than v2 with the host's usual tcp_mem: the doctor tells
        tcp_mem = Path("/proc/sys/net/ipv4/tcp_mem").read_text()
        together, self._socket_bytes = socket_caps(tcp_mem, os.sysconf("SC_PAGE_SIZE"))
        _write(f"{jobs}/{_SOCKETS}", str(together))

    def _cpu_files(self) -> tuple[ControlFile, ...]:
        # Not the companion if it can be helped: entering a v2 group waits for an RCU
        # grace period (12 ms median here), a v1 ``tasks`` file takes 0.02 ms.
        if "cpuacct" in self._tops:
            return V1_CPU_BY_CPUACCT
        if "cpuacct" in self.layout.directories:  # attached along with cpu
            return (ControlFile("cpuacct.usage", "cpu", "cpuacct.usage", _BOTH),)
        if self._make_companion():
            return V1_CPU_BY_COMPANION
        raise HostError("cgroup controller cpuacct is not mounted", CURE_CONTAINER)

    def _make_companion(self) -> bool:
        """A hybrid host's v2 side, if it is writable and can kill (Linux 5.14)."""
        home = self.layout.companion
        if home is None:
            return False
        made = False
        try:
            self._make_top("unified", home)
            made = True
            top = self._tops["unified"]
            for leaf in ("service", "jobs"):
                os.mkdir(top.child(leaf).directory)
            if os.path.exists(f"{top.directory}/cgroup.kill"):
                return True
        except OSError:
            pass  # read-only or not delegated: v1 alone does
        if made:
            self._remove_top("unified")
        self._homes.pop("unified", None)
        return False

    def _create_v2(self, caps: Caps) -> None:
        home = self._find_v2_home()
        top = self._tops["unified"]
        control = "+memory +pids +cpu"
        top.controller.subtree_control = control
        jobs, service = top.child("jobs"), top.child("service")
        os.mkdir(jobs.directory)
        jobs.controller.subtree_control = control
        if os.path.exists(f"{top.directory}/memory.swap.max"):  # absent without swap accounting
            top.controller.swap_max = 0
        for node in (top, service):  # protection reaches only as far as every parent's
            node.controller.memory_low = caps.service_memory_bytes
        service.controller.cpu_weight = SERVICE_WEIGHT * 100
        jobs.controller.memory_max = caps.memory_bytes
        jobs.controller.pids_max = caps.processes
        if _hand_on_io(top.directory):
            self._limit_disks(top)
        self._homes = {"unified": home}
        self._files = V2_FILES

    def _find_v2_home(self) -> str:
        """Nest here or above, and move into ``service``. Raises HostError.

        Moving is part of the search: only an emptied group hands controllers on.
        """
        own, ceiling = (
            self.layout.directories["unified"],
            self.layout.ceilings["unified"],
        )
        lacking = set(CONTROLLERS) - _words(f"{own}/cgroup.controllers")
        first_failure = ""
        for home in _upwards(own, ceiling):
            handed_on = _words(f"{home}/cgroup.subtree_control")
            if home != own and not set(CONTROLLERS) <= handed_on:
                continue
            if home == own and lacking:
                continue
            try:
                self._make_top("unified", home)
                os.mkdir(self._tops["unified"].child("service").directory)
                self._enter_service()
                if not set(CONTROLLERS) <= handed_on:
                    _write(f"{home}/cgroup.subtree_control", "+memory +pids +cpu")
                    self._handed_on = True
                    _hand_on_io(home)
                return home
            except OSError as error:
                first_failure = first_failure or f"{error.strerror} in {home}"
                self._withdraw()
        if lacking:
            what = f"cgroup controllers {', '.join(sorted(lacking))} are not handed on to {own}"
            raise HostError(what, CURE_DELEGATE)
        raise HostError(f"cgroup {own} cannot hand on controllers ({first_failure})", CURE_DELEGATE)

    def _make_top(self, hierarchy: str, home: str) -> None:
        top = GroupNode(f"{home}/{self.name}", hierarchy)
        os.mkdir(top.directory)
        self._homes[hierarchy] = home
        self._tops[hierarchy] = top
        lock = try_lock(top.directory)
        if lock is not None:
            self._locks[hierarchy] = lock

    def _remove_top(self, hierarchy: str) -> None:
        self._unlock(hierarchy)
        remove_tree(self._tops.pop(hierarchy).directory)
        del self._homes[hierarchy]

    def _unlock(self, hierarchy: str) -> None:
        lock = self._locks.pop(hierarchy, None)
        if lock is not None:
            os.close(lock)

    def _enter_service(self) -> None:
        for top in self._tops.values():
            _write(f"{top.child('service').directory}/cgroup.procs", "0")

    def _host_caps(self) -> Caps:
        own = self.layout.directories
        memory = int(_table("/proc/meminfo")["MemTotal"]) * 1024
        if self.version == 1:
            memory = min(
                memory,
                int(_table(f"{own['memory']}/memory.stat")["hierarchical_memory_limit"]),
            )
        else:
            memory = min(
                [
                    memory,
                    *_limits_upwards(own["unified"], self.layout.ceilings["unified"]),
                ]
            )
        tasks = min(
            int(Path("/proc/sys/kernel/pid_max").read_text()),
            int(Path("/proc/sys/kernel/threads-max").read_text()),
        )
        return host_caps(memory, tasks)

    def jobs_memory(self) -> tuple[int, int]:
        """The cap of all jobs together, and what they use of it, without files' caches."""
        v1 = self.version == 1
        directory = self._tops["memory" if v1 else "unified"].child("jobs").directory
        cap = _read(f"{directory}/{'memory.limit_in_bytes' if v1 else 'memory.max'}").strip()
        used = f"{directory}/{'memory.usage_in_bytes' if v1 else 'memory.current'}"
        stat = dict(line.split() for line in _read(f"{directory}/memory.stat").splitlines())
        prefix = "total_" if v1 else ""
        # The kernel takes these back when it must. A tmpfs is on the other lists.
        cached = sum(int(stat[f"{prefix}{list_}_file"]) for list_ in ("active", "inactive"))
        return 1 << 60 if cap == "max" else int(cap), max(0, _read_number(used) - cached)

    # ── slots ────────────────────────────────────────────────────────────────

    def create_slot(self, slot: int) -> JobGroup:
        """Make the group of one sandbox slot, with the default limits. Raises SetupError."""
        nodes = {
            name: top.child("jobs").child(str(slot))
            for name, top in self._tops.items()
            if name != "blkio"
        }
        files: dict[str, int] = {}
        group = JobGroup(slot, nodes, files, self._defaults, frozenset(self._shared.values()))
        try:
            for node in nodes.values():
                os.mkdir(node.directory)
            self._open_files(nodes, files)
            group.write_defaults()
            if self._socket_bytes:
                _write(f"{nodes['memory'].directory}/{_SOCKETS}", str(self._socket_bytes))
            self._limit_cpu(nodes)
        except OSError as error:
            group.destroy()
            raise SetupError("cgroup", error.errno or 0, str(error.filename or "limits")) from error
        return group

    def _open_files(self, nodes: dict[str, GroupNode], files: dict[str, int]) -> None:
        directories = {name: node.directory for name, node in nodes.items()}
        for entry in self._files:
            if entry.name in self._shared:
                files[entry.name] = self._shared[entry.name]
                continue
            if entry.name == "pids.peak" and self.version == 1:
                files["oom.event"] = _oom_event(directories["memory"], files["memory.oom_control"])
            path = f"{directories[entry.hierarchy]}/{entry.file}"
            try:
                files[entry.name] = os.open(path, entry.flags | os.O_CLOEXEC)
            except PermissionError:  # memory.peak is read-only before Linux 6.12
                files[entry.name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                if entry.needed:
                    raise

    def _limit_cpu(self, nodes: dict[str, GroupNode]) -> None:
        quota = int(self._defaults.cpus * CPU_PERIOD_US)
        if self.version == 1:
            _write(f"{nodes['cpu'].directory}/cpu.cfs_quota_us", str(quota))
            return
        directory = nodes["unified"].directory
        _write(f"{directory}/cpu.max", f"{quota} {CPU_PERIOD_US}")
        # A job that ran out of memory ends as a whole: a half-dead one helps nobody.
        _write(f"{directory}/memory.oom.group", "1")

    # ── unmaking ─────────────────────────────────────────────────────────────

    def destroy(self) -> bool:
        """Kill all of ours but this process, go back where we came from, remove all.

        False if something could not be removed within ``KILL_DEADLINE_S``.
        """
        for top in self._tops.values():
            kill_tree(top.directory)
        return self._withdraw()

    def _withdraw(self) -> bool:
        """Leave and remove the groups, however far they were made."""
        done = True
        while self._shared:
            os.close(self._shared.popitem()[1])
        for hierarchy, top in self._tops.items():
            home = self._homes[hierarchy]
            jobs = top.child("jobs").directory
            remove_tree(jobs)
            own = self.layout.directories.get(hierarchy, self.layout.companion or home)
            with contextlib.suppress(OSError):
                if self.version == 2:
                    # The kernel lets nobody into a group that hands controllers on.
                    _take_controllers_back(top.directory)
                    if self._handed_on:
                        _take_controllers_back(home)
            with contextlib.suppress(OSError):
                _write(f"{own}/cgroup.procs", "0")
            self._unlock(hierarchy)
            done = remove_tree(top.directory) and done
        self._tops, self._jobs, self._homes, self._handed_on = {}, {}, {}, False
        return done

    def sweep_stale(self) -> tuple[str, ...]:
        """Kill and remove what supervisors that are dead left here; their names.

        Only groups called ``sandrun-<pid>-<start time>`` whose process is gone, and that
        nobody holds the lock of: in another pid namespace we cannot see a process, and its
        number says nothing.
        """
        swept: list[str] = []
        for directory in self._places():
            stale = filter(is_stale, sorted(os.listdir(directory)))
            swept += [name for name in stale if self._sweep(f"{directory}/{name}")]
        return tuple(dict.fromkeys(swept))

    @staticmethod
    def _sweep(directory: str) -> bool:
        lock = try_lock(directory)
        if lock is None:
            return False
        try:
            kill_tree(directory)
        finally:
            os.close(lock)
        return remove_tree(directory)

    def _places(self) -> list[str]:
        """Every directory that we, or one who was started as we were, may nest in."""
        if self.version == 2:
            own, ceiling = (
                self.layout.directories["unified"],
                self.layout.ceilings["unified"],
            )
            places = _upwards(own, ceiling)
        else:
            places = [*self.layout.directories.values(), self.layout.companion or ""]
        return [place for place in dict.fromkeys(places) if os.path.isdir(place)]


# ── names of instances ───────────────────────────────────────────────────────

_INSTANCE: Final = re.compile(r"sandrun-(\d{1,10})-(\d{1,20})")


def own_name(pid: int) -> str:
    """``sandrun-<pid>-<start time>``: no later process has the same."""
    return f"sandrun-{pid}-{_start_time(pid)}"


def is_stale(name: str) -> bool:
    """Whether this is an instance's group and no process here is the instance."""
    match = _INSTANCE.fullmatch(name)
    return match is not None and _start_time(int(match[1])) != int(match[2])


def _start_time(pid: int) -> int:
    """In clock ticks since boot; 0 if there is no such process. man: proc_pid_stat(5)"""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # Behind the name, which may hold spaces and brackets: field 3 is the first.
    fields = text.rpartition(")")[2].split()
    return 0 if fields[0] in "ZX" else int(fields[19])


# ── trees of groups ──────────────────────────────────────────────────────────


def processes_of(directory: str) -> tuple[int, ...]:
    """Ids of the processes in one group that this pid namespace knows; none if it is gone.

    A process of a namespace above shows as 0: left out, because kill(0) is for the
    caller's own process group.
    """
    try:
        with open(f"{directory}/cgroup.procs", "rb") as file:
            return tuple(pid for pid in map(int, file.read().split()) if pid > 0)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            raise
        return ()


def kill_tree(top: str, deadline_s: float = KILL_DEADLINE_S) -> bool:
    """Kill every process in and below ``top``, except this one, and wait for their end.

    Waits on process descriptors. False if the deadline passed.
    """
    with contextlib.suppress(OSError):
        _write(f"{top}/pids.max", "0")  # so that nothing forks faster than we kill
    until = time.monotonic() + deadline_s
    while pids := [pid for pid in _tree_processes(top) if pid != os.getpid()]:
        left_s = until - time.monotonic()
        if left_s <= 0:
            return False
        _kill_and_wait(pids[:256], left_s)
    return True


def _tree_processes(top: str) -> list[int]:
    return [pid for path, _, _ in os.walk(top) for pid in processes_of(path)]


def _kill_and_wait(pids: list[int], timeout_s: float) -> None:
    poll = select.poll()
    with contextlib.ExitStack() as stack:
        waiting = 0
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                fd = os.pidfd_open(pid)
                stack.callback(os.close, fd)
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                poll.register(fd, select.POLLIN)
                waiting += 1
        until = time.monotonic() + timeout_s
        while waiting and (left_s := until - time.monotonic()) > 0:
            for fd, _ in poll.poll(left_s * 1000):
                poll.unregister(fd)
                waiting -= 1


def remove_tree(top: str) -> bool:
    """Remove the empty groups in and below ``top``. False if some had processes."""
    gone = [_remove(path) for path, _, _ in os.walk(top, topdown=False)]
    return all(gone)


def _remove(directory: str) -> bool:
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
            return False
        raise
    return True


def _hand_on_io(directory: str) -> bool:
    """The controller of disk reads, which is done without where it is not there."""
    if "io" not in _words(f"{directory}/cgroup.controllers"):
        return False
    with contextlib.suppress(OSError):
        _write(f"{directory}/cgroup.subtree_control", "+io")
        return True
    return False


def _take_controllers_back(directory: str) -> None:
    if "io" in _words(f"{directory}/cgroup.subtree_control"):
        _write(f"{directory}/cgroup.subtree_control", "-io")
    _write(f"{directory}/cgroup.subtree_control", "-memory -pids -cpu")


def _upwards(own: str, ceiling: str) -> list[str]:
    """``own`` and its parents, up to the mount point."""
    found = [own]
    while found[-1] != ceiling and found[-1] != "/":
        found.append(os.path.dirname(found[-1]))
    return found


def _limits_upwards(own: str, ceiling: str) -> list[int]:
    """The memory limits set on ``own`` and above, in bytes."""
    found = []
    for directory in _upwards(own, ceiling):
        with contextlib.suppress(OSError, ValueError):  # the root has none, others say "max"
            found.append(int(Path(f"{directory}/memory.max").read_text()))
    return found


# ── files ────────────────────────────────────────────────────────────────────


def _cure(error: OSError) -> str:
    if os.geteuid() != 0:
        return "run as root"
    return CURE_CONTAINER if error.errno == errno.EROFS else CURE_DELEGATE


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        error.filename = path  # os.write does not know it
        raise
    finally:
        os.close(fd)


def _read(path: str) -> str:
    """Without a Path, for what is read all the time: see ``supplies``."""
    with open(path, encoding="ascii") as file:
        return file.read()


def _read_number(path: str) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(fd, 32))
    finally:
        os.close(fd)


def _words(path: str) -> set[str]:
    return set(Path(path).read_text().split())


def _table(path: str) -> dict[str, str]:
    """Lines of "key value", as in memory.stat and /proc/meminfo."""
    rows = (line.replace(":", " ").split() for line in Path(path).read_text().splitlines())
    return {row[0]: row[1] for row in rows if len(row) > 1}


def _oom_event(directory: str, oom_control: int) -> int:
    """An eventfd that v1 fires when the group is out of memory. man: eventfd(2)"""
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        _write(f"{directory}/cgroup.event_control", f"{event} {oom_control}")
    except OSError:
        os.close(event)
        raise
    return event
