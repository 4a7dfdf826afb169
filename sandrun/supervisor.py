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

http is crash-only: what must outlive it is in the store (store.py), and its next
incarnation gets all of it before it says Ready. ``SIGUSR2`` (`python -m sandrun
upgrade`) and ``SIGHUP`` (which also reads certificates and the [http],
[rate_limit] and [retention] sections again) use the same road in good order.
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
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Final, assert_never

import msgspec

from sandrun import doctor, notify
from sandrun.channel import Channel, Closed, close_all, pair
from sandrun.config import Config, listen_address
from sandrun.errors import ConfigError, HostError, ProtocolError
from sandrun.messages import (
    Drain,
    EnvironmentInfo,
    Finished,
    Forget,
    Install,
    InstallFailed,
    Keep,
    Kill,
    Leave,
    Loaded,
    Ready,
    Resize,
    Restored,
    StoreEntry,
    StoreState,
    Taken,
    ToHttp,
    ToPool,
    Want,
    Welcome,
)
from sandrun.pool import installs, package_index, seccomp
from sandrun.pool.cgroup import Hierarchy, JobGroup
from sandrun.pool.installs import Installs
from sandrun.pool.linux import libc
from sandrun.pool.linux.constants import PR
from sandrun.pool.manager import Manager
from sandrun.pool.zygote.group import GroupFiles
from sandrun.restart import Restart
from sandrun.store import Store

log = logging.getLogger(__name__)

HTTP_UID_OFFSET: Final = -1  # http runs under the id below the sandboxes' range
_BACKLOG: Final = 1024
_SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h; Python does not name it
SEND_BUFFER: Final = 4 * 1024 * 1024  # so that http never waits for us on a busy machine
MAX_OUTBOX: Final = 4096
MESSAGES_AT_ONCE: Final = 64
ZYGOTE_FDS: Final = 21
LEAVE_GRACE_S: Final = 3.0  # for requests that are open when another http takes over
_BUILD_SLOT: Final = 1_000_000  # the control group of installers; no sandbox's number is as high
_BUILD_MEMORY_MB: Final = 1024  # of installers, beside what they put into the cache
_BUILD_PROCESSES: Final = 512


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
            Path(target).chmod(0o666)
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
    """The supervisor's side of one http process, from its exec to its end.

    It is *attached* when it has been told everything and may serve; an upgrade
    starts the next one beside it.
    """

    def __init__(
        self,
        config: Config,
        uid: int,
        listeners: list[socket.socket],
        on_message: Callable[[HttpProcess, ToPool, list[int]], None],
        on_exit: Callable[[HttpProcess, int], None],
    ) -> None:
        self.config = config
        self.uid = uid
        self.listeners = listeners
        self.on_message = on_message
        self.on_exit = on_exit
        self.loop = asyncio.get_running_loop()
        self.attached = False
        self.leaving = False  # told to make room for the next
        self._outbox: deque[tuple[ToHttp, tuple[int, ...]]] = deque()
        self._entries: Iterator[tuple[StoreEntry, tuple[int, ...]]] | None = None
        self._restored: Callable[[], None] = lambda: None
        self._start()

    def _start(self) -> None:
        """Exec http with its descriptors."""
        ours, theirs = pair()
        for sock in (ours, theirs):
            _send_buffer(sock, SEND_BUFFER)
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
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            pass_fds=(*fds.values(), *(sock.fileno() for sock in self.listeners)),
            env={"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8"},
        )
        theirs.detach()
        close_all(list(fds.values()))
        self.pidfd = os.pidfd_open(self.process.pid)
        self.channel: Channel[ToHttp, ToPool] = Channel(ours, ToPool)
        self.loop.add_reader(ours.fileno(), self.hear)
        self.loop.add_reader(self.pidfd, self._ended)

    def attach(
        self,
        welcome: Welcome,
        entries: Iterator[tuple[StoreEntry, tuple[int, ...]]],
        restored: Callable[[], None],
    ) -> None:
        """Tell it who we are and what there is; ``restored`` is called behind that."""
        self.attached = True
        self.send(welcome, ())
        self._entries = entries
        self._restored = restored
        self._flush()

    def send(self, message: ToHttp, fds: tuple[int, ...]) -> None:
        """Send, in order. Dropped if nobody is attached: a new http is told everything.

        Descriptors are the caller's, and duplicated if they must wait.
        """
        if not self.attached:
            return
        if self._entries is None and not self._outbox:
            try:
                self.channel.send(message, fds)
            except Closed:
                return
            except BlockingIOError:
                self.loop.add_writer(self.channel.fileno(), self._flush)
            else:
                return
        if len(self._outbox) >= MAX_OUTBOX:
            log.error("http does not read its messages; restarting it")
            self.process.kill()
            return
        self._outbox.append((message, tuple(os.dup(fd) for fd in fds)))

    def _flush(self) -> None:
        """First what was kept, then what was said meanwhile."""
        try:
            if self._entries is not None:
                self._send_entries(self._entries)
            while self._outbox:
                message, fds = self._outbox[0]
                self.channel.send(message, fds)
                close_all(fds)
                self._outbox.popleft()
        except BlockingIOError:
            self.loop.add_writer(self.channel.fileno(), self._flush)
            return
        except Closed:
            self._drop_outbox()
        self.loop.remove_writer(self.channel.fileno())

    def _send_entries(self, entries: Iterator[tuple[StoreEntry, tuple[int, ...]]]) -> None:
        for entry, fds in entries:
            try:
                self.channel.send(entry, fds)
            except BlockingIOError:
                self._entries = chain([(entry, fds)], entries)
                raise
        self._entries = None
        self._restored()

    def hear(self) -> None:
        """Handle what it has said, up to a bound, so that the others have their turn."""
        for _ in range(MESSAGES_AT_ONCE):
            if not self._hear_one():
                return

    def hear_all(self) -> None:
        """Handle everything that it has said."""
        while self._hear_one():
            pass

    def _hear_one(self) -> bool:
        try:
            message, fds = self.channel.receive()
        except BlockingIOError:
            return False
        except Closed:
            self.loop.remove_reader(self.channel.fileno())
            return False
        except ProtocolError as error:
            self._junk(error)
            return False
        try:
            self.on_message(self, message, fds)
        except ProtocolError as error:
            self._junk(error)
            return False
        return True

    def _junk(self, error: ProtocolError) -> None:
        log.error("http sent junk (%s): ending it", error)
        self.process.kill()

    def _ended(self) -> None:
        """Its last words count: they are all in the socket."""
        code = self.process.wait()
        self.loop.remove_reader(self.pidfd)
        self.hear_all()
        self.loop.remove_reader(self.channel.fileno())
        self.loop.remove_writer(self.channel.fileno())
        self._drop_outbox()
        self._entries = None
        os.close(self.pidfd)
        self.channel.close()
        self.attached = False
        self.on_exit(self, code)

    def _drop_outbox(self) -> None:
        for _, fds in self._outbox:
            close_all(fds)
        self._outbox.clear()

    def end(self) -> None:
        """Kill it, if it is still there."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def _send_buffer(sock: socket.socket, size: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)  # past net.core.wmem_max
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)


class Supervisor:
    """One running node. ``announce`` gets the URLs once http serves.

    ``reload`` reads the configuration again, or raises :class:`ConfigError`.
    """

    def __init__(
        self,
        config: Config,
        announce: Callable[[tuple[str, ...]], None],
        directories: dict[str, str],
        environments: tuple[EnvironmentInfo, ...],
        reload: Callable[[], Config] | None = None,
    ) -> None:
        self.config = config
        self.announce = announce
        self.directories = directories
        self.environments = environments
        self.reload = reload
        self.loop = asyncio.get_running_loop()
        self.stopped = asyncio.Event()
        self.stopping = False
        self.welcome: Welcome | None = None
        self.http: HttpProcess | None = None
        self.next_http: HttpProcess | None = None  # of an upgrade
        self.next_http_loaded = False
        self._announced = False
        self.http_restart = Restart()
        self.notify = notify.from_environment()
        self.exit_code = 0
        self.installs: Installs | None = None
        self._answers: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Serve until told to stop. Returns the exit status."""
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a zygote costs us 21
        self.store = Store(max(64, most - _own_fds(self.config)), self._on_store_state)
        probes = doctor.probe_all(self.config)
        doctor.refuse_or_pass(probes, self.config.pool.waive)
        available = {probe.name: probe.status == "ok" for probe in probes}
        hierarchy = Hierarchy.detect(self.config.limits.defaults, self.config.pool.cpus)
        for name in hierarchy.sweep_stale():
            log.info("removed what a killed server had left: %s", name)
        addresses = [self.config.http.listen]
        if self.config.http.admin_listen:
            addresses.append(self.config.http.admin_listen)
        self.listeners = [bind(address) for address in addresses]
        hierarchy.create()
        try:
            await self._serve(hierarchy, probes, available)
        finally:
            for sock in self.listeners:
                sock.close()
            self.store.close()
            if isinstance(path := listen_address(self.config.http.listen, "listen"), str):
                with contextlib.suppress(OSError):
                    os.unlink(path)
            if not hierarchy.destroy():
                log.error("our cgroup could not be removed; the next start will try again")
        return self.exit_code

    async def _serve(
        self,
        hierarchy: Hierarchy,
        probes: tuple[doctor.Probe, ...],
        available: dict[str, bool],
    ) -> None:
        libc.prctl(PR.SET_CHILD_SUBREAPER, 1)
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, self._on_stop_signal)
        self.loop.add_signal_handler(signal.SIGHUP, self._on_reload_signal)
        self.loop.add_signal_handler(signal.SIGUSR2, self.upgrade)
        programs = {
            "default": seccomp.job_program("default"),
            "compute": seccomp.job_program("compute_exec"),  # no warm interpreter under it yet
            "zygote": seccomp.zygote_program(),
        }
        self.manager = Manager(
            self.config,
            hierarchy,
            programs,
            self.directories,
            landlock=available.get("landlock", False),
            noswap=available.get("tmpfs_noswap", False),
            to_http=self._to_http,
            hear_http=self._hear_http,
            on_gone=self.store.zygote_gone,
        )
        build_group: JobGroup | None = None
        try:
            build_group = self._start_installs(hierarchy, programs["default"], available)
            await self.manager.start()
            self.welcome = self._make_welcome(probes)
            self._watchdog()
            self._start_http()
            await self.stopped.wait()
        finally:
            self.stopping = True
            self.notify("STOPPING=1")
            if self.installs:
                await self.installs.stop()
            if build_group:
                build_group.destroy()
            await self.manager.stop()
            for http in (self.http, self.next_http):
                if http:
                    http.end()

    def _start_installs(
        self, hierarchy: Hierarchy, program: bytes, available: dict[str, bool]
    ) -> JobGroup | None:
        """What jobs' requirements need. Returns the control group of the installers."""
        packages = self.config.packages
        if not packages.requirements:
            return None
        noswap = available.get("tmpfs_noswap", False)
        directory = installs.ram_directory(packages.cache_mb, noswap=noswap)
        group = hierarchy.create_slot(_BUILD_SLOT)
        control = group.control_files()
        files = GroupFiles(*control)
        # The cache's pages are charged to whoever wrote them: they count in here.
        files.set_memory((packages.cache_mb + _BUILD_MEMORY_MB) * 1024 * 1024)
        files.set_processes(_BUILD_PROCESSES)
        index = package_index.discover(packages, os.environ)
        factory = installs.installer_factory(self.config, index, program, control)
        self.installs = Installs(self.config, self.manager, directory, factory, index)
        return group

    def _install(self, wish: Install) -> None:
        if self.installs is None:
            reason = "this server installs no requirements ([packages] requirements)"
            self._to_http(InstallFailed(request=wish.request, reason=reason), ())
            return
        task = self.loop.create_task(self._answer(self.installs, wish))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _answer(self, installs: Installs, wish: Install) -> None:
        self._to_http(await installs.install(wish), ())

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

    def _watchdog(self) -> None:
        """As long as this loop turns, systemd hears of it."""
        if self.notify.watchdog_s and not self.stopped.is_set():
            self.notify("WATCHDOG=1")
            self.loop.call_later(self.notify.watchdog_s, self._watchdog)

    # ── http: life ───────────────────────────────────────────────────────────

    def _new_http(self) -> HttpProcess:
        uid = self.config.pool.uid_base + HTTP_UID_OFFSET
        return HttpProcess(self.config, uid, self.listeners, self._handle, self._on_http_exit)

    def _start_http(self) -> None:
        if self.stopping or self.http is not None:
            return
        self.http_restart.on_start(time.monotonic())
        self._attach(self._new_http())

    def _attach(self, http: HttpProcess) -> None:
        """From now on this is the http. It hears of the pool behind what was kept."""
        assert self.welcome is not None
        self.http = http

        def restored() -> None:
            http.send(Restored(max_jobs=self.store.max_jobs), ())
            if self.store.full:
                http.send(StoreState(full=True), ())
            self.manager.report()

        http.attach(self.welcome, self.store.entries(), restored)

    def upgrade(self) -> None:
        """Replace http by a new one without losing anything. The new one loads first, so
        that nobody waits for its imports; if it cannot, the old one stays.
        """
        if self.stopping or self.http is None or self.next_http is not None:
            log.info("no upgrade now: http is being started or ended anyway")
            return
        self.next_http_loaded = False
        try:
            self.next_http = self._new_http()
        except OSError as error:  # a certificate that is not there
            log.error("no upgrade: %s", error)

    def _on_http_exit(self, http: HttpProcess, code: int) -> None:
        if http is self.next_http:
            self.next_http = None
            log.error("the new http ended with status %s; the old one stays", code)
            return
        self.http = None
        crashed = code != 0 or not http.leaving
        self.manager.revoke_leases(self.store.holds, crashed=crashed)
        if self.stopping:
            self.stopped.set()
            return
        if self.next_http is not None and self.next_http_loaded:
            http, self.next_http = self.next_http, None
            log.info("a new http takes over %d records", len(self.store))
            self._attach(http)
            return
        delay = self.http_restart.on_failure(time.monotonic(), f"exit status {code}")
        if self.http_restart.fault:
            log.error("http keeps dying: %s", self.http_restart.fault)
            self.exit_code = 1
            self.stopped.set()
            return
        log.warning("http ended with status %s; starting it again in %.2f s", code, delay)
        self.loop.call_later(delay, self._start_http)

    # ── http: messages ───────────────────────────────────────────────────────

    def _to_http(self, message: ToHttp, fds: tuple[int, ...]) -> None:
        if self.http is not None:
            self.http.send(message, fds)

    def _hear_http(self) -> None:
        if self.http is not None:
            self.http.hear_all()

    def _on_store_state(self, full: bool) -> None:
        if full:
            log.warning("the store is full: no new jobs until old ones go")
        self._to_http(StoreState(full=full), ())

    def _handle(self, http: HttpProcess, message: ToPool, fds: list[int]) -> None:
        if not isinstance(message, Keep):
            close_all(fds)
        if http is not self.http and not isinstance(message, Loaded):
            close_all(fds if isinstance(message, Keep) else [])
            raise ProtocolError(f"{type(message).__name__} before Welcome")
        match message:
            case Keep():
                self.store.keep(message, fds)
                if message.zygote is not None:
                    self.store.bind(message.key, message.zygote, self.manager.bind(message.zygote))
            case Forget():
                self.store.forget(message.key)
            case Taken():
                self.manager.taken(message.zygote)
            case Finished():
                self.manager.finished(message.zygote)
            case Want():
                self.manager.want(message.environment, message.warm, message.waiting)
            case Kill():
                self.manager.kill(message.zygote)
            case Install():
                self._install(message)
            case Resize():
                self.manager.resize(message.zygote, message.storage_bytes)
            case Ready():
                self._on_ready(message)
            case Loaded():
                self._on_loaded(http)
            case _:
                assert_never(message)

    def _on_ready(self, message: Ready) -> None:
        self.http_restart.on_success()
        self.manager.open_leases()
        if not self._announced:
            self._announced = True
            self.announce(message.urls)
            self.notify("READY=1")

    def _on_loaded(self, http: HttpProcess) -> None:
        if http is not self.next_http:
            return
        self.next_http_loaded = True
        if self.http is not None:
            self.http.leaving = True
            self.http.send(Leave(grace_s=LEAVE_GRACE_S), ())

    # ── signals ──────────────────────────────────────────────────────────────

    def _on_reload_signal(self) -> None:
        """What http alone reads, certificates first, takes effect; the pool stays as it is."""
        if self.reload is not None:
            try:
                new = self.reload()
            except ConfigError as error:
                log.error("not reloaded: %s", error)
                return
            http = msgspec.structs.replace(
                new.http,
                listen=self.config.http.listen,
                admin_listen=self.config.http.admin_listen,
            )
            self.config = msgspec.structs.replace(
                self.config, http=http, rate_limit=new.rate_limit, retention=new.retention
            )
        self.upgrade()

    def _on_stop_signal(self) -> None:
        if self.stopping or self.http is None:
            self.stopping = True
            self.stopped.set()
            return
        self.stopping = True
        self.notify("STOPPING=1")
        grace = self.config.pool.drain_seconds
        log.info("draining: running jobs have %g s; a second signal ends them now", grace)
        self.http.send(Drain(grace_s=grace), ())
        # http exits when its jobs are done; this is for one that does not.
        self.loop.call_later(grace + 5.0, self.stopped.set)


def _own_fds(config: Config) -> int:
    """What the supervisor needs for itself: zygotes above all."""
    kinds = len(config.environments) + len(config.interpreters)
    zygotes = config.pool.capacity + kinds * max(config.pool.ready, 4)
    return 256 + ZYGOTE_FDS * zygotes


def serve(
    config: Config,
    announce: Callable[[tuple[str, ...]], None],
    directories: dict[str, str] | None = None,
    environments: tuple[EnvironmentInfo, ...] = (),
    reload: Callable[[], Config] | None = None,
) -> int:
    """Run a node in this process. Returns the exit status.

    Raises :class:`ConfigError` or :class:`HostError` before anything is started.
    """
    import uvloop  # noqa: PLC0415 - only the server needs it

    if os.geteuid() != 0:
        raise HostError("sandrun must be started as root", "use sudo python -m sandrun")

    async def main() -> int:
        node = Supervisor(config, announce, directories or {}, environments, reload)
        return await node.run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())
