"""Keeps zygotes ready: lease, kill, reap, refill. Runs as: root (supervisor). I/O.

One spawner per environment makes zygotes; each ready one is *leased* to http, so
that a dispatch is one datagram from http to the zygote and never waits for us.
We hear of it (``Keep``) and refill; how many and when is policy.py's to say.

What a zygote needs is made here, before it: a cgroup, a tmpfs that cannot be
swapped (``noswap`` is refused inside a user namespace), and the memory
descriptors of its log and outputs. When its PID 1 has been reaped, the kernel
has ended every process of its pid namespace; only then are its slot (the pair of
user ids) and its cgroup free for another.
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
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from sandrun.channel import MAX_MESSAGE, Channel, Closed, close_all, pair
from sandrun.config import Config, Environment
from sandrun.errors import ProtocolError, SetupError
from sandrun.journal import JOURNAL_BYTES
from sandrun.messages import (
    Booted,
    BootFailed,
    FromSpawner,
    GiveBack,
    InterpreterInfo,
    InterpreterSpec,
    KindState,
    Lease,
    PoolState,
    Prepare,
    Resized,
    Spawn,
    Spawned,
    SpawnerReady,
    ToHttp,
    ToSpawner,
    Withdraw,
)
from sandrun.pool import policy
from sandrun.pool.cgroup.hierarchy import Hierarchy
from sandrun.pool.cgroup.job_group import JobGroup
from sandrun.pool.estate import Estate
from sandrun.pool.lifecycle import Event, State, step
from sandrun.pool.mounts import GID, JOB_UID
from sandrun.pool.native.build import Native
from sandrun.pool.pressure import HostMemory, Pressure
from sandrun.pool.spawner import OUTER_IDS
from sandrun.pool.supplies import Supplies
from sandrun.pool.zygote.serve import INDEX_ROOM
from sandrun.restart import Restart
from sandrun.store import Sandbox

log = logging.getLogger(__name__)

INODES_PER_MIB: Final = 160  # 100 MB hold 16,000 files
BOOT_TIMEOUT_S: Final = 120.0  # a cold disk, a loaded machine, an emulated one
UNWATCHED_EVERY_S: Final = 0.02  # a killed PID 1 ends in less
ADOPTED_EVERY_S: Final = 0.05  # while we stop; see reap_adopted
ADOPTED_LOOKS: Final = 10  # a second apart, after a spawner's end
SEND_BUFFER: Final = 4 * MAX_MESSAGE
UNPACK_S: Final = 60.0  # PID 1 gives unpacking so long
WATCHDOG_MARGIN_S: Final = 30.0  # http's own watchdog comes first
WATCHDOG_PERIOD_S: Final = 10.0
PRESSURE_PERIOD_S: Final = 1.0
IDLE_PERIOD_S: Final = 5.0  # of the same look, while no job runs: an idle node sleeps
MEMORY_FRESH_S: Final = 0.2
REPORT_EVERY_S: Final = 0.02  # a job changes the pool four times; nobody needs them all


@dataclass(eq=False)
class Zygote:
    """One sandbox, as the supervisor sees it."""

    id: int
    kind: Kind
    slot: int
    group: JobGroup
    tmpfs: int  # for a change of its size
    lease_fds: tuple[int, ...]  # http's ends, until they are leased
    state: State = State.ORDERED
    pid: int = 0
    pidfd: int = -1
    spawner: int = 0  # the pid of its spawner
    assist: int = -1  # its assistant's end of their socket, for a successor
    deadline: asyncio.TimerHandle | None = None
    leased: bool = False  # this http has it
    ordered: float = 0.0  # when
    busy_since: float = 0.0


@dataclass(eq=False)
class Kind:
    """One sort of zygote: what already runs in it when it is leased."""

    environment: str
    warm: str  # an interpreter's name, or "exec"
    mode: str
    ready: int  # the floor
    wants: dict[str, int] = field(default_factory=dict)  # jobs that wait, by interpreter
    restart: Restart = field(default_factory=Restart)
    paused: bool = False  # between a failed boot and the next try
    counts: Counter[State] = field(default_factory=Counter)  # its zygotes
    demand: policy.Demand = field(default_factory=policy.Demand)
    lazy_until: float = 0.0  # a refill is held back until then
    shrink: asyncio.TimerHandle | None = None

    @property
    def wanted(self) -> int:
        """How many jobs wait for one."""
        return sum(self.wants.values())

    @property
    def coming(self) -> int:
        """How many are being made."""
        return self.counts[State.ORDERED] + self.counts[State.BOOTING]

    @property
    def stock(self) -> int:
        """How many are ready, or will be."""
        return self.coming + self.counts[State.LEASED]


class Spawner:
    """The supervisor's side of one spawner process."""

    def __init__(self, name: str, environment: Environment, index: int) -> None:
        self.name = name
        self.environment = environment
        self.index = index
        self.process: subprocess.Popen[bytes] | None = None
        self.pidfd = -1
        self.namespace = -1  # its user namespace, when it is up
        self.channel: Channel[ToSpawner, FromSpawner] | None = None
        self.interpreters: tuple[InterpreterInfo, ...] = ()
        self.ready = asyncio.Event()
        self.restart = Restart()
        self.up = False
        self.retired = False  # its environment has been removed
        self.deadline: asyncio.TimerHandle | None = None  # to be up


class Manager:
    """Owns spawners, zygotes, slots and job groups.

    ``to_http``: sends to http, dropping the message if there is no http now.
    ``hear_http``: handles what http has already sent. ``on_gone``: a zygote is reaped.
    ``records``: how many entries the store holds, for http to tell.
    ``directories``: host directory of each environment's packages, or "".
    """

    def __init__(
        self,
        config: Config,
        hierarchy: Hierarchy,
        programs: dict[str, bytes],
        directories: dict[str, str],
        *,
        landlock: bool,
        noswap: bool,
        native: Native | None = None,
        to_http: Callable[[ToHttp, tuple[int, ...]], None],
        hear_http: Callable[[], None] = lambda: None,
        on_gone: Callable[[int], None] = lambda _: None,
        records: Callable[[], int] = lambda: 0,
        supplies: Supplies | None = None,
    ) -> None:
        self.supplies = supplies or Supplies()
        self.pressure = Pressure()
        self._memory = (-1.0, HostMemory(0, 1 << 40))  # when it was looked at, and what was seen
        self.config = config
        self.hierarchy = hierarchy
        self.programs = programs
        self.directories = directories
        self.landlock = landlock
        self.noswap = noswap
        self.native = native
        self.to_http = to_http
        self.hear_http = hear_http
        self.on_gone = on_gone
        self.records = records
        self._records_told = 0
        self.loop = asyncio.get_running_loop()
        self.spawners = {
            name: Spawner(name, environment, index)
            for index, (name, environment) in enumerate(config.environments.items())
        }
        self.estates: list[Estate] = []  # of spawners that died
        self.kinds: list[Kind] = []
        self.zygotes: dict[int, Zygote] = {}
        self.counts: Counter[State] = Counter()  # of all zygotes
        self.leasing = False  # http is there to take leases
        maxima = config.limits.maxima
        # Build and entrypoint each have the time-out.
        grace = config.pool.watchdog_seconds + WATCHDOG_MARGIN_S
        self.watchdog_s = 2 * maxima.timeout_s + UNPACK_S + grace
        self.stopping = False
        self._next_index = len(self.spawners)  # of the ids' ranges
        self._free_indices: list[int] = []
        self._next_id = 1
        self._next_slot = 0
        self._next_group = 0
        self._free_slots: list[int] = []
        self._free_groups: list[JobGroup] = []
        self._refill_due = False
        self._due: set[Kind] = set()  # of which too few may be there
        self._report: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    # ── spawners ─────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Start the spawners and wait until each is ready or has failed for good.

        Raises :class:`SetupError` if the default environment's cannot be made.
        """
        for spawner in self.spawners.values():
            self._start_spawner(spawner)
        for spawner in self.spawners.values():
            await spawner.ready.wait()
        default = self.spawners["default"]
        if not default.up:
            raise SetupError("spawner", 0, default.restart.cause)
        for spawner in self.spawners.values():
            self._add_kinds(spawner)
        self.loop.call_later(WATCHDOG_PERIOD_S, self._watch)
        self._look_at_host()

    async def add_environment(self, name: str, environment: Environment, directory: str) -> None:
        """One more environment, while we run. Raises :class:`SetupError`."""
        if self._free_indices:
            index = self._free_indices.pop()
        else:
            index = self._next_index
            self._next_index += 1
        spawner = self.spawners[name] = Spawner(name, environment, index)
        self.directories[name] = directory
        self._start_spawner(spawner)
        await spawner.ready.wait()
        if not spawner.up:
            self.remove_environment(name)
            raise SetupError("spawner", 0, spawner.restart.cause)
        self._add_kinds(spawner)
        self.refill()

    def remove_environment(self, name: str) -> None:
        """End an environment that was added; a job that runs in it goes on."""
        spawner = self.spawners.pop(name)
        spawner.retired = True
        del self.directories[name]
        self.kinds = [kind for kind in self.kinds if kind.environment != name]
        if spawner.process and spawner.process.returncode is None:
            spawner.process.kill()  # what it had ordered goes in _on_spawner_exit
        for zygote in list(self.zygotes.values()):
            if zygote.kind.environment != name or zygote.state is State.BUSY:
                continue
            if zygote.state is State.LEASED:
                self.to_http(Withdraw(zygote=zygote.id), ())
            self.kill(zygote.id)

    def is_idle(self, name: str) -> bool:
        """Whether no job waits for this environment or runs in it."""
        return not any(
            kind.wanted or kind.counts[State.BUSY]
            for kind in self.kinds
            if kind.environment == name
        )

    def _add_kinds(self, spawner: Spawner) -> None:
        """Those that there are not yet: which interpreters there are, it says when it is up."""
        known = {(kind.environment, kind.warm) for kind in self.kinds}
        kinds = self._kinds_of(spawner)
        self.kinds += (kind for kind in kinds if (kind.environment, kind.warm) not in known)

    def _kinds_of(self, spawner: Spawner) -> list[Kind]:
        env = spawner.environment
        found = {info.name for info in spawner.interpreters}
        ready = env.ready if env.ready >= 0 else self.config.pool.ready
        kinds = [Kind(spawner.name, "exec", "exec", max(1, ready // 2))]
        for name, interpreter in self.config.interpreters.items():
            mode = interpreter.mode
            count = interpreter.ready
            if name == env.interpreter:
                mode = env.mode or mode
                count = count or ready
            if name in found and mode != "exec" and count:
                kinds.append(Kind(spawner.name, name, mode, count))
        return kinds

    def _start_spawner(self, spawner: Spawner) -> None:
        spawner.restart.on_start(time.monotonic())
        try:
            self._exec_spawner(spawner)
        except OSError as error:  # no process, memory or descriptor; it may pass
            spawner.restart.cause = str(error)
            self._spawner_failed(spawner)

    def _exec_spawner(self, spawner: Spawner) -> None:
        """Raises OSError, and nothing is left then."""
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            control, end = pair()
            ours.callback(control.close)
            theirs.callback(end.close)
            for sock in (control, end):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            control.setblocking(False)
            argv = [sys.executable, "-I", "-m", "sandrun.pool.spawner", str(end.fileno())]
            process = self.supplies.start(argv, (end.fileno(),))
            ours.callback(process.wait)
            ours.callback(process.kill)
            pidfd = self.supplies.watch(process.pid)
            ours.pop_all()
        spawner.process, spawner.pidfd = process, pidfd
        most_s = 2 * self.config.pool.watchdog_seconds  # modules to preload may be large
        spawner.deadline = self.loop.call_later(most_s, self._on_silent, spawner, most_s)
        spawner.channel = Channel(control, FromSpawner)
        spawner.channel.send(self._prepare(spawner), self.native or ())
        self.loop.add_reader(control.fileno(), self._on_spawner, spawner)
        self.loop.add_reader(pidfd, self._on_spawner_exit, spawner)

    def _prepare(self, spawner: Spawner) -> Prepare:
        config, env = self.config, spawner.environment
        return Prepare(
            environment=spawner.name,
            environment_dir=self.directories.get(spawner.name, ""),
            interpreter=env.interpreter,
            mode=env.mode or config.interpreters[env.interpreter].mode,
            preload=env.preload,
            template_jobs=config.pool.template_jobs,
            template_seconds=config.pool.template_seconds,
            uid_base=config.pool.uid_base + spawner.index * OUTER_IDS,
            interpreters={
                name: InterpreterSpec(command=i.command, extensions=i.extensions, mode=i.mode)
                for name, i in config.interpreters.items()
            },
            known_environments=tuple(config.environments),
            programs=self.programs,
            landlock=self.landlock,
            max_files=config.limits.files,
            default_limits=config.limits.defaults,
            max_limits=config.limits.maxima,
            native=self.native is not None,
        )

    def _on_spawner(self, spawner: Spawner) -> bool:
        """Handle one message. Returns whether there was one."""
        if spawner.channel is None:
            return False
        try:
            message, fds = spawner.channel.receive()
        except BlockingIOError:
            return False
        except (Closed, ProtocolError) as error:
            log.debug("spawner %s: %s", spawner.name, error or "closed")
            self.loop.remove_reader(spawner.channel.fileno())
            return False
        if isinstance(message, Spawned):
            self._on_spawned(spawner, message, fds)
            return True
        close_all(fds)
        match message:
            case SpawnerReady():
                self._keep_namespace(spawner)
                spawner.interpreters = message.interpreters
                spawner.restart.cause = ""
                _cancel_deadline(spawner)
                spawner.up = True
                self._add_kinds(spawner)
                spawner.ready.set()
                self.refill()
            case Booted():
                self._on_booted(message)
            case BootFailed():
                self._on_boot_failed(spawner, message)
        return True

    def _on_silent(self, spawner: Spawner, seconds: float) -> None:
        """It is there and does nothing: a module that it preloads may wait for ever."""
        assert spawner.process is not None
        spawner.restart.cause = f"it said nothing for {seconds:g} s"
        spawner.process.kill()
        spawner.ready.set()  # whoever waits for it is told, and the others can start

    def _on_spawner_exit(self, spawner: Spawner) -> None:
        assert spawner.process is not None
        code = spawner.process.wait()
        while self._on_spawner(spawner):
            pass  # its last words: what it had cloned is ours to end
        if not self.stopping:
            self._inherit(spawner)
        self._forget_spawner(spawner)
        if self.stopping:
            return
        if spawner.retired:
            self._drop_ordered(spawner)
            self._free_indices.append(spawner.index)
            return
        spawner.restart.cause = spawner.restart.cause or f"exit status {code}"
        self._spawner_failed(spawner)
        self._drop_ordered(spawner)

    def _keep_namespace(self, spawner: Spawner) -> None:
        """Without it (no descriptor, say) its sandboxes are lost with it and its assistant."""
        assert spawner.process is not None
        if self.native is not None and spawner.namespace < 0:
            with contextlib.suppress(OSError):
                path = f"/proc/{spawner.process.pid}/ns/user"
                spawner.namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def _inherit(self, spawner: Spawner) -> None:
        """Its sandboxes go on, and need somebody who unpacks and collects for them."""
        assert spawner.process is not None
        pid, namespace, spawner.namespace = spawner.process.pid, spawner.namespace, -1
        if namespace < 0:
            return

        def ends() -> list[int]:
            ours = (z for z in self.zygotes.values() if z.spawner == pid)
            return [zygote.assist for zygote in ours if zygote.assist >= 0]

        estate = Estate(
            pid,
            self._prepare(spawner),
            spawner.interpreters,
            namespace,
            self.supplies,
            ends,
            self._on_settled,
        )
        self.estates.append(estate)
        estate.settle()

    def _on_settled(self, estate: Estate) -> None:
        self.estates.remove(estate)
        self._reap_adopted(ADOPTED_LOOKS)

    def _known_children(self) -> set[int]:
        """Those whose end somebody here waits for."""
        assistants = {estate.pid for estate in self.estates}
        return {zygote.pid for zygote in self.zygotes.values()} | assistants

    def _spawner_failed(self, spawner: Spawner) -> None:
        spawner.up = False
        cause = spawner.restart.cause
        delay = spawner.restart.on_failure(time.monotonic(), cause)
        log.warning("spawner %s ended (%s); next try in %.2f s", spawner.name, cause, delay)
        if not spawner.ready.is_set() and spawner.restart.failures >= 3:
            spawner.ready.set()
        self.loop.call_later(delay, self._restart_spawner, spawner)
        self.report()

    def _drop_ordered(self, spawner: Spawner) -> None:
        for zygote in list(self.zygotes.values()):
            if zygote.kind.environment == spawner.name and zygote.state is State.ORDERED:
                self._gone(zygote)
        self._reap_adopted(ADOPTED_LOOKS)

    def _reap_adopted(self, looks: int) -> None:
        """What a spawner leaves behind ends just after it: on a busy machine, a while."""
        left = reap_adopted(self._known_children())
        if (looks or left) and not self.stopping:
            self.loop.call_later(1.0, self._reap_adopted, max(0, looks - 1))

    def _restart_spawner(self, spawner: Spawner) -> None:
        if not self.stopping and not spawner.retired:
            self._start_spawner(spawner)

    def _forget_spawner(self, spawner: Spawner) -> None:
        _cancel_deadline(spawner)
        self.loop.remove_reader(spawner.pidfd)
        os.close(spawner.pidfd)
        if spawner.channel:
            self.loop.remove_reader(spawner.channel.fileno())
            spawner.channel.close()
            spawner.channel = None

    # ── zygotes: birth ───────────────────────────────────────────────────────

    def refill(self, *kinds: Kind) -> None:
        """Order what is missing (of all kinds by default), once the loop has nothing more
        urgent to do.
        """
        self._due.update(kinds or self.kinds)
        if not self._refill_due and not self.stopping:
            self._refill_due = True
            self.loop.call_soon(self._refill)

    def _refill(self) -> None:
        self._refill_due = False
        if not self.leasing or self.stopping:
            return
        due, self._due = self._due, set()
        kinds = [kind for kind in self.kinds if kind in due]  # not those that are removed
        for kind in sorted(kinds, key=_urgency):
            self._fill(kind)

    def target(self, kind: Kind) -> int:
        """How many of a kind to keep ready now."""
        share = self._memory[1].available_share
        most = policy.ceiling_for(kind.ready, self.config.pool.ready_max, share)
        return kind.demand.target(self.loop.time(), min(kind.ready, most), most)

    def _fill(self, kind: Kind) -> None:
        target = self.target(kind)
        room = self.config.pool.capacity - self.counts[State.BUSY]
        wanted = min(kind.wanted, self.config.pool.ready_max)
        missing = policy.to_make(
            min(target, room), min(wanted, room), kind.stock, lazily=self._is_lazy(kind, target)
        )
        for _ in range(min(missing, policy.BOOTS_AT_ONCE - kind.coming)):
            if kind.paused or not self._order(kind):
                break

    def _is_lazy(self, kind: Kind, target: int) -> bool:
        """Whether a refill of it may wait for the jobs that run: for a moment only."""
        now = self.loop.time()
        if not self.counts[State.BUSY] or kind.stock >= target:
            kind.lazy_until = 0.0
            return False
        if not kind.lazy_until:
            kind.lazy_until = now + policy.HOLD_S
            self.loop.call_later(policy.HOLD_S, self.refill, kind)
        return now < kind.lazy_until

    def _look_for_surplus(self, kind: Kind) -> None:
        """Let some go that nobody has needed for a while; more of them later."""
        kind.shrink = None
        if self.stopping or not self.leasing:
            return
        surplus = max(0, kind.stock - max(self.target(kind), kind.wanted))
        spare = [z for z in self.zygotes.values() if z.kind is kind and z.state is State.LEASED]
        for zygote in spare[: (surplus + 1) // 2]:
            self.to_http(GiveBack(zygote=zygote.id), ())
        self._shrink_later(kind)

    def _shrink_later(self, kind: Kind) -> None:
        """Without surplus there is no timer: an idle node sleeps."""
        if kind.shrink is None and kind.stock > kind.ready:
            kind.shrink = self.loop.call_later(policy.SHRINK_EVERY_S, self._look_for_surplus, kind)

    def _order(self, kind: Kind) -> bool:
        spawner = self.spawners[kind.environment]
        kind.restart.on_start(time.monotonic())
        if not spawner.up or spawner.channel is None:
            return False
        try:
            zygote, fds = self._make(kind)
        except OSError as error:
            self._boot_failure(kind, f"supplies: {error}")
            return False
        except SetupError as error:
            self._boot_failure(kind, str(error))
            return False
        names, control_fds = zygote.group.control_files()
        try:
            spawner.channel.send(
                Spawn(
                    zygote=zygote.id,
                    warm=kind.warm,
                    mode=kind.mode,
                    slot=zygote.slot,
                    living=self._living(kind.environment),
                    control_files=names,
                ),
                (*fds, *control_fds),
            )
        except (BlockingIOError, Closed):
            self._gone(zygote)
            return False
        finally:
            close_all(list(fds[:3]))
        # To clone takes no time, to boot may: until then it is the spawner that is silent.
        most_s = self.config.pool.watchdog_seconds
        zygote.deadline = self.loop.call_later(most_s, self._on_silent, spawner, most_s)
        return True

    def _make(self, kind: Kind) -> tuple[Zygote, tuple[int, ...]]:
        """The supplies of one zygote, and the descriptors that PID 1 gets of them."""
        limits, files = self.config.limits, self.supplies.memory_file
        slot = self._free_slots.pop() if self._free_slots else self._new_slot()
        group = self._free_groups.pop() if self._free_groups else None
        fds: list[int] = []
        try:
            if group is None:
                group = self.supplies.group(self.hierarchy, self._next_group)
                self._next_group += 1
            tmpfs = self._tmpfs(self.spawners[kind.environment], slot)
            fds.append(tmpfs)
            log_w, log_r = files("sandrun-log", limits.maxima.log_bytes + JOURNAL_BYTES)
            fds += (log_w, log_r)
            size = limits.maxima.output_bytes + INDEX_ROOM
            outputs_w, outputs_r = files("sandrun-outputs", size)
            fds += (outputs_w, outputs_r)
            http_end, zygote_end = pair()
        except BaseException:
            close_all(fds)
            if group is not None:
                self._free_groups.append(group)
            self._free_slots.append(slot)
            raise
        for sock in (http_end, zygote_end):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        zygote = Zygote(
            self._next_id, kind, slot, group, tmpfs, (http_end.detach(), log_r, outputs_r)
        )
        self._next_id += 1
        self.zygotes[zygote.id] = zygote
        self._count(zygote, 1)
        zygote.ordered = self.loop.time()
        self._empty.clear()
        return zygote, (zygote_end.detach(), log_w, outputs_w, tmpfs)

    def _living(self, environment: str) -> int:
        """How many sandboxes of an environment exist."""
        return sum(kind.counts.total() for kind in self.kinds if kind.environment == environment)

    def _new_slot(self) -> int:
        self._next_slot += 1
        return self._next_slot - 1

    def _tmpfs(self, spawner: Spawner, slot: int) -> int:
        uid = self.config.pool.uid_base + spawner.index * OUTER_IDS + JOB_UID + 2 * slot
        options = _tmpfs_size(self.config.limits.defaults.storage_bytes)
        options |= {"mode": "700", "uid": str(uid), "gid": str(uid - JOB_UID + GID)}
        if self.noswap:
            options["noswap"] = ""
        return self.supplies.tmpfs(options)

    def _on_spawned(self, spawner: Spawner, message: Spawned, fds: list[int]) -> None:
        zygote = self.zygotes.get(message.zygote)
        if zygote is None or zygote.state is not State.ORDERED or len(fds) > 1:
            close_all(fds)
        elif fds:
            zygote.assist = fds[0]
        if zygote is None:
            return
        assert spawner.process is not None
        zygote.spawner = spawner.process.pid
        zygote.pid = message.pid
        _cancel_deadline(zygote)
        zygote.deadline = self.loop.call_later(BOOT_TIMEOUT_S, self._boot_timeout, zygote)
        try:
            zygote.pidfd = self.supplies.watch(message.pid)
        except OSError as error:  # nobody would hear of its end: it must not begin
            self._boot_failure(zygote.kind, f"supplies: {error}")
            self._end_unwatched(zygote)
            return
        self.loop.add_reader(zygote.pidfd, self._on_exit, zygote)
        self._advance(zygote, Event.SPAWNED)

    def _end_unwatched(self, zygote: Zygote) -> None:
        """A child of ours: its number is its own until we have waited for it."""
        os.kill(zygote.pid, signal.SIGKILL)
        if not os.waitpid(zygote.pid, os.WNOHANG)[0]:
            self.loop.call_later(UNWATCHED_EVERY_S, self._end_unwatched, zygote)
        elif zygote.id in self.zygotes:
            self._gone(zygote)

    def _on_booted(self, message: Booted) -> None:
        zygote = self.zygotes.get(message.zygote)
        if zygote is None or not self._advance(zygote, Event.BOOTED):
            return
        _cancel_deadline(zygote)
        kind = zygote.kind
        kind.restart.on_success()
        kind.demand.on_booted(self.loop.time() - zygote.ordered)
        self.refill(kind)
        self._shrink_later(kind)
        if zygote.state is not State.LEASED or not self.leasing:
            return  # the next http gets it
        self._lease(zygote)
        self._report_soon()

    def _lease(self, zygote: Zygote) -> None:
        """http gets duplicates; ours stay for the store, if the zygote gets a job."""
        kind = zygote.kind
        zygote.leased = True
        self.to_http(
            Lease(zygote=zygote.id, environment=kind.environment, warm=kind.warm), zygote.lease_fds
        )

    def _on_boot_failed(self, spawner: Spawner, message: BootFailed) -> None:
        cause = message.detail or os.strerror(message.errno)
        if not cause.startswith(f"{message.step}:"):
            cause = f"{message.step}: {cause}"
        zygote = self.zygotes.get(message.zygote)
        if zygote is None:  # the spawner itself
            spawner.restart.cause = cause
            log.error("environment %s: %s", spawner.name, cause)
            return
        self._boot_failure(zygote.kind, cause)
        if zygote.state is State.ORDERED:
            self._gone(zygote)
        else:
            self.kill(zygote.id)

    def _boot_failure(self, kind: Kind, cause: str) -> None:
        delay = kind.restart.on_failure(time.monotonic(), cause)
        log.warning(
            "zygote of %s/%s failed to boot: %s; next try in %.2f s",
            kind.environment,
            kind.warm,
            cause,
            delay,
        )
        if not kind.paused:
            kind.paused = True
            self.loop.call_later(delay, self._resume, kind)
        self.report()

    def _resume(self, kind: Kind) -> None:
        kind.paused = False
        self.refill()

    def _boot_timeout(self, zygote: Zygote) -> None:
        self._boot_failure(zygote.kind, f"no answer within {BOOT_TIMEOUT_S:g} s")
        self.kill(zygote.id)

    # ── zygotes: life and death ──────────────────────────────────────────────

    def bind(self, zygote_id: int) -> Sandbox | None:
        """http dispatches a job to it: its descriptors go into the store, and another is
        made when the time has come.

        None if it is not there to be taken.
        """
        zygote = self.zygotes.get(zygote_id)
        if zygote is None or zygote.state is not State.LEASED or not zygote.leased:
            return None
        self._advance(zygote, Event.TAKEN)
        zygote.busy_since = self.loop.time()
        zygote.kind.demand.on_taken(zygote.busy_since)
        self.refill(zygote.kind)
        self._report_soon()
        (sock, log_r, outputs_r), zygote.lease_fds = zygote.lease_fds, ()
        return Sandbox(zygote_id, zygote.kind.environment, zygote.kind.warm, sock, log_r, outputs_r)

    def _watch(self) -> None:
        """End jobs that should have ended long ago, whatever PID 1 or http think."""
        if self.stopping:
            return
        self.loop.call_later(WATCHDOG_PERIOD_S, self._watch)
        for zygote_id in self.overdue(self.loop.time()):
            log.error("zygote %d is busy for more than %g s: killed", zygote_id, self.watchdog_s)
            self.kill(zygote_id)

    def overdue(self, now: float) -> list[int]:
        """Zygotes that are busy for longer than any job may take."""
        return [
            z.id
            for z in self.zygotes.values()
            if z.state is State.BUSY and now - z.busy_since > self.watchdog_s
        ]

    def want(self, environment: str, warm: str, waiting: int) -> None:
        """So many jobs wait in http for zygotes of this kind, or of the generic one if
        there is no such kind.
        """
        kinds = {kind.warm: kind for kind in self.kinds if kind.environment == environment}
        kind = kinds.get(warm) or kinds.get("exec")
        if kind is None:
            return
        if waiting <= 0:
            kind.wants.pop(warm, None)
            return
        if warm in self.config.interpreters or warm == kind.warm:  # not any name that http says
            kind.wants[warm] = waiting
        needed = kind.wanted + kind.counts[State.BUSY]
        kind.demand.on_short(self.loop.time(), min(needed, self.config.pool.ready_max))
        self.refill(kind)

    def finished(self, zygote_id: int) -> None:
        """http has the result. PID 1 exits by itself; see that it does."""
        zygote = self.zygotes.get(zygote_id)
        if zygote is None:
            return
        unused = zygote.state is State.LEASED
        if not self._advance(zygote, Event.FINISHED):
            return
        if unused:
            self.kill(zygote_id)
        elif zygote.deadline is None:
            zygote.deadline = self.loop.call_later(1.0, self.kill, zygote_id)
        self._refill_after(zygote.kind)

    def kill(self, zygote_id: int) -> None:
        """End it and everything in it now. What follows is :meth:`_on_exit`."""
        zygote = self.zygotes.get(zygote_id)
        if zygote and zygote.pidfd >= 0:
            self._advance(zygote, Event.KILLED)
            with contextlib.suppress(ProcessLookupError):  # it has just been reaped: _on_exit
                signal.pidfd_send_signal(zygote.pidfd, signal.SIGKILL)

    def resize(self, zygote_id: int, storage_bytes: int) -> None:
        """Another storage size for a zygote whose job is about to be dispatched.

        A new http may ask again for a job that runs: it has this size already.
        """
        zygote = self.zygotes.get(zygote_id)
        if zygote is None or zygote.state not in (State.LEASED, State.BUSY):
            return
        most = self.config.limits.maxima.storage_bytes
        try:
            self.supplies.resize(zygote.tmpfs, _tmpfs_size(min(storage_bytes, most)))
        except OSError as error:
            log.warning("zygote %d: %s", zygote_id, error)
            self.kill(zygote_id)
            return
        self.to_http(Resized(zygote=zygote_id), ())

    def _advance(self, zygote: Zygote, event: Event) -> bool:
        """Move along the table; kill on doubt. Returns whether the event was expected."""
        state = step(zygote.state, event)
        if state is None:
            log.warning("zygote %d: %s while %s", zygote.id, event.name, zygote.state.name)
            if zygote.pidfd >= 0:
                self._move(zygote, State.ENDING)
                signal.pidfd_send_signal(zygote.pidfd, signal.SIGKILL)
            return False
        self._move(zygote, state)
        return True

    def _move(self, zygote: Zygote, state: State) -> None:
        self._count(zygote, -1)
        zygote.state = state
        self._count(zygote, 1)

    def _count(self, zygote: Zygote, change: int) -> None:
        """Counted as they move: with a thousand of them nobody looks through all."""
        zygote.kind.counts[zygote.state] += change
        self.counts[zygote.state] += change

    def _refill_after(self, kind: Kind) -> None:
        """One job or zygote fewer: its kind may be short, and those that had been held back
        for it, or for want of room.
        """
        room = self.config.pool.capacity - self.counts[State.BUSY]
        if not self.counts[State.BUSY] or room <= self.config.pool.ready_max:
            self.refill()
        else:
            self.refill(kind)

    def _on_exit(self, zygote: Zygote) -> None:
        """PID 1 has ended, and with it every process of its pid namespace."""
        try:
            info = os.waitid(os.P_PIDFD, zygote.pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            # Reaped already, as by what reap_adopted() does; its end is as certain.
            info = os.waitid_result((zygote.pid, 0, 0, 0, 0))
        if info is None:
            return
        if zygote.state is State.LEASED:
            # It may have got a job and run it: what http said of that is in its socket.
            self.hear_http()
        elif zygote.state is State.BOOTING:
            # Its last word, which says why, may still be in the spawner's socket.
            spawner = self.spawners.get(zygote.kind.environment)
            while spawner and self._on_spawner(spawner):
                pass
        before = zygote.state
        self._advance(zygote, Event.EXITED)
        if before is State.LEASED and zygote.leased:
            self.to_http(Withdraw(zygote=zygote.id), ())
        if before is State.BOOTING:
            cause = f"PID 1 ended while booting ({info.si_status})"
            self._boot_failure(zygote.kind, cause)
        self._gone(zygote)

    def _gone(self, zygote: Zygote) -> None:
        _cancel_deadline(zygote)
        if zygote.pidfd >= 0:
            self.loop.remove_reader(zygote.pidfd)
            os.close(zygote.pidfd)
        self._close_lease_fds(zygote)
        if zygote.assist >= 0:
            os.close(zygote.assist)
        os.close(zygote.tmpfs)
        del self.zygotes[zygote.id]
        self._count(zygote, -1)
        self.on_gone(zygote.id)
        self._free_slots.append(zygote.slot)
        self._release_group(zygote.group)
        if not self.zygotes:
            self._empty.set()
        self._refill_after(zygote.kind)
        self._report_soon()

    def _release_group(self, group: JobGroup) -> None:
        if not self.stopping and group.reset():
            self._free_groups.append(group)
        elif not group.destroy():
            self.loop.call_later(0.1, self._release_group, group)

    def _close_lease_fds(self, zygote: Zygote) -> None:
        close_all(zygote.lease_fds)
        zygote.lease_fds = ()

    # ── for others ───────────────────────────────────────────────────────────

    def open_leases(self) -> None:
        """http is there: give it what is ready and make what is missing."""
        self.leasing = True
        for zygote in self.zygotes.values():
            if zygote.state is State.LEASED and not zygote.leased:
                self._lease(zygote)
        for kind in self.kinds:
            self._shrink_later(kind)
        self.refill()
        self.report()

    def revoke_leases(self, holds: Callable[[int], bool], *, crashed: bool) -> None:
        """http is gone. Jobs that the store ``holds`` go on.

        What an http that crashed had in its hands idle is not trusted again: whoever
        took it over may have sent something. After an orderly end it is leased anew.
        """
        self.leasing = False
        for kind in self.kinds:
            kind.wants.clear()  # the next one says again what waits
        for zygote in list(self.zygotes.values()):
            orphan = zygote.state is State.BUSY and not holds(zygote.id)
            if orphan or (crashed and zygote.leased and zygote.state is State.LEASED):
                self.kill(zygote.id)
            zygote.leased = False

    @property
    def fault(self) -> str:
        """The first cause why jobs cannot be served, or ""."""
        for name in self.config.environments:  # those of requirements come and go
            spawner = self.spawners[name]
            if not spawner.up:
                return f"environment {spawner.name}: {spawner.restart.cause or 'starting'}"
        for kind in self.kinds:
            if kind.restart.fault and kind.environment in self.config.environments:
                return f"{kind.environment}/{kind.warm}: {kind.restart.fault}"
        return ""

    def _look_at_host(self) -> None:
        """Whether there is memory for one more job; http hears when that changes."""
        if self.stopping:
            return
        before = self.pressure.reason
        now = self._judge()
        if now or before or self.records() != self._records_told:
            self.report()
        low = self._memory[1].available_share < policy.LOW_SHARE
        watch = bool(now) or low or self.counts[State.BUSY] > 0
        self.loop.call_later(PRESSURE_PERIOD_S if watch else IDLE_PERIOD_S, self._look_at_host)
        if low:
            for kind in self.kinds:
                if kind.shrink is None:
                    self._look_for_surplus(kind)

    def _judge(self) -> str:
        """Why new jobs are refused now, or "": at each report, too, so with each job."""
        before = self.pressure.reason
        now = self.pressure.judge(self._look_at_memory())
        if bool(now) != bool(before):
            log.warning("new jobs are refused: %s" if now else "new jobs are taken again%s", now)
        return now

    def _look_at_memory(self) -> HostMemory:
        """What there is, a moment ago at most: a look costs as much as a message to http."""
        now = self.loop.time()
        if now - self._memory[0] > MEMORY_FRESH_S:
            seen = self._memory[1]
            with contextlib.suppress(OSError):  # no descriptor to look with: the last look counts
                seen = self.supplies.memory(self.hierarchy)
            self._memory = (now, seen)
        return self._memory[1]

    def _report_soon(self) -> None:
        if self._report is None and not self.stopping:
            self._report = self.loop.call_later(REPORT_EVERY_S, self.report)

    def report(self) -> None:
        """Tell http how the pool is doing."""
        if self._report is not None:
            self._report.cancel()
            self._report = None
        self._records_told = self.records()
        self.to_http(
            PoolState(
                warm=self.counts[State.LEASED],
                booting=self.counts[State.ORDERED] + self.counts[State.BOOTING],
                busy=self.counts[State.BUSY],
                capacity=self.config.pool.capacity,
                fault=self.fault[:4096],
                pressure=self._judge(),
                memory_available_bytes=self._look_at_memory().available_bytes,
                memory_missing_bytes=self.pressure.missing_bytes,
                records=self._records_told,
                kinds=tuple(self._state_of(kind) for kind in self.kinds),
            ),
            (),
        )

    def _state_of(self, kind: Kind) -> KindState:
        up = self.spawners[kind.environment].up
        return KindState(
            environment=kind.environment,
            warm=kind.warm,
            mode=kind.mode,
            coming=kind.coming,
            served=up and not kind.paused and not kind.restart.failures,
        )

    async def stop(self) -> None:
        """End every zygote and spawner; return when all are reaped."""
        self.stopping = True
        for spawner in self.spawners.values():
            if spawner.process and spawner.process.returncode is None:
                spawner.process.kill()
                spawner.process.wait()  # so that nobody is cloned any more
        for spawner in self.spawners.values():
            while spawner.channel and self._on_spawner(spawner):
                pass  # what it had still said
        for zygote in list(self.zygotes.values()):
            if zygote.state is State.ORDERED:
                self._gone(zygote)
            else:
                self.kill(zygote.id)
        while self.zygotes:
            reap_adopted(self._known_children())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), ADOPTED_EVERY_S)
        for estate in list(self.estates):
            estate.close()
        for group in self._free_groups:
            group.destroy()


def _cancel_deadline(owner: Spawner | Zygote) -> None:
    if owner.deadline is not None:
        owner.deadline.cancel()
        owner.deadline = None


def reap_adopted(known: set[int]) -> bool:
    """Collect what we inherited from a spawner, or a template, that died. Whether
    something of it lives on, as an assistant does.

    Between two forks a template has a child inside the sandbox's pid namespace but
    outside of its family. If it dies there, that child becomes ours, and the kernel lets
    the namespace's PID 1 end only when nobody is left in it, unreaped ones included: the
    zygote would never be gone. A spawner leaves its template, its assistant, programs
    that it asks for their version, and a PID 1 that it had cloned and not told us of.

    They are known by their session, which is their spawner's or their own; what we start
    and wait for ourselves is in ours, spawners aside. ``known``: PID 1s whose end :meth:`Manager._on_exit` sees.
    """
    ours = os.getsid(0)
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        children = {int(word) for word in file.read().split()} - known
    left = False
    for pid in children:
        with contextlib.suppress(OSError, StopIteration):
            leader = os.getsid(pid)
            if leader != ours and (leader != pid or _is_nested(pid)):
                left |= os.waitpid(pid, os.WNOHANG) == (0, 0)
    return left


def _is_nested(pid: int) -> bool:
    """Whether a process is in a pid namespace below ours. A parked one leads a session."""
    with open(f"/proc/{pid}/status", "rb") as file:
        ids = next(line for line in file if line.startswith(b"NSpid:")).split()[1:]
    return len(ids) > 1


def _tmpfs_size(storage_bytes: int) -> dict[str, str]:
    inodes = max(1024, storage_bytes // (1024 * 1024) * INODES_PER_MIB)
    return {"size": str(storage_bytes), "nr_inodes": str(inodes)}


def _urgency(kind: Kind) -> tuple[bool, float]:
    """Those that jobs wait for come first, then those of which least is left."""
    return not kind.wanted, kind.stock / max(1, kind.ready)
