"""A real server on a host that runs out of something when a test says so.

``python scarce.py FILE [ARGUMENTS of sandrun serve]``. The file is mapped by both sides
and says what there is none of now: ``EMFILE memory_file; ENOMEM tmpfs``. The pool takes
everything from a :class:`Supplies`; this one looks there first. ``low memory`` is a host
with 1 MiB of memory left.
"""

from __future__ import annotations

import errno
import os
import sys

import faulty

from sandrun.errors import SetupError
from sandrun.job import MIB
from sandrun.pool.pressure import HostMemory
from sandrun.pool.supplies import Supplies

# (errno, supply): what really happens on hosts.
FAULTS = (
    ("EMFILE", "memory_file"),
    ("ENOMEM", "memory_file"),
    ("ENOMEM", "tmpfs"),
    ("ENOSPC", "tmpfs"),
    ("ENOSPC", "group"),
    ("EMFILE", "watch"),
    ("EAGAIN", "start"),
)


class ScarceSupplies(Supplies):
    """The host, without what the file names."""

    def __init__(self, path):
        self.control = faulty.Control(path)

    def _need(self, supply):
        for name, missing in self.control.faults:
            if missing == supply:
                number = getattr(errno, name)
                raise OSError(number, os.strerror(number))

    def memory_file(self, name, size):
        self._need("memory_file")
        return super().memory_file(name, size)

    def tmpfs(self, options):
        self._need("tmpfs")
        return super().tmpfs(options)

    def resize(self, tmpfs, options):
        self._need("resize")
        super().resize(tmpfs, options)

    def group(self, hierarchy, number):
        try:
            self._need("group")
        except OSError as error:
            raise SetupError("cgroup", error.errno, "limits") from error
        return super().group(hierarchy, number)

    def watch(self, pid):
        self._need("watch")
        return super().watch(pid)

    def start(self, argv, fds):
        self._need("start")
        return super().start(argv, fds)

    def memory(self, hierarchy):
        self._need("look")
        seen = super().memory(hierarchy)
        if ("low", "memory") in self.control.faults:
            return HostMemory(seen.total_bytes, MIB, host_bytes=MIB)
        return seen


if __name__ == "__main__":
    import sandrun.__main__

    sys.exit(sandrun.__main__.serve(sys.argv[2:], ScarceSupplies(sys.argv[1])))
