"""The files of a control group, one read or write each. Runs as: root. I/O."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: str, text: str) -> None:
    """One write. Raises OSError that names the file."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        error.filename = path  # os.write does not know it
        raise
    finally:
        os.close(fd)


def read(path: str) -> str:
    """Without a Path, for what is read all the time: see ``supplies``."""
    with open(path, encoding="ascii") as file:
        return file.read()


def read_number(path: str) -> int:
    """A file that holds one number."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(fd, 32))
    finally:
        os.close(fd)


def words(path: str) -> set[str]:
    """Words between blanks, as in cgroup.controllers."""
    return set(Path(path).read_text().split())


def table(path: str) -> dict[str, str]:
    """Lines of "key value", as in memory.stat and /proc/meminfo."""
    rows = (line.replace(":", " ").split() for line in Path(path).read_text().splitlines())
    return {row[0]: row[1] for row in rows if len(row) > 1}


def oom_event(directory: str, oom_control: int) -> int:
    """An eventfd that v1 fires when the group is out of memory. man: eventfd(2)"""
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        write(f"{directory}/cgroup.event_control", f"{event} {oom_control}")
    except OSError:
        os.close(event)
        raise
    return event
