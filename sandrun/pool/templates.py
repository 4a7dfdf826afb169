"""The warm interpreters that ``fork`` mode forks. Runs as: root of the spawner's user
namespace (this module); a template keeps two capabilities there and none on the host.

A template is the environment's own interpreter with its modules imported
(``zygote/warm_python.py``). For each sandbox PID 1 asks it, over a socket that it
has from us, for a child inside its namespaces; the child confines itself and is
attested like any other parked process.

Why they are replaced: children of one template share its address layout and hash
seed. So a template lives for so many jobs or seconds only (``[pool] template_jobs``,
``template_seconds``); the next one starts beside it and takes over when it is ready.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import Final

import msgspec

from sandrun.pool import mounts
from sandrun.pool.linux import libc
from sandrun.pool.linux.constants import CAP, PR
from sandrun.pool.zygote import boot, child

# Enough to send its children into a sandbox: setns(2) on a pid namespace wants
# SYS_ADMIN in our own user namespace, and on a pidfd the right to look at PID 1.
TEMPLATE_CAPABILITIES: Final = frozenset({CAP.SYS_ADMIN, CAP.SYS_PTRACE})
READY: Final = b"+"
RETRY_S: Final = 1.0  # after a template that died


class Template:
    """One warm interpreter. Owns its pid and our end of its socket.

    ``pipes``: the far ends of its standard streams. (No dataclass here and below:
    that module, with all it imports, would be copied into every zygote.)
    """

    def __init__(
        self, pid: int, sock: socket.socket, pipes: tuple[int, ...], started: float
    ) -> None:
        self.pid = pid
        self.socket = sock
        self.pipes = pipes
        self.started = started
        self.ready = False
        self.jobs = 0
        self.fault = ""

    def close(self) -> None:
        """It ends when the last PID 1 that holds the socket is done with it."""
        self.socket.close()
        for fd in self.pipes:
            os.close(fd)


class Templates:
    """The current template, the coming one, and those that have been replaced.

    ``now`` is any monotonic clock in seconds.
    """

    def __init__(self, plan: boot.Plan, warm: str, max_jobs: int, max_seconds: float) -> None:
        self.plan = plan
        self.warm = warm
        self.max_jobs = max_jobs
        self.max_seconds = max_seconds
        self.current: Template | None = None
        self.coming: Template | None = None
        self.fault = ""
        self.retry_at = 0.0
        self._old: list[int] = []

    def fds(self) -> list[int]:
        """Sockets to poll; each tells something once."""
        return [t.socket.fileno() for t in (self.current, self.coming) if t]

    def take(self, now: float) -> Template | None:
        """The template for one more zygote, or None if there is none; see ``fault``."""
        template = self.current
        if template is None:
            self._start(now)
            return None
        template.jobs += 1
        if template.jobs >= self.max_jobs or now - template.started >= self.max_seconds:
            self._start(now)
        return template

    def start_and_wait(self) -> None:
        """The first one: there is nothing to serve before it."""
        self._start(time.monotonic())
        while self.coming:
            self.on_readable(self.coming.socket.fileno())

    def _start(self, now: float) -> None:
        if self.coming is None and now >= self.retry_at:
            self.coming = start(self.plan, self.warm, now)

    def on_readable(self, fd: int) -> None:
        """A template said something, or died."""
        for template in (self.current, self.coming):
            if template and template.socket.fileno() == fd:
                self._on_report(template, template.socket.recv(4096))
                return

    def _on_report(self, template: Template, report: bytes) -> None:
        if report == READY:
            if template is self.coming:
                self._promote(template)
            return  # else: it is configured, or (in Python) made a child
        if report:
            # One sandbox failed; PID 1 sees the end of its own socket and reports.
            self.fault = _text(report)
            if template is not self.coming:
                return
        elif not template.fault:
            self.fault = self.fault or "the template died"
        self.retry_at = time.monotonic() + RETRY_S
        if template is self.coming:
            self.coming = None
        else:
            self.current = None
        self._retire(template)

    def _promote(self, template: Template) -> None:
        template.ready = True
        if self.current:
            self._retire(self.current)
        self.current, self.coming, self.fault = template, None, ""

    def _retire(self, template: Template) -> None:
        template.close()
        self._old.append(template.pid)

    def reap(self) -> None:
        """Collect replaced templates that have ended."""
        for pid in list(self._old):
            if os.waitpid(pid, os.WNOHANG)[0]:
                self._old.remove(pid)


def _text(report: bytes) -> str:
    try:
        step, number, text = msgspec.json.decode(report, type=tuple[str, int, str])
    except msgspec.DecodeError:
        return "the template sent junk"
    return f"{step}: {text or os.strerror(number)}"


def start(plan: boot.Plan, warm: str, now: float) -> Template:
    """Exec a template; it says when it is ready."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pipes = [os.pipe() for _ in range(3)]
    near = (pipes[0][0], pipes[1][1], pipes[2][1])
    pid = os.fork()
    if pid == 0:
        _exec(plan, warm, near, theirs.fileno())
    theirs.close()
    for fd in near:
        os.close(fd)
    # What all its children have in common travels once.
    ours.send(
        msgspec.json.encode(
            {
                "op": "configure",
                "rlimits": child.rlimits(plan.default_limits, plan.max_limits),
                **_filter(plan),
                "last_capability": plan.last_capability,
            }
        )
    )
    return Template(pid, ours, (pipes[0][1], pipes[1][0], pipes[2][0]), now)


def _filter(plan: boot.Plan) -> dict[str, object]:
    """What the children load. The compiled PID 1 listens to their farewell."""
    if plan.native:
        return {"program": plan.programs["warm"].hex(), "listen": True}
    return {"program": plan.programs["default"].hex()}


def _exec(plan: boot.Plan, warm: str, streams: tuple[int, ...], control: int) -> None:
    try:
        libc.prctl(PR.SET_PDEATHSIG, signal.SIGKILL)
        child.default_signals()
        high = [child.above(fd) for fd in (*streams, control)]
        for target, fd in enumerate(high):
            os.dup2(fd, target)
        libc.drop_bounding_set(TEMPLATE_CAPABILITIES, plan.last_capability)
        os.closerange(child.GO_FD + 1, 1 << 20)
        os.chdir(mounts.WORK)
        argv, env = boot.warm_command(plan, warm, "template")
        os.execve(argv[0], argv, env)
    except OSError as error:
        report = ("exec", error.errno or 0, str(error))
        os.write(child.GO_FD, msgspec.json.encode(report))
    finally:
        os._exit(1)
