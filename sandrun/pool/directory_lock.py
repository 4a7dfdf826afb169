"""Who lives, told by a lock on his directory. Runs as: root. I/O.

Whoever makes a directory that is to be gone when he is, a control group or a build,
holds its lock. The kernel lets go of it when he ends, however he ends and in whatever
namespace, so what can be locked has been left. A process id tells less: seen from
another pid namespace it is another's, or nobody's. man: flock(2)
"""

from __future__ import annotations

import fcntl
import os


def try_lock(directory: str | os.PathLike[str]) -> int | None:
    """A descriptor that holds the lock until it is closed; None if another has it, or if
    there is no such directory.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(directory, flags)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def wait_lock(directory: str | os.PathLike[str]) -> int:
    """The same, once whoever has it lets go. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except BaseException:
        os.close(fd)
        raise
    return fd
