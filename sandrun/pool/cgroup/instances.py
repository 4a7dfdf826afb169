"""Names of supervisors' groups, and the sweep of what dead ones left. Runs as: root. I/O."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from sandrun.pool.cgroup.tree import kill_tree, remove_tree
from sandrun.pool.directory_lock import try_lock

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


def sweep(places: Iterable[str]) -> tuple[str, ...]:
    """Kill and remove what supervisors that are dead left in these directories; their names.

    Only groups called ``sandrun-<pid>-<start time>`` whose process is gone, and that
    nobody holds the lock of: in another pid namespace we cannot see a process, and its
    number says nothing.
    """
    swept: list[str] = []
    for directory in places:
        stale = filter(is_stale, sorted(os.listdir(directory)))
        swept += [name for name in stale if _sweep(f"{directory}/{name}")]
    return tuple(dict.fromkeys(swept))


def _sweep(directory: str) -> bool:
    lock = try_lock(directory)
    if lock is None:
        return False
    try:
        kill_tree(directory)
    finally:
        os.close(lock)
    return remove_tree(directory)
