"""Ready zygotes, the way to them, and the way to the supervisor. I/O; unprivileged.

The supervisor leases zygotes ahead of time: a dispatch is one datagram from here
to PID 1. This module moves messages and descriptors and keeps no opinion on jobs:
what comes in goes to a :class:`Listener`, in the order of ``messages.py``.

A zygote is a process that a hostile job has run beside. Whatever it sends out of
turn is a :class:`ProtocolError`: the zygote is killed and its job counts as lost.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol, assert_never

from sandrun.channel import Channel, Closed, close_all
from sandrun.errors import ProtocolError
from sandrun.http.jobs import Kept
from sandrun.logs import LogReader
from sandrun.messages import (
    Acknowledge,
    Cancel,
    Dispatch,
    Drain,
    Elsewhere,
    Finished,
    FromZygote,
    Kill,
    Lease,
    LogGrew,
    PoolState,
    Resize,
    Resized,
    Result,
    Started,
    Taken,
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
    from sandrun.job import JobSpec

LEASE_FDS: Final = 3  # socket, log, outputs
CANCEL_GRACE_S: Final = 2.0  # PID 1 kills and reports in milliseconds; then it counts as stuck
ANY: Final = "exec"  # the warm kind that runs everything


class Stage(Enum):
    """Where a leased zygote is."""

    READY = "ready"
    RESIZING = "resizing"
    DISPATCHED = "dispatched"
    STARTED = "started"
    GONE = "gone"


class Zygote:
    """One leased sandbox. Owned by :class:`Leases`."""

    __slots__ = (
        "cancelling",
        "channel",
        "environment",
        "id",
        "job",
        "kept",
        "pending",
        "stage",
        "warm",
    )

    def __init__(self, lease: Lease, channel: Channel[ToZygote, FromZygote], kept: Kept) -> None:
        self.id = lease.zygote
        self.environment = lease.environment
        self.warm = lease.warm
        self.channel = channel
        self.kept = kept
        self.stage = Stage.READY
        self.job: Job | None = None
        self.pending: Dispatch | None = None  # while it is being resized
        self.cancelling = False


class Listener(Protocol):
    """Who is told. Called from the event loop, never concurrently."""

    def on_welcome(self, welcome: Welcome) -> None:
        """The node introduces itself."""

    def on_pool_state(self, state: PoolState) -> None:
        """The pool has changed."""

    def on_drain(self, drain: Drain) -> None:
        """No more jobs."""

    def on_ready(self) -> None:
        """One more zygote."""

    def on_started(self, job: Job, started: Started) -> None:
        """Its first process runs."""

    def on_log(self, job: Job, end: int) -> None:
        """Its log has grown to ``end``."""

    def on_elsewhere(self, job: Job, spec: JobSpec) -> None:
        """It belongs into another sandbox; nothing has run."""

    def on_result(self, job: Job, result: Result) -> None:
        """The end."""

    def on_lost(self, job: Job, *, started: bool) -> None:
        """Its sandbox is gone without a result."""

    def on_supervisor_gone(self) -> None:
        """The control channel is closed."""


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
        self._outbox: deque[ToPool] = deque()
        self._zygotes: dict[int, Zygote] = {}
        self._ready: dict[str, dict[str, dict[int, Zygote]]] = {}
        self._of_job: dict[Job, Zygote] = {}
        self.ready_count = 0
        self._wanted: dict[tuple[str, str], int] = {}
        loop.add_reader(control.fileno(), self._on_control)

    # ── the supervisor ───────────────────────────────────────────────────────

    def send(self, message: ToPool) -> None:
        """To the supervisor, now or as soon as there is room."""
        if not self._outbox:
            try:
                self._control.send(message)
            except BlockingIOError:
                self._loop.add_writer(self._control.fileno(), self._flush)
            except Closed:
                return  # the read side says so too, once
            else:
                return
        self._outbox.append(message)

    def _flush(self) -> None:
        try:
            while self._outbox:
                self._control.send(self._outbox[0])
                self._outbox.popleft()
        except BlockingIOError:
            return
        except Closed:
            self._outbox.clear()
        self._loop.remove_writer(self._control.fileno())

    def _on_control(self) -> None:
        try:
            while True:
                message, fds = self._control.receive()
                self._on_message(message, fds)
        except BlockingIOError:
            return
        except Closed:
            self._loop.remove_reader(self._control.fileno())
            self._listener.on_supervisor_gone()

    def _on_message(self, message: ToHttp, fds: list[int]) -> None:
        if not isinstance(message, Lease):
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
            case PoolState():
                self._listener.on_pool_state(message)
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
        log = LogReader(fds[1], os.fstat(fds[1]).st_size)
        zygote = Zygote(lease, Channel(sock, FromZygote), Kept(log, fds[1], fds[2], os.close))
        self._zygotes[zygote.id] = zygote
        kinds = self._ready.setdefault(zygote.environment, {})
        kinds.setdefault(zygote.warm, {})[zygote.id] = zygote
        self.ready_count += 1
        self._loop.add_reader(sock.fileno(), self._on_zygote, zygote)
        self._listener.on_ready()

    def _on_withdraw(self, message: Withdraw) -> None:
        zygote = self._zygotes.get(message.zygote)
        if zygote is not None:
            self._lose(zygote, tell=False)

    def _on_resized(self, message: Resized) -> None:
        zygote = self._zygotes.get(message.zygote)
        if zygote is None or zygote.stage is not Stage.RESIZING or zygote.pending is None:
            return
        dispatch, zygote.pending = zygote.pending, None
        if not self._send_dispatch(zygote, dispatch):
            self._lose(zygote, tell=True)

    # ── ready zygotes ────────────────────────────────────────────────────────

    def has(self, environment: str) -> bool:
        """Whether a zygote of this environment is ready."""
        kinds = self._ready.get(environment)
        return kinds is not None and any(kinds.values())

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
        return zygote

    def dispatch(self, job: Job, warm: str) -> Kept | None:
        """Give ``job`` to a ready zygote. None if there is none.

        The descriptors are then the job's.
        """
        spec = job.spec
        upload = job.upload
        message = Dispatch(
            spec=spec,
            files=job.files,
            index_offset=upload.index_offset if upload else 0,
            index_size=upload.index_size if upload else 0,
            manifest_given=job.given,
        )
        while True:
            zygote = self._pick(spec.environment, warm)
            if zygote is None:
                return None
            zygote.job = job
            if spec.limits.storage_bytes != self._default_storage_bytes:
                zygote.stage = Stage.RESIZING
                zygote.pending = message
                self.send(Resize(zygote=zygote.id, storage_bytes=spec.limits.storage_bytes))
                break
            if self._send_dispatch(zygote, message):
                break
            zygote.job = None
            self._lose(zygote, tell=True)
        self._of_job[job] = zygote
        # Only now: a refill that starts earlier would compete for the processor.
        self.send(Taken(zygote=zygote.id))
        return zygote.kept

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
        """Tell the supervisor how many jobs wait for this kind, when that has changed."""
        kind = (environment, warm)
        if self._wanted.get(kind, 0) == waiting:
            return
        if waiting:
            self._wanted[kind] = waiting
        else:
            del self._wanted[kind]
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
        if job is None or zygote.stage not in {Stage.DISPATCHED, Stage.STARTED}:
            raise ProtocolError(f"{type(message).__name__} from a zygote without a job")
        match message:
            case Started():
                zygote.stage = Stage.STARTED
                self._listener.on_started(job, message)
            case LogGrew():
                self._listener.on_log(job, message.end)
            case Elsewhere():
                if zygote.stage is Stage.STARTED:
                    raise ProtocolError("Elsewhere after Started")
                self._retire(zygote)
                self.send(Finished(zygote=zygote.id))
                self._listener.on_elsewhere(job, message.spec)
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
        for zygote in list(self._zygotes.values()):
            self._retire(zygote)
        self._loop.remove_reader(self._control.fileno())
        self._control.close()
