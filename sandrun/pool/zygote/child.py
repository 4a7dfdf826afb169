"""What becomes a job: from fork to exec. Runs as: root of the sandbox's user
namespace at first, the job's uid at the end.

Everything dangerous happens before a byte of the job exists: the process is made,
confined and parked, blocked on one read. The go then only says what to exec.

The same steps serve three kinds of process. *Parked* ones are forked while PID 1
still has capabilities; *late* ones (a build command, another interpreter than
the one that waits, the unpacking of an archive) are forked by a PID 1 that has
none left: they inherit its bounding set, no_new_privs and cgroup namespace, take
the job's uid out of PID 1's saved ids, and load the job's Landlock ruleset and
filter on top of PID 1's.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
from collections.abc import Callable
from typing import Any, Final, NoReturn, Protocol

import msgspec

from sandrun.errors import SetupError
from sandrun.job import Limits
from sandrun.pool import mounts
from sandrun.pool.linux import libc
from sandrun.pool.linux.constants import CLONE, PR

GO_FD: Final = 3  # the one descriptor beside 0, 1, 2 that a parked process has
KEPT_FD: Final = 4  # where those begin that the unpacking child is given
READY: Final = b"+"
CANNOT_EXECUTE: Final = 126  # as a shell says it
NOT_FOUND: Final = 127
PENDING_SIGNALS: Final = 128  # timers included; a program has a handful
PENDING_SHARE: Final = 128  # of the host's limit: 64 jobs, and as much again for others


class Go(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a parked process waits for, as one JSON datagram.

    For ``exec``: ``path`` and ``argv``. For a warm interpreter: ``script`` and
    ``args``. ``env`` is the whole environment. ``open_files`` only if it is not
    the default, since the process must then lower or raise its own limit.
    """

    env: dict[str, str]
    cwd: str = mounts.WORK
    path: str = ""
    argv: tuple[str, ...] = ()
    script: str = ""
    args: tuple[str, ...] = ()
    open_files: int = 0


_decode_go: Final = msgspec.json.Decoder(Go).decode  # made once for all: 1 ms


class Process:
    """A process of the job, as PID 1 sees it. Owns the parent's pipe ends."""

    def __init__(self, pid: int, go: socket.socket, stdin: int, stdout: int, stderr: int) -> None:
        self.pid = pid
        self.go = go
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr

    def await_ready(self) -> None:
        """Block until the process is parked. Raises :class:`SetupError` with its step."""
        report = self.go.recv(4096)
        if report.startswith(READY):
            if report != READY:  # a template's child: we learn its pid from itself
                self.pid = int(report[len(READY) :])
            return
        if not report:
            raise SetupError("park", 0, "the process died before it was ready")
        step, number, text = msgspec.json.decode(report, type=tuple[str, int, str])
        raise SetupError(step, number, text)

    def release(self, go: Go) -> None:
        """Let it run."""
        self.go.send(msgspec.json.encode(go))
        self.go.close()


class Group(Protocol):
    """A control group that a process can enter."""

    def attach_self(self) -> None:
        """Put the calling, single-threaded process into the group. Raises OSError."""
        ...


class Confinement:
    """What a child needs to confine itself; made once per sandbox."""

    def __init__(
        self,
        group: Group,
        program: bytes,
        limits: Limits,
        max_limits: Limits,
        ruleset: int = -1,
        kept: tuple[int, ...] = (),
    ) -> None:
        self.group = group
        self.program = program
        self.limits = limits
        self.max_limits = max_limits
        self.ruleset = ruleset  # of Landlock, or -1
        self.kept = kept  # descriptors that stay open, at KEPT_FD and up


# ── steps ────────────────────────────────────────────────────────────────────


def _attach(c: Confinement) -> None:
    # A process that writes "0" into its own group's files: 0.15 ms; attaching it
    # from outside after an idle spell costs 5 ms (an RCU grace period).
    c.group.attach_self()


def _own_cgroup_namespace(_: Confinement) -> None:
    libc.unshare(CLONE.NEWCGROUP)  # the job's own group is then "/" in /proc/self/cgroup


def _own_session(_: Confinement) -> None:
    os.setsid()  # kill(0) and terminal signals stay here


def rlimits(limits: Limits, most: Limits) -> list[tuple[int, int, int]]:
    """(resource, soft, hard) of a job with these limits; ``most`` bounds what it may raise."""
    wanted = (
        # A core would be the job's memory on a disk. 1, not 0: a core_pattern that is a
        # pipe (systemd-coredump, apport) is fed at 0 too, and only 1 means no. man: core(5)
        (resource.RLIMIT_CORE, 1, 1),
        (resource.RLIMIT_NOFILE, limits.open_files, most.open_files),
        (resource.RLIMIT_NPROC, most.processes, most.processes),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
        # Timers and queued signals also count as those of whoever made the user namespaces
        # above, up to the host's root, whose own are refused when the sum is at its limit.
        (resource.RLIMIT_SIGPENDING, *[pending_signals()] * 2),
        (resource.RLIMIT_STACK, 8 * 1024 * 1024, resource.RLIM_INFINITY),
    )
    return [
        (name, *_at_most(soft, hard, resource.getrlimit(name)[1])) for name, soft, hard in wanted
    ]


def pending_signals() -> int:
    """For one job: a small part of what the host's root may have."""
    most = resource.getrlimit(resource.RLIMIT_SIGPENDING)[1]
    if most == resource.RLIM_INFINITY:
        return PENDING_SIGNALS
    return min(PENDING_SIGNALS, most // PENDING_SHARE)


def _at_most(soft: int, hard: int, now: int) -> tuple[int, int]:
    """Never above the hard limit that we have ourselves."""
    infinity = resource.RLIM_INFINITY
    if now != infinity and (hard == infinity or hard > now):
        hard = now
    return (soft if hard == infinity else min(soft, hard)), hard


def _rlimits(c: Confinement) -> None:
    for name, soft, hard in rlimits(c.limits, c.max_limits):
        resource.setrlimit(name, (soft, hard))


def _job_uid(_: Confinement) -> None:
    os.setresgid(mounts.GID, mounts.GID, mounts.GID)
    os.setresuid(mounts.JOB_UID, mounts.JOB_UID, mounts.JOB_UID)


def _no_capabilities(_: Confinement) -> None:
    libc.capset(0, 0, 0)


def _die_with_parent(_: Confinement) -> None:
    libc.prctl(PR.SET_PDEATHSIG, signal.SIGKILL)  # after the uid change, which clears it
    libc.prctl(PR.SET_DUMPABLE, 1)  # cleared too; the job must see its own /proc/self/fd


def _no_new_privileges(_: Confinement) -> None:
    libc.prctl(PR.SET_NO_NEW_PRIVS, 1)


def _landlock(c: Confinement) -> None:
    if c.ruleset >= 0:
        libc.landlock_restrict(c.ruleset)


def default_signals() -> None:
    """Nothing ignored, nothing blocked: what a program started by a shell finds.

    Python ignores SIGPIPE and SIGXFSZ, and we what a terminal or systemd sends to all.
    """
    for number in (
        signal.SIGPIPE,
        signal.SIGXFSZ,
        signal.SIGCHLD,
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
    ):
        signal.signal(number, signal.SIG_DFL)


def _signals(_: Confinement) -> None:
    default_signals()


def _few_descriptors(c: Confinement) -> None:
    os.closerange(KEPT_FD + len(c.kept), 1 << 20)  # one close_range(2)


def _system_calls(c: Confinement) -> None:
    libc.load_filter(c.program)


Step = Callable[[Confinement], None]

# Order matters. Groups and cgroup namespace while still privileged; uid before
# capabilities (it needs CAP_SETUID); PDEATHSIG after the uid change; descriptors
# after Landlock (it needs one); the filter last, since it forbids most of the above.
PARKED_STEPS: Final[tuple[Step, ...]] = (
    _attach,
    _own_cgroup_namespace,
    _own_session,
    _rlimits,
    _job_uid,
    _no_capabilities,
    _die_with_parent,
    _no_new_privileges,
    _landlock,
    _signals,
    _few_descriptors,
    _system_calls,
)
LATE_STEPS: Final[tuple[Step, ...]] = (
    _attach,
    _own_session,
    _rlimits,
    _job_uid,
    _die_with_parent,
    _landlock,
    _signals,
    _few_descriptors,
    _system_calls,
)


def fork_confined(
    steps: tuple[Step, ...], confinement: Confinement, then: Callable[[socket.socket], None]
) -> Process:
    """Fork a process that confines itself by ``steps`` and then does ``then``.

    ``then`` gets the child's end of the go socket; when it returns, the child
    exits with status 0. Failures of a step reach :meth:`Process.await_ready`.
    """
    stdin_r, stdin_w = os.pipe()
    stdout_r, stdout_w = os.pipe()
    stderr_r, stderr_w = os.pipe()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        become(steps, confinement, then, theirs, (stdin_r, stdout_w, stderr_w))
    for fd in (stdin_r, stdout_w, stderr_w):
        os.close(fd)
    theirs.close()
    return Process(pid, ours, stdin_w, stdout_r, stderr_r)


def fork_from_template(
    template: socket.socket, attach_fds: tuple[int, ...], ruleset: int
) -> Process:
    """Ask a template for a parked process in our namespaces. See ``warm_python.py``.

    It is an orphan of our pid namespace, so it becomes our child. To join us it
    must be allowed to look at us: PID 1 is dumpable until the end of its boot.
    """
    stdin_r, stdin_w = os.pipe()
    stdout_r, stdout_w = os.pipe()
    stderr_r, stderr_w = os.pipe()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    self_fd = os.pidfd_open(os.getpid())
    named = [
        ("pidfd", self_fd),
        ("stdin", stdin_r),
        ("stdout", stdout_w),
        ("stderr", stderr_w),
        ("go", theirs.fileno()),
        *(("cgroup", fd) for fd in attach_fds),
    ]
    if ruleset >= 0:
        named.append(("landlock", ruleset))
    order = {"op": "fork", "fds": [name for name, _ in named]}
    socket.send_fds(template, [msgspec.json.encode(order)], [fd for _, fd in named])
    for fd in (stdin_r, stdout_w, stderr_w, self_fd):
        os.close(fd)
    theirs.close()
    template.close()
    return Process(0, ours, stdin_w, stdout_r, stderr_r)


def become(
    steps: tuple[Step, ...],
    confinement: Confinement,
    then: Callable[[socket.socket], None],
    go: socket.socket,
    stdio: tuple[int, int, int],
) -> NoReturn:
    """In a child: take its standard streams and ``go``, confine, do ``then``, end."""
    name = "descriptors"
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        # High numbers first: the targets 0..3 may be among the sources.
        high = [above(fd) for fd in (*stdio, go.fileno(), *confinement.kept)]
        go.detach()
        for target, fd in enumerate(high):
            os.dup2(fd, target, inheritable=target < GO_FD)
        go = socket.socket(fileno=GO_FD)
        for step in steps:
            name = step.__name__.strip("_")
            step(confinement)
        name = "then"
        then(go)
        code = 0
    except OSError as error:
        _report(go, name, error.errno or 0, str(error))
    except BaseException as error:  # noqa: BLE001 - whatever it was, nothing runs after it
        _report(go, name, 0, repr(error))
    finally:
        os._exit(code)


def above(fd: int) -> int:
    """A copy out of the way of the numbers that matter."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64)


def _report(go: socket.socket, step: str, number: int, text: str) -> None:
    try:
        go.send(msgspec.json.encode((step, number, text[:500])))
    except OSError:
        pass  # PID 1 sees the end of the socket instead


# ── what a confined process does ─────────────────────────────────────────────


def wait_and_exec(go: socket.socket) -> None:
    """Park; on go, exec. A failure to exec ends like a shell's."""
    # read and write: the compute profile has no call for sockets.
    os.write(go.fileno(), READY)
    datagram = os.read(go.fileno(), 256 * 1024)
    if not datagram:
        os._exit(0)  # PID 1 does not need us
    order = _decode_go(datagram)
    go.close()
    if order.open_files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (order.open_files, order.open_files))
    try:
        os.chdir(order.cwd)
        os.execve(order.path, order.argv, order.env)
    except OSError as error:
        os.write(
            2, f"sandrun: cannot run {order.path}: {error.strerror}\n".encode(errors="replace")
        )
        os._exit(NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_EXECUTE)


def exec_warm(argv: tuple[str, ...], env: dict[str, str]) -> Callable[[socket.socket], None]:
    """Exec an interpreter that parks itself: it says ready and waits on the go socket."""

    def then(go: socket.socket) -> None:
        os.set_inheritable(go.fileno(), True)
        os.chdir(mounts.WORK)
        os.execve(argv[0], argv, env)

    return then


def report_through_stdout(work: Callable[[], Any]) -> Callable[[socket.socket], None]:
    """Do ``work`` as the job's uid and write its result as msgpack to stdout."""

    def then(go: socket.socket) -> None:
        go.send(READY)
        data = msgspec.msgpack.encode(work())
        while data:
            data = data[os.write(1, data) :]

    return then
