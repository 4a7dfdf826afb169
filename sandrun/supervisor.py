"""Starts http and the pool, restarts what dies, ends everything. Runs as: root. I/O.

It never parses a byte that a client or a job wrote: from http it gets small
messages with bounded fields, from zygotes nothing but their exit.

::

    supervisor ─┬─ http             unprivileged; `python -m sandrun.http`
                ├─ its standby      the same, loaded, waiting to take its place
                ├─ spawner          one per environment
                └─ zygote …         cloned by the spawners, reaped by us

Start: probe the host (fail closed), make our cgroup, bind the sockets, start the
spawners and http at once. ``SIGTERM`` or ``SIGINT`` drains: no new jobs, running
ones may end within ``[pool] drain_seconds``; a second one ends at once. Either
way no process, mount, cgroup or namespace of ours is left.

http is crash-only: what must outlive it is in the store (store.py), and its next
incarnation, which stands by already (http_process.py), gets all of it before it says
Ready. ``SIGUSR2`` (`python -m sandrun upgrade`) and ``SIGHUP`` (which also reads
certificates and the [http], [rate_limit] and [retention] sections again) use the same
road in good order.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, assert_never

import msgspec

from sandrun import doctor, notify
from sandrun.channel import close_all
from sandrun.config import Config, listen_address
from sandrun.errors import ConfigError, HostError, ProtocolError
from sandrun.http_process import HttpProcess, Settings, read_settings
from sandrun.messages import (
    Drain,
    EnvironmentInfo,
    Finished,
    Forget,
    HttpDeaths,
    Install,
    InstallFailed,
    Keep,
    Kill,
    Leave,
    Loaded,
    Pong,
    Ready,
    Resize,
    Restored,
    StoreState,
    ToHttp,
    ToPool,
    Want,
    Welcome,
)
from sandrun.pool import installs, package_index, seccomp
from sandrun.pool.cgroup.hierarchy import Hierarchy
from sandrun.pool.cgroup.job_group import JobGroup
from sandrun.pool.environments import without_faulty
from sandrun.pool.installs import Installs
from sandrun.pool.linux import libc
from sandrun.pool.linux.constants import PR
from sandrun.pool.manager import Manager
from sandrun.pool.native import build
from sandrun.pool.native.build import Native
from sandrun.pool.supplies import Supplies
from sandrun.pool.zygote.group import GroupFiles
from sandrun.restart import Restart
from sandrun.store import Store

log = logging.getLogger(__name__)

HTTP_UID_OFFSET: Final = -1  # http runs under the id below the sandboxes' range
_BACKLOG: Final = 1024
ZYGOTE_FDS: Final = 22
LEAVE_GRACE_S: Final = 3.0  # for requests that are open when another http takes over
STANDBY_DELAY_S: Final = 1.0  # the one that has just taken over has work to do
STILLBORN_MAX: Final = 5  # deaths in a row of those that never served: then without the jobs
KILLS_PER_DEATH: Final = 5  # kill -9 from outside is somebody's doing: so many count as one
SERVED_DELAY_MAX_S: Final = 1.0  # between restarts of an http that served and died young
LOOKS: Final = 6  # at http in [pool] watchdog_seconds
DRAIN_MARGIN_S: Final = 5.0  # http exits when its jobs are done; this is for one that does not
_BUILD_SLOT: Final = 1_000_000  # the control group of installers; no sandbox's number is as high
_BUILD_MEMORY_MB: Final = 1024  # of installers, beside what they put into the cache
_BUILD_PROCESSES: Final = 512


def bind(address: str) -> socket.socket:
    """A listening socket. Raises :class:`ConfigError` if the address is taken."""
    target = listen_address(address, "listen")
    try:
        if isinstance(target, str):
            _remove_left_socket(target)
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(target)
            Path(target).chmod(0o666)
        else:
            family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
            sock = socket.socket(family)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(target)
    except OSError as error:
        cure = "; take another with --listen" if error.errno == errno.EADDRINUSE else ""
        raise ConfigError(f"cannot listen on {address}: {error.strerror}{cure}") from error
    sock.listen(_BACKLOG)
    sock.setblocking(False)
    return sock


def _remove_left_socket(path: str) -> None:
    """What one that was killed has left goes; one that somebody listens on is his.

    Raises OSError.
    """
    if not Path(path).is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a full backlog says EAGAIN: there is somebody
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from error
        else:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _identity(path: str) -> tuple[int, int]:
    """Which file this is; another may take its place."""
    info = os.lstat(path)
    return info.st_dev, info.st_ino


def load_native(wanted: str) -> Native | None:
    """The compiled PID 1, or None for the Python one. Raises :class:`HostError`."""
    if wanted == "python":
        return None
    try:
        return build.load()
    except build.NotBuilt as error:
        if wanted == "native":
            raise HostError("[pool] init: there is no compiled PID 1", str(error)) from error
        log.info("PID 1 of the sandboxes is the Python one: %s", error)
        return None


class Supervisor:
    """One running node. ``announce`` gets the URLs once http serves.

    ``reload`` reads the configuration again, or raises :class:`ConfigError`;
    ``supplies`` is the host, or one that fails for a test.
    """

    def __init__(
        self,
        config: Config,
        announce: Callable[[tuple[str, ...]], None],
        directories: dict[str, str],
        environments: tuple[EnvironmentInfo, ...],
        reload: Callable[[], Config] | None = None,
        supplies: Supplies | None = None,
    ) -> None:
        self.supplies = supplies or Supplies()
        self.config = config
        self.settings = read_settings(config)  # of the last http that served
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
        self._wished: Settings | None = None  # of the next upgrade, while there can be none
        self._replacing = False  # the service manager has been told, and waits
        self.standby: HttpProcess | None = None
        self._standby_timer: asyncio.TimerHandle | None = None
        self._announced = False
        self.http_restart = Restart()
        self.http_served = False  # the last one that was started
        self._stillborn = 0  # of those that died before they served, in a row: see below
        self.standby_restart = Restart()
        self.http_deaths = HttpDeaths()
        self._drain_until: float | None = None  # when draining: on the loop's clock
        self.notify = notify.from_environment()
        self.exit_code = 0
        self.installs: Installs | None = None
        self._answers: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Serve until told to stop. Returns the exit status."""
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a zygote costs us 23
        self.store = Store(max(most // 4, most - _own_fds(self.config)), self._on_store_state)
        probes = doctor.probe_all(self.config)
        doctor.refuse_or_pass(probes, self.config.pool.waive)
        available = {probe.name: probe.status == "ok" for probe in probes}
        pool = self.config.pool
        hierarchy = Hierarchy.detect(
            self.config.limits.defaults, pool.cpus, pool.disk_read_mb * 1024 * 1024
        )
        for name in hierarchy.sweep_stale():
            log.info("removed what a killed server had left: %s", name)
        addresses = [self.config.http.listen]
        if self.config.http.admin_listen:
            addresses.append(self.config.http.admin_listen)
        self.listeners = [bind(address) for address in addresses]
        path = listen_address(self.config.http.listen, "listen")
        ours = _identity(path) if isinstance(path, str) else None
        hierarchy.create()
        try:
            await self._serve(hierarchy, probes, available)
        finally:
            for sock in self.listeners:
                sock.close()
            self.store.close()
            if isinstance(path, str):
                with contextlib.suppress(OSError):
                    if _identity(path) == ours:
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
            "warm": seccomp.job_program("warm"),
            "compute": seccomp.job_program("compute_exec"),  # no warm interpreter under it yet
            "zygote": seccomp.zygote_program(),
        }
        native = load_native(self.config.pool.init)
        self.manager = Manager(
            self.config,
            hierarchy,
            programs,
            self.directories,
            landlock=available.get("landlock", False),
            noswap=available.get("tmpfs_noswap", False),
            native=native,
            to_http=self._to_http,
            hear_http=self._hear_http,
            on_gone=self.store.zygote_gone,
            records=self.store.__len__,
            supplies=self.supplies,
        )
        build_group: JobGroup | None = None
        try:
            build_group = self._start_installs(hierarchy, programs["default"], available)
            await self.manager.start()
            self.welcome = self._make_welcome(probes)
            self._watchdog()
            self._look_at_http()
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
            self._cancel_standby()
            for http in (self.http, self.next_http, self.standby):
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

    def _look_at_http(self) -> None:
        """As long as http, and what may follow it, answers, it is let live."""
        most_s = self.config.pool.watchdog_seconds
        period_s = most_s / LOOKS
        for http in filter(None, (self.http, self.next_http, self.standby)):
            http.look(period_s, most_s)
        if not self.stopped.is_set():
            self.loop.call_later(period_s, self._look_at_http)

    # ── http: life ───────────────────────────────────────────────────────────

    def _new_http(self, settings: Settings) -> HttpProcess:
        uid = self.config.pool.uid_base + HTTP_UID_OFFSET
        return HttpProcess(
            settings, uid, self.listeners, self._handle, self._on_http_exit, self.supplies
        )

    def _start_http(self) -> None:
        """The standby, if there is one, else a new one. It may still be loading: what it
        is told waits in its socket, as clients do in the backlog of ours.
        """
        if self.http is not None or self.stopped.is_set():
            return
        self._cancel_standby()
        http: HttpProcess | None
        if self.next_http is not None and self.next_http.loaded:  # while there was none
            http, self.next_http = self.next_http, None
        else:
            http, self.standby = self.standby, None
        # Before the attempt: one that cannot be started has not lived since the last one.
        self.http_restart.on_start(time.monotonic())
        if http is None:
            try:
                http = self._new_http(self.settings)
            except OSError as error:  # no process, memory or descriptor; it may pass
                delay = self.http_restart.on_failure(time.monotonic(), str(error))
                log.error("http cannot be started: %s; next try in %.2f s", error, delay)
                self.loop.call_later(delay, self._start_http)
                return
        self._attach(http)

    def _attach(self, http: HttpProcess) -> None:
        """From now on this is the http. It hears of the pool behind what was kept."""
        assert self.welcome is not None
        self.http = http

        def restored() -> None:
            http.send(Restored(max_jobs=self.store.max_jobs), ())
            http.send(self.http_deaths, ())
            if self.store.full:
                http.send(StoreState(full=True), ())
            self.manager.report()
            if self._drain_until is not None:
                http.send(Drain(grace_s=max(0.0, self._drain_until - self.loop.time())), ())

        http.attach(self.welcome, self.store.entries(), restored)

    def _start_standby(self) -> None:
        """The next http, beside this one."""
        self._standby_timer = None
        if self.stopping or self.standby is not None or self.next_http is not None:
            return
        self.standby_restart.on_start(time.monotonic())
        try:
            self.standby = self._new_http(self.settings)
        except OSError as error:
            self._on_no_standby(str(error))

    def _on_no_standby(self, cause: str) -> None:
        if self.stopping:
            return
        delay = self.standby_restart.on_failure(time.monotonic(), cause)
        log.warning("no standby for http (%s); next try in %.2f s", cause, delay)
        self._want_standby(delay)

    def _want_standby(self, delay: float = STANDBY_DELAY_S) -> None:
        if self._standby_timer is None and not self.stopping:
            self._standby_timer = self.loop.call_later(delay, self._start_standby)

    def _cancel_standby(self) -> None:
        if self._standby_timer is not None:
            self._standby_timer.cancel()
            self._standby_timer = None

    def upgrade(self) -> None:
        """Replace http by a new one of the code that is installed now."""
        self._replace(self._wished or self.settings)

    def _replace(self, settings: Settings) -> None:
        """Replace http without losing anything. The new one loads first, so that nobody
        waits for its imports; if it cannot, the old one stays, and so do its settings. The
        standby is of the old code and configuration: it goes.
        """
        if self.stopping:
            log.info("no upgrade now: the server is stopping")
            return
        self._tell_of_replacing()
        if self.http is None or not self.http.ready or self.next_http is not None:
            log.info("an upgrade follows the one that is on its way, or the start")
            self._wished = settings
            return
        self._wished = None
        try:
            self.next_http = self._new_http(settings)
        except OSError as error:  # no process, memory or descriptor
            self._replaced(f"no upgrade: {error}")
            return
        self._cancel_standby()
        if self.standby is not None:
            old, self.standby = self.standby, None
            old.process.kill()  # its end is seen by _on_http_exit

    def _tell_of_replacing(self) -> None:
        """To be ended by :meth:`_replaced`. man: sd_notify(3), Type=notify-reload"""
        if self._announced and not self._replacing and not self.stopping:
            self._replacing = True
            self.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def _replaced(self, fault: str = "") -> None:
        """That was it, well or not. Whatever was wished meanwhile comes next."""
        if fault:
            log.error("%s", fault)
        if self._wished is not None:
            self._replace(self._wished)
        elif self._replacing and not self.stopping:
            self._replacing = False
            self.notify(f"READY=1\nSTATUS={' '.join(fault.split())}")

    def _on_http_exit(self, http: HttpProcess, code: int) -> None:
        cause = http.fault or f"exit status {code}"
        if http is self.next_http:
            self.next_http = None
            self._want_standby()
            self._replaced(f"the new http ended ({cause}); the old one stays")
        elif http is self.standby:
            self.standby = None
            self._on_no_standby(cause)
        elif http is self.http:
            self._on_served_http_exit(http, code, cause)

    def _on_served_http_exit(self, http: HttpProcess, code: int, cause: str) -> None:
        self.http = None
        crashed = code != 0 or not http.leaving
        self.manager.revoke_leases(self.store.holds, crashed=crashed)
        drained = code == 0 and not http.leaving
        if self.stopping and (drained or self._drain_until is None):
            self.stopped.set()
            return
        if self.next_http is not None and self.next_http.loaded:
            http, self.next_http = self.next_http, None
            log.info("a new http takes over %d records", len(self.store))
            self._attach(http)
            return
        # Nothing that is kept sends that signal, unless it makes http fall to the OOM killer.
        self._restart_http(cause, killed=code == -signal.SIGKILL and not http.fault)

    def _restart_http(self, cause: str, *, killed: bool) -> None:
        """After a crash, a drain's too: its running jobs still have their time."""
        delay = self.http_restart.on_failure(time.monotonic(), cause)
        self.http_deaths = HttpDeaths(count=self.http_deaths.count + 1, cause=cause)
        served, self.http_served = self.http_served, False
        if not served:
            self._stillborn += 1 if killed else KILLS_PER_DEATH
        if not served and self._replacing:
            log.error("the new http ended before it served; back to the settings of the old one")
        if self._stillborn >= STILLBORN_MAX * KILLS_PER_DEATH:
            log.error("http keeps dying: %s", cause)
            if not self._drop_jobs():
                self.exit_code = 1
                self.stopped.set()
                return
        if self.http_restart.failures == 1:
            delay = 0.0  # it had served: nothing speaks against going on at once
        elif served or killed:
            # It keeps dying young, perhaps by something that it finds in the store: not a
            # busy loop, nor a reason to give up what others have here.
            delay = min(delay, SERVED_DELAY_MAX_S)
        log.warning("http ended (%s); the next one in %.2f s", cause, delay)
        if delay:
            self.loop.call_later(delay, self._start_http)
        else:
            self._start_http()

    def _drop_jobs(self) -> bool:
        """The last resort before we give up, which would end all jobs, too: a record may be
        what it dies of. Whether there was anything to drop.
        """
        count = len(self.store)
        if count:
            log.error("http is started without the %d records that were kept", count)
            self.store.close()
            self.manager.revoke_leases(self.store.holds, crashed=True)
            self.http_restart.on_success()
            self._stillborn = 0
        return count > 0

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
        if http is not self.http and not isinstance(message, Loaded | Pong):
            close_all(fds if isinstance(message, Keep) else [])
            raise ProtocolError(f"{type(message).__name__} before Welcome")
        match message:
            case Keep():
                self.store.keep(message, fds)
                if message.zygote is not None:
                    self.store.bind(message.key, message.zygote, self.manager.bind(message.zygote))
            case Forget():
                self.store.forget(message.key)
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
                self._on_ready(http, message)
            case Loaded():
                self._on_loaded(http)
            case Pong():
                pass  # that it speaks is all that it says
            case _:
                assert_never(message)

    def _on_ready(self, http: HttpProcess, message: Ready) -> None:
        http.ready = True
        self.settings = http.settings
        self._stillborn = 0
        self.http_served = True  # its restarts are forgotten when it has lived for a while
        self._want_standby()
        self.manager.open_leases()
        if not self._announced:
            self._announced = True
            self.announce(message.urls)
            self.notify("READY=1")
        if self.next_http is None:
            self._replaced()

    def _on_loaded(self, http: HttpProcess) -> None:
        http.loaded = True
        if http is self.standby:
            self.standby_restart.on_success()
        if http is not self.next_http:
            return
        if self.http is not None:
            self.http.leaving = True
            self.http.send(Leave(grace_s=LEAVE_GRACE_S), ())

    # ── signals ──────────────────────────────────────────────────────────────

    def _on_reload_signal(self) -> None:
        """What http alone reads, certificates first, takes effect; the pool stays as it is."""
        if self.reload is None:
            self.upgrade()
            return
        try:
            wished = self._reloaded(self.reload())
        except ConfigError as error:
            self._tell_of_replacing()
            self._replaced(f"not reloaded: {error}")
            return
        self._replace(wished)

    def _reloaded(self, new: Config) -> Settings:
        """Of a configuration, what a running server can take. Raises :class:`ConfigError`."""
        old = self.config
        http = msgspec.structs.replace(
            new.http, listen=old.http.listen, admin_listen=old.http.admin_listen
        )
        taken = msgspec.structs.replace(
            old, http=http, rate_limit=new.rate_limit, retention=new.retention
        )
        kept = without_faulty(new, self.environments)
        for section in kept.__struct_fields__:
            if getattr(kept, section) != getattr(taken, section):
                log.warning("reloaded, but for what needs a restart: [%s]", section)
        return read_settings(taken)

    def _on_stop_signal(self) -> None:
        if self.stopping or not self._announced:
            self.stopping = True
            self._drain_until = None  # whoever dies now is not followed by another
            self.stopped.set()
            return
        self.stopping = True
        self.notify("STOPPING=1")
        grace = self.config.pool.drain_seconds
        log.info("draining: running jobs have %g s; a second signal ends them now", grace)
        self._drain_until = self.loop.time() + grace
        self._to_http(Drain(grace_s=grace), ())  # and to the next one, should this one die
        self.loop.call_later(grace + DRAIN_MARGIN_S, self.stopped.set)


def _own_fds(config: Config) -> int:
    """What the supervisor needs for itself: zygotes above all."""
    kinds = len(config.environments) + len(config.interpreters)
    zygotes = config.pool.capacity + kinds * max(config.pool.ready, 4)
    return 256 + ZYGOTE_FDS * zygotes


def ignore_no_signals() -> None:
    """What a shell script puts into the background has SIGINT and SIGQUIT ignored, and
    others may have more: jobs would inherit it, and without SIGCHLD we could not wait.
    """
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # Python's own
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def serve(
    config: Config,
    announce: Callable[[tuple[str, ...]], None],
    directories: dict[str, str] | None = None,
    environments: tuple[EnvironmentInfo, ...] = (),
    reload: Callable[[], Config] | None = None,
    supplies: Supplies | None = None,
) -> int:
    """Run a node in this process. Returns the exit status.

    Raises :class:`ConfigError` or :class:`HostError` before anything is started.
    """
    import uvloop  # noqa: PLC0415 - only the server needs it

    if os.geteuid() != 0:
        raise HostError("sandrun must be started as root", "use sudo python -m sandrun")

    ignore_no_signals()

    async def main() -> int:
        node = Supervisor(config, announce, directories or {}, environments, reload, supplies)
        return await node.run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())
