"""The life of jobs in the http process: registry, quota, queue and leases joined.

Runs as nobody. No I/O of its own but timers: what happens arrives as calls (from
handlers and from :class:`sandrun.http.leases.Leases`), what follows is done at
once. What must outlive this process goes into the supervisor's store (ledger.py),
and comes back from there (restore.py). Every accepted job ends in exactly one verdict, and whatever was reserved for
it (place, hour, bytes of upload) is given back there: see :meth:`App._end`.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Final

from sandrun import node_lock
from sandrun.errors import ProtocolError, RequestError
from sandrun.http.admission import Admission, crowded
from sandrun.http.jobs import MIN_QUEUE_S, Job, Phase, Registry
from sandrun.http.leases import ANY, Leases
from sandrun.http.ledger import Ledger
from sandrun.http.metrics import Metrics
from sandrun.http.queue import FairQueue
from sandrun.http.quota import Client, Quota
from sandrun.http.records import EndRecord
from sandrun.http.restore import Restorer
from sandrun.http.results import believable, take_result
from sandrun.http.spool import Budget
from sandrun.http.young import YoungJobs
from sandrun.job import MIB, ExitReason, JobSpec, Limits, Usage, Verdict
from sandrun.manifest import Rules, package_of
from sandrun.messages import Install, Installed, InstallFailed
from sandrun.remedies import remedy_for_requirements
from sandrun.requirements import RequirementsError, parse

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from sandrun.config import Config
    from sandrun.http.spool import Spooled
    from sandrun.messages import (
        Drain,
        HttpDeaths,
        Leave,
        PoolState,
        Restored,
        Result,
        Started,
        StoreEntry,
        StoreState,
        Welcome,
    )

OURS: Final = (ExitReason.SERVER_FAULT, ExitReason.HOST_PRESSURE)  # the quota is given back
ACCOUNTS_EVERY_S: Final = 0.25  # how long a changed account waits to be written
# Sandboxes that die before they run anything are often several (killed for want of memory);
# an http that was restarted while requirements were installed asks again.
MAX_RETURNS: Final = 3
INSTALL_WAIT_S: Final = 60.0  # beyond its own time-out, for its turn
PRESSURE_RETRY_S: Final = 5.0
ROOM_EVERY_S: Final = 1.0  # longer than the pool's figures may be old
HOLD_BACK_S: Final = 0.01
LOST: Final = "the sandbox ended without a result"


def _not_installed(job: Job, reason: str) -> Verdict:
    """The job's requirements cannot be had, by its own fault."""
    return Verdict(
        exit_reason=ExitReason.DEPENDENCY_ERROR,
        evidence=(reason,),
        remedy=remedy_for_requirements(job.spec.requirements or "", reason),
    )


class App:
    """One node's state. ``clock`` is monotonic, ``wall`` since 1970, both in seconds;
    ``runnable`` tells how many threads on this host run or want to.
    """

    def __init__(
        self,
        config: Config,
        control: socket.socket,
        loop: asyncio.AbstractEventLoop,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        random_bytes: Callable[[int], bytes] = os.urandom,
        max_ended: int = 100_000,
        max_uploads: int = 1 << 30,
        runnable: Callable[[], int] = lambda: 0,
    ) -> None:
        self.config = config
        self.clock = clock
        self.wall = wall
        self.loop = loop
        self.server_gauges: Callable[[], dict[str, float]] = dict
        self.server_totals: Callable[[], dict[str, float]] = dict
        self.worker_id = "worker_" + random_bytes(6).hex()
        self.registry = Registry(config.retention, random_bytes, max_ended)
        self.quota = Quota(config.rate_limit, random_bytes, clock())
        self.queue: FairQueue[Job] = FairQueue()
        self.budget = Budget(config.http.max_uploads_total_mb * MIB, max_uploads)
        self.metrics = Metrics()
        self.defaults: Limits = config.limits.defaults
        self.maxima: Limits = config.limits.maxima
        self.leases = Leases(control, self, loop, self.defaults.storage_bytes)
        self.ledger = Ledger(self.leases.send, self.quota, self.queue, self._write_accounts_later)
        self.registry.on_removed = self.ledger.on_removed
        self.quota.on_new_key = lambda: self.ledger.write_node(self.worker_id)
        self.restorer: Restorer | None = Restorer(self)
        self.welcome: Welcome | None = None
        self.welcomed = asyncio.Event()  # and everything is restored
        self.store_full = False
        self.leaving = asyncio.Event()  # another http takes over
        self.pool: PoolState | None = None
        self.http_deaths = 0
        self.http_death_cause = ""
        self.draining = False
        self.drained = asyncio.Event()  # nothing runs any more, or the supervisor is gone
        self.active: set[Job] = set()  # dispatched and not ended
        self.rules = Rules(maxima=self.maxima, interpreters={}, environments=())
        self._installs: dict[int, Job] = {}
        # A number of an earlier http must not be taken for one of ours.
        self._next_install = int.from_bytes(random_bytes(6), "big") + 1
        self._waiting: dict[tuple[str, str], int] = {}
        self._unsaid: set[tuple[str, str]] = set()  # kinds whose number the pool may not know
        self._service_s = 1.0  # running average of a job's time in a sandbox
        self.admission = Admission(config.rate_limit.queue_seconds)
        self._next_room = 0.0  # when results may make room again
        self._young = YoungJobs()
        self._runnable = runnable
        self._processors = os.cpu_count() or 1
        self._held_back: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    # ── submission ───────────────────────────────────────────────────────────

    def check_open(self) -> None:
        """Whether jobs are accepted at all. Raises :class:`RequestError` 503."""
        if self.draining:
            raise RequestError(503, "draining", "the server is stopping", retry_after_s=10)
        if self.welcome is None or self.leaving.is_set():
            raise RequestError(503, "starting", "the server is starting", retry_after_s=1)
        if self.store_full:
            raise RequestError(
                503, "store_full", "the server keeps as much as it can", retry_after_s=5
            )
        if self.leases.is_clogged:
            raise RequestError(503, "busy", "the server cannot record jobs now", retry_after_s=1)
        if self.pool is not None and self.pool.pressure:
            raise RequestError(
                503, "host_pressure", self.pool.pressure, retry_after_s=PRESSURE_RETRY_S
            )
        if len(self.queue) >= self.config.rate_limit.queue_length:
            retry = max(1.0, round(self._service_s))
            raise RequestError(
                503,
                "queue_full",
                f"{len(self.queue)} jobs wait already",
                details={"limit": self.config.rate_limit.queue_length},
                retry_after_s=retry,
            )

    def check_wait(self, client: Client) -> None:
        """Whether one more job of this client would start in time. Raises 503."""
        waiting = len(self.queue) - len(self._installs)
        place = self.queue.next_position(client) if waiting > 0 else 1
        retry = self.admission.refusal(
            place, waiting, self.clock(), self._guess_s(), self._service_s
        )
        if retry:
            wait_s = self.eta_s(place)
            raise RequestError(
                503,
                "overloaded",
                f"a job would wait for {wait_s:.1f} s now: more come than can be run",
                details={"eta_s": wait_s, "position": place},
                retry_after_s=round(retry),
            )

    def submit(
        self,
        client: Client,
        spooled: Spooled,
        spec: JobSpec,
        given: tuple[str, ...],
        job_hash: str,
        admitted: float,
        idempotency_key: str | None = None,
    ) -> Job:
        """Accept a job that the quota admitted at ``admitted``; start it if a sandbox is ready."""
        now = self.clock()
        job_id, view_id = self.registry.new_ids()
        job = Job(
            job_id=job_id,
            view_id=view_id,
            client=client,
            spec=spec,
            given=given,
            files=spooled.files,
            upload=spooled.upload,
            charge=spooled.charge,
            job_hash=job_hash,
            admitted=admitted,
            now=now,
            wall=self.wall(),
        )
        self.metrics.totals["upload_bytes"] += spooled.charge
        self.metrics.totals["jobs_accepted"] += 1
        self.registry.add(job, idempotency_key)
        self.ledger.on_accepted(job)
        self.queue.push(client, job)
        self._wait(job, 1)
        if spec.requirements is not None and not spooled.has_archive:
            self._install_plain(job, spec.requirements, spooled)
        self._pump()
        if job.phase is Phase.QUEUED:
            self.ledger.on_queued(job)
        self._arm()
        return job

    def on_dispatch(self, job: Job, zygote: int) -> None:
        """The last moment before it may run: record where."""
        self.ledger.on_dispatch(job, zygote, self.clock())

    def _write_accounts_later(self) -> None:
        self.loop.call_later(ACCOUNTS_EVERY_S, self.ledger.flush)

    # ── requirements ─────────────────────────────────────────────────────────

    def _install_plain(self, job: Job, path: str, spooled: Spooled) -> None:
        package = package_of(path)
        if package is None:
            self._install(job, spooled.text(path))
            return
        limit = node_lock.MAX_TEXT + 1
        self._install(job, spooled.text(path, limit), spooled.text(package, limit))

    def _install(self, job: Job, text: str, package: str | None = None) -> None:
        """Have the requirements of a queued job installed; it waits for the answer.

        ``package``: package.json, if ``text`` is a lock of npm and it is at hand.
        """
        self._wait(job, -1)  # nothing waits for a zygote of the old environment any more
        lines: tuple[str, ...] = ()
        lock = None
        try:
            if package_of(job.spec.requirements or "") is not None:
                lock = node_lock.parse(text, package)
            else:
                lines = parse(text)
        except (RequirementsError, node_lock.LockError) as error:
            reason = f"{job.spec.requirements}: {error}"
            self._drop_queued(job, _not_installed(job, reason))
            return
        number = self._next_install
        self._next_install += 1
        self._installs[number] = job
        patience = self.config.packages.install_timeout_s + INSTALL_WAIT_S
        job.on_installing(number, self.clock() + patience)
        self.registry.watch(job)
        wish = Install(request=number, environment=job.spec.environment, lines=lines, lock=lock)
        self.leases.send(wish)

    def on_installed(self, answer: Installed | InstallFailed) -> None:
        """The requirements of a job are there, or cannot be had."""
        job = self._installs.pop(answer.request, None)
        if job is None or job.installing != answer.request:
            return  # cancelled meanwhile
        log = answer.reason if isinstance(answer, InstallFailed) else answer.log
        job.on_install_answered(answer.seconds, answer.cpu_seconds, log)
        if isinstance(answer, InstallFailed):
            verdict = _not_installed(job, answer.reason)
            if answer.fault:
                verdict = Verdict(exit_reason=ExitReason.SERVER_FAULT, evidence=(answer.reason,))
            self._drop_queued(job, verdict)
            return
        now = self.clock()
        wait_s = max(job.spec.limits.timeout_s, MIN_QUEUE_S)
        job.on_installed(answer.environment, now + wait_s)
        self._wait(job, 1)
        self.registry.watch(job)
        self._arm()
        self._pump()

    def kind(self, spec: JobSpec) -> tuple[str, str]:
        """(environment, warm interpreter) that suits ``spec`` best, as far as one can tell."""
        interpreter = spec.interpreter
        if interpreter is None:
            # An archive: PID 1 will find out. Most likely it is what the environment is for.
            environment = self.config.environments.get(spec.environment)
            interpreter = environment.interpreter if environment else ANY
        return spec.environment, interpreter

    def extension(self, interpreter: str) -> str:
        """What a file for ``interpreter`` is called, or ""."""
        return next(iter(self.rules.interpreters.get(interpreter, ())), "")

    def position(self, job: Job) -> int:
        """Place in the queue, 1 is next; 0 when it does not wait."""
        if job.phase is not Phase.QUEUED:
            return 0
        return self.queue.position(job.client, job)

    def eta_s(self, position: int) -> float:
        """Seconds until a job at ``position`` starts, about."""
        if not position:
            return 0.0
        return round(self.admission.wait_s(position, self.clock(), self._guess_s()), 2)

    def _guess_s(self) -> float:
        """Seconds between two starts if every sandbox is busy."""
        return self._service_s / max(1, self.pool.capacity if self.pool else 1)

    # ── the queue ────────────────────────────────────────────────────────────

    def _pump(self) -> None:
        """Start what can start."""
        if self.restorer is not None or self.leaving.is_set():
            return
        while not self.draining and self.queue and self.leases.ready_count:
            if self._is_crowded():
                break
            job = self.queue.pop(self._startable)
            if job is None:
                break
            self._wait(job, -1)
            kept = self.leases.dispatch(job, self.kind(job.spec)[1])
            if kept is None:
                self.queue.push(job.client, job, first=True)
                self._wait(job, 1)
                if self.leases.is_clogged:
                    break  # on_ready comes when there is room again
                continue
            self.active.add(job)
            now = self.clock()
            job.on_dispatched(kept, now, self.config.pool.watchdog_seconds)
            self.registry.watch(job)  # it may be due earlier than in the queue
            self._arm()
            self.admission.on_start(len(self.queue), now)
            self._young.reserve(job, now)
        for kind in self._unsaid:
            self.leases.want(*kind, self._waiting.get(kind, 0))
        self._unsaid.clear()

    def _is_crowded(self) -> bool:
        """Whether to hold back; if so, we look again soon, and when a job ends."""
        young = self._young.beginners(self.clock())
        if not crowded(young, self._runnable, self._processors):
            return False
        if self._held_back is None:
            self._held_back = self.loop.call_later(HOLD_BACK_S, self._pump_again)
        return True

    def _pump_again(self) -> None:
        self._held_back = None
        self._pump()

    def _startable(self, job: Job) -> bool:
        if job.installing:
            return False
        kind = self.kind(job.spec)
        if not self.leases.can_start(*kind, self._waiting.get(kind, 1)):
            return False
        # The pool says how much memory new jobs may use; with nothing running, its
        # word may be old and the limit of one job always fits.
        if not self.active or self.pool is None:
            return True
        if self.pool.pressure:
            return False
        available = self.pool.memory_available_bytes - self._young.reserved_bytes
        return job.spec.limits.memory_bytes <= available

    def _wait(self, job: Job, change: int) -> None:
        kind = self.kind(job.spec)
        count = self._waiting.get(kind, 0) + change
        if count:
            self._waiting[kind] = count
        else:
            self._waiting.pop(kind, None)
        self._unsaid.add(kind)

    def gauges(self) -> dict[str, float]:
        """For /metrics."""
        pool = self.pool
        return {
            "queue_length": len(self.queue),
            "active_jobs": len(self.active),
            "jobs_kept": len(self.registry),
            "ready_zygotes": self.leases.ready_count,
            "pool_warm": pool.warm if pool else 0,
            "pool_capacity": pool.capacity if pool else 0,
            "pool_booting": pool.booting if pool else 0,
            "pool_busy": pool.busy if pool else 0,
            "pool_fault": 1 if pool and pool.fault else 0,
            "pool_memory_available_bytes": pool.memory_available_bytes if pool else 0,
            "http_restarts": self.http_deaths,
            "host_pressure": 1 if pool and pool.pressure else 0,
            "queue_wait_seconds": self.eta_s(len(self.queue)),
            "upload_bytes": self.budget.used,
            "upload_limit_bytes": self.budget.max_bytes,
            "retained_bytes": self.registry.retained_bytes,
            "store_records": pool.records if pool else 0,
            "clients": len(self.quota),
            "draining": self.draining or self.leaving.is_set(),
            "store_full": self.store_full,
            **self.server_gauges(),
        }

    def totals(self) -> dict[str, float]:
        """Counters of the process and its connections, for /metrics."""
        return self.server_totals()

    # ── what the pool says ───────────────────────────────────────────────────

    def on_welcome(self, welcome: Welcome) -> None:
        """The node introduces itself."""
        self.welcome = welcome
        self.rules = Rules(
            maxima=self.maxima,
            interpreters={known.name: known.extensions for known in welcome.interpreters},
            environments=tuple(known.name for known in welcome.environments),
        )

    def require_environment(self, name: str) -> None:
        """Raises :class:`RequestError` 503 for an environment that could not be built."""
        for known in self.welcome.environments if self.welcome else ():
            if known.name == name and known.fault:
                raise RequestError(
                    503,
                    "environment_unavailable",
                    f"environment {name!r} cannot be used: {known.fault}",
                    details={"field": "environment", "value": name},
                )

    def on_entry(self, entry: StoreEntry, fds: list[int]) -> None:
        """An earlier http has left this."""
        if self.restorer is None:
            raise ProtocolError("StoreEntry after Restored")
        self.restorer.add(entry, fds)

    def on_restored(self, restored: Restored) -> None:
        """We are what the earlier one was."""
        restorer = self.restorer
        if restorer is None:
            raise ProtocolError("Restored twice")
        restorer.finish()
        self.restorer = None
        self.registry.limit(restored.max_jobs)
        self.ledger.write_node(self.worker_id)
        self.welcomed.set()
        self._arm()
        self._pump()

    def on_store_state(self, state: StoreState) -> None:
        """Full: the oldest results make room."""
        self.store_full = state.full
        if state.full:
            for job in self.registry.oldest_ended:
                self.registry.remove(job)

    def on_leave(self, leave: Leave) -> None:
        """Another http takes over: nothing begins here any more, running jobs go on."""
        del leave  # the grace is for open requests: ``__main__`` gives it
        self.ledger.flush()
        self.leaving.set()

    def requeue_restored(self, job: Job) -> None:
        """A job that waited when the earlier http died."""
        self.queue.push(job.client, job)
        self._wait(job, 1)

    def on_pool_state(self, state: PoolState) -> None:
        """The pool has changed."""
        self.pool = state
        if state.memory_missing_bytes:
            self._make_room(state.memory_missing_bytes)
        self._pump()

    def _make_room(self, missing: int) -> None:
        """Results go before jobs are lost, but no more of them than it takes: one look
        of the pool's is told many times, and what is gone shows in the next only.
        """
        if self.clock() >= self._next_room:
            self._next_room = self.clock() + ROOM_EVERY_S
            for job in self.registry.worth(missing):
                self.registry.remove(job)

    def on_http_deaths(self, deaths: HttpDeaths) -> None:
        """Why we are not the first http."""
        self.http_deaths, self.http_death_cause = deaths.count, deaths.cause

    def on_ready(self) -> None:
        """One more zygote."""
        self._pump()

    def on_started(self, job: Job, started: Started) -> None:
        """Its files are unpacked: the upload is no longer needed."""
        job.on_started(started.spec, self.clock())
        self.release_upload(job)

    def on_log(self, job: Job, end: int) -> None:
        """Its log has grown."""
        job.on_log(end)

    def on_spent(self, job: Job, cpu_seconds: float) -> None:
        """What it used until now is charged now: debt keeps the next job out at once."""
        spent = believable(cpu_seconds)
        if spent > job.charged_s:
            self.quota.charge(job.client, spent - job.charged_s, self.clock())
            job.charged_s = spent
            self.ledger.on_charged(job)

    def on_elsewhere(self, job: Job, spec: JobSpec, requirements: str) -> None:
        """job.json asked for another sandbox, or the requirements must be installed first.

        More than :data:`MAX_RETURNS` times is a fault of ours.
        """
        self.active.discard(job)
        if job.cancelled:
            self._end(job, Verdict(exit_reason=ExitReason.CANCELLED), Usage())
        elif job.returned >= MAX_RETURNS or self.draining or not self._allowed(spec):
            fault = "the job could not be moved to the sandbox that its job.json asks for"
            self._end(job, Verdict(exit_reason=ExitReason.SERVER_FAULT, evidence=(fault,)), Usage())
        else:
            self._requeue(job, spec, requirements if spec.requirements is not None else None)

    def _allowed(self, spec: JobSpec) -> bool:
        """A zygote may have been taken over: never more than the operator's maxima."""
        fits = all(
            getattr(spec.limits, field) <= getattr(self.maxima, field)
            for field in Limits.__struct_fields__
        )
        return fits and spec.environment in self.config.environments

    def on_lost(self, job: Job, *, started: bool) -> None:
        """Its sandbox is dead or killed, and there is no result."""
        self.active.discard(job)
        if job.cancelled:
            self._end(job, Verdict(exit_reason=ExitReason.CANCELLED), Usage())
        elif started or job.returned >= MAX_RETURNS or self.draining:
            verdict = Verdict(exit_reason=ExitReason.SERVER_FAULT, evidence=(LOST,))
            self._end(job, verdict, Usage())
        else:
            self._requeue(job, None)

    def _requeue(self, job: Job, spec: JobSpec | None, requirements: str | None = None) -> None:
        job.on_returned(self.clock(), spec)
        self.ledger.on_returned(job)
        self.queue.push(job.client, job, first=True)
        self._wait(job, 1)
        if requirements is not None:
            self._install(job, requirements)
        self.registry.watch(job)
        self._arm()
        self._pump()

    def on_result(self, job: Job, result: Result) -> None:
        """The end, with outputs. PID 1's journal has it, so it need not be recorded."""
        self.active.discard(job)
        verdict = take_result(self, job, result)
        self._end(job, verdict, result.usage, in_journal=True)

    def on_supervisor_gone(self) -> None:
        """Nothing can go on without it; it restarts us if it is still there."""
        self.draining = True
        self.drained.set()

    def on_drain(self, drain: Drain) -> None:
        """No more jobs; queued ones end now, running ones have ``grace_s``."""
        self.draining = True
        for job in list(self.queue):
            self._drop_queued(
                job,
                Verdict(exit_reason=ExitReason.SERVER_FAULT, evidence=("the server is stopping",)),
            )
        self.loop.call_later(drain.grace_s, self._cancel_all)
        self._check_drained()

    def _cancel_all(self) -> None:
        for job in list(self.active):
            self.cancel(job)

    def _check_drained(self) -> None:
        if self.draining and not self.active:
            self.drained.set()

    # ── the end of a job ─────────────────────────────────────────────────────

    def cancel(self, job: Job) -> None:
        """Stop it. A job that has ended stays as it is."""
        if job.has_ended:
            return
        job.cancelled = True
        if job.phase is not Phase.QUEUED:
            self.ledger.on_cancel(job)
        if job.phase is Phase.QUEUED:
            evidence = ("cancelled while it waited",)
            self._drop_queued(job, Verdict(exit_reason=ExitReason.CANCELLED, evidence=evidence))
        else:
            self.leases.cancel(job)

    def delete(self, job: Job) -> None:
        """Wipe it: stopped, and its ids unknown from now on."""
        self.registry.remove(job)
        if not job.has_ended:
            job.cancelled = True
            if job.phase is Phase.QUEUED:
                self._drop_queued(job, Verdict(exit_reason=ExitReason.CANCELLED))
            else:
                self.leases.kill(job)

    def _drop_queued(self, job: Job, verdict: Verdict) -> None:
        self.queue.remove(job.client, job)
        if job.installing:
            self._installs.pop(job.installing, None)
            job.installing = 0
        else:
            self._wait(job, -1)
        self._end(job, verdict, Usage())

    def release_upload(self, job: Job) -> None:
        """Its files are in its sandbox, or will never be."""
        self.ledger.on_files_done(job)
        job.files = ()
        if job.upload is not None:
            os.close(job.upload.fd)
            job.upload = None
            self.budget.give_file()
        self.budget.give(job.charge)
        job.charge = 0

    def _end(self, job: Job, verdict: Verdict, usage: Usage, *, in_journal: bool = False) -> None:
        """The only way out. Gives back everything that was reserved for the job."""
        now = self.clock()
        self.release_upload(job)
        self.settle(job, verdict, usage, now)
        self.ledger.on_ended(job, None if in_journal else EndRecord(verdict, usage, now))
        self._young.release(job, usage)
        self._measure(job, verdict, usage, now)
        self.close_job(job, verdict, usage, now)
        self._arm()
        self._pump()  # less memory is taken, if that was what the next one waits for
        self._check_drained()

    def settle(self, job: Job, verdict: Verdict, usage: Usage, now: float) -> None:
        """Charge the client, or give back what a fault of ours has cost."""
        never_ran_by_us = verdict.exit_reason in OURS or (
            verdict.exit_reason is ExitReason.EXPIRED and job.phase is Phase.QUEUED
        )
        used = believable(usage.cpu_seconds) + believable(job.install_cpu_s)
        if never_ran_by_us:
            self.quota.refund(job.client, job.admitted, now, job.charged_s)
        else:
            self.quota.settle(job.client, used - job.charged_s, now)
        job.charged_s = 0.0
        self.queue.settle(job.client, used)

    def close_job(self, job: Job, verdict: Verdict, usage: Usage, ended: float) -> None:
        """It has ended: from now on it only waits to be read."""
        job.on_ended(verdict, usage, ended)
        if self.registry.holds(job):
            for old in self.registry.ended(job, ended):
                self.registry.remove(old)
        elif job.kept is not None:
            job.kept.release()
            job.kept = None

    def _measure(self, job: Job, verdict: Verdict, usage: Usage, now: float) -> None:
        metrics = self.metrics
        metrics.totals["job_cpu_seconds"] += believable(usage.cpu_seconds)
        metrics.totals["job_output_bytes"] += sum(f.size_bytes for f in job.outputs.values())
        metrics.jobs[verdict.exit_reason.value] += 1
        metrics.phases["total"].observe(now - job.submitted)
        if job.dispatched is None:
            return
        metrics.phases["queued"].observe(job.dispatched - job.submitted)
        started = job.started or now
        metrics.phases["starting"].observe(started - job.dispatched)
        metrics.phases["running"].observe(now - started)
        self._service_s += 0.1 * (now - job.dispatched - self._service_s)

    # ── deadlines ────────────────────────────────────────────────────────────

    def _arm(self) -> None:
        """One timer for all jobs, at the earliest deadline."""
        due = self.registry.next_deadline
        if due is None:
            return
        if self._timer is not None:
            if self._timer_at <= due:
                return
            self._timer.cancel()
        self._timer_at = due
        self._timer = self.loop.call_later(max(0.0, due - self.clock()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        for job in self.registry.due(self.clock()):
            self._on_deadline(job)
        self._arm()

    def _on_deadline(self, job: Job) -> None:
        match job.phase:
            case Phase.ENDED:
                self.registry.remove(job)
            case Phase.QUEUED:
                evidence = (f"no sandbox became free in {self.clock() - job.submitted:.0f} s",)
                self._drop_queued(job, Verdict(exit_reason=ExitReason.EXPIRED, evidence=evidence))
            case Phase.DISPATCHED | Phase.RUNNING:
                # The watchdog: PID 1 should have ended it long ago. Not again.
                job.returned = MAX_RETURNS
                self.leases.kill(job)

    def close(self) -> None:
        """Let everything go."""
        for timer in (self._timer, self._held_back):
            if timer is not None:
                timer.cancel()
        self.leases.close()
