"""Whether this host is too short of memory for one more job. Pure.

Everything that a client leaves here is memory: jobs, their tmpfs, uploads, logs and
outputs. So below a low mark of available memory new jobs are refused, while those
that run go on; well above it they are taken again.

The kernel's own word (PSI, /proc/pressure/memory, Linux 4.20) moves the mark up: if
everything that could run has waited for memory for a while, four times as much must
be free. It counts for nothing while there is plenty, because one job that thrashes
at its own limit is enough to raise it.

What ended jobs have left may make room, as far as it is the host that is short. If it is
only the memory set apart for jobs, those that run have it, and to wipe what others have
not fetched yet would give them nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sandrun.job import MIB

LOW_SHARE: Final = 16  # of all memory
LOW_MIN: Final = 128 * MIB
LOW_MAX: Final = 512 * MIB
RELEASE: Final = 1.25  # above the mark by so much it is over: two marks do not flutter
STALL_PERCENT: Final = 10.0  # of the last ten seconds in which everybody waited
STALL_FACTOR: Final = 4


@dataclass(frozen=True, slots=True)
class HostMemory:
    """What the kernel says. ``stalled_percent`` is None without PSI.

    ``available_bytes`` is what new jobs may use, ``host_bytes`` what is left on the host,
    whoever may use it.
    """

    total_bytes: int
    available_bytes: int
    stalled_percent: float | None = None
    host_bytes: int = 1 << 60

    @property
    def available_share(self) -> float:
        """Of all; 1 before it has been looked at."""
        return self.available_bytes / self.total_bytes if self.total_bytes else 1.0


class Pressure:
    """Judges one look after the other. ``reason`` is "" while all is well;
    ``missing_bytes``: what the host lacks until it is.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.missing_bytes = 0

    def judge(self, memory: HostMemory) -> str:
        """Why new jobs are refused now, or ""."""
        low = min(LOW_MAX, max(LOW_MIN, memory.total_bytes // LOW_SHARE))
        stalled = memory.stalled_percent or 0.0
        mark = low * STALL_FACTOR if stalled >= STALL_PERCENT else low
        if memory.available_bytes >= mark * (RELEASE if self.reason else 1.0):
            self.reason = ""
        elif not self.reason:
            self.reason = f"the host has {memory.available_bytes // MIB} MiB of memory left"
            if mark > low:
                self.reason += f" and waited for it {stalled:.0f} % of the time"
        missing = int(mark * RELEASE) - memory.host_bytes
        self.missing_bytes = max(0, missing) if self.reason else 0
        return self.reason


def parse_meminfo(text: str) -> tuple[int, int]:
    """/proc/meminfo → total and available bytes. man: proc(5)"""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return tuple(int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))  # type: ignore[return-value]


def parse_stall(text: str) -> float:
    """/proc/pressure/memory → the "full" average of ten seconds, in percent.

    Documentation/accounting/psi.rst
    """
    for line in text.splitlines():
        kind, *pairs = line.split()
        if kind == "full":
            return float(dict(pair.split("=", 1) for pair in pairs)["avg10"])
    return 0.0
