"""The job's control group, as PID 1 of the sandbox sees it. Runs as: PID 1, confined. I/O.

PID 1 may open nothing and is in no group of its own making, so the supervisor
opens the files beforehand and passes them by descriptor, with the kernel's own
file names beside them. The names decide how a file is read; the same calls work
on cgroup v1, v2 and a mixture.

Counters that the kernel cannot set back (CPU time, OOM kills, refused forks, the
peak of tasks) are counted from the moment this object is made, so that a group
used a second time starts at zero. man: cgroups(7)

A child that writes "0" into its own attach files costs 0.06 ms (v1, four
hierarchies); being attached by another process after an idle spell costs 5 ms,
because the kernel then waits for an RCU grace period on the writer's time.
"""

from __future__ import annotations

import os
from typing import Final

POLLIN: Final = 0x001  # man: poll(2); the select module is one import more
POLLPRI: Final = 0x002

_LINE_BYTES = 64  # one number
_TABLE_BYTES = 1024  # "key value" lines; memory.events is the longest with 120


class GroupFiles:
    """Owns the descriptors it is given. ``names`` and ``fds`` go together."""

    def __init__(self, names: tuple[str, ...], fds: tuple[int, ...] | list[int]) -> None:
        if len(names) != len(fds):
            raise ValueError(f"{len(names)} control files, {len(fds)} descriptors")
        files = dict(zip(names, fds, strict=True))
        self._fds = tuple(fds)
        self._attach = tuple(fd for name, fd in files.items() if name.startswith("attach."))
        self._memory_max = _needed(files, "memory.max", "memory.limit_in_bytes")
        self._memory_peak = _either(files, "memory.peak", "memory.max_usage_in_bytes")
        self._memory_now = _either(files, "memory.current", "memory.usage_in_bytes")
        self._memory_peak_resets = "memory.max_usage_in_bytes" in files
        self._memory_events = _needed(files, "memory.events", "memory.oom_control")
        self._pids_max = _needed(files, "pids.max")
        self._pids_now = files.get("pids.current")
        self._pids_peak = files.get("pids.peak")
        self._pids_events = files.get("pids.events")
        self._cpu_stat = files.get("cpu.stat")
        self._cpuacct = files.get("cpuacct.usage")
        event = files.get("oom.event")
        # Becomes ready in ``poll`` with ``oom_poll_mask`` when the group ran out of
        # memory. v1 also fires it for a neighbour's or a parent's shortage and when
        # the group is removed: ask oom_kills().
        self.oom_fd: int | None = self._memory_events if event is None else event
        # POLLIN is always set on a control file: only POLLPRI tells a change.
        self.oom_poll_mask = POLLPRI if event is None else POLLIN

        self._memory_seen = 0
        self._tasks_seen = 0
        self._cpu_base = self._cpu_now()
        self._oom_base = self._oom_now()
        self._refused_base = self._refused_now()
        self._tasks_base = 0 if self._pids_peak is None else _number(self._pids_peak)

    @property
    def attach_fds(self) -> tuple[int, ...]:
        """Where a process writes "0" to put itself into the group."""
        return self._attach

    # ── membership and limits ────────────────────────────────────────────────

    def attach_self(self) -> None:
        """Put the calling, single-threaded process into the group. Raises OSError."""
        for fd in self._attach:
            os.pwrite(fd, b"0", 0)

    def set_memory(self, limit_bytes: int) -> None:
        """Limit the memory of the whole tree. Raises OSError (v1: EBUSY below the usage)."""
        os.pwrite(self._memory_max, b"%d" % limit_bytes, 0)

    def set_processes(self, count: int) -> None:
        """Limit processes and threads alive at once. Raises OSError."""
        os.pwrite(self._pids_max, b"%d" % count, 0)

    # ── what it used ─────────────────────────────────────────────────────────

    def cpu_seconds(self) -> float:
        """CPU time of all processes together, ended ones included."""
        return self._cpu_now() - self._cpu_base

    def memory_peak(self) -> int:
        """The most memory in use at once, in bytes."""
        seen = self._memory_seen
        if self._memory_peak is not None:
            seen = max(seen, _number(self._memory_peak))
        elif self._memory_now is not None:  # before Linux 5.19: what we happened to see
            seen = max(seen, _number(self._memory_now))
        self._memory_seen = seen
        return seen

    def memory_now(self) -> int:
        """Memory in use, in bytes."""
        if self._memory_now is not None:
            return _number(self._memory_now)
        if self._memory_peak is None or not self._memory_peak_resets:
            return 0
        # v1 sets the peak back to the usage when written to: one descriptor less.
        self.memory_peak()
        os.pwrite(self._memory_peak, b"0", 0)
        return _number(self._memory_peak)

    def oom_kills(self) -> int:
        """Processes that the kernel killed for want of memory; re-arms ``oom_fd`` on v2."""
        return self._oom_now() - self._oom_base

    def clear_oom_event(self) -> None:
        """Re-arm ``oom_fd`` after it became ready."""
        if self.oom_poll_mask == POLLPRI:
            self._oom_now()
            return
        try:
            os.eventfd_read(self.oom_fd or 0)
        except BlockingIOError:
            pass

    def fork_refusals(self) -> int:
        """How often a fork or a thread was refused by the limit of processes."""
        return self._refused_now() - self._refused_base

    def processes_now(self) -> int:
        """Processes and threads alive; 0 where nothing tells (v1)."""
        # v1: not among the descriptors, which are few, and its ``tasks`` file is no
        # way out: read twice within a second it answers from a cache.
        return 0 if self._pids_now is None else _number(self._pids_now)

    def processes_peak(self) -> int:
        """The most processes and threads alive at once.

        Exact where the kernel counts it (``pids.peak``: Linux 6.11) and this job got
        higher than an earlier user of the group. Else the most that any call of
        this method saw, but the limit itself if a fork was refused.
        """
        seen = max(self._tasks_seen, self.processes_now())
        if self._pids_peak is not None:
            peak = _number(self._pids_peak)
            if peak > self._tasks_base:
                seen = max(seen, peak)
        if self.fork_refusals():
            seen = max(seen, _number(self._pids_max))
        self._tasks_seen = seen
        return seen

    def close(self) -> None:
        """Close every descriptor."""
        fds, self._fds = self._fds, ()
        for fd in fds:
            os.close(fd)

    def _cpu_now(self) -> float:
        if self._cpu_stat is not None:
            return _field(self._cpu_stat, b"usage_usec") / 1_000_000
        if self._cpuacct is not None:
            return _number(self._cpuacct) / 1_000_000_000
        raise ValueError("no control file tells the CPU time")

    def _oom_now(self) -> int:
        return _field(self._memory_events, b"oom_kill")

    def _refused_now(self) -> int:
        return 0 if self._pids_events is None else _field(self._pids_events, b"max")


def _either(files: dict[str, int], name: str, name_v1: str) -> int | None:
    return files.get(name, files.get(name_v1))


def _needed(files: dict[str, int], *names: str) -> int:
    for name in names:
        if name in files:
            return files[name]
    raise ValueError(f"no control file {' or '.join(names)}")


def _number(fd: int) -> int:
    text = os.pread(fd, _LINE_BYTES, 0)
    return 0 if text.startswith(b"max") else int(text)


def _field(fd: int, key: bytes) -> int:
    """The number beside ``key`` in a table of "key value" lines. Raises ValueError."""
    prefix = key + b" "
    for line in os.pread(fd, _TABLE_BYTES, 0).split(b"\n"):
        if line.startswith(prefix):
            return int(line[len(prefix) :])
    raise ValueError(f"control file without {key.decode()!r}")
