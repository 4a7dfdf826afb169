"""What this process takes, memory and CPU, and how busy the host is. I/O: /proc; unprivileged."""

from __future__ import annotations

import os
import time


class Vitals:
    """Opened while a path can still be opened."""

    def __init__(self) -> None:
        self._fd = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._load = os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC)
        self._page = os.sysconf("SC_PAGESIZE")

    def resident_bytes(self) -> int:
        """man: proc(5), /proc/PID/statm"""
        return int(os.pread(self._fd, 256, 0).split()[1]) * self._page

    def runnable(self) -> int:
        """Threads of this host that run or want to, at this moment. man: proc(5)"""
        return int(os.pread(self._load, 256, 0).split()[3].partition(b"/")[0])

    @staticmethod
    def cpu_seconds() -> float:
        """Of all threads, since the start."""
        return time.process_time()
