"""Starts compiled PID 1s. Runs as: the spawner, root of its outer user namespace. I/O."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import socket
from typing import Final

import msgspec

from sandrun.messages import Spawn
from sandrun.pool import assist, mounts
from sandrun.pool.linux.constants import CLONE
from sandrun.pool.networks import KEPT_FROM, Inside
from sandrun.pool.zygote import attest, boot, child

NEW_NAMESPACES: Final = assist.NAMESPACES & ~CLONE.NEWNET  # the spawner has one: networks.py
_DOORS: Final = ("python3", "node")  # interpreters that have a warm script
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_PLACE: Final = "/run/sandrun/init"  # for a moment, below the root that is being built


class Launcher:
    """Owns the program and the plan that all its PID 1s share.

    Each gets a socket of its own, at which it may ask for a Python child; the other
    ends go to the assistant (``pool/assist.py``), in messages of one byte. They are kept
    here as well, for the assistant that follows one that died, and by the supervisor for
    when we are dead too.
    """

    def __init__(self, library: int, program: bytes, root: str) -> None:
        """Before the host's files are out of sight. ``root``: the sandboxes' to be."""
        # PyDLL: the call keeps the interpreter's lock, as a fork does.
        self._launch = ctypes.PyDLL(f"/proc/self/fd/{library}").sandrun_launch
        self._launch.restype = ctypes.c_int
        self._program = _executable(f"{root}{_PLACE}", program)
        self._plan = -1
        self._assist, self._assistant = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ends: set[int] = set()
        self._ended = select.epoll()  # knows of them only when their PID 1 has gone
        self._failed = ctypes.c_int(0)
        self._failed_at = ctypes.byref(self._failed)

    def set_plan(self, plan: boot.Plan) -> None:
        """What every PID 1 reads, as msgpack in a sealed memory file."""
        fd = os.memfd_create("sandrun-plan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with open(fd, "wb", closefd=False) as file:
            file.write(msgspec.msgpack.encode(_plan(plan)))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        self._plan = fd

    def start(
        self, channel: int, gate: int, order_fds: list[int], template: int, network: Inside
    ) -> tuple[int, int, int]:
        """Clone a PID 1 that waits at ``gate`` for its order: its pid, an errno, and the
        assistant's end of their socket, which stays ours.

        ``network``: while it is cloned, we are in its network.

        The errno is not 0 if there is a process and it could not become the init.
        ``order_fds``: those of :class:`Spawn`. Raises OSError.
        """
        http, log, outputs, tmpfs, *control = order_fds
        ask, answer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ask, answer:
            fds = (
                channel, gate, self._plan, ask.fileno(), http, log, outputs, tmpfs, template,
                *control,
            )  # fmt: skip
            array = (ctypes.c_int * len(fds))(*fds)
            flags = int(NEW_NAMESPACES) | signal.SIGCHLD
            with network:  # the sockets above are not in it
                pid = self._launch(array, len(fds), self._program, flags, self._failed_at)
            kept = -1
            if pid > 0:
                socket.send_fds(self._assistant, [assist.NEWS], [answer.fileno()])
                kept = self._keep(answer)
        if pid < 0:
            raise OSError(-pid, f"clone: {os.strerror(-pid)}")
        return pid, self._failed.value, kept

    def _keep(self, end: socket.socket) -> int:
        """A copy of it, out of the way of what the next PID 1 is started with."""
        self._forget_ended()
        copy = fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, KEPT_FROM)
        self._ends.add(copy)
        self._ended.register(copy, 0)
        return copy

    def _forget_ended(self) -> None:
        """When there is a new one, so that nobody wakes for it."""
        for fd, _ in self._ended.poll(0):
            self._ended.unregister(fd)
            self._ends.remove(fd)
            os.close(fd)

    def start_assistant(self, plan: boot.Plan) -> int:
        """Fork it, with all the ends that there are: its pidfd. Raises OSError."""
        self._forget_ended()
        parents = assist.Parents(os.getpid(), os.getppid())
        pid = os.fork()
        if pid:
            return os.pidfd_open(pid)
        status = 1
        try:
            self._assistant.close()  # so that it hears of our end
            self._ended.close()
            assist.drop_news(self._assist)
            ends = [socket.socket(fileno=fd) for fd in self._ends]
            assist.run(self._assist, plan, ends, parents)
            status = 0
        finally:
            os._exit(status)


def order_of(spawn: Spawn) -> bytes:
    """What PID 1 hears when its ids are mapped."""
    return msgspec.msgpack.encode(
        {
            "zygote": spawn.zygote,
            "mode": spawn.mode,
            "warm": spawn.warm,
            "control_files": spawn.control_files,
        }
    )


def _executable(path: str, program: bytes) -> int:
    # A memory file cannot be executed where vm.memfd_noexec says so; a file without a
    # name on the sandboxes' own root can.
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o755)
    with os.fdopen(fd, "wb") as file:
        file.write(program)
        os.fchmod(file.fileno(), 0o755)  # the umask may have had its say
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    os.unlink(path)
    return fd


def _plan(plan: boot.Plan) -> dict[str, object]:
    """In the words of plan.c."""
    return {
        "environment": plan.environment,
        "known_environments": plan.known_environments,
        "commands": plan.commands,
        "warm": {
            name: _door(*boot.warm_command(plan, name))
            for name in _DOORS
            if name in plan.interpreters
        },
        "env": plan.env,
        "read_only_trees": attest.READ_ONLY_TREES,
        "filter_default": plan.programs["default"],
        "filter_warm": plan.programs["warm"],
        "filter_compute": plan.programs["compute"],
        "filter_zygote": plan.programs["zygote"],
        "default_limits": plan.default_limits,
        "max_limits": plan.max_limits,
        "rlimits": child.rlimits(plan.default_limits, plan.max_limits),
        "writable": mounts.WRITABLE,
        "box": mounts.BOX,
        "work": mounts.WORK,
        "environment_place": mounts.ENVIRONMENT,
        "hostname": mounts.HOSTNAME,
        "job_uid": mounts.JOB_UID,
        "init_uid": mounts.INIT_UID,
        "gid": mounts.GID,
        "landlock_abi": plan.landlock_abi,
        "last_capability": plan.last_capability,
    }


def _door(
    argv: tuple[str, ...], env: dict[str, str]
) -> tuple[str, tuple[str, ...], dict[str, str]]:
    return argv[0], argv, env
