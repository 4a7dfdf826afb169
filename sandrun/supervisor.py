"""Starts http and the pool, restarts what dies, ends everything. Runs as: root. I/O.

It never parses a byte that a client or a job wrote: from http it gets small
messages with bounded fields, from zygotes nothing but their exit.

::

    supervisor ─┬─ http             unprivileged; `python -m sandrun.http`
                ├─ spawner          one per environment
                └─ zygote …         cloned by the spawners, reaped by us

Start: probe the host (fail closed), make our cgroup, bind the sockets, start the
spawners and http at once. ``SIGTERM`` or ``SIGINT`` drains: no new jobs, running
ones may end within ``[pool] drain_seconds``; a second one ends at once. Either
way no process, mount, cgroup or namespace of ours is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from sandrun import doctor
from sandrun.channel import MAX_MESSAGE, Channel, Closed, close_all, pair
from sandrun.config import Config, listen_address
from sandrun.errors import ConfigError, HostError, ProtocolError
from sandrun.messages import (
    Drain,
    EnvironmentInfo,
    Finished,
    Kill,
    Ready,
    Resize,
    Taken,
    ToHttp,
    ToPool,
    Want,
    Welcome,
)
from sandrun.pool import seccomp
from sandrun.pool.cgroup import Hierarchy
from sandrun.pool.linux import libc
from sandrun.pool.linux.constants import PR
from sandrun.pool.manager import Manager
from sandrun.restart import Restart

log = logging.getLogger(__name__)

HTTP_UID_OFFSET: Final = -1  # http runs under the id below the sandboxes' range
_BACKLOG: Final = 1024
_HTTP_START_TIMEOUT_S: Final = 30.0


def memory_fd(name: str, data: bytes) -> int:
    """A sealed memory file with ``data``, to hand to a child."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    import fcntl  # noqa: PLC0415 - not at import: the tests import us on hosts without memfd

    fcntl.fcntl(
        fd,
        fcntl.F_ADD_SEALS,
        fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL,
    )
    return fd


def bind(address: str) -> socket.socket:
    """A listening socket. Raises :class:`ConfigError` if the address is taken."""
    target = listen_address(address, "listen")
    try:
        if isinstance(target, str):
            with contextlib.suppress(FileNotFoundError):
                if Path(target).is_socket():
                    Path(target).unlink()  # left by one that was killed
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(target)
            Path(target).chmod(0o666)  # noqa: S103 - whoever may reach the directory may connect
        else:
            family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
            sock = socket.socket(family)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(target)
    except OSError as error:
        raise ConfigError(f"cannot listen on {address}: {error.strerror}") from error
    sock.listen(_BACKLOG)
    sock.setblocking(False)
    return sock


class HttpProcess:
    """The supervisor's side of http: started by exec, restarted when it dies."""

    def __init__(self, config: Config, uid: int, listeners: list[socket.socket]) -> None:
        self.config = config
        self.uid = uid
        self.listeners = listeners
        self.process: subprocess.Popen[bytes] | None = None
        self.pidfd = -1
        self.channel: Channel[ToHttp, ToPool] | None = None
        self.restart = Restart()
        self._unsent: list[tuple[ToHttp, tuple[int, ...]]] = []

    def start(self) -> None:
        """Exec http with its descriptors."""
        ours, theirs = pair()
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * MAX_MESSAGE)
        ours.setblocking(False)
        http = self.config.http
        fds = {
            "--control": theirs.fileno(),
            "--config": memory_fd("config", msgspec.msgpack.encode(self.config)),
            "--filter": memory_fd("filter", seccomp.http_program()),
        }
        if http.tls_cert:
            fds["--tls-cert"] = memory_fd("cert", Path(http.tls_cert).read_bytes())
            fds["--tls-key"] = memory_fd("key", Path(http.tls_key).read_bytes())
        argv = [sys.executable, "-I", "-m", "sandrun.http", "--uid", str(self.uid)]
        for option, fd in fds.items():
            argv += [option, str(fd)]
        names = ["--listen", "--admin"]
        for name, sock in zip(names, self.listeners, strict=False):
            argv += [name, str(sock.fileno())]
        self.restart.on_start(time.monotonic())
        self.process = subprocess.Popen(  # noqa: S603 - our own module
            argv,
            stdin=subprocess.DEVNULL,
            pass_fds=(*fds.values(), *(sock.fileno() for sock in self.listeners)),
            env={"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8"},
        )
        theirs.detach()
        close_all(list(fds.values()))
        self.pidfd = os.pidfd_open(self.process.pid)
        self.channel = Channel(ours, ToPool)

    def send(self, message: ToHttp, fds: tuple[int, ...]) -> None:
        """Send, or drop if there is no http: a new one is told everything again."""
        if self.channel is None:
            return
        try:
            self.channel.send(message, fds)
        except Closed:
            pass
        except BlockingIOError:
            # 8 messages of the largest size fit; a http that reads so little is stuck.
            log.error("http does not read its messages; restarting it")
            if self.process:
                self.process.kill()

    def forget(self) -> None:
        """Close what belonged to a process that is gone."""
        os.close(self.pidfd)
        self.pidfd = -1
        if self.channel:
            self.channel.close()
            self.channel = None


class Supervisor:
    """One running node. ``announce`` gets the URLs once http serves."""

    def __init__(
        self,
        config: Config,
        announce: Callable[[tuple[str, ...]], None],
        directories: dict[str, str],
        environments: tuple[EnvironmentInfo, ...],
    ) -> None:
        self.config = config
        self.announce = announce
        self.directories = directories
        self.environments = environments
        self.loop = asyncio.get_running_loop()
        self.stopped = asyncio.Event()
        self.stopping = False
        self.welcome: Welcome | None = None
        self.exit_code = 0

    async def run(self) -> int:
        """Serve until told to stop. Returns the exit status."""
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a zygote costs us 18
        probes = doctor.probe_all(self.config)
        doctor.refuse_or_pass(probes, self.config.pool.waive)
        available = {probe.name: probe.status == "ok" for probe in probes}
        hierarchy = Hierarchy.detect(self.config.limits.defaults, self.config.pool.cpus)
        for name in hierarchy.sweep_stale():
            log.info("removed what a killed server had left: %s", name)
        addresses = [self.config.http.listen]
        if self.config.http.admin_listen:
            addresses.append(self.config.http.admin_listen)
        listeners = [bind(address) for address in addresses]
        hierarchy.create()
        try:
            await self._serve(hierarchy, listeners, probes, available)
        finally:
            for sock in listeners:
                sock.close()
            if isinstance(path := listen_address(self.config.http.listen, "listen"), str):
                with contextlib.suppress(OSError):
                    os.unlink(path)
            if not hierarchy.destroy():
                log.error("our cgroup could not be removed; the next start will try again")
        return self.exit_code

    async def _serve(
        self,
        hierarchy: Hierarchy,
        listeners: list[socket.socket],
        probes: tuple[doctor.Probe, ...],
        available: dict[str, bool],
    ) -> None:
        libc.prctl(PR.SET_CHILD_SUBREAPER, 1)
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, self._on_stop_signal)
        programs = {
            "default": seccomp.job_program("default"),
            "compute": seccomp.job_program("compute_exec"),  # no warm interpreter under it yet
            "zygote": seccomp.zygote_program(),
        }
        uid = self.config.pool.uid_base + HTTP_UID_OFFSET
        self.http = HttpProcess(self.config, uid, listeners)
        self.manager = Manager(
            self.config,
            hierarchy,
            programs,
            self.directories,
            landlock=available.get("landlock", False),
            noswap=available.get("tmpfs_noswap", False),
            to_http=self.http.send,
        )
        try:
            await self.manager.start()
            self.welcome = self._make_welcome(probes)
            self._start_http()
            await self.stopped.wait()
        finally:
            self.stopping = True
            await self.manager.stop()
            self._end_http()

    def _make_welcome(self, probes: tuple[doctor.Probe, ...]) -> Welcome:
        default = self.manager.spawners["default"]
        infos = {info.name: info for info in self.environments}
        usable = (
            infos.get(name) or EnvironmentInfo(name=name, interpreter=env.interpreter)
            for name, env in self.config.environments.items()
        )
        faulty = (i for i in self.environments if i.name not in self.config.environments)
        return Welcome(
            environments=(*usable, *faulty),
            interpreters=default.interpreters,
            layers={p.name: "on" if p.status == "ok" else p.detail for p in probes if p.layer},
            privacy=doctor.privacy_facts(probes),
        )

    # ── http ─────────────────────────────────────────────────────────────────

    def _start_http(self) -> None:
        if self.stopping or self.welcome is None:
            return
        self.http.start()
        assert self.http.channel is not None  # noqa: S101 - start() made it
        self.loop.add_reader(self.http.channel.fileno(), self._on_http)
        self.loop.add_reader(self.http.pidfd, self._on_http_exit)
        self.http.send(self.welcome, ())

    def _on_http(self) -> None:
        if self.http.channel is None:
            return
        try:
            message, fds = self.http.channel.receive()
        except BlockingIOError:
            return
        except Closed:
            self.loop.remove_reader(self.http.channel.fileno())
            return
        except ProtocolError as error:
            log.error("http sent junk (%s): ending it", error)
            if self.http.process:
                self.http.process.kill()
            return
        close_all(fds)
        self._handle(message)

    def _handle(self, message: ToPool) -> None:
        match message:
            case Taken():
                self.manager.taken(message.zygote)
            case Finished():
                self.manager.finished(message.zygote)
            case Want():
                self.manager.want(message.environment, message.warm, message.waiting)
            case Kill():
                self.manager.kill(message.zygote)
            case Resize():
                self.manager.resize(message.zygote, message.storage_bytes)
            case Ready():
                self.http.restart.on_success()
                self.manager.open_leases()
                self.announce(message.urls)

    def _on_http_exit(self) -> None:
        assert self.http.process is not None  # noqa: S101 - its pidfd fired
        code = self.http.process.wait()
        self.loop.remove_reader(self.http.pidfd)
        if self.http.channel:
            self.loop.remove_reader(self.http.channel.fileno())
        self.http.forget()
        self.manager.revoke_leases()
        if self.stopping:
            self.stopped.set()
            return
        delay = self.http.restart.on_failure(time.monotonic(), f"exit status {code}")
        if self.http.restart.fault:
            log.error("http keeps dying: %s", self.http.restart.fault)
            self.exit_code = 1
            self.stopped.set()
            return
        log.warning("http ended with status %s; starting it again in %.2f s", code, delay)
        self.loop.call_later(delay, self._start_http)

    def _end_http(self) -> None:
        if self.http.process and self.http.process.returncode is None:
            self.http.process.kill()
            self.http.process.wait()

    # ── the end ──────────────────────────────────────────────────────────────

    def _on_stop_signal(self) -> None:
        if self.stopping or self.http.channel is None:
            self.stopping = True
            self.stopped.set()
            return
        self.stopping = True
        grace = self.config.pool.drain_seconds
        log.info("draining: running jobs have %g s; a second signal ends them now", grace)
        self.http.send(Drain(grace_s=grace), ())
        # http exits when its jobs are done; this is for one that does not.
        self.loop.call_later(grace + 5.0, self.stopped.set)


def serve(
    config: Config,
    announce: Callable[[tuple[str, ...]], None],
    directories: dict[str, str] | None = None,
    environments: tuple[EnvironmentInfo, ...] = (),
) -> int:
    """Run a node in this process. Returns the exit status.

    Raises :class:`ConfigError` or :class:`HostError` before anything is started.
    """
    import uvloop  # noqa: PLC0415 - only the server needs it

    if os.geteuid() != 0:
        raise HostError("sandrun must be started as root", "use sudo python -m sandrun")

    async def main() -> int:
        return await Supervisor(config, announce, directories or {}, environments).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())
