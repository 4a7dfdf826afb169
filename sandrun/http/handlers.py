"""One coroutine per route: from an :class:`Exchange` to an answer. Runs as nobody.

I/O only through the exchange and the job's own descriptors. A handler decides what
a client may know and do (owner or viewer), nothing else: jobs live in ``app.py``.
"""

from __future__ import annotations

import asyncio
import os
import re
from base64 import b64encode
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import msgspec

from sandrun import __version__
from sandrun.errors import RequestError
from sandrun.http import api, archive, follow, openapi, validation, views
from sandrun.http.answer import accepts_gzip
from sandrun.http.exchange import Exchange, Request, Response, wants_websocket
from sandrun.http.origins import CORS, PREFLIGHT, Origins
from sandrun.http.ranges import (
    Span,
    attachment,
    if_range_holds,
    none_match,
    parse_range,
)
from sandrun.http.router import Match, Router, not_found
from sandrun.http.spool import Spool
from sandrun.http.static import Static
from sandrun.http.submission import check_media_type, read_submission
from sandrun.job import MIB

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator

    from sandrun.http.app import App
    from sandrun.http.jobs import Job, Kept
    from sandrun.http.quota import Client
    from sandrun.job import OutputFile
    from sandrun.logs import Gap, Record

NO_STORE: Final = (("Cache-Control", "no-store"), *CORS)
EVENTS: Final = (
    ("Content-Type", "text/event-stream; charset=utf-8"),
    ("X-Accel-Buffering", "no"),
    *NO_STORE,
)
DOWNLOAD_POLICY: Final = (
    ("Content-Security-Policy", "sandbox; default-src 'none'"),
    ("Cross-Origin-Resource-Policy", "cross-origin"),
)
MAX_WAIT_S: Final = 60.0  # of one long-poll: below the idle time-outs of common proxies
MAX_RUN_S: Final = 3600.0
CANCEL_WAIT_S: Final = 3.0  # the answer to a cancel shows the end, if it comes soon
LONG_UPLOAD_S: Final = 0.25  # what was true of the queue before it need not be now
KEEPALIVE_S: Final = 15.0  # of an event stream: proxies cut what is silent for a minute
INLINE_FILE_BYTES: Final = 256 * 1024
INLINE_TOTAL_BYTES: Final = MIB
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_UNSIGNED: Final = re.compile(r"\d{1,15}", re.ASCII)


class Handlers:
    """The public listener's handler. Callable as ``exchange.Handler``."""

    def __init__(self, app: App, static: Static, *, admin: bool = False) -> None:
        self.app = app
        self.static = static
        self.router = Router(assets=tuple(static.assets), admin=admin)
        self.origins = Origins(app.config.http)
        self._archive_turn = asyncio.Lock()
        self._openapi = api.encode(openapi.document())
        # Idempotency keys not accepted yet, and the requests that bring them.
        self._uploading: dict[tuple[int, str], Exchange] = {}
        self._table: dict[str, Callable[[Exchange, Match], Awaitable[None]]] = {
            "index": self.index,
            "asset": self.asset,
            "options": self.options,
            "submit": self.submit,
            "run": self.run,
            "upload": self.upload,
            "validate": self.validate,
            "status": self.status,
            "logs": self.logs,
            "stream": self.stream,
            "outputs": self.outputs,
            "download": self.download,
            "download_file": self.download_file,
            "delete": self.delete,
            "cancel": self.cancel,
            "stats": self.stats,
            "environments": self.environments,
            "health": self.health,
            "privacy": self.privacy,
            "openapi": self.openapi,
            "metrics": self.metrics,
        }

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request."""
        request = exchange.request
        try:
            match = self.router.match(request.method, request.path)
            self.app.metrics.requests[match.name] += 1
            await self._table[match.name](exchange, match)
        except RequestError as error:
            self.app.metrics.refused(error.code)
            error.headers = (*error.headers, *CORS)
            raise

    # ── about the node ───────────────────────────────────────────────────────

    async def index(self, exchange: Exchange, _: Match) -> None:
        """The page for a browser, JSON for everybody else."""
        info = views.service_info(self.app, __version__)
        page = self.static.page
        if page is not None and prefers(exchange.request, "text/html", "application/json"):
            client = self.app.quota.client(exchange.request.client, self.app.clock())
            answers = {
                "info": info,
                "environments": views.environments(self.app),
                "stats": views.stats(self.app, client),
            }
            headers = (
                ("Cache-Control", "no-store"),
                ("Content-Security-Policy", page.policy),
                ("Vary", "Accept, Accept-Encoding"),
            )
            body = self.static.page_with(api.encode(answers))
            await exchange.respond(Response(200, body, page.type, headers))
            return
        await exchange.respond(Response(200, api.encode(info), headers=(("Vary", "Accept"), *CORS)))

    async def asset(self, exchange: Exchange, match: Match) -> None:
        """A part of the page."""
        asset = self.static.assets[match.path]
        request = exchange.request
        # Another content would have another address: nobody need ask for this one again.
        lasting = request.query.get("v") == asset.version
        headers: tuple[tuple[str, str], ...] = (
            ("ETag", asset.etag),
            ("Cache-Control", "max-age=31536000, immutable" if lasting else "no-cache"),
            ("Content-Security-Policy", asset.policy),
            ("Vary", "Accept-Encoding"),
        )
        if none_match(request.headers.get("if-none-match"), asset.etag):
            await exchange.respond(Response(304, content_type="", headers=headers))
        elif asset.packed and accepts_gzip(request.headers.get("accept-encoding")):
            headers = (*headers, ("Content-Encoding", "gzip"))
            await exchange.respond(Response(200, asset.packed, asset.type, headers))
        else:
            await exchange.respond(Response(200, asset.body, asset.type, headers))

    async def options(self, exchange: Exchange, match: Match) -> None:
        """Also CORS preflights: a foreign page learns here already that it may not submit."""
        allow = ", ".join(match.allow)
        headers: tuple[tuple[str, str], ...] = (("Allow", allow),)
        asked = exchange.request.headers.get("access-control-request-method")
        if asked in {None, "GET", "HEAD"} or self.origins.may_submit(exchange.request):
            headers = (*headers, *CORS, ("Access-Control-Allow-Methods", allow), *PREFLIGHT)
        await exchange.respond(Response(204, content_type="", headers=headers))

    async def stats(self, exchange: Exchange, _: Match) -> None:
        """Your quota and the node."""
        client = self.app.quota.client(exchange.request.client, self.app.clock())
        await self._json(exchange, views.stats(self.app, client))

    async def environments(self, exchange: Exchange, _: Match) -> None:
        """What a job can have."""
        await self._json(exchange, views.environments(self.app))

    async def health(self, exchange: Exchange, _: Match) -> None:
        """200 while jobs can run, else 503."""
        health = views.health(self.app)
        await self._json(exchange, health, 200 if health.status == "ready" else 503)

    async def privacy(self, exchange: Exchange, _: Match) -> None:
        """Measured facts."""
        await self._json(exchange, views.privacy(self.app))

    async def openapi(self, exchange: Exchange, _: Match) -> None:
        """This interface."""
        await exchange.respond(Response(200, self._openapi, headers=CORS))

    async def metrics(self, exchange: Exchange, _: Match) -> None:
        """For Prometheus; on the admin listener only."""
        text = self.app.metrics.render(self.app.gauges(), self.app.totals())
        await exchange.respond(Response(200, text.encode(), "text/plain; version=0.0.4"))

    async def _json(self, exchange: Exchange, reply: object, status: int = 200) -> None:
        await exchange.respond(Response(status, api.encode(reply), headers=NO_STORE))

    # ── jobs in ──────────────────────────────────────────────────────────────

    async def submit(self, exchange: Exchange, _: Match) -> None:
        """Accept and answer at once."""
        job = await self._accept(exchange)
        headers = (*NO_STORE, *self.app.quota.headers(job.client, self.app.clock()))
        body = api.encode(views.submitted(self.app, job))
        await exchange.respond(Response(200, body, headers=headers))

    async def run(self, exchange: Exchange, _: Match) -> None:
        """Accept, wait for the end, answer with everything."""
        query = exchange.request.query
        timeout_s = number(query, "timeout", MAX_RUN_S) if "timeout" in query else None
        inline = flag(query, "inline")
        job = await self._accept(exchange)
        if wants_events(exchange.request):
            await self._run_events(exchange, job, timeout_s, inline=inline)
            return
        ended = await follow.wait_ended(job, timeout_s)
        kept = job.kept.hold() if job.kept else None  # it may be wiped while we answer
        try:
            large = kept is not None and follow.is_large(job)
            logs = follow.snapshot(job, max_bytes=0 if large else follow.ALL_BYTES)
            outputs = self._inline_outputs(job, inline=inline)
            reply = views.run_reply(self.app, job, logs, outputs)
            headers = (*NO_STORE, *self.app.quota.headers(job.client, self.app.clock()))
            status = 200 if ended else 202
            if kept is not None and large:
                await self._stream_reply(exchange, status, headers, reply, kept, 0)
            else:
                await exchange.respond(Response(status, api.encode(reply), headers=headers))
        finally:
            if kept is not None:
                kept.release()

    async def _run_events(
        self, exchange: Exchange, job: Job, timeout_s: float | None, *, inline: bool
    ) -> None:
        """The ids at once, the log as it grows, and everything else with the end: one
        answer where others need a submission, a stream and three questions.
        """
        quota = self.app.quota.headers(job.client, self.app.clock())
        await exchange.start(200, (*EVENTS, *quota), None)
        accepted = api.encode(views.submitted(self.app, job))
        await exchange.write(b"event: job\ndata: %b\n\n" % accepted)
        with follow.until(exchange.gone, timeout_s) as over:
            steps = follow.follow(job, 0, over, KEEPALIVE_S, exchange.silent)
            position = await self._write_events(exchange, steps, 0)
        if not over.done():  # else there may be more of the log
            kept = job.kept.hold() if job.kept else None  # it may be wiped while we write
            try:
                outputs = self._inline_outputs(job, inline=inline)
                listed = [msgspec.structs.replace(file, data_base64=None) for file in outputs]
                end = views.run_end(self.app, job, position, listed)
                await exchange.write(b"event: end\ndata: %b\n\n" % api.encode(end))
                # After the end: who waits for the verdict does not wait for files.
                for file in outputs:
                    if file.data_base64 is not None:
                        await exchange.write(b"event: output\ndata: %b\n\n" % api.encode(file))
            finally:
                if kept is not None:
                    kept.release()
        await exchange.finish()

    async def _write_events(
        self,
        exchange: Exchange,
        steps: AsyncGenerator[list[Record | Gap], None],
        position: int,
    ) -> int:
        """Records as events. The cursor after the last one."""
        decode = views.TextDecoder()
        async with aclosing(steps):
            async for entries in steps:
                lines = [
                    b"id: %d\ndata: %b\n\n"
                    % (entry.seq, api.encode(views.log_record(entry, decode(entry))))
                    for entry in entries
                ]
                await exchange.write(b"".join(lines) or b":\n\n")
                if entries:
                    position = entries[-1].seq
        return position

    def _inline_outputs(self, job: Job, *, inline: bool) -> list[api.InlineOutput]:
        room = INLINE_TOTAL_BYTES if inline else -1
        found = []
        for path, file in job.outputs.items():
            data: str | None = None
            if file.size_bytes <= min(room, INLINE_FILE_BYTES) and job.kept is not None:
                pieces = archive.pieces(job.kept.outputs_fd, file.offset, file.size_bytes)
                data = b64encode(b"".join(pieces)).decode()
                room -= file.size_bytes
            found.append(
                api.InlineOutput(
                    path=views.shown(path),
                    size_bytes=file.size_bytes,
                    sha256=file.sha256,
                    type=views.mime_type(path),
                    download_url=views.download_url(job.id, path),
                    data_base64=data,
                )
            )
        return found

    async def _accept(self, exchange: Exchange) -> Job:
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
        await self._json(exchange, reply)

    async def validate(self, exchange: Exchange, _: Match) -> None:
        """Say what would happen."""
        self.app.check_open()
        reply = await validation.validate(exchange, self.app)
        await self._json(exchange, reply)

    # ── jobs seen ────────────────────────────────────────────────────────────

    def _find(self, secret: str) -> tuple[Job, bool]:
        found = self.app.registry.find(secret)
        if found is None:
            raise not_found()
        self.app.registry.on_read(found[0], self.app.clock())
        return found

    def _owned(self, secret: str) -> Job:
        job, owner = self._find(secret)
        if not owner:
            raise RequestError(
                403, "view_only", "a view id reads; it can neither cancel nor delete"
            )
        return job

    async def status(self, exchange: Exchange, match: Match) -> None:
        """Where it is, what it used, how it ended."""
        job, _ = self._find(match.id)
        await self._json(exchange, views.status(self.app, job, match.id))

    async def cancel(self, exchange: Exchange, match: Match) -> None:
        """Stop it and keep the logs."""
        self.origins.check(exchange.request)
        job = self._owned(match.id)
        self.app.cancel(job)
        await follow.wait_ended(job, CANCEL_WAIT_S)
        await self._json(exchange, views.status(self.app, job, match.id))

    async def delete(self, exchange: Exchange, match: Match) -> None:
        """Wipe it."""
        self.origins.check(exchange.request)
        self.app.delete(self._owned(match.id))
        await exchange.respond(Response(204, content_type="", headers=NO_STORE))

    # ── logs ─────────────────────────────────────────────────────────────────

    async def logs(self, exchange: Exchange, match: Match) -> None:
        """What there is after ``since``; with ``wait``, as soon as there is something."""
        request = exchange.request
        job, _ = self._find(match.id)
        since = cursor(request)
        self._check_cursor(job, since)
        if "wait" in request.query:
            await self._wait_for_news(
                exchange, job, since, number(request.query, "wait", MAX_RUN_S)
            )
        if prefers(request, "text/plain", "application/json"):
            await self._logs_text(exchange, job, since)
            return
        records = flag(request.query, "records")
        if not follow.is_large(job) or job.kept is None:
            await self._json(exchange, follow.snapshot(job, since, records=records))
        else:
            kept = job.kept.hold()
            try:
                reply = follow.snapshot(job, since, max_bytes=0)
                await self._stream_reply(
                    exchange, 200, NO_STORE, reply, kept, since, records=records
                )
            finally:
                kept.release()

    async def _stream_reply(
        self,
        exchange: Exchange,
        status: int,
        headers: tuple[tuple[str, str], ...],
        reply: api.Logs | api.RunReply,
        kept: Kept,
        since: int,
        *,
        records: bool = False,
    ) -> None:
        """A reply with a large log, as the client takes it: never more than a step is held."""
        end = follow.end_of(kept, since)
        marks = [os.urandom(16).hex() for _ in follow.STREAMS]
        reply = msgspec.structs.replace(reply, stdout=marks[0], stderr=marks[1], cursor=end)
        rest = api.encode(reply)
        await exchange.start(status, (("Content-Type", "application/json"), *headers), None)
        for mark, stream in zip(marks, follow.STREAMS.values(), strict=True):
            before, _, rest = rest.partition(mark.encode())
            await exchange.write(before)
            for text in follow.texts(kept, since, end, stream):
                await exchange.write(api.encode(text)[1:-1])
                await asyncio.sleep(0)
        if records:
            before, bracket, rest = rest.partition(b'"records":[')
            await exchange.write(before + bracket)
            comma, decode = b"", views.TextDecoder()
            for entries in follow.steps(kept, since, end):
                listed = (api.encode(views.log_record(one, decode(one))) for one in entries)
                await exchange.write(comma + b",".join(listed))
                comma = b","
                await asyncio.sleep(0)
        await exchange.write(rest)
        await exchange.finish()

    def _check_cursor(self, job: Job, since: int) -> None:
        try:
            follow.read(job, since, 1)
        except ValueError:
            raise follow.bad_cursor(since) from None

    async def _wait_for_news(self, exchange: Exchange, job: Job, since: int, wait_s: float) -> None:
        wait_s = min(wait_s, MAX_WAIT_S)
        # Who sends no more may be gone: he is answered at once, with what there is.
        steps = follow.follow(job, since, exchange.gone, wait_s, exchange.silent)
        async with aclosing(steps):
            await anext(steps, None)

    async def _logs_text(self, exchange: Exchange, job: Job, since: int) -> None:
        try:
            entries = follow.read(job, since, 1 if follow.is_large(job) else follow.ALL_BYTES)
        except ValueError:
            raise follow.bad_cursor(since) from None
        wanted = stream_filter(exchange.request)
        if len(entries) > 0 and follow.is_large(job) and job.kept is not None:
            await self._logs_text_streamed(exchange, job.kept.hold(), since, wanted)
            return
        body = b"".join(follow.raw(entry, wanted) for entry in entries)
        position = entries[-1].seq if entries else since
        headers = (("Log-Cursor", str(position)), ("Vary", "Accept"), *NO_STORE)
        await exchange.respond(Response(200, body, "text/plain; charset=utf-8", headers))

    async def _logs_text_streamed(
        self, exchange: Exchange, kept: Kept, since: int, wanted: int | None
    ) -> None:
        """Releases ``kept``."""
        try:
            end = follow.end_of(kept, since)
            kind = ("Content-Type", "text/plain; charset=utf-8")
            headers = (kind, ("Log-Cursor", str(end)), ("Vary", "Accept"), *NO_STORE)
            await exchange.start(200, headers, None)
            for data in follow.raws(kept, since, end, wanted):
                await exchange.write(data)
                await asyncio.sleep(0)
            await exchange.finish()
        finally:
            kept.release()

    async def stream(self, exchange: Exchange, match: Match) -> None:
        """The log as it grows: WebSocket, event stream or plain text, on one cursor."""
        request = exchange.request
        job, _ = self._find(match.id)
        since = cursor(request)
        self._check_cursor(job, since)
        if wants_websocket(request):
            self.origins.check(request)
            await self._stream_websocket(exchange, job, since)
        elif request.method == "HEAD":
            await exchange.respond(Response(200, b"", "text/plain; charset=utf-8", NO_STORE))
        elif wants_events(request):
            await self._stream_events(exchange, job, since)
        else:
            await self._stream_text(exchange, job, since)

    async def _stream_websocket(self, exchange: Exchange, job: Job, since: int) -> None:
        socket = await exchange.websocket()

        async def listen() -> None:
            while await socket.receive() is not None:
                pass  # the client has nothing to say, but its frames must be taken

        gone = asyncio.ensure_future(listen())
        try:
            decode = views.TextDecoder()
            async with aclosing(follow.follow(job, since, gone)) as steps:
                async for entries in steps:
                    for entry in entries:
                        record = views.log_record(entry, decode(entry))
                        await socket.send_text(api.encode(record).decode())
            if not gone.done():
                await socket.send_text(api.encode(log_end(job)).decode())
                await socket.close(1000)
        finally:
            gone.cancel()

    async def _stream_events(self, exchange: Exchange, job: Job, since: int) -> None:
        await exchange.start(200, EVENTS, None)
        await exchange.write(b"retry: 1000\n\n")
        # Who sends no more gets a comment: if he is gone, his host's reset says so.
        steps = follow.follow(job, since, exchange.gone, KEEPALIVE_S, exchange.silent)
        await self._write_events(exchange, steps, since)
        await exchange.write(b"event: end\ndata: %b\n\n" % api.encode(log_end(job)))
        await exchange.finish()

    async def _stream_text(self, exchange: Exchange, job: Job, since: int) -> None:
        headers = (("Content-Type", "text/plain; charset=utf-8"), *NO_STORE)
        wanted = stream_filter(exchange.request)
        await exchange.start(200, headers, None)
        async with aclosing(follow.follow(job, since, exchange.gone)) as steps:
            async for entries in steps:
                data = b"".join(follow.raw(entry, wanted) for entry in entries)
                if data:
                    await exchange.write(data)
        await exchange.finish()

    # ── outputs ──────────────────────────────────────────────────────────────

    async def outputs(self, exchange: Exchange, match: Match) -> None:
        """The list."""
        job, _ = self._find(match.id)
        files = [views.output_entry(match.id, file) for file in job.outputs.values()]
        await self._json(
            exchange,
            api.Outputs(job_id=match.id, status=job.status, total_files=len(files), files=files),
        )

    async def download(self, exchange: Exchange, match: Match) -> None:
        """Everything as one archive; delivered means deleted."""
        request = exchange.request
        job, owner = self._find(match.id)
        kind = request.query.get("format", "tar.gz")
        if kind not in archive.FORMATS:
            known = ", ".join(archive.FORMATS)
            raise RequestError(
                400,
                "bad_format",
                f"format: expected one of {known}, got {kind[:40]!r}",
                details={"field": "format", "allowed": list(archive.FORMATS)},
            )
        keep = flag(request.query, "keep")
        if not job.has_ended:
            raise RequestError(
                409,
                "not_finished",
                f"the job is {job.status}; its outputs are there when it has ended",
                details={"status": job.status},
                retry_after_s=1,
            )
        await self._send_archive(exchange, job, kind)
        if owner and not keep and request.method != "HEAD" and await exchange.delivered():
            self.app.delete(job)

    async def _archive_step(self, steps: Iterator[bytes]) -> bytes | None:
        """The next piece. One for all archives per turn of the loop: compressing takes
        milliseconds, and a hundred downloads at once must not take a hundred times that
        from everybody else.
        """
        async with self._archive_turn:
            piece = next(steps, None)
            await asyncio.sleep(0)
        return piece

    async def _send_archive(self, exchange: Exchange, job: Job, kind: str) -> None:
        files = tuple(job.outputs.values())
        name = f"outputs.{kind}"
        headers = (
            ("Content-Type", archive.FORMATS[kind]),
            ("Content-Disposition", attachment(name)),
            *DOWNLOAD_POLICY,
            *NO_STORE,
        )
        length = archive.tar_size(files) if kind == "tar" else None
        if job.kept is None:  # it ended before it had a sandbox
            await exchange.start(200, headers, length)
            for piece in archive.stream(kind, -1, ()):
                await exchange.write(piece)
            await exchange.finish()
            return
        kept = job.kept.hold()
        try:
            await exchange.start(200, headers, length)
            if exchange.request.method != "HEAD":
                steps = archive.stream(kind, kept.outputs_fd, files)
                while (step := await self._archive_step(steps)) is not None:
                    await exchange.write(step)
            await exchange.finish()
        finally:
            kept.release()

    async def download_file(self, exchange: Exchange, match: Match) -> None:
        """One file, or ranges of it."""
        request = exchange.request
        job, _ = self._find(match.id)
        file = job.outputs.get(match.path)
        if file is None or job.kept is None:
            raise not_found()
        etag = f'"{file.sha256}"'
        headers = (
            ("Content-Type", views.mime_type(file.path)),
            ("Content-Disposition", attachment(file.path.rpartition("/")[2])),
            ("ETag", etag),
            ("Accept-Ranges", "bytes"),
            *DOWNLOAD_POLICY,
            *NO_STORE,
        )
        if none_match(request.headers.get("if-none-match"), etag):
            await exchange.respond(Response(304, content_type="", headers=headers[1:]))
            return
        spans = None
        if if_range_holds(request.headers.get("if-range"), etag):
            spans = parse_range(request.headers.get("range"), file.size_bytes)
        kept = job.kept.hold()
        try:
            await self._send_spans(exchange, kept.outputs_fd, file, spans, headers)
        finally:
            kept.release()

    async def _send_spans(
        self,
        exchange: Exchange,
        fd: int,
        file: OutputFile,
        spans: list[Span] | None,
        headers: tuple[tuple[str, str], ...],
    ) -> None:
        total = file.size_bytes
        if spans is not None and not spans:
            raise RequestError(
                416,
                "range_not_satisfiable",
                f"Range: the file has {total} bytes",
                details={"size_bytes": total},
                headers=(("Content-Range", f"bytes */{total}"),),
            )
        if spans is None:
            await exchange.start(200, headers, total)
            await self._send(exchange, fd, file.offset, total)
        elif len(spans) == 1:
            span = spans[0]
            headers = (*headers, ("Content-Range", span.content_range(total)))
            await exchange.start(206, headers, span.size)
            await self._send(exchange, fd, file.offset + span.offset, span.size)
        else:
            await self._send_multipart(exchange, fd, file, spans, headers)
        await exchange.finish()

    async def _send_multipart(
        self,
        exchange: Exchange,
        fd: int,
        file: OutputFile,
        spans: list[Span],
        headers: tuple[tuple[str, str], ...],
    ) -> None:
        boundary = os.urandom(16).hex()
        kind = headers[0][1]
        heads = [
            f"--{boundary}\r\nContent-Type: {kind}\r\n"
            f"Content-Range: {span.content_range(file.size_bytes)}\r\n\r\n".encode()
            for span in spans
        ]
        tail = f"--{boundary}--\r\n".encode()
        length = sum(len(h) + s.size + 2 for h, s in zip(heads, spans, strict=True)) + len(tail)
        outer = ("Content-Type", f"multipart/byteranges; boundary={boundary}")
        await exchange.start(206, (outer, *headers[1:]), length)
        for head, span in zip(heads, spans, strict=True):
            await exchange.write(head)
            await self._send(exchange, fd, file.offset + span.offset, span.size)
            await exchange.write(b"\r\n")
        await exchange.write(tail)

    async def _send(self, exchange: Exchange, fd: int, offset: int, size: int) -> None:
        if exchange.request.method == "HEAD":
            return
        for piece in archive.pieces(fd, offset, size):
            await exchange.write(piece)


# ── what requests say ────────────────────────────────────────────────────────


def log_end(job: Job) -> api.LogEnd:
    """The last message of a stream."""
    return api.LogEnd(status=job.status, exit_reason=job.exit_reason)


def idempotency_key(request: Request) -> str | None:
    """The header's value. Raises :class:`RequestError` 400."""
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise RequestError(
            400,
            "bad_idempotency_key",
            "Idempotency-Key: expected 1 to 255 printable ASCII characters without spaces",
            details={"field": "Idempotency-Key"},
        )
    return key


def wants_events(request: Request) -> bool:
    """Whether the answer shall be Server-Sent Events."""
    return "text/event-stream" in (request.headers.get("accept") or "")


def cursor(request: Request) -> int:
    """``?since=``, else ``Last-Event-ID`` (of an event stream that reconnects), else 0."""
    value = request.query.get("since") or request.headers.get("last-event-id") or "0"
    if not _UNSIGNED.fullmatch(value):
        raise follow.bad_cursor(value[:40])
    return int(value)


def number(query: dict[str, str], name: str, most: float) -> float:
    """A number of seconds in the query. Raises :class:`RequestError` 400."""
    try:
        value = float(query[name])
        if not 0 <= value <= most:
            raise ValueError
    except ValueError:
        raise RequestError(
            400,
            "bad_parameter",
            f"{name}: expected seconds from 0 to {most:g}, got {query[name][:40]!r}",
            details={"field": name, "maximum": most},
        ) from None
    return value


def flag(query: dict[str, str], name: str) -> bool:
    """``?name=1``. Raises :class:`RequestError` 400 for anything but 0 and 1."""
    value = query.get(name, "0")
    if value not in {"0", "1", ""}:
        raise RequestError(
            400,
            "bad_parameter",
            f"{name}: expected 0 or 1, got {value[:40]!r}",
            details={"field": name, "allowed": ["0", "1"]},
        )
    return value != "0"


def stream_filter(request: Request) -> int | None:
    """``?stream=stdout`` or ``stderr``; None is all."""
    value = request.query.get("stream")
    if value is None:
        return None
    if value not in follow.STREAMS:
        raise RequestError(
            400,
            "bad_parameter",
            f"stream: expected stdout or stderr, got {value[:40]!r}",
            details={"field": "stream", "allowed": list(follow.STREAMS)},
        )
    return follow.STREAMS[value]


def prefers(request: Request, kind: str, other: str) -> bool:
    """Whether ``Accept`` puts ``kind`` before ``other``, which is what one gets by default."""
    accept = request.headers.get("accept")
    if accept is None or kind.partition("/")[0] not in accept:
        return False
    return _quality(accept, kind) > _quality(accept, other)


def _quality(accept: str, kind: str) -> float:
    """RFC 9110 12.5.1: the most specific range that fits decides."""
    best, quality = -1, 0.0
    main = kind.partition("/")[0]
    for part in accept.split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        rank = {kind: 2, f"{main}/*": 1, "*/*": 0}.get(name.lower(), -1)
        if rank > best:
            best, quality = rank, _q(parameters)
    return quality + best / 100  # text/html before */* at equal weight


def _q(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return min(1.0, max(0.0, float(parameter[2:])))
            except ValueError:
                return 0.0
    return 1.0
