"""All of our control groups: found, made, and taken away whole. Runs as: root (supervisor). I/O.

``__init__.py`` of this folder has what the tree looks like, and why.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Final, Self

from sandrun.errors import HostError, SetupError
from sandrun.job import MIB, Limits
from sandrun.pool.cgroup import kernfs
from sandrun.pool.cgroup.caps import Caps, caps_here, socket_caps
from sandrun.pool.cgroup.instances import own_name, sweep
from sandrun.pool.cgroup.job_group import (
    V1_CPU_ALONG,
    V1_CPU_BY_COMPANION,
    V1_CPU_BY_CPUACCT,
    V1_DISK,
    V1_FILES,
    V1_LAST,
    V2_FILES,
    ControlFile,
    Defaults,
    JobGroup,
    limit_cpu,
)
from sandrun.pool.cgroup.layout import CONTROLLERS, CURE_CONTAINER, Layout, find
from sandrun.pool.cgroup.nodes import GroupNode
from sandrun.pool.cgroup.tree import (
    hand_on_io,
    kill_tree,
    remove_tree,
    take_controllers_back,
    upwards,
)
from sandrun.pool.directory_lock import try_lock
from sandrun.pool.disks import disks, readings

SERVICE_WEIGHT: Final = 4  # CPU share of the service against all jobs together
DISK_READ_BYTES: Final = 100 * MIB  # a second; the config's default
_SOCKETS: Final = "memory.kmem.tcp.limit_in_bytes"  # of UDP as well, whatever its name

CURE_DELEGATE: Final = (
    "start sandrun in a group of its own: a systemd unit with Delegate=yes, or "
    "systemd-run --scope -p Delegate=yes python -m sandrun"
)


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
                self._create_v1(caps or caps_here(self.layout))
            else:
                self._create_v2(caps or caps_here(self.layout))
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
                        kernfs.write(f"{jobs}/blkio.throttle.read_{kind}_device", f"{disk} {rate}")
                else:
                    kernfs.write(
                        f"{jobs}/io.max", f"{disk} rbps={rates['bps']} riops={rates['iops']}"
                    )
                limited.append(disk)
        self.limited_disks = tuple(limited)

    def _cap_sockets(self, jobs: str) -> None:
        if not os.path.exists(f"{jobs}/{_SOCKETS}"):
            return  # no worse than v2 with the host's usual tcp_mem: the doctor tells
        tcp_mem = Path("/proc/sys/net/ipv4/tcp_mem").read_text()
        together, self._socket_bytes = socket_caps(tcp_mem, os.sysconf("SC_PAGE_SIZE"))
        kernfs.write(f"{jobs}/{_SOCKETS}", str(together))

    def _cpu_files(self) -> tuple[ControlFile, ...]:
        # Not the companion if it can be helped: entering a v2 group waits for an RCU
        # grace period (12 ms median here), a v1 ``tasks`` file takes 0.02 ms.
        if "cpuacct" in self._tops:
            return V1_CPU_BY_CPUACCT
        if "cpuacct" in self.layout.directories:  # attached along with cpu
            return V1_CPU_ALONG
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
        if hand_on_io(top.directory):
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
        lacking = set(CONTROLLERS) - kernfs.words(f"{own}/cgroup.controllers")
        first_failure = ""
        for home in upwards(own, ceiling):
            handed_on = kernfs.words(f"{home}/cgroup.subtree_control")
            if home != own and not set(CONTROLLERS) <= handed_on:
                continue
            if home == own and lacking:
                continue
            try:
                self._make_top("unified", home)
                os.mkdir(self._tops["unified"].child("service").directory)
                self._enter_service()
                if not set(CONTROLLERS) <= handed_on:
                    kernfs.write(f"{home}/cgroup.subtree_control", "+memory +pids +cpu")
                    self._handed_on = True
                    hand_on_io(home)
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
            kernfs.write(f"{top.child('service').directory}/cgroup.procs", "0")

    def jobs_memory(self) -> tuple[int, int]:
        """The cap of all jobs together, and what they use of it, without files' caches."""
        v1 = self.version == 1
        directory = self._tops["memory" if v1 else "unified"].child("jobs").directory
        cap = kernfs.read(f"{directory}/{'memory.limit_in_bytes' if v1 else 'memory.max'}").strip()
        used = f"{directory}/{'memory.usage_in_bytes' if v1 else 'memory.current'}"
        stat = dict(line.split() for line in kernfs.read(f"{directory}/memory.stat").splitlines())
        prefix = "total_" if v1 else ""
        # The kernel takes these back when it must. A tmpfs is on the other lists.
        cached = sum(int(stat[f"{prefix}{list_}_file"]) for list_ in ("active", "inactive"))
        return 1 << 60 if cap == "max" else int(cap), max(0, kernfs.read_number(used) - cached)

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
                kernfs.write(f"{nodes['memory'].directory}/{_SOCKETS}", str(self._socket_bytes))
            limit_cpu(nodes, self._defaults.cpus, self.version)
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
                files["oom.event"] = kernfs.oom_event(
                    directories["memory"], files["memory.oom_control"]
                )
            path = f"{directories[entry.hierarchy]}/{entry.file}"
            try:
                files[entry.name] = os.open(path, entry.flags | os.O_CLOEXEC)
            except PermissionError:  # memory.peak is read-only before Linux 6.12
                files[entry.name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                if entry.needed:
                    raise

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
                    take_controllers_back(top.directory)
                    if self._handed_on:
                        take_controllers_back(home)
            with contextlib.suppress(OSError):
                kernfs.write(f"{own}/cgroup.procs", "0")
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
        return sweep(self._places())

    def _places(self) -> list[str]:
        """Every directory that we, or one who was started as we were, may nest in."""
        if self.version == 2:
            own, ceiling = (
                self.layout.directories["unified"],
                self.layout.ceilings["unified"],
            )
            places = upwards(own, ceiling)
        else:
            places = [*self.layout.directories.values(), self.layout.companion or ""]
        return [place for place in dict.fromkeys(places) if os.path.isdir(place)]


def _cure(error: OSError) -> str:
    if os.geteuid() != 0:
        return "run as root"
    return CURE_CONTAINER if error.errno == errno.EROFS else CURE_DELEGATE
