"""``/run``: one request from the upload to the verdict, as one answer or as events.

Runs as nobody. I/O: the exchange, the job's log and its outputs.
"""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Final

import msgspec

from sandrun.http import api, archive, follow, views
from sandrun.http.exchange import Exchange, Response
from sandrun.http.handlers.log_replies import EVENTS, KEEPALIVE_S, stream_reply, write_events
from sandrun.http.handlers.parameters import MAX_RUN_S, flag, number, wants_events
from sandrun.http.handlers.replies import NO_STORE
from sandrun.http.router import Match
from sandrun.job import MIB

if TYPE_CHECKING:
    from sandrun.http.app import App
    from sandrun.http.handlers.intake import Intake
    from sandrun.http.jobs import Job

INLINE_FILE_BYTES: Final = 256 * 1024
INLINE_TOTAL_BYTES: Final = MIB


class Run:
    """The route ``/run``."""

    def __init__(self, app: App, intake: Intake) -> None:
        self.app = app
        self.intake = intake

    async def run(self, exchange: Exchange, _: Match) -> None:
        """Accept, wait for the end, answer with everything."""
        query = exchange.request.query
        timeout_s = number(query, "timeout", MAX_RUN_S) if "timeout" in query else None
        inline = flag(query, "inline")
        job = await self.intake.accept(exchange)
        if wants_events(exchange.request):
            await self._run_events(exchange, job, timeout_s, inline=inline)
            return
        ended = await follow.wait_ended(job, timeout_s)
        await follow.take_turn(job)
        kept = job.kept.hold() if job.kept else None  # it may be wiped while we answer
        try:
            large = kept is not None and follow.is_large(job)
            logs = follow.snapshot(job, max_bytes=0 if large else follow.ALL_BYTES)
            outputs = _inline_outputs(job, inline=inline)
            reply = views.run_reply(self.app, job, logs, outputs)
            headers = (*NO_STORE, *self.app.quota.headers(job.client, self.app.clock()))
            status = 200 if ended else 202
            if kept is not None and large:
                await stream_reply(exchange, status, headers, reply, kept, 0, ended=ended)
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
            position = await write_events(exchange, steps, 0, None)
        if not over.done():  # else there may be more of the log
            kept = job.kept.hold() if job.kept else None  # it may be wiped while we write
            try:
                outputs = _inline_outputs(job, inline=inline)
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


def _inline_outputs(job: Job, *, inline: bool) -> list[api.InlineOutput]:
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
