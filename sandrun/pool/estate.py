"""The sandboxes that a dead spawner leaves, and who unpacks and collects for them. Runs
as: root (supervisor). I/O.

A spawner's assistant (``assist.py``) outlives it and becomes our child. When that ends
too, or has ended with its spawner, another one is started for the sandboxes that are
left: from the spawner's user namespace and their sockets, of which we hold duplicates.
What they have asked for meanwhile waits in those sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

from sandrun.channel import MAX_FDS, Channel, Closed, pair
from sandrun.errors import ProtocolError
from sandrun.messages import InterpreterInfo, Prepare, Succeed, ToSuccessor
from sandrun.pool.assist import NAME, NEWS
from sandrun.pool.supplies import Supplies
from sandrun.restart import Restart

log = logging.getLogger(__name__)

_SEND_BUFFER: Final = 512 * 1024  # for all that a successor is told before it listens


class Estate:
    """Of one spawner.

    ``session``: its pid, by which its assistant is known. ``namespace``: a descriptor of
    its user namespace, ours from now on. ``ends``: of the sockets of those sandboxes that
    are left. ``on_over``: nobody needs an assistant any more.
    """

    def __init__(
        self,
        session: int,
        prepare: Prepare,
        interpreters: tuple[InterpreterInfo, ...],
        namespace: int,
        supplies: Supplies,
        ends: Callable[[], list[int]],
        on_over: Callable[[Estate], None],
    ) -> None:
        self.pid = 0  # of whoever assists, while there is one
        self._session = session
        self._prepare = prepare
        self._interpreters = interpreters
        self._namespace = namespace
        self._supplies = supplies
        self._ends = ends
        self._on_over = on_over
        self._pidfd = -1
        self._process: subprocess.Popen[bytes] | None = None  # if it is a successor
        self._restart = Restart()
        self._closed = False

    def settle(self) -> None:
        """See to it that there is an assistant, for as long as there is a sandbox."""
        if self._closed:
            return
        ends = self._ends()
        if not ends:
            self._over()
            return
        self._restart.on_start(time.monotonic())
        try:
            self.pid = _assistant_of(self._session)
            if self.pid:
                self._pidfd = self._supplies.watch(self.pid)
            else:
                self._start(ends)
        except (OSError, Closed, ProtocolError) as error:  # of want of something; it may pass
            self.pid = 0
            self._try_again(str(error))
            return
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_end)

    def _start(self, ends: list[int]) -> None:
        """Raises OSError, Closed, ProtocolError, and nothing is left then."""
        with contextlib.ExitStack() as unless_started:
            control, theirs = pair()
            with control, theirs:
                control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
                control.setblocking(False)
                argv = [sys.executable, "-I", "-m", "sandrun.pool.successor", str(theirs.fileno())]
                process = self._supplies.start(argv, (theirs.fileno(),))
                unless_started.callback(process.wait)
                unless_started.callback(process.kill)
                channel: Channel[ToSuccessor, Prepare] = Channel(control, Prepare)
                channel.send(self._prepare)
                channel.send(Succeed(interpreters=self._interpreters), (self._namespace,))
                for first in range(0, len(ends), MAX_FDS):
                    socket.send_fds(control, [NEWS], ends[first : first + MAX_FDS])
            self._pidfd = self._supplies.watch(process.pid)
            unless_started.pop_all()
        self._process, self.pid = process, process.pid
        log.info("an assistant for %d sandboxes whose spawner has died: %d", len(ends), self.pid)

    def _on_end(self) -> None:
        status = self._reap()
        if status == 0:  # it served all that there were
            self._over()
        elif not self._closed:
            self._try_again(f"exit status {status}")

    def _reap(self) -> int:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        status = self._process.wait() if self._process else _wait_adopted(self._pidfd)
        os.close(self._pidfd)
        self._pidfd, self._process, self.pid = -1, None, 0
        return status

    def _try_again(self, cause: str) -> None:
        first = not self._restart.failures
        delay = self._restart.on_failure(time.monotonic(), cause)
        log.warning("no assistant for the sandboxes of a dead spawner (%s)", cause)
        # Jobs may be waiting for it: the first time at once.
        asyncio.get_running_loop().call_later(0.0 if first else delay, self.settle)

    def _over(self) -> None:
        self._closed = True
        os.close(self._namespace)
        self._on_over(self)

    def close(self) -> None:
        """End whoever assists."""
        if self._closed:
            return
        if self._pidfd >= 0:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self._reap()
        self._over()


def _assistant_of(session: int) -> int:
    """The assistant that a dead spawner left us, or 0."""
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        children = [int(word) for word in file.read().split()]
    for pid in children:
        with contextlib.suppress(OSError):
            if os.getsid(pid) == session and _is_assistant(pid):
                return pid
    return 0


def _is_assistant(pid: int) -> bool:
    """Alive, and not one of its children on the way into a sandbox."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        fields = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    nested = len(fields["NSpid"].split()) > 1
    return fields["Name"] == NAME and not nested and fields["State"][0] not in "ZX"


def _wait_adopted(pidfd: int) -> int:
    try:
        info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:  # reaped by another already: nobody knows how it ended
        return -1
    if info is None or info.si_code != os.CLD_EXITED:
        return -1
    return info.si_status
