"""Logs: what there is, and the stream of what comes. Runs as nobody.

I/O: the exchange and, through ``follow.py``, the job's log.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from sandrun.http import api, follow, views
from sandrun.http.exchange import Exchange, Response, wants_websocket
from sandrun.http.handlers.log_replies import EVENTS, KEEPALIVE_S, stream_reply, write_events
from sandrun.http.handlers.parameters import (
    MAX_RUN_S,
    cursor,
    flag,
    number,
    prefers,
    stream_filter,
    wants_events,
)
from sandrun.http.handlers.replies import NO_STORE, find, respond_json
from sandrun.http.router import Match
from sandrun.http.turns import TURNS

if TYPE_CHECKING:
    from sandrun.http.app import App
    from sandrun.http.jobs import Job, Kept
    from sandrun.http.origins import Origins

MAX_WAIT_S: Final = 60.0  # of one long-poll: below the idle time-outs of common proxies


class Logs:
    """Routes to a job's log."""

    def __init__(self, app: App, origins: Origins) -> None:
        self.app = app
        self.origins = origins

    async def logs(self, exchange: Exchange, match: Match) -> None:
        """What there is after ``since``; with ``wait``, as soon as there is something."""
        request = exchange.request
        job, _ = find(self.app, match.id)
        since = cursor(request)
        _check_cursor(job, since)
        if "wait" in request.query:
            await _wait_for_news(exchange, job, since, number(request.query, "wait", MAX_RUN_S))
        if prefers(request, "text/plain", "application/json"):
            await _logs_text(exchange, job, since)
            return
        records = flag(request.query, "records")
        await follow.take_turn(job, since)
        if not follow.is_large(job) or job.kept is None:
            await respond_json(exchange, follow.snapshot(job, since, records=records))
        else:
            kept = job.kept.hold()
            try:
                reply = follow.snapshot(job, since, max_bytes=0)
                await stream_reply(
                    exchange,
                    200,
                    NO_STORE,
                    reply,
                    kept,
                    since,
                    ended=job.has_ended,
                    records=records,
                )
            finally:
                kept.release()

    async def stream(self, exchange: Exchange, match: Match) -> None:
        """The log as it grows: WebSocket, event stream or plain text, on one cursor."""
        request = exchange.request
        job, _ = find(self.app, match.id)
        since = cursor(request)
        _check_cursor(job, since)
        if wants_websocket(request):
            self.origins.check(request)
            await _stream_websocket(exchange, job, since)
        elif request.method == "HEAD":
            await exchange.respond(Response(200, b"", "text/plain; charset=utf-8", NO_STORE))
        elif wants_events(request):
            await _stream_events(exchange, job, since)
        else:
            await _stream_text(exchange, job, since)


def _check_cursor(job: Job, since: int) -> None:
    try:
        follow.read(job, since, 1)
    except ValueError:
        raise follow.bad_cursor(since) from None


async def _wait_for_news(exchange: Exchange, job: Job, since: int, wait_s: float) -> None:
    wait_s = min(wait_s, MAX_WAIT_S)
    # Who sends no more may be gone: he is answered at once, with what there is.
    steps = follow.follow(job, since, exchange.gone, wait_s, exchange.silent)
    async with aclosing(steps):
        await anext(steps, None)


async def _logs_text(exchange: Exchange, job: Job, since: int) -> None:
    await follow.take_turn(job, since)
    try:
        entries = follow.read(job, since, 1 if follow.is_large(job) else follow.ALL_BYTES)
    except ValueError:
        raise follow.bad_cursor(since) from None
    wanted = stream_filter(exchange.request)
    if len(entries) > 0 and follow.is_large(job) and job.kept is not None:
        await _logs_text_streamed(exchange, job.kept.hold(), since, wanted)
        return
    body = b"".join(follow.raw(entry, wanted) for entry in entries)
    position = entries[-1].seq if entries else since
    headers = (("Log-Cursor", str(position)), ("Vary", "Accept"), *NO_STORE)
    await exchange.respond(Response(200, body, "text/plain; charset=utf-8", headers))


async def _logs_text_streamed(
    exchange: Exchange, kept: Kept, since: int, wanted: int | None
) -> None:
    """Releases ``kept``."""
    try:
        end = follow.end_of(kept, since)
        kind = ("Content-Type", "text/plain; charset=utf-8")
        headers = (kind, ("Log-Cursor", str(end)), ("Vary", "Accept"), *NO_STORE)
        await exchange.start(200, headers, None)
        for data in follow.raws(kept, since, end, wanted):
            await exchange.write(data)
            await TURNS.take()
        await exchange.finish()
    finally:
        kept.release()


async def _stream_websocket(exchange: Exchange, job: Job, since: int) -> None:
    socket = await exchange.websocket()

    async def listen() -> None:
        while await socket.receive() is not None:
            pass  # the client has nothing to say, but its frames must be taken

    gone = asyncio.ensure_future(listen())
    try:
        decode = views.TextDecoder(follow.before(job.kept, since))
        async with aclosing(follow.follow(job, since, gone)) as steps:
            async for entries in steps:
                for entry in entries:
                    record = views.log_record(entry, decode(entry))
                    await socket.send_text(api.encode(record).decode())
        if not gone.done():
            await socket.send_text(api.encode(_log_end(job)).decode())
            await socket.close(1000)
    finally:
        gone.cancel()


async def _stream_events(exchange: Exchange, job: Job, since: int) -> None:
    await exchange.start(200, EVENTS, None)
    await exchange.write(b"retry: 1000\n\n")
    # Who sends no more gets a comment: if he is gone, his host's reset says so.
    steps = follow.follow(job, since, exchange.gone, KEEPALIVE_S, exchange.silent)
    await write_events(exchange, steps, since, job.kept)
    await exchange.write(b"event: end\ndata: %b\n\n" % api.encode(_log_end(job)))
    await exchange.finish()


async def _stream_text(exchange: Exchange, job: Job, since: int) -> None:
    headers = (("Content-Type", "text/plain; charset=utf-8"), *NO_STORE)
    wanted = stream_filter(exchange.request)
    await exchange.start(200, headers, None)
    async with aclosing(follow.follow(job, since, exchange.gone)) as steps:
        async for entries in steps:
            data = b"".join(follow.raw(entry, wanted) for entry in entries)
            if data:
                await exchange.write(data)
    await exchange.finish()


def _log_end(job: Job) -> api.LogEnd:
    """The last message of a stream."""
    return api.LogEnd(status=job.status, exit_reason=job.exit_reason)
