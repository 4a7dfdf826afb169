"""Ready zygotes, the way to them, and the way to the supervisor. I/O; unprivileged.

The supervisor leases zygotes ahead of time: a dispatch is one datagram from here
to PID 1. This module moves messages and descriptors and keeps no opinion on jobs:
what comes in goes to a :class:`Listener` (listener.py), in the order of ``messages.py``.

A zygote is a process that a hostile job has run beside. Whatever it sends out of
turn is a :class:`ProtocolError`: the zygote is killed and its job counts as lost.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Final, assert_never

from sandrun import journal
from sandrun.channel import Channel, Closed, close_all
from sandrun.errors import ProtocolError
from sandrun.http.jobs import Kept
from sandrun.http.leased import Stage, Zygote, dispatch_of, kept_of, last_word
from sandrun.messages import (
    Acknowledge,
    Cancel,
    Dispatch,
    Drain,
    Elsewhere,
    Finished,
    FromZygote,
    GiveBack,
    HttpDeaths,
    Installed,
    InstallFailed,
    Kill,
    KindState,
    Lease,
    Leave,
    LogGrew,
    Ping,
    Pong,
    PoolState,
    Resize,
    Resized,
    Restored,
    Result,
    Spent,
    Started,
    StoreEntry,
    StoreState,
    ToHttp,
    ToPool,
    ToZygote,
    Want,
    Welcome,
    Withdraw,
)

if TYPE_CHECKING:
    import asyncio

    from sandrun.http.jobs import Job
    from sandrun.http.listener import Listener

log: Final = logging.getLogger("sandrun.http")

LEASE_FDS: Final = 3  # socket, log, outputs
CANCEL_GRACE_S: Final = 2.0  # PID 1 kills and reports in milliseconds; then it counts as stuck
ANY: Final = "exec"  # the warm kind that runs everything
FEWER_S: Final = 0.02  # how long the pool may think that more jobs wait than do
PATIENCE_S: Final = 2.0  # with the pool's word that a warm zygote is coming, if none comes


class Leases:
    """The pool as http sees it."""

    def __init__(
        self,
        control: socket.socket,
        listener: Listener,
        loop: asyncio.AbstractEventLoop,
        default_storage_bytes: int,
    ) -> None:
        control.setblocking(False)
        self._control: Channel[ToPool, ToHttp] = Channel(control, ToHttp)
        self._listener = listener
        self._loop = loop
        self._default_storage_bytes = default_storage_bytes
        self._outbox: deque[tuple[ToPool, tuple[int, ...]]] = deque()
        self._waiters: list[asyncio.Future[None]] = []
        self._zygotes: dict[int, Zygote] = {}
        self._ready: dict[str, dict[str, dict[int, Zygote]]] = {}
        self._of_job: dict[Job, Zygote] = {}
        self.ready_count = 0
        self._wanted: dict[tuple[str, str], int] = {}  # as it was told
        self._fewer: dict[tuple[str, str], int] = {}  # what is to be told
        self._fewer_timer: asyncio.TimerHandle | None = None
        self._kinds: dict[tuple[str, str], KindState] = {}
        self._came: dict[tuple[str, str], float] = {}  # when one was last leased, or missed
        self._patience: asyncio.TimerHandle | None = None
        loop.add_reader(control.fileno(), self._on_control)

    # ── the supervisor ───────────────────────────────────────────────────────

    def send(self, message: ToPool, fds: tuple[int, ...] = ()) -> None:
        """To the supervisor, now or as soon as there is room. ``fds`` stay the caller's."""
        if not self._outbox:
            try:
                self._control.send(message, fds)
            except BlockingIOError:
                self._loop.add_writer(self._control.fileno(), self._flush)
            except Closed:
                return  # the read side says so too, once
            else:
                return
        self._outbox.append((message, tuple(os.dup(fd) for fd in fds)))

    @property
    def is_clogged(self) -> bool:
        """Whether the supervisor is behind: what is recorded now is not safe yet."""
        return bool(self._outbox)

    async def recorded(self) -> None:
        """Wait until the supervisor has everything that was said."""
        if self._outbox:
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter

    def _flush(self) -> None:
        try:
            while self._outbox:
                message, fds = self._outbox[0]
                self._control.send(message, fds)
                close_all(fds)
                self._outbox.popleft()
        except BlockingIOError:
            return
        except Closed:
            for _, fds in self._outbox:
                close_all(fds)
            self._outbox.clear()
        self._loop.remove_writer(self._control.fileno())
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()
        self._listener.on_ready()

    def _on_control(self) -> None:
        try:
            while True:
                message, fds = self._control.receive()
                self._on_message(message, fds)
        except BlockingIOError:
            return
        except (Closed, ProtocolError) as error:
            # A message that is lost (a lease for which we had no descriptor left, say)
            # would be missed for ever: the next http is told everything anew.
            if isinstance(error, ProtocolError):
                log.error("the supervisor is not understood: %s", error)
            self._loop.remove_reader(self._control.fileno())
            self._listener.on_supervisor_gone()

    def _on_message(self, message: ToHttp, fds: list[int]) -> None:
        if not isinstance(message, Lease | StoreEntry):
            close_all(fds)
        match message:
            case Lease():
                self._on_lease(message, fds)
            case Withdraw():
                self._on_withdraw(message)
            case Resized():
                self._on_resized(message)
            case Welcome():
                self._listener.on_welcome(message)
            case Ping():
                self.send(Pong())
            case StoreEntry():
                self._listener.on_entry(message, fds)
            case Restored():
                self._listener.on_restored(message)
            case StoreState():
                self._listener.on_store_state(message)
            case Leave():
                self._listener.on_leave(message)
            case GiveBack():
                self._give_back(message.zygote)
            case PoolState():
                self._kinds = {(kind.environment, kind.warm): kind for kind in message.kinds}
                self._listener.on_pool_state(message)
            case HttpDeaths():
                self._listener.on_http_deaths(message)
            case Installed() | InstallFailed():
                self._listener.on_installed(message)
            case Drain():
                self._listener.on_drain(message)
            case _:
                assert_never(message)

    def _on_lease(self, lease: Lease, fds: list[int]) -> None:
        if len(fds) != LEASE_FDS or lease.zygote in self._zygotes:
            close_all(fds)
            raise ProtocolError(f"Lease({lease.zygote}) with {len(fds)} descriptors")
        sock = socket.socket(fileno=fds[0])
        sock.setblocking(False)
        zygote = Zygote(lease, Channel(sock, FromZygote), kept_of(fds[1], fds[2]))
        self._zygotes[zygote.id] = zygote
        kinds = self._ready.setdefault(zygote.environment, {})
        kinds.setdefault(zygote.warm, {})[zygote.id] = zygote
        self.ready_count += 1
        self._came[zygote.environment, zygote.warm] = self._loop.time()
        self._loop.add_reader(sock.fileno(), self._on_zygote, zygote)
        self._listener.on_ready()

    def _on_withdraw(self, message: Withdraw) -> None:
        zygote = self._zygotes.get(message.zygote)
        if zygote is not None:
            self._lose(zygote, tell=False)

    def _give_back(self, zygote_id: int) -> None:
        zygote = self._zygotes.get(zygote_id)
        if zygote is None or zygote.stage is not Stage.READY or zygote.job is not None:
            return  # it is needed after all
        self._retire(zygote)
        zygote.kept.release()
        self.send(Finished(zygote=zygote_id))

    def _on_resized(self, message: Resized) -> None:
        zygote = self._zygotes.get(message.zygote)
        if zygote is None or zygote.stage is not Stage.RESIZING or zygote.pending is None:
            return
        dispatch, zygote.pending = zygote.pending, None
        if not self._send_dispatch(zygote, dispatch):
            self._lose(zygote, tell=True)

    # ── ready zygotes ────────────────────────────────────────────────────────

    def can_start(self, environment: str, warm: str, waiting: int) -> bool:
        """Whether a job that wants this kind should start now, if ``waiting`` jobs (this
        one too) wait for it.

        Not in a generic zygote if a warm one is due: a cold start of an interpreter that a
        template could have forked costs ten times the processor time, which is then
        missing for everybody's next zygote; it is how a pool that was briefly empty stays
        empty. For a ``door`` it costs the same as making one more: the first in line wait
        for those that are coming, the others start cold. Nor is a warm one taken for
        something else while a generic one is coming.
        """
        kinds = self._ready.get(environment)
        if not kinds or not any(kinds.values()):
            return False
        if kinds.get(warm):
            return True
        if self._is_due(environment, warm, waiting):
            return False
        return bool(kinds.get(ANY)) or not self._is_due(environment, ANY, waiting)

    def _is_due(self, environment: str, warm: str, waiting: int) -> bool:
        kind = self._kinds.get((environment, warm))
        if kind is None or not kind.served or (kind.mode != "fork" and kind.coming < waiting):
            return False
        now = self._loop.time()
        if now - self._came.setdefault((environment, warm), now) < PATIENCE_S:
            self._look_again()
            return True
        return False

    def _look_again(self) -> None:
        """Whoever waits for a promise is asked again when it should have been kept."""
        if self._patience is None:
            self._patience = self._loop.call_later(PATIENCE_S, self._lose_patience)

    def _lose_patience(self) -> None:
        self._patience = None
        self._listener.on_ready()

    def warm_count(self, environment: str) -> int:
        """How many are ready."""
        return sum(len(zygotes) for zygotes in self._ready.get(environment, {}).values())

    def has_warm(self, environment: str, warm: str) -> bool:
        """Whether one with this interpreter already running is ready."""
        return bool(self._ready.get(environment, {}).get(warm))

    def _pick(self, environment: str, warm: str) -> Zygote | None:
        """Exactly this kind, else the generic one, else any of the environment."""
        kinds = self._ready.get(environment)
        if not kinds:
            return None
        zygotes = kinds.get(warm) or kinds.get(ANY)
        if not zygotes:
            zygotes = next((some for some in kinds.values() if some), None)
            if zygotes is None:
                return None
        _, zygote = zygotes.popitem()
        self.ready_count -= 1
        if not zygotes:  # from now on we wait for the next
            self._came[zygote.environment, zygote.warm] = self._loop.time()
        return zygote

    def dispatch(self, job: Job, warm: str) -> Kept | None:
        """Give ``job`` to a ready zygote. None if there is none now.

        The descriptors are then the job's.
        """
        zygote = self._give(job, warm)
        if zygote is None:
            return None
        self._of_job[job] = zygote
        return zygote.kept

    def _give(self, job: Job, warm: str) -> Zygote | None:
        """Record and send, until a zygote that is alive has it."""
        spec, message = job.spec, dispatch_of(job)
        while not self._outbox:  # a record that waits must not be overtaken by its Dispatch
            zygote = self._pick(spec.environment, warm)
            if zygote is None:
                return None
            zygote.job = job
            self._listener.on_dispatch(job, zygote.id)
            if self._outbox:
                # The record waits. The supervisor will believe that this one has the job.
                zygote.job = None
                self._lose(zygote, tell=True)
                return None
            if spec.limits.storage_bytes != self._default_storage_bytes:
                zygote.stage = Stage.RESIZING
                zygote.pending = message
                self.send(Resize(zygote=zygote.id, storage_bytes=spec.limits.storage_bytes))
                return zygote
            if self._send_dispatch(zygote, message):
                return zygote
            zygote.job = None
            self._lose(zygote, tell=True)
        return None

    # ── what an earlier http had dispatched ──────────────────────────────────

    def adopt(
        self, entry: StoreEntry, sock_fd: int, job: Job, kept: Kept, *, started: bool
    ) -> None:
        """Go on with the zygote that has ``job``.

        Whether the Dispatch was sent is not known, and need not be: it is said again,
        and a zygote that has one already ignores it.
        """
        sock = socket.socket(fileno=sock_fd)
        sock.setblocking(False)
        zygote = Zygote(entry, Channel(sock, FromZygote), kept)
        zygote.job = job
        zygote.restored = True
        zygote.stage = Stage.STARTED if started else Stage.DISPATCHED
        self._zygotes[zygote.id] = zygote
        self._of_job[job] = zygote
        self._loop.add_reader(sock.fileno(), self._on_zygote, zygote)
        if started:
            return
        message = dispatch_of(job)
        if job.spec.limits.storage_bytes != self._default_storage_bytes:
            zygote.stage = Stage.RESIZING
            zygote.pending = message
            self.send(Resize(zygote=zygote.id, storage_bytes=job.spec.limits.storage_bytes))
        elif not self._send_dispatch(zygote, message):
            # Dead; what it had said before comes first, and then its end.
            zygote.stage = Stage.DISPATCHED

    def dismiss(self, entry: StoreEntry, sock_fd: int) -> None:
        """Its result is known: it may go."""
        assert entry.zygote is not None
        sock = socket.socket(fileno=sock_fd)
        sock.setblocking(False)
        channel: Channel[ToZygote, FromZygote] = Channel(sock, FromZygote)
        try:
            channel.send(Acknowledge())
        except (Closed, BlockingIOError):
            pass
        channel.close()
        self.send(Finished(zygote=entry.zygote))

    def _send_dispatch(self, zygote: Zygote, message: Dispatch) -> bool:
        job = zygote.job
        assert job is not None
        fds = (job.upload.fd,) if job.upload else ()
        try:
            zygote.channel.send(message, fds)
        except (Closed, BlockingIOError):
            return False
        zygote.stage = Stage.DISPATCHED
        return True

    def want(self, environment: str, warm: str, waiting: int) -> None:
        """Tell the supervisor how many jobs wait for this kind: more of them at once,
        fewer a moment later. In a full queue the number goes up and down with each job.
        """
        kind = (environment, warm)
        told = self._wanted.get(kind, 0)
        if waiting > told:
            self._fewer.pop(kind, None)
            self._tell_wanted(kind, waiting)
        elif waiting < told:
            self._fewer[kind] = waiting
            if self._fewer_timer is None:
                self._fewer_timer = self._loop.call_later(FEWER_S, self._tell_fewer)
        else:
            self._fewer.pop(kind, None)

    def _tell_fewer(self) -> None:
        self._fewer_timer = None
        fewer, self._fewer = self._fewer, {}
        for kind, waiting in fewer.items():
            self._tell_wanted(kind, waiting)

    def _tell_wanted(self, kind: tuple[str, str], waiting: int) -> None:
        if waiting:
            self._wanted[kind] = waiting
        else:
            del self._wanted[kind]
        environment, warm = kind
        self.send(Want(environment=environment, warm=warm, waiting=waiting))

    # ── zygotes with a job ───────────────────────────────────────────────────

    def cancel(self, job: Job) -> None:
        """Ask PID 1 to kill the job; if no Result comes, end the sandbox."""
        zygote = self._of_job.get(job)
        if zygote is None or zygote.cancelling:
            return
        zygote.cancelling = True
        if zygote.stage is Stage.RESIZING:
            self._lose(zygote, tell=True)
            return
        try:
            zygote.channel.send(Cancel())
        except (Closed, BlockingIOError):
            self._lose(zygote, tell=True)
            return
        self._loop.call_later(CANCEL_GRACE_S, self._give_up, zygote)

    def kill(self, job: Job) -> None:
        """End the sandbox of a job that is stuck or no longer wanted."""
        zygote = self._of_job.get(job)
        if zygote is not None:
            self._lose(zygote, tell=True)

    def _give_up(self, zygote: Zygote) -> None:
        if zygote.stage is not Stage.GONE:
            self._lose(zygote, tell=True)

    def _on_zygote(self, zygote: Zygote) -> None:
        try:
            while zygote.stage is not Stage.GONE:
                message, fds = zygote.channel.receive()
                close_all(fds)
                self._on_letter(zygote, message)
        except BlockingIOError:
            return
        except Closed:
            self._lose(zygote, tell=False)
        except ProtocolError:
            self._lose(zygote, tell=True)

    def _on_letter(self, zygote: Zygote, message: FromZygote) -> None:
        job = zygote.job
        if zygote.restored and zygote.stage is Stage.RESIZING:
            zygote.stage, zygote.pending = Stage.DISPATCHED, None  # it had its Dispatch
        if job is None or zygote.stage not in {Stage.DISPATCHED, Stage.STARTED}:
            raise ProtocolError(f"{type(message).__name__} from a zygote without a job")
        match message:
            case Started():
                zygote.stage = Stage.STARTED
                self._listener.on_started(job, message)
            case LogGrew():
                self._listener.on_log(job, message.end)
            case Spent():
                self._listener.on_spent(job, message.cpu_seconds)
            case Elsewhere():
                if zygote.stage is Stage.STARTED:
                    raise ProtocolError("Elsewhere after Started")
                self._retire(zygote)
                self.send(Finished(zygote=zygote.id))
                self._listener.on_elsewhere(job, message.spec, message.requirements)
            case Result():
                # The waiting request is woken first: what follows here only cleans up.
                self._listener.on_result(job, message)
                self._loop.call_soon(self._finish, zygote)
                del self._of_job[job]
                zygote.job = None
            case _:
                assert_never(message)

    def _finish(self, zygote: Zygote) -> None:
        if zygote.stage is Stage.GONE:
            return
        try:
            zygote.channel.send(Acknowledge())
        except (Closed, BlockingIOError):
            pass  # it is gone already; Finished says the rest
        self._retire(zygote)
        self.send(Finished(zygote=zygote.id))

    def _lose(self, zygote: Zygote, *, tell: bool) -> None:
        """The zygote is dead, or no longer believed."""
        if zygote.stage is Stage.GONE:
            return
        job, started = zygote.job, zygote.stage is Stage.STARTED
        if zygote.restored and not started:
            started = last_word(zygote.kept, journal.STARTED) is not None
        unused = zygote.stage is Stage.READY and job is None
        self._retire(zygote)
        if tell:
            self.send(Kill(zygote=zygote.id))
        elif not unused:
            self.send(Finished(zygote=zygote.id))
        if unused:
            zygote.kept.release()
        if job is not None:
            self._listener.on_lost(job, started=started)

    def _retire(self, zygote: Zygote) -> None:
        ready = self._ready.get(zygote.environment, {}).get(zygote.warm, {})
        if ready.pop(zygote.id, None) is not None:
            self.ready_count -= 1
        zygote.stage = Stage.GONE
        self._zygotes.pop(zygote.id, None)
        if zygote.job is not None:
            self._of_job.pop(zygote.job, None)
            zygote.job = None
        self._loop.remove_reader(zygote.channel.fileno())
        zygote.channel.close()

    def close(self) -> None:
        """Let every zygote and the supervisor go."""
        for timer in (self._patience, self._fewer_timer):
            if timer is not None:
                timer.cancel()
        for zygote in list(self._zygotes.values()):
            self._retire(zygote)
        self._loop.remove_reader(self._control.fileno())
        self._control.close()
