"""The root file system of every sandbox, as a list. Pure.

One small tmpfs holds directories, links, a generated ``/etc`` and five devices;
the host's ``/usr`` is bound into it read-only, and an environment's packages at
``/opt/env``. Nothing else of the host is there: no ``/home``, no ``/var``, no
``/sys``, no ``/run``, and of ``/etc`` only what programs need to start.

Few mounts on purpose: every sandbox copies the list when it gets its own mount
namespace. The tmpfs is mode 0755: under a sticky 1777 root the kernel refuses
``O_CREAT`` opens of the ``/dev/null`` in it (fs.protected_regular).

The writable places (``/work``, home, ``/tmp``, ``/dev/shm``) belong to one tmpfs
per sandbox, bound four times, so that one size limits them together.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

WORK: Final = "/work"
HOME: Final = "/home/sandrun"
BOX: Final = "/run/box"  # where a sandbox's tmpfs is for a moment, before it is bound
ENVIRONMENT: Final = "/opt/env"
RUNTIME: Final = "/run/sandrun"  # our own scripts for warm interpreters
FORK_LIBRARY: Final = f"{RUNTIME}/fork.so"  # by which a template forks, if there is one
WARM_PYTHON: Final = f"{RUNTIME}/python"  # on the warm python3's path at its start
# (directory of the sandbox's tmpfs, where it is bound)
WRITABLE: Final = (("work", WORK), ("home", HOME), ("tmp", "/tmp"), ("shm", "/dev/shm"))

JOB_UID: Final = 1000  # J: the job
INIT_UID: Final = 1001  # P: PID 1 of the sandbox
GID: Final = 1000
HOSTNAME: Final = "sandrun"
PATH: Final = "/usr/local/bin:/usr/bin:/bin"

# Copied from the host if they are there and readable by all: what programs need
# to start. No ssl certificates, no resolv.conf: there is no network.
ETC_COPIED: Final = (
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "alternatives",
    "fonts",
    "mime.types",
    "perl",
    "php",
    "R",
)


class Directory(NamedTuple):
    """``mkdir path`` with ``mode``."""

    path: str
    mode: int = 0o755


class File(NamedTuple):
    """A file with this content."""

    path: str
    content: bytes
    mode: int = 0o644


class Symlink(NamedTuple):
    """``path`` → ``target``."""

    path: str
    target: str


class Device(NamedTuple):
    """A character device."""

    path: str
    major: int
    minor: int


class Bind(NamedTuple):
    """The host's ``source``, read-only, nosuid, nodev, noatime."""

    source: str
    path: str


class Copy(NamedTuple):
    """A small file or tree of the host, copied."""

    source: str
    path: str


Entry = Directory | File | Symlink | Device | Bind | Copy

_ETC: Final = (
    File(
        "/etc/passwd",
        b"root:x:0:0:root:/nonexistent:/usr/sbin/nologin\n"
        b"sandrun:x:1000:1000:sandrun:/home/sandrun:/bin/sh\n"
        b"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
    File("/etc/group", b"root:x:0:\nsandrun:x:1000:\nnogroup:x:65534:\n"),
    File("/etc/hosts", b"127.0.0.1 localhost sandrun\n::1 localhost sandrun\n"),
    File("/etc/hostname", b"sandrun\n"),
    File("/etc/resolv.conf", b""),
    File("/etc/host.conf", b"multi on\n"),
    File("/etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files\n"),
    File("/etc/shells", b"/bin/sh\n/bin/bash\n"),
)

_DEV: Final = (
    Device("/dev/null", 1, 3),
    Device("/dev/zero", 1, 5),
    Device("/dev/full", 1, 7),
    Device("/dev/random", 1, 8),
    Device("/dev/urandom", 1, 9),
    Symlink("/dev/fd", "/proc/self/fd"),
    Symlink("/dev/stdin", "/proc/self/fd/0"),
    Symlink("/dev/stdout", "/proc/self/fd/1"),
    Symlink("/dev/stderr", "/proc/self/fd/2"),
)

# Part of the root on some hosts, links into /usr on those with a merged /usr.
TOP_LEVEL: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


def plan(
    top_level: Iterable[tuple[str, str]],
    etc: Iterable[str],
    environment_dir: str,
    runtime: Iterable[tuple[str, bytes]],
) -> tuple[Entry, ...]:
    """The root file system, in the order in which it is made.

    ``top_level``: (name, link target, or "" for a directory) of those of
    :data:`TOP_LEVEL` that the host has. ``etc``: those of :data:`ETC_COPIED` that
    it has. ``environment_dir``: a directory of the host, or "". ``runtime``:
    (name, content) of our scripts.
    """
    entries: list[Entry] = [
        *(
            Directory(path)
            for path in ("/usr", "/etc", "/dev", "/dev/shm", "/proc", "/work", "/tmp", "/home")
        ),
        *(
            Directory(path)
            for path in (HOME, "/run", RUNTIME, WARM_PYTHON, BOX, "/opt", ENVIRONMENT, "/var")
        ),
        Symlink("/var/tmp", "/tmp"),
        Bind("/usr", "/usr"),
    ]
    for name, target in top_level:
        if target:
            entries.append(Symlink(f"/{name}", target))
        else:
            entries += (Directory(f"/{name}"), Bind(f"/{name}", f"/{name}"))
    entries += _ETC
    entries += (Copy(f"/etc/{name}", f"/etc/{name}") for name in etc)
    entries += _DEV
    entries += (File(f"{RUNTIME}/{name}", content) for name, content in runtime)
    if environment_dir:
        entries.append(Bind(environment_dir, ENVIRONMENT))
        # Found by require() and import alike from /work upwards, after the job's own.
        entries.append(Symlink("/node_modules", f"{ENVIRONMENT}/node_modules"))
    return tuple(entries)


def job_environment(path: str = PATH) -> dict[str, str]:
    """What every job finds in its environment; a manifest's ``env`` comes on top."""
    return {
        "PATH": path,
        "HOME": HOME,
        "USER": "sandrun",
        "LOGNAME": "sandrun",
        "SHELL": "/bin/sh",
        "TMPDIR": "/tmp",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
    }
