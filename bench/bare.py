"""The baseline: the same program by posix_spawn and wait, no sandbox. I/O."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass

_NULL = [
    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
    (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
    (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
]
_ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


@dataclass(frozen=True)
class Run:
    """One process: wall and processor seconds."""

    wall_s: float
    cpu_s: float


def run(argv: tuple[str, ...]) -> Run:
    """Spawn, wait, and tell how long it took. Raises RuntimeError if it failed."""
    start = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, _ENV, file_actions=_NULL)
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - start
    if status:
        raise RuntimeError(f"{argv}: exit status {os.waitstatus_to_exitcode(status)}")
    return Run(wall, usage.ru_utime + usage.ru_stime)


def throughput(argv: tuple[str, ...], clients: int, seconds: float) -> float:
    """Processes per second with ``clients`` of them at a time."""
    until = time.perf_counter() + seconds
    counts = [0] * clients

    def loop(index: int) -> None:
        while time.perf_counter() < until:
            run(argv)
            counts[index] += 1

    threads = [threading.Thread(target=loop, args=(index,)) for index in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)
