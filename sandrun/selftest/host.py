"""The machine before and after: nothing of a hostile job may be left on it. I/O; root.

:func:`look` is taken when the server is idle; :func:`differences` compares two of
them. What changes by itself on a living machine is left out or counted per kind.
After a burst the server keeps more sandboxes ready than before: so what belongs to
sandboxes is compared per sandbox, and there may be no more of them than are warm.
"""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from sandrun.probes import UID_BASE

SETTLE_S: Final = 20.0  # how long the server may take to tidy up and refill
RSS_GROWTH_MIB: Final = 64  # of one process, over a whole bank: caches fill, leaks are larger
_KERNEL_SETTINGS: Final = (
    "kernel/core_pattern", "kernel/modprobe", "kernel/hostname", "kernel/yama/ptrace_scope",
    "vm/overcommit_memory", "vm/drop_caches", "fs/suid_dumpable",
)  # fmt: skip
# What one sandbox more accounts for: by kind, or "" for every kind. http holds its
# socket, log and outputs; the supervisor these, its pidfd, its tmpfs and the end of a
# socket; the spawner that end, too.
_PER_SANDBOX: Final[dict[str, dict[str, int]]] = {
    "processes": {"in a sandbox": 2},
    "namespaces": {"": 1},
    "descriptors": {"supervisor": 6, "sandrun.http": 3, "assistant": 1, "sandrun.pool.spawner": 1},
}
# Of sandboxes that have ended the spawner's are closed when it starts the next one.
_LATE: Final = {"sandrun.pool.spawner": 32}
_SPAWNED: Final = {"sandrun.pool.spawner", "sandrun.pool.successor"}
# Descriptors come and go with connections that are just being closed.
_PLAY: Final = {"processes": 0, "namespaces": 0, "descriptors": 4}
_CANARY_PLACES: Final = ("/", "/etc", "/tmp", "/var/tmp", "/root", "/run")
_IPC: Final = ("sysvipc/shm", "sysvipc/sem", "sysvipc/msg")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What :func:`look` saw. Each value is comparable with ``==``."""

    mounts: str
    settings: dict[str, str]
    ipc: dict[str, int]
    canaries: dict[str, tuple[object, ...]]
    listeners: frozenset[str]
    groups: int
    sandboxes: int  # a PID 1 each
    processes: dict[str, int]  # of the server, by name; zombies under "(zombie)"
    descriptors: dict[str, int]  # of the server's lasting processes, by name
    namespaces: dict[str, int]
    shared_ids: tuple[int, ...]  # user ids of sandboxes that have no live sandbox
    rss_mib: dict[str, int] = field(compare=False, default_factory=dict)


class Canaries:
    """Files in places that a job must not touch. A context manager."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def __enter__(self) -> Canaries:
        for place in _CANARY_PLACES:
            try:
                fd, path = tempfile.mkstemp(prefix="sandrun-canary-", dir=place)
            except OSError:
                continue  # a read-only place needs no canary
            os.write(fd, b"canary of the hostile bank")
            os.close(fd)
            self.paths.append(path)
        return self

    def __exit__(self, *_: object) -> None:
        for path in self.paths:
            Path(path).unlink(missing_ok=True)

    def state(self) -> dict[str, tuple[object, ...]]:
        """Content, mode, owner, times and links of each."""
        found: dict[str, tuple[object, ...]] = {}
        for path in self.paths:
            try:
                info = Path(path).lstat()
                content: object = Path(path).read_bytes() if stat.S_ISREG(info.st_mode) else None
            except OSError as error:
                found[path] = (error.errno,)
                continue
            found[path] = (
                content, info.st_mode, info.st_uid, info.st_gid, info.st_nlink, info.st_mtime_ns,
                info.st_ctime_ns, info.st_ino,
            )  # fmt: skip
        return found


def look(server_pid: int, canaries: Canaries) -> Snapshot:
    """The machine now, seen from the supervisor's process ``server_pid``."""
    pids = [server_pid, *descendants(server_pid)]
    lasting = {pid: name for pid in pids if (name := _lasting_name(pid, server_pid))}
    return Snapshot(
        mounts=_read("/proc/self/mountinfo"),
        settings={name: _read(f"/proc/sys/{name}") for name in _KERNEL_SETTINGS},
        ipc={name: _read(f"/proc/{name}").count("\n") for name in _IPC},
        canaries=canaries.state(),
        listeners=frozenset(_listeners(pids)),
        groups=sum(1 for _ in _groups(server_pid)),
        sandboxes=sum(map(_is_init, pids)),
        processes=dict(Counter(_kind(pid, server_pid) for pid in pids)),
        descriptors={name: _descriptors(pid) for pid, name in lasting.items()},
        namespaces=_namespaces(pids),
        shared_ids=tuple(_strays(pids)),
        rss_mib={name: _rss_mib(pid) for pid, name in lasting.items()},
    )


def at_rest(
    server_pid: int,
    canaries: Canaries,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Snapshot:
    """The machine when the server has made all that stays: two looks alike."""
    end = clock() + SETTLE_S
    before = look(server_pid, canaries)
    while clock() < end:
        sleep(0.5)
        now = look(server_pid, canaries)
        if "standby" in now.processes and not differences(before, now):
            return now
        before = now
    return before


def settled(
    server_pid: int,
    canaries: Canaries,
    before: Snapshot,
    warm: Callable[[], int],
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> list[str]:
    """What differs from ``before`` once the server has had time to tidy up.

    ``warm``: how many unused sandboxes the server says it has.
    """
    end = clock() + SETTLE_S
    strays: set[int] | None = None
    while True:
        now = look(server_pid, canaries)
        # Those of another server on this machine die one after the other; ours would stay.
        strays = set(now.shared_ids) if strays is None else strays & set(now.shared_ids)
        found = differences(before, replace(now, shared_ids=tuple(sorted(strays))))
        if now.sandboxes > (ready := warm()):
            found.append(f"{now.sandboxes} sandboxes are there, {ready} are ready")
        if not found or clock() >= end:
            return found
        sleep(0.2)


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """Sentences. More cgroups than warm sandboxes need are kept for reuse: no fault."""
    found = []
    for name in ("mounts", "settings", "ipc", "canaries", "shared_ids"):
        was, now = getattr(before, name), getattr(after, name)
        if was != now:
            found.append(f"{name} changed: {_difference(was, now)}")
    if new := after.listeners - before.listeners:
        found.append(f"new listening sockets: {sorted(new)}")
    more = max(0, after.sandboxes - before.sandboxes)
    for name, each in _PER_SANDBOX.items():
        was, now = getattr(before, name), getattr(after, name)
        # Fewer may be there for a moment, while the pool refills; more may not.
        found += [
            f"{name}: {now[key]} of {key}, {was.get(key, 0)} before"
            for key in now
            if now[key] > was.get(key, 0) + _play(name, key) + each.get(key, each.get("", 0)) * more
        ]
    found += [
        f"memory of {name} grew from {before.rss_mib[name]} to {size} MiB"
        for name, size in after.rss_mib.items()
        if size > before.rss_mib.get(name, size) + RSS_GROWTH_MIB
    ]
    return found


def _play(name: str, key: str) -> int:
    return _PLAY[name] + (_LATE.get(key, 0) if name == "descriptors" else 0)


def _difference(was: object, now: object) -> str:
    if isinstance(was, str) and isinstance(now, str):
        lines = set(was.splitlines()) ^ set(now.splitlines())
        return "; ".join(sorted(lines))[:1000]
    return f"{was} → {now}"[:1000]


def descendants(pid: int) -> list[int]:
    """Every process below ``pid``."""
    found: list[int] = []
    queue = [pid]
    while queue:
        for task in Path(f"/proc/{queue.pop()}/task").glob("*/children"):
            try:
                children = [int(word) for word in task.read_text().split()]
            except OSError:
                continue
            found += children
            queue += children
    return found


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return f"errno {error.errno}"


def _status(pid: int) -> dict[str, str]:
    lines = (line.partition(":") for line in _read(f"/proc/{pid}/status").splitlines())
    return {name: value.strip() for name, _, value in lines}


def _kind(pid: int, server_pid: int) -> str:
    status = _status(pid)
    if status.get("State", "Z").startswith("Z"):
        return "(zombie)"
    if pid == server_pid:
        return "supervisor"
    words = _read(f"/proc/{pid}/cmdline").split("\0")
    if _read(f"/proc/{pid}/comm").strip() == "sandrun-standby" and "sandrun.http" in words:
        return "standby"
    if _read(f"/proc/{pid}/comm").strip() == "sandrun-assist" and _SPAWNED & {*words}:
        return "assistant"
    for module in ("sandrun.http", "sandrun.pool.spawner"):
        if module in words and len(status.get("NSpid", "").split()) == 1:
            return module
    return "in a sandbox"


def _lasting_name(pid: int, server_pid: int) -> str:
    kind = _kind(pid, server_pid)
    return "" if kind in ("(zombie)", "in a sandbox") else kind


def _is_init(pid: int) -> bool:
    ids = _status(pid).get("NSpid", "").split()
    return len(ids) > 1 and ids[-1] == "1"


def _descriptors(pid: int) -> int:
    """But for those of control groups and networks, which are kept for their next sandbox."""
    kept = ("/sys/fs/cgroup", "anon_inode:[eventfd]", "net:[")  # v1 tells of a full memory so
    return sum(not link.startswith(kept) for link in _links(pid))


def _rss_mib(pid: int) -> int:
    return int(_status(pid).get("VmRSS", "0 kB").split()[0]) // 1024


def _namespaces(pids: list[int]) -> dict[str, int]:
    seen: dict[str, set[str]] = {}
    for pid in pids:
        for name in ("pid", "mnt", "net", "ipc", "uts", "user", "cgroup"):
            try:
                seen.setdefault(name, set()).add(os.readlink(f"/proc/{pid}/ns/{name}"))
            except OSError:
                continue
    return {name: len(found) for name, found in seen.items()}


def _strays(pids: list[int]) -> list[int]:
    """Processes under a sandbox's user id that do not descend from the server."""
    ours = set(pids)
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in ours:
            uid = _status(int(name)).get("Uid", "0").split()
            # Its parent may have started it since we listed the server's.
            if uid and _is_sandbox_uid(int(uid[0])) and _is_orphan(int(name)):
                found.append(int(name))
    return found


def _is_sandbox_uid(uid: int) -> bool:
    return UID_BASE <= uid < UID_BASE + (1 << 24)


def _is_orphan(pid: int) -> bool:
    """Of the host's init, and alive: another server's may be dying as we look."""
    status = _status(pid)
    return status.get("PPid") == "1" and not status.get("State", "Z").startswith("Z")


def _groups(server_pid: int) -> list[str]:
    """Directories of the server's own control groups."""
    found = []
    for root, directories, _ in os.walk("/sys/fs/cgroup"):
        found += [f"{root}/{name}" for name in directories if name.endswith(f"-{server_pid}")]
    return found


def _listeners(pids: list[int]) -> list[str]:
    """Local addresses on which the server or a sandbox's user listens for TCP.

    Others come and go on a machine that does more than this.
    """
    ours = {link for pid in pids for link in _links(pid)}
    found = []
    for name in ("tcp", "tcp6"):
        for line in _read(f"/proc/net/{name}").splitlines()[1:]:
            words = line.split()
            if len(words) < 10 or words[3] != "0A":  # not in state LISTEN
                continue
            if _is_sandbox_uid(int(words[7])) or f"socket:[{words[9]}]" in ours:
                found.append(f"{name} {words[1]}")
    return found


def _links(pid: int) -> list[str]:
    """Where its descriptors lead."""
    directory = f"/proc/{pid}/fd"
    found = []
    try:
        names = os.listdir(directory)
    except OSError:
        return []  # it has ended
    for name in names:
        try:
            found.append(os.readlink(f"{directory}/{name}"))
        except OSError:
            continue  # closed in the meantime
    return found
