"""Every job this node knows: its phase as a table, its ids, its end. Pure.

::

    QUEUED ──dispatched──▶ DISPATCHED ──started──▶ RUNNING ──ended──▶ ENDED
       ▲                        │
       └──────── returned ──────┘   (the sandbox died before it ran anything, or the
                                     job belongs into another environment)

A job id is a secret: whoever has it owns the job. A view id reads and cannot
change. Ids are looked up by a keyed hash, so the time that a comparison takes
says nothing about how near a guess was.

The registry holds descriptors but does no I/O: it tells its owner what to release.
The clock is an argument; ``now`` is monotonic seconds, ``wall`` seconds since 1970.
"""

from __future__ import annotations

import hashlib
import heapq
from base64 import urlsafe_b64encode
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec

from sandrun.job import MIB, ExitReason, JobSpec, OutputFile, Usage, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandrun.config import Retention
    from sandrun.http.quota import Client
    from sandrun.logs import LogReader
    from sandrun.messages import InlineFile

ID_BYTES: Final = 18  # 144 bits: 24 characters without padding
MIN_QUEUE_S: Final = 60.0  # a job with a time-out of a second may still wait its turn
WATCHDOG_S: Final = 60.0  # past all of a job's own limits: unpacking and collecting included
JOB_BYTES: Final = 16 * 1024  # of a job that left nothing: its record and two descriptors' pages
WORTH_BYTES: Final = 64 * 1024  # beside that: what is less makes no room on a host that is short
READ_GRACE_S: Final = 300.0  # a failed job stays so long after somebody looked at it


class Phase(Enum):
    """Where a job is. The contract's ``status`` words are derived from it."""

    QUEUED = "queued"
    DISPATCHED = "dispatched"
    RUNNING = "running"
    ENDED = "ended"


class Event(Enum):
    """What can happen to a job."""

    DISPATCH = "dispatch"
    START = "start"
    RETURN = "return"
    END = "end"


TRANSITIONS: Final = {
    (Phase.QUEUED, Event.DISPATCH): Phase.DISPATCHED,
    (Phase.QUEUED, Event.END): Phase.ENDED,  # cancelled or expired while it waited
    (Phase.DISPATCHED, Event.START): Phase.RUNNING,
    (Phase.DISPATCHED, Event.RETURN): Phase.QUEUED,
    (Phase.DISPATCHED, Event.END): Phase.ENDED,
    (Phase.RUNNING, Event.START): Phase.RUNNING,  # the build command, then the entrypoint
    (Phase.RUNNING, Event.END): Phase.ENDED,
}


class Upload:
    """A sealed memory descriptor with a job's files. Owned by its job."""

    __slots__ = ("fd", "index_offset", "index_size", "size")

    def __init__(self, fd: int, index_offset: int, index_size: int) -> None:
        self.fd = fd
        self.index_offset = index_offset
        self.index_size = index_size
        self.size = index_offset + index_size


class Kept:
    """Descriptors of a job's log and outputs, shared by the job and its readers.

    Closed by ``close`` when the last holder has let go, so that a download whose
    job is deleted meanwhile goes on with the bytes it was promised.
    """

    __slots__ = ("_close", "_holders", "log", "log_fd", "outputs_fd")

    def __init__(
        self, log: LogReader, log_fd: int, outputs_fd: int, close: Callable[[int], None]
    ) -> None:
        self.log = log
        self.log_fd = log_fd
        self.outputs_fd = outputs_fd
        self._close = close
        self._holders = 1

    def hold(self) -> Kept:
        """One more holder, who owes a :meth:`release`."""
        self._holders += 1
        return self

    def release(self) -> None:
        """One holder less."""
        self._holders -= 1
        if self._holders == 0:
            self._close(self.log_fd)
            self._close(self.outputs_fd)


class Job:
    """One job. Changed by the registry's owner through the ``on_`` methods only."""

    __slots__ = (
        "admitted",
        "cancelled",
        "charge",
        "charged_s",
        "client",
        "deadline",
        "dispatched",
        "ended",
        "files",
        "given",
        "id",
        "idempotency_key",
        "install_cpu_s",
        "install_log",
        "install_s",
        "installing",
        "job_hash",
        "kept",
        "key",
        "log_end",
        "outputs",
        "phase",
        "recorded",
        "returned",
        "skipped",
        "spec",
        "started",
        "submitted",
        "upload",
        "usage",
        "verdict",
        "view_id",
        "wall_offset",
        "watched",
        "watchers",
    )

    def __init__(
        self,
        *,
        job_id: str,
        view_id: str,
        client: Client,
        spec: JobSpec,
        given: tuple[str, ...],
        files: tuple[InlineFile, ...],
        upload: Upload | None,
        charge: int,
        job_hash: str,
        admitted: float,
        now: float,
        wall: float,
    ) -> None:
        self.id = job_id
        self.view_id = view_id
        self.client = client
        self.spec = spec
        self.given = given
        self.files = files
        self.upload = upload
        self.charge = charge  # bytes owed to the upload budget
        self.charged_s = 0.0  # CPU seconds that its client has paid already
        self.job_hash = job_hash
        self.admitted = admitted  # when the quota let it in
        self.idempotency_key: str | None = None
        self.key = 0  # of its record in the supervisor's store
        self.recorded = False  # the store has it
        self.phase = Phase.QUEUED
        self.submitted = now
        self.wall_offset = wall - now
        self.dispatched: float | None = None
        self.started: float | None = None
        self.ended: float | None = None
        self.deadline = now + max(spec.limits.timeout_s, MIN_QUEUE_S)
        self.watched: float | None = None  # when the registry looks at it next
        self.returned = 0
        self.installing = 0  # number of the request to install its requirements, or 0
        self.install_cpu_s = 0.0  # is charged like the job's own
        self.install_log = ""
        self.install_s: float | None = None  # None: there was nothing to install
        self.cancelled = False
        self.kept: Kept | None = None
        self.log_end = 0
        self.outputs: dict[str, OutputFile] = {}
        self.skipped: dict[str, str] = {}
        self.verdict: Verdict | None = None
        self.usage = Usage()
        self.watchers: set[Callable[[], None]] = set()

    @property
    def status(self) -> str:
        """The contract's word."""
        if self.phase is Phase.QUEUED:
            return "queued"
        if self.verdict is None:
            return "running"
        return "completed" if self.verdict.succeeded else "failed"

    @property
    def has_ended(self) -> bool:
        """Whether there is a verdict."""
        return self.phase is Phase.ENDED

    @property
    def exit_reason(self) -> ExitReason | None:
        """Why it ended, or None."""
        return self.verdict.exit_reason if self.verdict else None

    def notify(self) -> None:
        """Wake whoever follows this job."""
        for watcher in tuple(self.watchers):
            watcher()

    def _go(self, event: Event) -> None:
        self.phase = TRANSITIONS[self.phase, event]

    def on_dispatched(self, kept: Kept, now: float, watchdog_s: float = WATCHDOG_S) -> None:
        """A sandbox has it. Until it says so, nothing has run."""
        self._go(Event.DISPATCH)
        self.kept = kept
        self.dispatched = now
        limits = self.spec.limits
        # Build and entrypoint each have the time-out; PID 1 keeps it, this is the watchdog.
        runs = 2 if self.spec.build else 1
        self.deadline = now + runs * limits.timeout_s + watchdog_s
        self.notify()

    def on_started(self, spec: JobSpec, now: float) -> None:
        """Its first process runs; ``spec`` has every gap filled in."""
        self._go(Event.START)
        self.spec = spec
        if self.started is None:
            self.started = now
        self.notify()

    def on_log(self, end: int) -> None:
        """Its log has grown."""
        self.log_end = end
        self.notify()

    def on_returned(self, now: float, spec: JobSpec | None = None) -> None:
        """Back into the queue, nothing has run. ``spec``: what it turned out to be."""
        self._go(Event.RETURN)
        self.returned += 1
        self._drop_kept()
        if spec is not None:
            self.spec = spec
        self.deadline = now + max(self.spec.limits.timeout_s, MIN_QUEUE_S)
        self.notify()

    def on_installing(self, request: int, deadline: float) -> None:
        """It waits for its requirements."""
        self.installing = request
        self.deadline = max(self.deadline, deadline)
        self.notify()

    def on_install_answered(self, seconds: float, cpu_seconds: float, log: str) -> None:
        """The installer is done with it, well or not."""
        self.install_s = round(seconds, 3)
        self.install_cpu_s = cpu_seconds
        self.install_log = log

    def on_installed(self, environment: str, deadline: float) -> None:
        """They are there, in an environment of their own."""
        self.installing = 0
        # Both win over the archive's job.json: nothing is left to be installed.
        self.spec = msgspec.structs.replace(self.spec, environment=environment, requirements=None)
        self.given = tuple(dict.fromkeys((*self.given, "environment", "requirements")))
        self.deadline = max(self.deadline, deadline)
        self.notify()

    def on_ended(self, verdict: Verdict, usage: Usage, now: float) -> None:
        """The end; there is only one."""
        self._go(Event.END)
        self.verdict = verdict
        self.usage = usage
        self.ended = now
        self.files = ()
        self.notify()

    def _drop_kept(self) -> None:
        if self.kept is not None:
            self.kept.release()
            self.kept = None
        self.log_end = 0

    @property
    def retained_bytes(self) -> int:
        """Memory that this ended job's log and outputs hold."""
        return self.log_end + sum(file.size_bytes for file in self.outputs.values())

    def wall(self, moment: float | None) -> float | None:
        """A monotonic moment as seconds since 1970."""
        return None if moment is None else round(moment + self.wall_offset, 3)


class Registry:
    """All jobs: by secret, by idempotency key, by deadline."""

    def __init__(
        self,
        retention: Retention,
        random_bytes: Callable[[int], bytes],
        max_ended: int = 1_000_000,
    ) -> None:
        self._retention = retention
        self._max_ended = max_ended  # each holds two descriptors
        self._random = random_bytes
        self._key = random_bytes(32)
        self._by_secret: dict[bytes, tuple[Job, bool]] = {}
        self._by_idempotency: dict[tuple[int, str], Job] = {}
        self._ended: dict[Job, int] = {}  # oldest end first → bytes retained
        self._deadlines: list[tuple[float, int, Job]] = []
        self._count = 0
        self.retained_bytes = 0
        self.on_removed: Callable[[Job], None] = lambda _: None

    def __len__(self) -> int:
        return len(self._by_secret) // 2

    def new_ids(self) -> tuple[str, str]:
        """A job id and a view id."""
        raw = self._random(2 * ID_BYTES)
        return (
            "job_" + urlsafe_b64encode(raw[:ID_BYTES]).decode(),
            "view_" + urlsafe_b64encode(raw[ID_BYTES:]).decode(),
        )

    def _hash(self, secret: str) -> bytes:
        raw = secret.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(raw, key=self._key, digest_size=16).digest()

    def add(self, job: Job, idempotency_key: str | None = None) -> None:
        """Accept a job."""
        self._by_secret[self._hash(job.id)] = (job, True)
        self._by_secret[self._hash(job.view_id)] = (job, False)
        if idempotency_key is not None:
            job.idempotency_key = idempotency_key
            self._by_idempotency[id(job.client), idempotency_key] = job
        self.watch(job)

    def find(self, secret: str) -> tuple[Job, bool] | None:
        """The job of a secret, and whether the secret owns it."""
        return self._by_secret.get(self._hash(secret))

    def replay(self, client: Client, idempotency_key: str) -> Job | None:
        """The job that this client has already submitted under this key."""
        return self._by_idempotency.get((id(client), idempotency_key))

    # ── deadlines ────────────────────────────────────────────────────────────

    def watch(self, job: Job) -> None:
        """Look at ``job`` again at its deadline."""
        if job.watched is not None and job.watched <= job.deadline:
            return  # the entry that is there comes first, and then moves
        job.watched = job.deadline
        self._count += 1
        heapq.heappush(self._deadlines, (job.deadline, self._count, job))

    @property
    def next_deadline(self) -> float | None:
        """When :meth:`due` has something to say at the earliest."""
        return self._deadlines[0][0] if self._deadlines else None

    def due(self, now: float) -> list[Job]:
        """Jobs whose deadline has passed; each is told once.

        Deadlines move on without telling the heap: an entry that came too early is
        put back with the deadline of today.
        """
        found = []
        while self._deadlines and self._deadlines[0][0] <= now:
            when, _, job = heapq.heappop(self._deadlines)
            if job.watched != when:
                continue  # a later entry that an earlier one has replaced, or wiped
            job.watched = None
            if job.deadline > now:
                self.watch(job)
            else:
                found.append(job)
        return found

    def _tidy(self) -> None:
        """Wiped jobs leave their entry behind: drop these before they are the most."""
        if len(self._deadlines) > 2 * len(self) + 1000:
            self._deadlines = [e for e in self._deadlines if e[2].watched == e[0]]
            heapq.heapify(self._deadlines)

    # ── retention ────────────────────────────────────────────────────────────

    def ended(self, job: Job, now: float) -> list[Job]:
        """``job`` has ended: set its expiry. Returns what must go for lack of room."""
        size = job.retained_bytes + JOB_BYTES
        self._ended[job] = size
        self.retained_bytes += size
        completed = job.verdict is not None and job.verdict.succeeded
        keep_s = self._retention.finished_seconds if completed else self._retention.failed_seconds
        job.deadline = now + keep_s
        self.watch(job)
        evicted: list[Job] = []
        over_bytes = self.retained_bytes - self._retention.total_mb * MIB
        over_jobs = len(self._ended) - self._max_ended
        for old, size in self._ended.items():
            if over_bytes <= 0 and over_jobs <= 0:
                break
            evicted.append(old)
            over_bytes -= size
            over_jobs -= 1
        return evicted

    def on_read(self, job: Job, now: float) -> None:
        """Somebody looked: a failed job stays a while longer for him."""
        if job.has_ended and not (job.verdict and job.verdict.succeeded):
            grace = min(READ_GRACE_S, self._retention.failed_seconds)
            job.deadline = max(job.deadline, now + grace)

    @property
    def oldest_ended(self) -> list[Job]:
        """A tenth of those that have ended, oldest first: they go when room is needed."""
        return list(islice(self._ended, 1 + len(self._ended) // 10))

    def worth(self, size_bytes: int) -> list[Job]:
        """Those whose end gives so much memory back, oldest first. Most jobs leave so little
        that it is worth more to their clients than to the host: they stay.
        """
        found: list[Job] = []
        for job, retained in self._ended.items():
            if size_bytes <= 0:
                break
            if retained >= JOB_BYTES + WORTH_BYTES:
                found.append(job)
                size_bytes -= retained
        return found

    def limit(self, max_ended: int) -> None:
        """Keep no more than so many ended jobs."""
        self._max_ended = min(self._max_ended, max_ended)

    def remove(self, job: Job) -> None:
        """Forget a job: from now on its ids are unknown. Lets its descriptors go."""
        if self._by_secret.pop(self._hash(job.id), None) is None:
            return
        self.on_removed(job)
        del self._by_secret[self._hash(job.view_id)]
        job.watched = None
        if job.idempotency_key is not None:
            self._by_idempotency.pop((id(job.client), job.idempotency_key), None)
        self.retained_bytes -= self._ended.pop(job, 0)
        if job.kept is not None:
            job.kept.release()
            job.kept = None
        self._tidy()
        job.notify()

    def holds(self, job: Job) -> bool:
        """Whether its ids still lead to it."""
        return self._hash(job.id) in self._by_secret

    def __iter__(self) -> Iterator[Job]:
        """All jobs."""
        return iter([job for job, owner in self._by_secret.values() if owner])
