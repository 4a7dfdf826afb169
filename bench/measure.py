"""Samples, processor time, memory, and which machine this is. I/O: reads /proc."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_WORKERS = ("kworker", "rcu", "ksoftirqd")
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def percentile(samples: Iterable[float], share: float) -> float:
    """The value that ``share`` (0 to 1) of the samples do not exceed."""
    ordered = sorted(samples)
    if not ordered:
        return float("nan")
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def median(samples: Iterable[float]) -> float:
    """The middle one."""
    return percentile(samples, 0.5)


# ── processor time ───────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Cpu:
    """Processor seconds since some start; subtract two."""

    own: float  # of the control group (with all below it) or of the waited-for children
    kernel: float  # of kernel threads
    machine: float  # of everything, at the resolution of the clock tick
    at: float
    looking: float = 0.0  # of own, what it took to read the rest, which is not of the work

    def __sub__(self, other: Self) -> Cpu:
        return Cpu(
            self.own - other.own - other.looking,
            self.kernel - other.kernel,
            self.machine - other.machine,
            self.at - other.at,
        )

    @property
    def total(self) -> float:
        """What the work cost."""
        return self.own + self.kernel

    @property
    def others(self) -> float:
        """How many processors others kept busy meanwhile (0 on a quiet machine)."""
        return max(0.0, self.machine - self.own - self.kernel) / self.at if self.at else 0.0


class Meter:
    """Reads :class:`Cpu`. ``pid``: whose group (its ``sandrun-*`` ancestor) is ours; without
    one, the children that this process has waited for are."""

    def __init__(self, pid: int | None = None) -> None:
        self._read = _children_seconds if pid is None else _group_reader(pid)
        self._threads: dict[tuple[int, str], float] = {}

    def now(self) -> Cpu:
        """Take the time."""
        own = self._read()
        kernel, machine = self._kernel_seconds(), _machine_seconds()
        # Where we are in the group ourselves, a look at 1,000 processes is 0.1 s of it.
        return Cpu(own, kernel, machine, time.monotonic(), self._read() - own)

    def _kernel_seconds(self) -> float:
        # A worker that has ended keeps what it had: the sum must not fall.
        for pid in _kernel_threads():
            with contextlib.suppress(OSError, ValueError, IndexError):
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                used = int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
                self._threads[pid, stat[19]] = used
        return sum(self._threads.values())


def _kernel_threads() -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                head, _, tail = Path(f"/proc/{name}/stat").read_text().rpartition(")")
                # 2 is the parent of all kernel threads; not those that mind memory or disks.
                if tail.split()[1] == "2" and head.partition("(")[2].startswith(_WORKERS):
                    found.append(int(name))
    return found


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _group_reader(pid: int):
    directory = group_directories(pid)
    if "cpuacct" in directory:
        usage = directory["cpuacct"] / "cpuacct.usage"
        return lambda: int(usage.read_text()) / 1e9
    stat = directory[""] / "cpu.stat"
    return lambda: int(stat.read_text().split()[1]) / 1e6


def group_directories(pid: int) -> dict[str, Path]:
    """The ``sandrun-*`` group of a server by controller; "" is cgroup v2."""
    mounts = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        kind, _, options = tail.split(" ", 2)
        root, target = head.split()[3:5]
        if kind == "cgroup2":
            mounts[""] = (root, target)
        elif kind == "cgroup":
            for option in options.split(" ")[-1].split(","):
                mounts[option] = (root, target)
    found = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        top, found_ours, rest = path.partition("/sandrun-")
        for name in names.split(","):
            if found_ours and name in mounts:
                root, target = mounts[name]
                inside = f"{top}/sandrun-{rest.split('/')[0]}"
                if root != "/" and inside.startswith(root):
                    inside = inside[len(root) :]
                found[name] = Path(target + inside)
    return found


def _machine_seconds() -> float:
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq = (int(word) for word in fields[:7])
    return (user + nice + system + irq + softirq) * TICK_S


# ── memory and processes ─────────────────────────────────────────────────────


def pss_bytes(pid: int) -> int:
    """Proportional share of one process; 0 if it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def anonymous_bytes(pid: int) -> int:
    """What a process has written itself, in memory or swapped out; 0 if it is gone.

    Pages that a fork shares count in full in both.
    """
    with contextlib.suppress(OSError):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(
            int(line.split()[1]) * 1024
            for line in rollup
            if line.startswith(("Anonymous:", "Swap:"))
        )
    return 0


def descendants(pid: int) -> list[int]:
    """Every process below ``pid``."""
    found, queue = [], [pid]
    while queue:
        parent = queue.pop()
        with contextlib.suppress(OSError):  # it may end at any moment
            for path in Path(f"/proc/{parent}/task").glob("*/children"):
                children = [int(word) for word in path.read_text().split()]
                found += children
                queue += children
    return found


# ── which machine ────────────────────────────────────────────────────────────


def machine() -> dict[str, str]:
    """What a reader must know beside the figures."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cpu": f"{len(os.sched_getaffinity(0))} x {model}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": _commit(),
        "load": " ".join(f"{value:.1f}" for value in os.getloadavg()),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }


def _commit() -> str:
    def git(*args: str) -> str:
        done = subprocess.run(
            ("git", "-C", Path(__file__).parent, *args), capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    return f"{git('rev-parse', '--short', 'HEAD') or 'unknown'}{'+' if git('status', '--porcelain', '-uno') else ''}"
