"""Tells the store what must outlive this process, before it is done. Runs as nobody.

No I/O of its own: messages leave through ``send``, in order, on the channel to the
supervisor. The rules:

* a job is recorded before its Dispatch is sent and before its id is told;
* a change that the zygote cannot know (cancelled, returned, ended without a
  result) is recorded before it is acted upon;
* an account is written soon after it has changed, and always before a job of it
  is forgotten; until then the jobs' own records tell what is missing in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sandrun.http.records import (
    NODE_KEY,
    AccountRecord,
    EndRecord,
    JobRecord,
    NodeRecord,
    Part,
    StateRecord,
    encode,
)
from sandrun.messages import Forget, Keep

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandrun.http.jobs import Job
    from sandrun.http.queue import FairQueue
    from sandrun.http.quota import Client, Quota

KEPT_FILES: Final = 2048  # inline files up to this size stay in the record until its end


class Ledger:
    """What the store knows of us. ``later`` is called when accounts wait to be written."""

    def __init__(
        self,
        send: Callable[[Keep | Forget, tuple[int, ...]], None],
        quota: Quota,
        queue: FairQueue[Job],
        later: Callable[[], None],
    ) -> None:
        self._send = send
        self._quota = quota
        self._queue = queue
        self._later = later
        self._last = NODE_KEY
        self._dirty: dict[Client, None] = {}
        self._unsettled: dict[Client, dict[int, float]] = {}  # job → CPU s charged
        quota.on_forget = self._on_client_forgotten

    def begin(self, last: int) -> None:
        """Go on behind the highest key that was ever used."""
        self._last = max(last, self._last)

    def _new_key(self) -> int:
        self._last += 1
        return self._last

    def write_node(self, worker_id: str) -> None:
        """Who we are."""
        key, old, since = self._quota.keys
        record = NodeRecord(worker_id, key, old, since)
        self._send(Keep(key=NODE_KEY, parts={Part.NODE: encode(record)}), ())

    # ── jobs ─────────────────────────────────────────────────────────────────

    def on_accepted(self, job: Job) -> None:
        """It has a key from now on, and its client owes a settlement."""
        client = job.client
        if not client.key_in_store:
            client.key_in_store = self._new_key()
            self._write(client)
        job.key = self._new_key()
        client.pending.discard(job.admitted)
        self._unsettled.setdefault(client, {})[job.key] = 0.0

    def adopt(self, job: Job) -> None:
        """A restored job that is not settled yet."""
        self._unsettled.setdefault(job.client, {})[job.key] = job.charged_s
        job.recorded = True

    def on_queued(self, job: Job) -> None:
        """It waits: record it unless it is."""
        if not job.recorded:
            self._keep(job, self._parts(job), None)

    def on_dispatch(self, job: Job, zygote: int, now: float) -> None:
        """About to be sent to this zygote."""
        parts = {} if job.recorded else self._parts(job)
        if job.returned or job.recorded:
            parts[Part.STATE] = self._state(job, now)
        self._keep(job, parts, zygote)

    def _keep(self, job: Job, parts: dict[int, bytes], zygote: int | None) -> None:
        fds = (job.upload.fd,) if job.upload is not None and not job.recorded else ()
        job.recorded = True
        self._send(Keep(key=job.key, parts=parts, zygote=zygote), fds)

    def _parts(self, job: Job) -> dict[int, bytes]:
        upload = job.upload
        record = JobRecord(
            job.id,
            job.view_id,
            job.client.key_in_store,
            job.idempotency_key,
            job.spec,
            job.given,
            job.job_hash,
            job.admitted,
            job.submitted,
            job.wall_offset,
            job.charge,
            upload.index_offset if upload else 0,
            upload.index_size if upload else 0,
        )
        parts: dict[int, bytes] = {Part.JOB: encode(record)}
        if job.files:
            parts[Part.FILES] = encode(job.files)
        return parts

    @staticmethod
    def _state(job: Job, dispatched: float | None) -> bytes:
        spec = job.spec if job.returned else None
        return encode(StateRecord(job.returned, job.cancelled, dispatched, spec))

    def on_files_done(self, job: Job) -> None:
        """Its files need not be kept any more; small ones are not worth a message."""
        large = sum(len(file.data) for file in job.files) > KEPT_FILES
        if job.recorded and (large or job.upload is not None):
            parts: dict[int, bytes] = {Part.FILES: b""} if large else {}
            self._send(Keep(key=job.key, parts=parts, drop_fds=job.upload is not None), ())

    def on_cancel(self, job: Job) -> None:
        """Its owner wants it to end."""
        if job.recorded:
            state = self._state(job, job.dispatched)
            self._send(Keep(key=job.key, parts={Part.STATE: state}), ())

    def on_returned(self, job: Job) -> None:
        """Back in the queue: its zygote's descriptors go."""
        parts: dict[int, bytes] = {Part.STATE: self._state(job, None)}
        self._send(Keep(key=job.key, parts=parts, unbind=True), ())

    def on_charged(self, job: Job) -> None:
        """Its client has paid ``charged_s`` of it."""
        unsettled = self._unsettled.get(job.client, {})
        if job.key in unsettled:
            unsettled[job.key] = job.charged_s
            self._touch(job.client)

    def on_ended(self, job: Job, end: EndRecord | None) -> None:
        """Settled. ``end``: what the zygote's journal does not say."""
        unsettled = self._unsettled.get(job.client, {})
        unsettled.pop(job.key, None)
        if not unsettled:
            self._unsettled.pop(job.client, None)
        self._touch(job.client)
        if end is not None and job.recorded:
            self._send(
                Keep(key=job.key, parts={Part.END: encode(end), Part.FILES: b""}, drop_fds=True), ()
            )

    def on_removed(self, job: Job) -> None:
        """Its ids are unknown from now on."""
        if job.recorded:
            job.recorded = False
            if job.client.key_in_store:
                self._write(job.client)
            self._send(Forget(key=job.key), ())

    # ── accounts ─────────────────────────────────────────────────────────────

    def _touch(self, client: Client) -> None:
        if not self._dirty:
            self._later()
        self._dirty[client] = None

    def flush(self) -> None:
        """Write the accounts that have changed."""
        for client in list(self._dirty):
            if client.key_in_store:
                self._write(client)
        self._dirty.clear()

    def _write(self, client: Client) -> None:
        self._dirty.pop(client, None)
        flow = self._queue.standing(client)
        unsettled = self._unsettled.get(client, {})
        record = AccountRecord(
            client.key,
            client.balance_s,
            client.updated,
            client.seen,
            tuple(start for start in client.starts if start not in client.pending),
            tuple(unsettled),
            self._last,
            *flow,
            tuple(unsettled.values()),
        )
        self._send(Keep(key=client.key_in_store, parts={Part.ACCOUNT: encode(record)}), ())

    def _on_client_forgotten(self, client: Client) -> None:
        self._dirty.pop(client, None)
        if client.key_in_store:
            key, client.key_in_store = client.key_in_store, 0
            self._send(Forget(key=key), ())
