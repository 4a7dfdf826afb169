"""The boot of a sandbox's PID 1, as a list of steps. Runs as: root of the
sandbox's user namespace until the last steps, then uid P without capabilities.

PID 1's identity. It sets its real, effective and saved uids to (P, J, P): with J
as effective uid it may signal the job and owns what it writes for it, while the
job, which is J in all three, may neither signal nor trace a process whose real
and saved uid is P. Because uid 0 is not mapped in the sandbox, the change of ids
leaves the capabilities alone; they go when everything stands.

A step happens whole, or the boot ends: the supervisor hears the step's name and
errno, and nothing of any job has been near this sandbox.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
from collections.abc import Callable
from typing import Final, NoReturn

import msgspec

from sandrun.channel import Channel
from sandrun.errors import SetupError
from sandrun.job import Limits
from sandrun.messages import (
    Booted,
    BootFailed,
    FromSpawner,
    InterpreterInfo,
    Prepare,
    Spawn,
    ToSpawner,
)
from sandrun.pool import mounts, networks
from sandrun.pool.linux import libc
from sandrun.pool.linux.constants import (
    CLONE,
    MS,
    PR,
    SECBITS_LOCKED,
    LandlockFs,
    LandlockScope,
)
from sandrun.pool.zygote import attest, child, serve
from sandrun.pool.zygote.group import GroupFiles

_READ: Final = LandlockFs.READ_FILE | LandlockFs.READ_DIR | LandlockFs.EXECUTE
_WRITE: Final = (
    LandlockFs.WRITE_FILE
    | LandlockFs.REMOVE_DIR
    | LandlockFs.REMOVE_FILE
    | LandlockFs.MAKE_DIR
    | LandlockFs.MAKE_REG
    | LandlockFs.MAKE_SOCK
    | LandlockFs.MAKE_FIFO
    | LandlockFs.MAKE_SYM
    | LandlockFs.REFER
    | LandlockFs.TRUNCATE
)
_HANDLED: Final = _READ | _WRITE | LandlockFs.MAKE_CHAR | LandlockFs.MAKE_BLOCK


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What all sandboxes of one spawner share; made once, read by each PID 1."""

    environment: str
    known_environments: tuple[str, ...]
    interpreters: dict[str, InterpreterInfo]
    commands: dict[str, tuple[str, ...]]  # argv prefix by interpreter
    programs: dict[str, bytes]
    preload: tuple[str, ...]
    env: dict[str, str]
    default_limits: Limits
    max_limits: Limits
    max_files: int
    landlock_abi: int
    last_capability: int
    native: bool = False  # PID 1 is the compiled one


def make_plan(prepare: Prepare, interpreters: tuple[InterpreterInfo, ...]) -> Plan:
    """Everything that can be known before the first sandbox."""
    path = f"{mounts.ENVIRONMENT}/bin:{mounts.PATH}" if prepare.environment_dir else mounts.PATH
    with open("/proc/sys/kernel/cap_last_cap", encoding="utf-8") as file:
        last = int(file.read())
    return Plan(
        environment=prepare.environment,
        known_environments=prepare.known_environments,
        interpreters={info.name: info for info in interpreters},
        commands={
            info.name: (info.path, *prepare.interpreters[info.name].command[1:])
            for info in interpreters
        },
        programs=prepare.programs,
        preload=prepare.preload,
        env=mounts.job_environment(path),
        default_limits=prepare.default_limits,
        max_limits=prepare.max_limits,
        max_files=prepare.max_files,
        landlock_abi=libc.landlock_abi() if prepare.landlock else 0,
        last_capability=last,
        native=prepare.native,
    )


class Boot:
    """What the steps work on."""

    def __init__(
        self,
        plan: Plan,
        order: Spawn,
        fds: list[int],
        gate: socket.socket,
        template: socket.socket | None,
    ) -> None:
        self.plan = plan
        self.order = order
        self.gate = gate
        self.template = template
        self.http = socket.socket(fileno=fds[0])
        self.log_fd, self.outputs_fd, self.tmpfs_fd = fds[1:4]
        self.group = GroupFiles(order.control_files, tuple(fds[4:]))
        self.work_fd = -1
        self.ruleset = -1  # of the job, and of PID 1
        self.init_ruleset = -1
        self.confinement: child.Confinement
        self.parked: child.Process


# ── steps ────────────────────────────────────────────────────────────────────


def _wait_for_ids(b: Boot) -> None:
    if not b.gate.recv(1):
        os._exit(0)  # the spawner could not map our ids, and has said so
    b.gate.close()


def _take_ids(_: Boot) -> None:
    os.setgroups([])
    os.setresgid(mounts.GID, mounts.GID, mounts.GID)
    os.setresuid(mounts.INIT_UID, mounts.JOB_UID, mounts.INIT_UID)
    libc.prctl(PR.SET_PDEATHSIG, signal.SIGKILL)  # a change of ids clears it
    libc.prctl(PR.SET_DUMPABLE, 1)  # until the end of the boot: our own /proc is ours to read


def _quiet_descriptors(_: Boot) -> None:
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def _writable_places(b: Boot) -> None:
    libc.move_mount(b.tmpfs_fd, mounts.BOX)
    os.close(b.tmpfs_fd)
    for name, target in mounts.WRITABLE:
        os.mkdir(f"{mounts.BOX}/{name}", 0o700)
        libc.mount(f"{mounts.BOX}/{name}", target, "none", MS.BIND)
    libc.umount(mounts.BOX)  # the binds keep it; this way in is gone


def _proc(_: Boot) -> None:
    # subset=pid: no /proc/sys, sysrq-trigger, kcore, keys, timer_list...: nothing to mask.
    libc.mount(
        "proc",
        "/proc",
        "proc",
        MS.NOSUID | MS.NODEV | MS.NOEXEC,
        "subset=pid,hidepid=invisible",
    )


def _names(_: Boot) -> None:
    libc.set_hostname(mounts.HOSTNAME)
    libc.set_name("sandrun-init")


def _loopback(_: Boot) -> None:
    """The spawner has raised it: a sandbox has no power over its network."""
    if not networks.is_loopback_up():
        raise SetupError("loopback", errno.ENETDOWN, "lo is not up")


def _work_directory(b: Boot) -> None:
    b.work_fd = os.open(mounts.WORK, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.chdir(mounts.WORK)
    os.umask(0o022)


def _landlock_rulesets(b: Boot) -> None:
    """A second wall behind the mounts: what may be written at all, and where.

    The job's also keeps its signals and abstract sockets to itself. PID 1's must
    not: the kernel would count the job as a stranger that it may not kill.
    """
    abi = b.plan.landlock_abi
    if not abi:
        return
    scope = LandlockScope(0)
    if abi >= 6:
        scope = LandlockScope.ABSTRACT_UNIX_SOCKET | LandlockScope.SIGNAL
    b.ruleset = _landlock_ruleset(abi, scope)
    b.init_ruleset = _landlock_ruleset(abi, LandlockScope(0))


def _landlock_ruleset(abi: int, scope: LandlockScope) -> int:
    handled = _HANDLED
    if abi < 2:
        handled &= ~LandlockFs.REFER
    if abi < 3:
        handled &= ~LandlockFs.TRUNCATE
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = libc.landlock_ruleset(handled, 0, scope, size)
    writable = tuple(target for _, target in mounts.WRITABLE)
    for path, access in (
        ("/", _READ),
        ("/dev", _READ | LandlockFs.WRITE_FILE),
        *((path, _READ | _WRITE) for path in writable),
    ):
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            libc.landlock_allow(ruleset, fd, access & handled)
        finally:
            os.close(fd)
    return ruleset


def _bounding_set(b: Boot) -> None:
    libc.drop_bounding_set(frozenset(), b.plan.last_capability)  # children inherit it
    libc.prctl(PR.SET_SECUREBITS, SECBITS_LOCKED)


def _park(b: Boot) -> None:
    plan = b.plan
    b.confinement = child.Confinement(
        b.group, plan.programs["default"], plan.default_limits, plan.max_limits, b.ruleset
    )
    if b.order.mode == "fork":
        if b.template is None:
            raise SetupError("template", 0, "there is none")
        b.parked = child.fork_from_template(b.template, b.group.attach_fds, b.ruleset)
        b.parked.await_ready()
        return
    if b.order.mode == "door":
        then = child.exec_warm(*warm_command(plan, b.order.warm))
    else:
        then = child.wait_and_exec
    b.parked = child.fork_confined(child.PARKED_STEPS, b.confinement, then)
    b.parked.await_ready()


def warm_command(
    plan: Plan, warm: str, mode: str = "door"
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Command line and environment of an interpreter that waits with its socket at GO_FD.

    ``mode``: "door", or "template" for one that is forked (python3 only).
    """
    path = plan.commands[warm][0]
    if warm == "node":
        script = f"{mounts.RUNTIME}/warm_node.js"
        return (path, "-r", script, mode, str(child.GO_FD)), plan.env
    order = f"{mode} {child.GO_FD} {','.join(plan.preload)}".rstrip()
    env = {**plan.env, "PYTHONPATH": mounts.WARM_PYTHON, "SANDRUN_WARM": order}
    return (path, "main.py"), env


def _cgroup_namespace(b: Boot) -> None:
    # Late children are ours, so our cgroup namespace must be the job's.
    fd = os.open(f"/proc/{b.parked.pid}/ns/cgroup", os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc.setns(fd, CLONE.NEWCGROUP)
    finally:
        os.close(fd)


def _attest_job(b: Boot) -> None:
    if b.plan.landlock_abi and min(b.ruleset, b.init_ruleset) < 0:
        raise SetupError("attest_job", 0, "Landlock is there and there are no rules")
    limits = child.rlimits(b.plan.default_limits, b.plan.max_limits)
    attest.job_process(b.parked.pid, limits, b.group.processes_now())


def _confine(b: Boot) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))  # see child._rlimits
    libc.capset(0, 0, 0)
    libc.prctl(PR.SET_NO_NEW_PRIVS, 1)
    if b.init_ruleset >= 0:
        libc.landlock_restrict(b.init_ruleset)
        os.close(b.init_ruleset)
    libc.load_filter(b.plan.programs["zygote"])


def _attest_self(_: Boot) -> None:
    attest.init_process()
    libc.prctl(PR.SET_DUMPABLE, 0)  # from here on, nothing inside may look into us


BOOT_STEPS: Final[tuple[Callable[[Boot], None], ...]] = (
    _wait_for_ids,
    _take_ids,
    _quiet_descriptors,
    _writable_places,
    _proc,
    _names,
    _loopback,
    _work_directory,
    _landlock_rulesets,
    _bounding_set,
    _park,
    _cgroup_namespace,
    _attest_job,
    _confine,
    _attest_self,
)


def run(
    channel: Channel[FromSpawner, ToSpawner],
    plan: Plan,
    order: Spawn,
    fds: list[int],
    gate: socket.socket,
    template: socket.socket | None,
) -> NoReturn:
    """PID 1's whole life: boot, report, serve one job, exit."""
    code = 1
    name = "adopt_descriptors"
    try:
        b = Boot(plan, order, fds, gate, template)
        for step in BOOT_STEPS:
            name = step.__name__.strip("_")
            step(b)
        channel.send(Booted(zygote=order.zygote))
        channel.close()
        code = serve.run(b)
    except SetupError as error:
        _report(channel, order, error.step, error.errno, str(error))
    except OSError as error:
        _report(channel, order, name, error.errno or 0, str(error))
    except BaseException as error:  # noqa: BLE001 - whatever it was, this sandbox is over
        _report(channel, order, name, 0, repr(error))
    finally:
        os._exit(code)


def _report(
    channel: Channel[FromSpawner, ToSpawner], order: Spawn, step: str, number: int, text: str
) -> None:
    try:
        channel.send(BootFailed(zygote=order.zygote, step=step, errno=number, detail=text[:1000]))
    except Exception:  # noqa: BLE001, S110 - the socket is closed: the supervisor sees our end
        pass
