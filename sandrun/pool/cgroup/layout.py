"""Where this process's control groups are. Pure: texts of /proc in, directories out.

Standard library only, because the doctor reads it before anything is installed.

Three kinds of hosts. *v2*: one hierarchy, the normal case. *v1*: a hierarchy for
each controller (cpu and cpuacct often share one). *hybrid*: v1 with the
controllers, and beside it a v2 hierarchy without them, which still offers
``cgroup.kill`` and a free CPU count; here it is v1 with a ``companion``.
man: cgroups(7), proc(5)
"""

from __future__ import annotations

import os.path
import re
from dataclasses import dataclass
from typing import Final, Literal

from sandrun.errors import HostError

CONTROLLERS: Final = ("memory", "pids", "cpu")

CURE_CONTAINER: Final = "in a container: start it with --privileged or with a writable /sys/fs/cgroup and --cgroupns=private"
CURE_MEMORY: Final = (
    "boot with cgroup_enable=memory (some ARM boards switch it off), or mount the controllers"
)


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted hierarchy. ``controllers`` is empty for v2."""

    point: str  # where it is mounted
    root: str  # the group that is mounted there; not "/" inside some containers
    controllers: frozenset[str]
    version: Literal[1, 2]
    writable: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """Our own group's directory in every hierarchy of use.

    v1: ``directories`` has "memory", "pids", "cpu" and, if mounted, "cpuacct", and
    "blkio" if it is mounted by itself.
    v2: it has "unified" only. ``companion`` is the v2 directory of a hybrid host.
    ``ceilings`` are the mount points: nothing above them is ours to see.
    """

    version: Literal[1, 2]
    directories: dict[str, str]
    companion: str | None
    ceilings: dict[str, str]


def find(mountinfo: str, self_cgroup: str) -> Layout:
    """/proc/self/mountinfo and /proc/self/cgroup → :class:`Layout`. Raises HostError."""
    mounts = parse_mounts(mountinfo)
    groups = parse_groups(self_cgroup)
    v1 = _v1_directories(mounts, groups)
    unified = _unified(mounts, groups)
    missing = [name for name in CONTROLLERS if name not in v1]
    if not missing:
        ceilings = {name: _mount_of(mounts, name).point for name in v1}
        return Layout(1, v1, unified and unified[0], ceilings)
    if unified and len(missing) == len(CONTROLLERS):
        return Layout(2, {"unified": unified[0]}, None, {"unified": unified[1]})
    if not mounts:
        raise HostError("no cgroup file system is mounted", CURE_CONTAINER)
    raise HostError(f"cgroup controllers not mounted: {', '.join(missing)}", CURE_MEMORY)


def parse_mounts(mountinfo: str) -> list[Mount]:
    """The cgroup mounts of /proc/PID/mountinfo, in order. man: proc(5)"""
    found = []
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if not separator or len(fields) < 6 or len(tail) < 3 or not tail[0].startswith("cgroup"):
            continue
        version: Literal[1, 2] = 2 if tail[0] == "cgroup2" else 1
        options = frozenset(tail[2].split(","))
        found.append(
            Mount(
                point=_unescape(fields[4]),
                root=_unescape(fields[3]),
                controllers=options if version == 1 else frozenset(),
                version=version,
                writable="rw" in fields[5].split(",") and "ro" not in options,
            )
        )
    return found


def parse_groups(self_cgroup: str) -> dict[str, str]:
    """/proc/PID/cgroup → controller (or "" for v2) to path."""
    found = {}
    for line in self_cgroup.splitlines():
        number, names, path = line.split(":", 2)
        for name in names.split(",") if number != "0" else [""]:
            found[name] = path
    return found


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _directory(mount: Mount, path: str) -> str:
    """The directory of group ``path`` under ``mount``.

    A container without a cgroup namespace has its own group mounted as the root
    and still sees the host's path: cut what both share.
    """
    relative = path
    if mount.root != "/" and (path + "/").startswith(mount.root.rstrip("/") + "/"):
        relative = path[len(mount.root) :]
    return os.path.normpath(f"{mount.point}/{relative}")


def _mount_of(mounts: list[Mount], controller: str) -> Mount:
    return next(m for m in mounts if m.version == 1 and controller in m.controllers)


def _v1_directories(mounts: list[Mount], groups: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for mount in mounts:
        for name in (*CONTROLLERS, "cpuacct"):
            if name in mount.controllers and name in groups and name not in found:
                found[name] = _directory(mount, groups[name])
    # All jobs are in one group there (see ``hierarchy.py``), so it can share no other's hierarchy.
    alone = next((m for m in mounts if "blkio" in m.controllers and m.writable), None)
    if alone and "blkio" in groups and not alone.controllers & {*CONTROLLERS, "cpuacct"}:
        found["blkio"] = _directory(alone, groups["blkio"])
    return found


def _unified(mounts: list[Mount], groups: dict[str, str]) -> tuple[str, str] | None:
    for mount in mounts:
        if mount.version == 2 and "" in groups:
            return _directory(mount, groups[""]), mount.point
    return None
