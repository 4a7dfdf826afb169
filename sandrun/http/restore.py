"""The store's entries → the state in which the last http died. Runs as nobody.

Everything is replayed through the same methods that made it: a job is added,
dispatched, started, ended. What the last http had heard and not acted upon is in
the journal behind the job's log; what it had not heard is still in the zygote's
socket, which the supervisor kept open. So each recorded job is one of these:

=============================  ====================================================
what there is                  what it becomes
=============================  ====================================================
END                            ended, as it was
bound, journal has a Result    ended by it; the zygote, if alive, is dismissed
bound, journal has Elsewhere   back in the queue, for the sandbox that it asks for
bound, zygote alive            running; or its Dispatch is said again, and PID 1
                               takes only one
bound, zygote dead             started: server_fault; not started: in the queue
not bound                      in the queue, in the order of acceptance
not to be understood           forgotten, its zygote killed
=============================  ====================================================
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import msgspec

from sandrun import journal
from sandrun.channel import close_all
from sandrun.errors import ProtocolError
from sandrun.http import records
from sandrun.http.jobs import Job, Upload
from sandrun.http.leased import kept_of, last_word
from sandrun.http.quota import Client
from sandrun.http.records import Part
from sandrun.http.results import take_result
from sandrun.job import Usage, Verdict
from sandrun.messages import Elsewhere, Forget, Kill, Result, Started

if TYPE_CHECKING:
    from sandrun.http.app import App
    from sandrun.http.jobs import Kept
    from sandrun.http.records import AccountRecord, JobRecord
    from sandrun.messages import StoreEntry

log: Final = logging.getLogger("sandrun.http")


class Kit:
    """One entry, put together from its messages."""

    __slots__ = ("entry", "fds", "parts")

    def __init__(self) -> None:
        self.parts: dict[int, bytes] = {}
        self.entry: StoreEntry | None = None
        self.fds: list[int] = []

    def sandbox_fds(self) -> list[int]:
        """Log, outputs and, if it is alive, the socket; [] if there never was a sandbox."""
        assert self.entry is not None
        return self.fds[self.entry.fds :]


class Restorer:
    """Collects entries, then replays them into an :class:`App`."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._kits: dict[int, Kit] = {}
        self._clients: dict[int, Client] = {}
        self._accounts: dict[int, AccountRecord] = {}

    def add(self, entry: StoreEntry, fds: list[int]) -> None:
        """One message of the supervisor's."""
        kit = self._kits.setdefault(entry.key, Kit())
        kit.parts |= entry.parts
        kit.entry = entry  # the last one of a key is the one with the descriptors
        kit.fds += fds

    def finish(self) -> None:
        """Everything is there: become what the last http was."""
        app, last = self._app, max(self._kits, default=records.NODE_KEY)
        if node := self._part(records.NODE_KEY, Part.NODE):
            record = records.decode_node(node)
            app.worker_id = record.worker_id
            app.quota.restore(record.quota_key, record.quota_old_key, record.quota_key_since)
        for key in sorted(self._kits):
            if account := self._part(key, Part.ACCOUNT):
                last = max(last, self._account(key, records.decode_account(account)))
        app.ledger.begin(last)
        jobs = []
        for key in sorted(self._kits):
            if Part.JOB in self._kits[key].parts:
                try:
                    jobs.append(self._job(key, self._kits[key]))
                except (msgspec.DecodeError, UnicodeDecodeError, ProtocolError, OSError) as error:
                    log.error("record %d cannot be restored: %s", key, error)
                    self._drop(key)
        for job, kit, unsettled in jobs:
            self._replay(job, kit, unsettled=unsettled)
        if jobs:
            log.info("went on with %d jobs", len(jobs))

    def _drop(self, key: int) -> None:
        """Nobody can ask for it any more: the store need not keep it, nor its sandbox run."""
        kit, send = self._kits[key], self._app.leases.send
        assert kit.entry is not None
        close_all(kit.fds)
        if kit.entry.alive and kit.entry.zygote is not None:
            send(Kill(zygote=kit.entry.zygote))
        send(Forget(key=key))

    def _part(self, key: int, part: Part) -> bytes | None:
        kit = self._kits.get(key)
        return kit.parts.get(part) if kit else None

    # ── clients ──────────────────────────────────────────────────────────────

    def _account(self, key: int, record: AccountRecord) -> int:
        client = Client(record.hash, record.balance_s, record.updated)
        client.seen = record.seen
        client.starts.extend(record.starts)
        client.key_in_store = key
        self._clients[key] = client
        self._accounts[key] = record
        self._app.quota.add(client)
        self._app.queue.restore(client, record.flow_balance_s, record.flow_expected_s)
        return record.last

    def _client(self, key: int, now: float) -> Client:
        """The account; one that expired before its last job stands for nobody."""
        client = self._clients.get(key)
        if client is None:
            client = self._clients[key] = Client(b"", 0.0, now)
        return client

    # ── jobs ─────────────────────────────────────────────────────────────────

    def _job(self, key: int, kit: Kit) -> tuple[Job, Kit, bool]:
        """The job as it was accepted, and whether its client has not been charged."""
        assert kit.entry is not None
        record = records.decode_job(kit.parts[Part.JOB])
        files = kit.parts.get(Part.FILES)
        client = self._client(record.client, record.submitted)
        upload = None
        if kit.entry.fds:
            upload = Upload(kit.fds[0], record.index_offset, record.index_size)
        job = Job(
            job_id=record.job_id,
            view_id=record.view_id,
            client=client,
            spec=record.spec,
            given=record.given,
            files=records.decode_files(files) if files else (),
            upload=upload,
            charge=record.charge if files or upload else 0,
            job_hash=record.job_hash,
            admitted=record.admitted,
            now=record.submitted,
            wall=record.submitted + record.wall_offset,
        )
        job.key = key
        job.recorded = True
        self._app.budget.used += job.charge
        self._app.budget.files += upload is not None
        self._app.registry.add(job, record.idempotency_key)
        unsettled = self._reserve(job, record)
        return job, kit, unsettled

    def _reserve(self, job: Job, record: JobRecord) -> bool:
        """Take the job's place with its client, if the account says it holds one."""
        account = self._accounts.get(record.client)
        if account is None:
            return False
        later = job.key > account.last
        if not later and job.key not in account.unsettled:
            return False
        job.client.active += 1
        if later:
            job.client.starts.append(job.admitted)
        elif account.charged:
            job.charged_s = account.charged[account.unsettled.index(job.key)]
        self._app.ledger.adopt(job)
        return True

    def _replay(self, job: Job, kit: Kit, *, unsettled: bool) -> None:
        app = self._app
        assert kit.entry is not None
        dispatched = job.submitted
        if state := kit.parts.get(Part.STATE):
            record = records.decode_state(state)
            job.returned, job.cancelled = record.returned, record.cancelled
            dispatched = record.dispatched or dispatched
            if record.spec is not None:
                job.spec = record.spec
        sandbox = kit.sandbox_fds()
        kept = kept_of(sandbox[0], sandbox[1]) if sandbox else None
        socket = sandbox[2] if kit.entry.alive else -1
        if kept is not None:
            self._dispatched(job, kept, dispatched)
        if end := kit.parts.get(Part.END):
            ended = records.decode_end(end)
            self._ended(job, ended.verdict, ended.usage, ended.ended, unsettled=unsettled)
            if socket >= 0:
                app.leases.dismiss(kit.entry, socket)
            return
        if kept is None:
            self._waits(job)
            return
        final = last_word(kept, journal.FINAL)
        if final is None:
            self._runs(job, kit.entry, kept, socket)
            return
        message, t = final
        if socket >= 0:
            app.leases.dismiss(kit.entry, socket)
        if isinstance(message, Result):
            verdict = take_result(app, job, message)
            self._ended(job, verdict, message.usage, t, unsettled=unsettled)
        elif isinstance(message, Elsewhere):
            app.on_elsewhere(job, message.spec, message.requirements)

    def _dispatched(self, job: Job, kept: Kept, dispatched: float) -> None:
        job.on_dispatched(kept, dispatched, self._app.config.pool.watchdog_seconds)
        word = last_word(kept, journal.STARTED)
        if word is not None and isinstance(word[0], Started):
            job.on_started(word[0].spec, word[1])
        try:
            job.log_end = kept.log.end
        except ProtocolError:
            pass  # not begun, or damaged: it reads as empty

    def _runs(self, job: Job, entry: StoreEntry, kept: Kept, socket: int) -> None:
        """Its zygote has it, or had it."""
        app, started = self._app, job.started is not None
        if socket < 0:
            app.on_lost(job, started=started)
            return
        app.active.add(job)
        app.leases.adopt(entry, socket, job, kept, started=started)
        if started:
            app.release_upload(job)
        if job.cancelled:
            app.leases.cancel(job)

    def _waits(self, job: Job) -> None:
        """In the queue; cancelled ones have an END."""
        self._app.requeue_restored(job)

    def _ended(
        self, job: Job, verdict: Verdict, usage: Usage, ended: float, *, unsettled: bool
    ) -> None:
        app = self._app
        app.release_upload(job)
        if unsettled:
            app.settle(job, verdict, usage, app.clock())
            app.ledger.on_ended(job, None)
        app.close_job(job, verdict, usage, min(ended, app.clock()))
