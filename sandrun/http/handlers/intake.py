"""Uploads: how a submission comes in and becomes a job. Runs as nobody.

I/O: the exchange and the spool that the body goes to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sandrun.errors import RequestError
from sandrun.http import api, validation, views
from sandrun.http.exchange import Exchange, Response
from sandrun.http.handlers.parameters import idempotency_key
from sandrun.http.handlers.replies import NO_STORE, respond_json
from sandrun.http.router import Match, not_found
from sandrun.http.spool import Spool
from sandrun.http.submission import check_media_type, read_submission
from sandrun.job import MIB

if TYPE_CHECKING:
    from sandrun.http.app import App
    from sandrun.http.jobs import Job
    from sandrun.http.origins import Origins
    from sandrun.http.quota import Client

LONG_UPLOAD_S: Final = 0.25  # what was true of the queue before it need not be now


class Intake:
    """Routes by which jobs come in; ``/run`` takes its job from :meth:`accept`."""

    def __init__(self, app: App, origins: Origins) -> None:
        self.app = app
        self.origins = origins
        # Idempotency keys not accepted yet, and the requests that bring them.
        self._uploading: dict[tuple[int, str], Exchange] = {}

    async def submit(self, exchange: Exchange, _: Match) -> None:
        """Accept and answer at once."""
        job = await self.accept(exchange)
        headers = (*NO_STORE, *self.app.quota.headers(job.client, self.app.clock()))
        body = api.encode(views.submitted(self.app, job))
        await exchange.respond(Response(200, body, headers=headers))

    async def accept(self, exchange: Exchange) -> Job:
        """A submission becomes a job, or a :class:`RequestError` and nothing is left of it."""
        app, request = self.app, exchange.request
        self.origins.check(request)
        app.check_open()
        admitted = app.clock()
        client = app.quota.client(request.client, admitted)
        key = idempotency_key(request)
        check_media_type(exchange)  # of a repetition too, although its body is not read
        if key is None:
            return await self._admit(exchange, client, admitted, None)
        if (job := app.registry.replay(client, key)) is not None:
            return job
        pending = (id(client), key)
        if pending in self._uploading:
            raise RequestError(
                409,
                "idempotency_in_progress",
                "Idempotency-Key: a request with this key is still being received",
                retry_after_s=1,
            )
        self._uploading[pending] = exchange
        try:
            return await self._admit(exchange, client, admitted, key)
        finally:
            del self._uploading[pending]

    async def _admit(
        self, exchange: Exchange, client: Client, admitted: float, key: str | None
    ) -> Job:
        app = self.app
        app.check_wait(client)
        # The place is taken before the body is read: uploads count as jobs at once.
        app.quota.admit(client, admitted)
        http = app.config.http
        spool = Spool(app.budget, http.max_upload_mb * MIB, app.config.limits.files)
        submission = None
        try:
            submission = await read_submission(exchange, app, spool)
            app.metrics.phases["upload"].observe(app.clock() - admitted)
            app.check_open()  # it may have begun to drain meanwhile
            if app.clock() - admitted > LONG_UPLOAD_S:
                app.check_wait(client)  # or all that were under way would come in at once
        except BaseException:
            if submission is not None:
                spool.take_back(submission.spooled)
            app.quota.refund(client, admitted, app.clock())
            spool.close()
            raise
        job = app.submit(
            client,
            submission.spooled,
            submission.spec,
            submission.given,
            submission.job_hash,
            admitted,
            key,
        )
        await app.leases.recorded()  # before its id is told: it shall be there after a crash
        return job

    async def upload(self, exchange: Exchange, _: Match) -> None:
        """How far an upload has come. The key is the client's own secret, as a job id later."""
        key = idempotency_key(exchange.request)
        if key is None:
            raise RequestError(
                400,
                "no_idempotency_key",
                "Idempotency-Key: name the upload by the key that it was sent with",
                details={"field": "Idempotency-Key"},
            )
        client = self.app.quota.client(exchange.request.client, self.app.clock())
        coming = self._uploading.get((id(client), key))
        if coming is not None:
            reply = api.UploadProgress(
                status="receiving",
                received_bytes=coming.received,
                total_bytes=coming.content_length,
            )
        elif self.app.registry.replay(client, key) is not None:
            reply = api.UploadProgress(status="accepted", received_bytes=None, total_bytes=None)
        else:
            raise not_found()
        await respond_json(exchange, reply)

    async def validate(self, exchange: Exchange, _: Match) -> None:
        """Say what would happen."""
        self.app.check_open()
        reply = await validation.validate(exchange, self.app)
        await respond_json(exchange, reply)
