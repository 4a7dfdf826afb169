"""A sandbox looks at itself before it may be leased. Runs as: PID 1 of the sandbox.

Every set-up step raises if it fails; this is the independent second look, at what
the kernel says rather than at what we believe to have done. A sandbox that does
not match is never used.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from typing import Final

from sandrun.errors import SetupError
from sandrun.pool import mounts

_CAPABILITIES: Final = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
_NOTHING: Final = "0" * 16
_WANTED_MOUNTS: Final = frozenset(
    {"/", "/usr", "/proc", mounts.ENVIRONMENT, *(target for _, target in mounts.WRITABLE)}
)
_WRITABLE_MOUNTS: Final = frozenset({"/proc", *(target for _, target in mounts.WRITABLE)})
# A host may have file systems of their own below these; they were bound along, read-only.
READ_ONLY_TREES: Final = tuple(
    f"{tree}/" for tree in ("/usr", mounts.ENVIRONMENT, *(f"/{n}" for n in mounts.TOP_LEVEL))
)


def _status(pid: int | str) -> dict[str, str]:
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        return {key: value.strip() for key, _, value in (line.partition(":") for line in file)}


def _expect(step: str, name: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise SetupError(step, 0, f"{name} is {found!r}, not {wanted!r}")


def _confined(step: str, status: dict[str, str]) -> None:
    _expect(step, "Seccomp", status["Seccomp"], "2")
    _expect(step, "NoNewPrivs", status["NoNewPrivs"], "1")
    for name in _CAPABILITIES:
        _expect(step, name, status[name], _NOTHING)


# As /proc/PID/limits calls them.
_LIMIT_NAMES: Final = {
    resource.RLIMIT_CORE: "Max core file size",
    resource.RLIMIT_NPROC: "Max processes",
    resource.RLIMIT_NOFILE: "Max open files",
    resource.RLIMIT_MEMLOCK: "Max locked memory",
    resource.RLIMIT_MSGQUEUE: "Max msgqueue size",
    resource.RLIMIT_SIGPENDING: "Max pending signals",
}


def job_process(pid: int, limits: Iterable[tuple[int, int, int]], in_group: int) -> None:
    """The parked process is what a job may be. Raises :class:`SetupError`.

    ``limits``: (resource, soft, hard) that it must not exceed; ``in_group``: how
    many processes its control group counts.
    """
    step = "attest_job"
    if in_group < 1:
        raise SetupError(step, 0, "its control group is empty")
    status = _status(pid)
    _confined(step, status)
    _expect(step, "Uid", status["Uid"], "\t".join([str(mounts.JOB_UID)] * 4))
    _expect(step, "Gid", status["Gid"], "\t".join([str(mounts.GID)] * 4))
    _expect(step, "Groups", status["Groups"], "")
    with open(f"/proc/{pid}/uid_map", encoding="utf-8") as file:
        lines = file.read().splitlines()
    inside, outside, count = (int(word) for word in lines[0].split())
    if len(lines) != 1 or (inside, count) != (mounts.JOB_UID, 2) or not outside:
        raise SetupError(step, 0, f"uid_map is {lines!r}")
    fds = sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
    if fds != [0, 1, 2, 3]:
        raise SetupError(step, 0, f"descriptors {fds} are open")
    for name in ("pid", "mnt", "net", "ipc", "uts", "user"):
        # The same as ours, and ours are new (clone() would have failed otherwise); the
        # network may be one that is as good as new: _network().
        _expect(
            step,
            f"namespace {name}",
            os.readlink(f"/proc/{pid}/ns/{name}"),
            os.readlink(f"/proc/self/ns/{name}"),
        )
    with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
        for line in file:
            _expect(step, "cgroup", line.rstrip("\n").split(":", 2)[2], "/")
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        # Behind the name (which may hold anything): state, parent, group, session.
        _expect(step, "session", file.read().rpartition(")")[2].split()[3], str(pid))
    _limits(step, pid, limits)
    _mounts(step)
    _network(step)


def _network(step: str) -> None:
    """There is ``lo``, nothing has passed it, and nothing else is there."""
    with open("/proc/self/net/dev", encoding="utf-8") as file:
        lines = file.read().splitlines()[2:]  # two of headings
    name, _, counters = lines[0].partition(":")
    if len(lines) != 1 or name.strip() != "lo" or any(int(word) for word in counters.split()):
        raise SetupError(step, 0, f"the network is {lines!r}")


def _limits(step: str, pid: int, wanted: Iterable[tuple[int, int, int]]) -> None:
    with open(f"/proc/{pid}/limits", encoding="utf-8", errors="replace") as file:
        found = {line[:25].rstrip(): line[25:].split()[:2] for line in file}
    for number, *most in wanted:
        name = _LIMIT_NAMES.get(number)
        if name is None:
            continue
        for now, limit in zip(found[name], most, strict=True):
            if limit != resource.RLIM_INFINITY and (now == "unlimited" or int(now) > limit):
                raise SetupError(step, 0, f"{name} is {now}, over {limit}")


def _mounts(step: str) -> None:
    seen: dict[str, str] = {}  # a later mount hides an earlier one
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split()
            target, options = fields[4], fields[5].split(",")
            seen[target] = fields[-1]
            if target not in _WANTED_MOUNTS and not f"{target}/".startswith(READ_ONLY_TREES):
                raise SetupError(step, 0, f"there is a mount at {target}")
            if target not in _WRITABLE_MOUNTS and "ro" not in options:
                raise SetupError(step, 0, f"{target} is writable")
            if "nosuid" not in options:
                raise SetupError(step, 0, f"{target} is not nosuid")
    for _, target in mounts.WRITABLE:
        if target not in seen:
            raise SetupError(step, 0, f"{target} is not the sandbox's own")
    if "subset=pid" not in seen.get("/proc", "").split(","):
        raise SetupError(step, 0, "/proc shows more than processes")


def init_process() -> None:
    """PID 1 itself is confined. Raises :class:`SetupError`."""
    status = _status("self")
    _confined("attest_init", status)
    _expect(
        "attest_init",
        "Uid",
        status["Uid"],
        f"{mounts.INIT_UID}\t{mounts.JOB_UID}\t{mounts.INIT_UID}\t{mounts.JOB_UID}",
    )
    _expect("attest_init", "Pid", status["Pid"], "1")
