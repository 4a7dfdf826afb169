"""Control groups with all that is below or above them. Runs as: root. I/O."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from pathlib import Path
from typing import Final

from sandrun.pool.cgroup import kernfs

KILL_DEADLINE_S: Final = 5.0  # for killed processes to be gone; they end in milliseconds


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
        kernfs.write(f"{top}/pids.max", "0")  # so that nothing forks faster than we kill
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
    gone = [remove(path) for path, _, _ in os.walk(top, topdown=False)]
    return all(gone)


def remove(directory: str) -> bool:
    """Remove one empty group. False if it had processes or groups."""
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
            return False
        raise
    return True


def hand_on_io(directory: str) -> bool:
    """The controller of disk reads, which is done without where it is not there."""
    if "io" not in kernfs.words(f"{directory}/cgroup.controllers"):
        return False
    with contextlib.suppress(OSError):
        kernfs.write(f"{directory}/cgroup.subtree_control", "+io")
        return True
    return False


def take_controllers_back(directory: str) -> None:
    """Hand nothing on to the groups below. Raises OSError."""
    if "io" in kernfs.words(f"{directory}/cgroup.subtree_control"):
        kernfs.write(f"{directory}/cgroup.subtree_control", "-io")
    kernfs.write(f"{directory}/cgroup.subtree_control", "-memory -pids -cpu")


def upwards(own: str, ceiling: str) -> list[str]:
    """``own`` and its parents, up to the mount point."""
    found = [own]
    while found[-1] != ceiling and found[-1] != "/":
        found.append(os.path.dirname(found[-1]))
    return found


def limits_upwards(own: str, ceiling: str) -> list[int]:
    """The memory limits set on ``own`` and above, in bytes."""
    found = []
    for directory in upwards(own, ceiling):
        with contextlib.suppress(OSError, ValueError):  # the root has none, others say "max"
            found.append(int(Path(f"{directory}/memory.max").read_text()))
    return found
